"""Schema of ``specexit bench-training``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from specexit.config import Config
from specexit.outputs import OutputFile
from specexit.schemas.train import DraftShapeConfig


class BenchTrainingConfig(Config):
    """One training step of an EAGLE-3 draft: JAX against speculators, compiled, taking turns on the same cores."""

    out: OutputFile = Field(description="file for the numbers, training.json; replaced where it exists")
    draft: DraftShapeConfig = Field(description="the target has the same")
    vocab_size: int = Field(gt=0, description="the target's vocabulary")
    length: int = Field(default=2048, gt=0, description="tokens of a row; one row a step")
    ttt_steps: int = Field(default=7, gt=0, description="training-time-test steps")
    loss_chunk: int = Field(default=128, gt=0, description="time rows whose logits exist at once, in JAX")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of features and products; weights and optimizer are float32 whatever it is"
    )
    rounds: int = Field(default=6, gt=1, description="turns of each side")
    lengths: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(1024, 2048, 4096, 8192, 16384), min_length=1, description="for the table of the attention's memory"
    )
    seed: int = Field(default=0, description="of weights and data")

    @model_validator(mode="after")
    def _fit(self) -> BenchTrainingConfig:
        if self.length % self.loss_chunk:
            raise ValueError(f"loss_chunk={self.loss_chunk} does not divide length={self.length}")
        if self.ttt_steps > self.length - 2:
            raise ValueError(f"ttt_steps={self.ttt_steps}: expected at most length - 2, which is {self.length - 2}")
        if self.draft.draft_vocab_size > self.vocab_size:
            raise ValueError(
                f"draft.draft_vocab_size={self.draft.draft_vocab_size}: expected at most vocab_size={self.vocab_size}"
            )
        return self
