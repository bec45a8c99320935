"""Schema of ``specexit convert``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class ConvertConfig(Config):
    """Turn the newest checkpoint of a run into a draft directory."""

    run: Path = Field(description="run folder that `specexit train` wrote")
    out: Path = Field(description="new draft directory")
