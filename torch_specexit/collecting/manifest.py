"""``manifest.json``: the files of a folder that are finished, and how much is to come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from rich.console import Console

from specexit.config import Config, ConfigError
from specexit.data.checks import TraceError
from specexit.data.stream import MANIFEST
from specexit.data.traces import check_tokenizer
from specexit.errors import first_problem
from specexit.schemas.target import TargetConfig
from torch_specexit.collecting.summary import Counts

FILES = {
    "weights": "config.json or a safetensors file",
    "tokenizer": "tokenizer.json",
    "template": "chat template",
}
"""Fields of the manifest that are hashes of the model's files -> the files, where they may be replaced."""


class Finished(Config):
    """A file of the manifest."""

    sha256: str
    asks: str
    """Hash of what was asked."""
    counts: Counts


class Manifest(Config):
    """``manifest.json``."""

    format_version: Literal[1] = 1
    traces: int | None = None
    """Number of traces that the run asks for, of all shards, those to come included; None in older folders."""
    weights: str | None = None
    """Fingerprint of the model that engines of one's own loaded, see `specexit.drafts.fingerprints`; None where only
    servers were asked, and in older folders."""
    tokenizer: str | None = None
    """Hash of the ``tokenizer.json`` that made prompts into ids; None in older folders."""
    template: str | None = None
    """Hash of the chat template that prompts were written with; None in older folders."""
    files: dict[str, Finished]


def read_files(out: Path) -> dict[str, Finished]:
    """The finished files of a folder; none where it has no manifest.

    Raises:
      TraceError: the manifest is damaged.
    """
    return read_manifest(out).files


def read_manifest(out: Path) -> Manifest:
    """The manifest of a folder; an empty one where it has none.

    Raises:
      TraceError: it is damaged.
    """
    path = out / MANIFEST
    if not path.exists():
        return Manifest(files={})
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise TraceError(
            f"{path}: {first_problem(error)}; remove the file, it is made again from the traces"
        ) from error


def same_model(out: Path, there: Manifest, target: TargetConfig, now: Mapping[str, str | None]) -> dict[str, Any]:
    """The hashes of a model's files that go into a folder's manifest. Where an older folder lacks some, a line says so.

    Args:
      out: the folder.
      there: its manifest.
      target: whose model is asked.
      now: hashes of that model, by the names in `FILES`; None of what servers have.

    Raises:
      ConfigError: another model wrote what is there.
      TraceError: another tokenizer did, as a file says that an older folder has, or a file cannot be read.
    """
    found = {name: getattr(there, name) for name in now}
    known = {name: sha256 for name, sha256 in now.items() if sha256 is not None}
    for name, sha256 in known.items():
        if found[name] not in (None, sha256):
            raise ConfigError(
                f"{out / MANIFEST}: {name} is {found[name][:12]}..., but that of {target.folder} is {sha256[:12]}...: "
                f"its {FILES[name]} was replaced; put it back or take a new folder"
            )
    if "tokenizer" in known and found["tokenizer"] is None:  # which most files name themselves
        for file in sorted(out.glob("traces-*.parquet")):
            check_tokenizer(file, target)
    unknown = [name for name in known if found[name] is None]
    if unknown and (there.files or there.traces is not None):
        Console(stderr=True).print(
            f"{out}: has no record of the {' and '.join(unknown)} that what is there was written with, so nobody can "
            "tell whether it is the same now; from now on it has one",
            soft_wrap=True,
            markup=False,
        )
    return found | known
