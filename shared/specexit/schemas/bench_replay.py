"""Schema of `specexit bench-replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config
from specexit.outputs import OutputFile


class BenchReplayConfig(Config):
    """Hold a greedy benchmark's exits against those that the replay of the same traces foretells."""

    bench: Path = Field(description="folder that `specexit bench` wrote, greedy")
    traces: Path = Field(description="the traces it ran on")
    draft: Path = Field(description="the draft directory it ran with, for its policy")
    scores: Path = Field(description="its signals on the traces, from `score`")
    target: str | None = Field(default=None, description="name or YAML file; traces of another target are refused")
    method: Literal["specexit", "specexit-fc"] = Field(
        default="specexit", description="whose exits: specexit, or specexit-fc with that draft"
    )
    batch: int | None = Field(
        default=None, gt=0, description="problems in progress at once; by default the most there are"
    )
    least_same: float = Field(
        default=0.999, ge=0, le=1, description="share of exits that must be the same; below, an error"
    )
    near: float = Field(
        default=1e-3, ge=0, description="a signal this close to its threshold may fall on either side by rounding"
    )
    out: OutputFile = Field(description="JSON file to write")
