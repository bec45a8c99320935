"""Schema of ``specexit bench-data``."""

from __future__ import annotations

from pydantic import Field

from specexit.config import Config
from specexit.outputs import OutputFile


class BenchDataConfig(Config):
    """Measure annotate and pack on a generated corpus with the lengths of a real one."""

    out: OutputFile = Field(description="JSON file of the result")
    target: str = Field(description="name or YAML file of the target whose tokenizer is used")
    traces: int = Field(default=1000, gt=0, description="in the corpus")
    mean_tokens: float = Field(default=8192, gt=0, description="of a trace's thinking")
    spread: float = Field(default=0.77, gt=0, description="standard deviation of the lengths' logarithm")
    longest: int = Field(default=32768, gt=0, description="thinking tokens of a trace at most")
    step_tokens: float = Field(default=50, ge=2, description="mean tokens between two boundaries")
    lengths: tuple[int, ...] = Field(default=(8192, 16384), min_length=1, description="of the rows that are packed")
    workers: int | None = Field(default=None, gt=0, description="processes; by default what annotate and pack choose")
    seed: int = Field(default=0, description="of the corpus")
