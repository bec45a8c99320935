"""``specexit calibrate``: an exit threshold with a risk guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config


class CalibrateConfig(Config):
    """Choose the validity threshold on traces that nothing was trained on, and write it into the draft directory."""

    draft: Path = Field(description="draft directory; its policy is replaced")
    traces: Path = Field(description="calibration traces: a file or folder, from `collect`")
    scores: Path = Field(description="this draft's signals of the same traces, from `score`")
    risk: Literal["answer_changed", "accuracy_lost"] = Field(
        default="answer_changed",
        description="what counts as an error: any other answer, or one that turns right into wrong (needs references)",
    )
    epsilon: float = Field(default=0.02, gt=0, lt=1, description="risk that must not be exceeded")
    delta: float = Field(default=0.1, gt=0, lt=1, description="probability with which it may be exceeded all the same")
    smoothing: Literal["none", "ewma"] = Field(
        default="none", description="ewma: a moving average per token (fc source)"
    )
    alpha: float = Field(default=0.1, gt=0, le=1, description="weight of the newest value in the moving average")
    patience: int = Field(default=1, ge=1, description="boundaries in a row that must pass")
    min_thinking_tokens: int = Field(default=0, ge=0, description="no exit before this many thinking tokens")
