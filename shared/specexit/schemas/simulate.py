"""``specexit simulate``: exact offline replay of policies on collected traces."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config
from specexit.outputs import OutputFile
from specexit.schemas.early import EARLY, EarlyShare


class SimulateConfig(Config):
    """Replay policies on traces and draw the accuracy-token curve."""

    traces: Path = Field(description="trace file or folder, from `collect`")
    scores: Path = Field(description="signals of the same traces, from `score`")
    target: str | None = Field(default=None, description="name or YAML file; traces of another target are refused")
    probe_scores: Path | None = Field(
        default=None,
        description="further signals of the same traces, to compare: of a hidden-state probe (source fc), or a draft",
    )
    methods: tuple[Path, ...] = Field(default=(), description="Python files with further methods, one METHOD each")
    out: OutputFile = Field(description="JSON file to write")
    smoothing: Literal["none", "ewma", "round"] = Field(default="none", description="of the swept policies")
    alpha: float = Field(default=0.1, gt=0, le=1, description="weight of the newest value in the moving average")
    early: EarlyShare = EARLY
    round_tokens: int = Field(default=3, gt=0, description="tokens in a step, for smoothing round")
    tolerances: tuple[float, ...] = Field(
        default=(0.0, 0.005, 0.01, 0.02), description="losses of accuracy at which the table quotes each curve"
    )
