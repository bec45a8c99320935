"""Schema of ``specexit inspect``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class InspectConfig(Config):
    """Say what is in a draft directory."""

    draft: Path = Field(description="draft directory")
    target: str | None = Field(default=None, description="name or YAML file; a draft of another target is refused")
