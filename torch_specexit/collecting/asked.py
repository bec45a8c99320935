"""``.collect/asked.json``: what the shards of a folder ask, as hashes by file.

A shard sees rows of its own alone: with this it finds out, before it asks anything, that its prompts are others than
those of the shards before it.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from specexit.config import Config, ConfigError, write_text
from specexit.errors import first_problem
from specexit.schemas.collect import CollectConfig
from torch_specexit.collecting.claim import ASKED
from torch_specexit.collecting.work import Ask, Chunk


class _Asked(Config):
    prompts: str
    """From where the shard that wrote this had them."""
    files: list[tuple[int, str]]
    """Traces and hash of each file of all shards, in their order."""


def asks_sha256(asks: Sequence[Ask]) -> str:
    """Hash of what is asked."""
    return hashlib.sha256(json.dumps([ask.to_json() for ask in asks]).encode()).hexdigest()


def check_same_prompts(config: CollectConfig, asks: Sequence[Ask]) -> None:
    """Hold what a shard asks against what earlier ones asked; call it under the folder's lock.

    Args:
      config: the shard's.
      asks: of all shards.

    Raises:
      ConfigError: it asks something else, or the record cannot be read.
    """
    path = config.out / ASKED
    if not path.exists():
        return save_asked(config, asks)
    try:
        earlier = _Asked.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}; remove the file, the next shard makes it again") from error
    for number, (n, sha256) in enumerate(earlier.files):
        ours = asks[number * config.chunk :][:n]
        if len(ours) == n and asks_sha256(ours) != sha256:  # of fewer prompts, the last file has fewer rows
            raise ConfigError(
                f"{config.out}: shard {config.shard} has its prompts from {_source(config)}, and what these give for "
                f"{Chunk(number, 0, ours).file} is not what {earlier.prompts} gave an earlier shard; give all shards "
                "the same prompts, or take a new folder"
            )
    if sum(n for n, _ in earlier.files) < len(asks):
        save_asked(config, asks)


def save_asked(config: CollectConfig, asks: Sequence[Ask]) -> None:
    """Leave the record for later shards."""
    pieces = [asks[start : start + config.chunk] for start in range(0, len(asks), config.chunk)]
    record = _Asked(prompts=_source(config), files=[(len(piece), asks_sha256(piece)) for piece in pieces])
    write_text(config.out / ASKED, record.model_dump_json() + "\n")


def _source(config: CollectConfig) -> str:
    if config.prompts is None:
        return f"split {config.split}"
    path = Path(config.prompts)
    return f"{path.resolve()} on {socket.gethostname()}" if path.exists() else config.prompts
