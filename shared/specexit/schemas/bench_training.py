"""Schema of ``specexit bench-training``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config
from specexit.schemas.train import DraftShapeConfig


class BenchTrainingConfig(Config):
    """One training step of an EAGLE-3 draft: JAX against speculators, compiled, taking turns on the same cores."""

    out: Path = Field(description="file for the numbers, training.json; replaced where it exists")
    draft: DraftShapeConfig = Field(description="sizes; the target has the same hidden size")
    vocab_size: int = Field(gt=0, description="the target's vocabulary")
    length: int = Field(default=2048, gt=0, description="tokens of a row; one row a step")
    ttt_steps: int = Field(default=7, gt=0, description="training-time-test steps")
    loss_chunk: int = Field(default=128, gt=0, description="time rows whose logits exist at once, in JAX")
    rounds: int = Field(default=6, gt=1, description="turns of each side")
    lengths: tuple[int, ...] = Field(
        default=(1024, 2048, 4096, 8192, 16384), min_length=1, description="for the table of the attention's memory"
    )
    seed: int = Field(default=0, description="of weights and data")
