"""``specexit score``: a draft's signals at every thinking token of collected traces."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config


class ScoreConfig(Config):
    """Run target and draft over traces and keep the signals."""

    draft: Path = Field(description="draft directory with signal rows")
    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the draft names"
    )
    traces: Path = Field(description="trace file or folder, from `collect`")
    out: Path = Field(description="folder for scores.parquet and run.yaml")
    batch_tokens: int = Field(default=8192, gt=0, description="tokens in one forward pass, padding included")
    device: Literal["cpu", "cuda"] | None = Field(default=None, description="by default a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="of target and draft; by default float32 on a CPU, the target's on a GPU"
    )
