"""Schema of ``specexit bench-labels``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from specexit.config import Config
from specexit.outputs import OutputFile
from specexit.schemas.engine import EngineConfig


class BenchLabelsConfig(Config):
    """Measure how fast boundaries are tried, against one prefix at a time on the same engine."""

    out: OutputFile = Field(description="JSON file of the result")
    target: str = Field(description="name in configs/targets, or path of such a YAML file")
    prompts: str | None = Field(default=None, description="as for `collect`")
    split: Literal["draft", "calibration", "test"] | None = Field(default=None, description="as for `collect`")
    n: int = Field(default=32, gt=0, description="traces")
    split_endings: tuple[str, ...] = Field(
        default=(),
        description="in place of the target's own: with shorter steps a short trace has many boundaries, too",
    )
    engine: EngineConfig = EngineConfig(max_num_seqs=128)
