"""``manifest.json``: the files of a folder that are finished, and how much is to come."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from rich.console import Console

from specexit.config import Config, ConfigError
from specexit.data.checks import TraceError
from specexit.data.stream import MANIFEST
from specexit.errors import first_problem
from specexit.schemas.target import TargetConfig
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
    """Number of traces that the run asks for, of all shards, those to come included; None in older folders."""
    weights: str | None = None
    """Fingerprint of the model that engines of one's own loaded, see `specexit.drafts.fingerprints`; None where only
    servers were asked, and in older folders."""
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


def same_weights(out: Path, there: Manifest, target: TargetConfig, weights: str | None) -> str | None:
    """The fingerprint that goes into a folder's manifest. Where an older folder has none, a line says so.

    Args:
      out: the folder.
      there: its manifest.
      target: whose model is loaded.
      weights: fingerprint of that model, None where servers are asked.

    Raises:
      ConfigError: other weights wrote what is there.
    """
    if weights is None or there.weights == weights:
        return there.weights
    if there.weights is not None:
        raise ConfigError(
            f"{out / MANIFEST}: weights is {there.weights[:12]}..., but the fingerprint of {target.folder} is "
            f"{weights[:12]}...: its config.json or a safetensors file was replaced; put it back or take a new folder"
        )
    if there.files or there.traces is not None:
        Console(stderr=True).print(
            f"{out}: has no record of the weights that wrote what is there, so nobody can tell whether these are "
            "the same; from now on it has one",
            soft_wrap=True,
            markup=False,
        )
    return weights
