"""Schema of ``specexit migrate``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class MigrateConfig(Config):
    """Bring a draft directory of an older version into today's form: its policy in a file, today's hashes."""

    draft: Path = Field(description="draft directory; weights and what they say stay as they are")
    target: str | None = Field(default=None, description="name or YAML file; a draft of another target is refused")
