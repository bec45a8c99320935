"""Schema of ``specexit collect``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from specexit.config import Config
from specexit.schemas.engine import EngineConfig
from specexit.schemas.prompts import ColumnsConfig


class CollectConfig(Config):
    """Let the target write traces and, behind every step boundary, the answer it would give there."""

    target: str = Field(default="tiny-reasoner", description="name in configs/targets, or path of such a YAML file")
    out: Path = Field(description="folder of the traces; collecting goes on where an earlier run stopped")
    prompts: str | None = Field(
        default=None,
        description="file of prompts (JSONL, CSV, Parquet), datasets folder, gsm8k:FILE, reasoning-gym:TASK ...",
    )
    columns: ColumnsConfig = ColumnsConfig()
    split: Literal["draft", "calibration", "test"] | None = Field(
        default=None, description="problems of the tiny reasoner in place of a prompt file"
    )
    n: int | None = Field(
        default=None, gt=0, description="the first n prompts; by default the whole file, or 500 of a split"
    )
    seed: int = Field(default=0, description="of the split's problems and of sampling")
    temperature: float = Field(default=0.0, ge=0, description="of the traces; trial answers are always greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="of the traces")
    top_k: int = Field(default=0, ge=0, description="of the traces; 0 keeps all tokens")
    max_new_tokens: int = Field(default=768, gt=0, description="longest response, thinking and answer")
    trial_max_tokens: int = Field(
        default=24, gt=0, description="longest trial answer; one that is cut off counts as none"
    )
    chunk: int = Field(
        default=125, gt=0, description="traces in a Parquet file, the unit that a resumed run goes on from"
    )
    workers: int | None = Field(
        default=None, gt=0, description="engines side by side; by default as many as the GPUs allow, or two on a CPU"
    )
    engine: EngineConfig = EngineConfig(max_num_seqs=128)

    @model_validator(mode="after")
    def _one_source(self) -> CollectConfig:
        if (self.prompts is None) == (self.split is None):
            raise ValueError("exactly one of prompts and split is needed")
        return self
