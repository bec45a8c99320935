"""``manifest.json``: the files of a folder that are finished, and how much is to come."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from specexit.config import Config
from specexit.data.checks import TraceError
from specexit.data.stream import MANIFEST
from specexit.errors import first_problem
from torch_specexit.collecting.summary import Counts


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
    """That the run asks for, those of all shards and those not there yet; None in older folders."""
    files: dict[str, Finished]


def read_files(out: Path) -> dict[str, Finished]:
    """The finished files of a folder; none where it has no manifest.

    Raises:
      TraceError: the manifest is damaged.
    """
    path = out / MANIFEST
    if not path.exists():
        return {}
    try:
        return Manifest.model_validate_json(path.read_bytes()).files
    except ValidationError as error:
        raise TraceError(
            f"{path}: {first_problem(error)}; remove the file, it is made again from the traces"
        ) from error


def file_sha256(path: Path) -> str:
    """Hash of what is in a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
