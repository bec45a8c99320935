"""Schema of ``specexit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config


class DemoConfig(Config):
    """Every step of the pipeline, for real, on an embedded target."""

    out: Path = Field(default=Path("runs/demo"), description="run folder; an interrupted demo in it is continued")
    target: Literal["tiny-reasoner", "tiny-mixed"] = Field(
        default="tiny-reasoner", description="tiny-mixed: eight families of problems, results by family"
    )
    quick: bool = Field(default=False, description="every step at a reduced size")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the problems, the training and the measurement")
