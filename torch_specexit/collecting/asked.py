"""``.collect/asked.json``: what the shards of a folder ask, as hashes by file.

A shard reads its own rows alone. By this record it finds out, before it asks anything, that its prompts differ from
those of an earlier shard.
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

Files = list[tuple[int, str]]
"""Number of traces and hash of what is asked, for each Parquet file of all shards, in order."""


class _Asked(Config):
    prompts: str
    """Where the shard that wrote the record had its prompts from."""
    files: Files


def asks_sha256(asks: Sequence[Ask]) -> str:
    """SHA-256 of what is asked, in hex."""
    return hashlib.sha256(json.dumps([ask.to_json() for ask in asks]).encode()).hexdigest()


def asked_files(config: CollectConfig, asks: Sequence[Ask]) -> Files:
    """What all shards together ask, by file; of a million asks this takes a while."""
    pieces = [asks[start : start + config.chunk] for start in range(0, len(asks), config.chunk)]
    return [(len(piece), asks_sha256(piece)) for piece in pieces]


def check_same_prompts(config: CollectConfig, asks: Sequence[Ask], files: Files) -> None:
    """Check that a shard asks what earlier ones asked, and record what is new; call it under the folder's lock.

    Args:
      config: the shard's.
      asks: what all shards together ask.
      files: `asked_files` of them, made before that lock is held: all others wait for it.

    Raises:
      ConfigError: the shard asks something else, or the record cannot be read.
    """
    path = config.out / ASKED
    if not path.exists():
        return save_asked(config, files)
    try:
        earlier = _Asked.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}; remove the file, the next shard makes it again") from error
    for number, ((n, theirs), (there, ours)) in enumerate(zip(earlier.files, files, strict=False)):
        if n > there:  # with fewer prompts, the last file is shorter
            continue
        found = ours if n == there else asks_sha256(asks[number * config.chunk :][:n])
        if found != theirs:
            raise ConfigError(
                f"{config.out}: shard {config.shard} has its prompts from {_source(config)}, and what these give for "
                f"{Chunk(number, 0, ()).file} is not what {earlier.prompts} gave an earlier shard; give all shards "
                "the same prompts, or take a new folder"
            )
    if sum(n for n, _ in earlier.files) < len(asks):
        save_asked(config, files)


def save_asked(config: CollectConfig, files: Files) -> None:
    """Write the record for later shards."""
    write_text(config.out / ASKED, _Asked(prompts=_source(config), files=files).model_dump_json() + "\n")


def _source(config: CollectConfig) -> str:
    if config.prompts is None:
        return f"split {config.split}"
    path = Path(config.prompts)
    return f"{path.resolve()} on {socket.gethostname()}" if path.exists() else config.prompts
