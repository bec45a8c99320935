"""Schema of ``specexit ablate``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class AblateConfig(Config):
    """What each choice of the method is worth, from recorded traces and scores: a table and a figure each."""

    traces: Path = Field(description="trace file or folder, from `collect`")
    scores: dict[str, Path] = Field(
        min_length=1, description="name of a source or draft -> its signals of the traces; the first is the one varied"
    )
    out: Path = Field(description="new folder for ablations.json, a figure for each ablation, and run.yaml")
    target: str | None = Field(
        default=None, description="name or YAML; by default what the traces name. For the text of split tokens"
    )
    tolerances: tuple[float, ...] = Field(
        default=(0.0, 0.01, 0.02), min_length=1, description="losses of accuracy at which the tables quote each variant"
    )
