"""Schema of ``specexit bench-serving``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from specexit.config import Config
from specexit.outputs import OutputFile
from specexit.schemas.engine import EngineConfig, check_largest_batch


class BenchServingConfig(Config):
    """What the plug-in costs: exits enabled but never firing, against plain EAGLE-3 of the same draft, taking turns."""

    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the draft names"
    )
    draft: Path = Field(description="draft directory; eagle3 is its trunk without the signal rows")
    traces: Path = Field(description="traces whose prompts are asked, from `collect`")
    out: OutputFile = Field(description="file for the numbers, serving.json; replaced where it exists")
    batches: tuple[int, ...] = Field(default=(1, 8, 32), min_length=1, description="requests that run together")
    rounds: int = Field(
        default=16,
        gt=1,
        description="turns of each method at the largest batch; up to four times as many at smaller ones",
    )
    pairs: int = Field(
        default=8,
        gt=0,
        description="pairs of engine processes that share the turns, one after the other; intervals are over them",
    )
    num_speculative_tokens: int = Field(default=3, gt=0, description="draft tokens per step")
    max_new_tokens: int = Field(
        default=256, gt=1, description="of one response, thinking included; with a single one nothing is drafted"
    )
    engine: EngineConfig = Field(
        default=EngineConfig(), description="here always the largest of batches; and prefix caching is off"
    )
    seed: int = Field(default=0, description="of the engine and of the bootstrap")

    @model_validator(mode="after")
    def _every_pair_has_a_turn(self) -> BenchServingConfig:
        check_largest_batch(self.engine, max(self.batches))
        if self.pairs > self.rounds:
            raise ValueError(f"pairs={self.pairs}: there are only rounds={self.rounds} turns to share")
        return self
