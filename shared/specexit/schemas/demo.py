"""Schema of ``specexit demo``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class DemoConfig(Config):
    """Every step of the pipeline, for real, on the embedded tiny reasoner."""

    out: Path = Field(default=Path("runs/demo"), description="run folder; an interrupted demo in it is continued")
    quick: bool = Field(default=False, description="every step at a reduced size")
    seed: int = Field(default=0, description="of the problems, the training and the measurement")
