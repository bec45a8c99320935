"""Schema of ``specexit convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config


class ConvertConfig(Config):
    """Turn a checkpoint of a run into a draft directory."""

    run: Path = Field(description="run folder that `specexit train` wrote")
    which: Literal["latest", "best"] = Field(
        default="latest", description="the newest checkpoint, or the best by the run's best_by"
    )
    out: Path = Field(description="new draft directory")
