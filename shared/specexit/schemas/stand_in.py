"""Schema of ``specexit stand-in``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config


class StandInConfig(Config):
    """A model of a real target's exact sizes that writes what a small one writes, and its draft likewise.

    Times measured on it are those of a target of that size for texts of the small model's lengths and acceptance. They
    say nothing about how long a real model thinks, how well it is drafted, or how often its exits are right.
    """

    target: str = Field(description="the small target: its name, or path of its YAML")
    shape: str = Field(description="whose sizes: a target's name or YAML, or a dense Qwen3's folder or config.json")
    draft: Path | None = Field(default=None, description="draft directory of the small target, made large as well")
    out: Path = Field(description="new folder for target/, target.yaml, draft/ and run.yaml")
    dtype: Literal["bfloat16", "float32"] = Field(default="bfloat16", description="of all weights, and of serving")
    draft_vocab_size: int = Field(default=32_000, gt=0, description="draft tokens; those of published EAGLE-3 drafts")
    seed: int = Field(default=0, description="of the noise where it changes nothing")
