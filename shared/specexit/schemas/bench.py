"""Schema of `specexit bench`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from specexit.config import Config
from specexit.schemas.engine import EngineConfig


class BenchConfig(Config):
    """Methods side by side on the same problems, taking turns.

    What is given decides what is run: ``none`` and ``eagle3`` always, ``specexit`` where the draft has signals,
    ``specexit-fc`` with ``draft_fc``, ``budget`` with ``budget`` or ``calibration_traces``.
    """

    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the draft names"
    )
    draft: Path = Field(description="draft directory; eagle3 is its trunk without the signal rows")
    draft_fc: Path | None = Field(default=None, description="a second draft directory, with signals of source fc")
    traces: Path = Field(description="traces of the test split: prompts, references, and the oracle's exit points")
    out: Path = Field(description="new folder for results.json, requests.jsonl, report.html and run.yaml")
    n: int = Field(default=300, gt=0, description="problems: the first n traces")
    n_latency: int = Field(default=40, gt=0, description="how many of them are asked one at a time as well")
    batch: int = Field(default=16, gt=1, description="requests that run together in the batched measurement")
    budget: int | None = Field(default=None, ge=0, description="thinking tokens of the fixed budget")
    calibration_traces: Path | None = Field(
        default=None, description="in place of `budget`: traces on which the smallest budget within 1 pt is chosen"
    )
    num_speculative_tokens: int = Field(default=3, gt=0, description="draft tokens per step")
    rounds: int = Field(default=6, gt=0, description="slices of the problems; the methods take turns slice by slice")
    max_new_tokens: int = Field(default=768, gt=0, description="of one response, thinking included")
    engine: EngineConfig = Field(
        default=EngineConfig(), description="prefix caching is always off here, max_num_seqs is batch"
    )
    seed: int = Field(default=0, description="of the engine and of the bootstrap")

    @model_validator(mode="after")
    def _latency_problems_are_among_them(self) -> BenchConfig:
        if self.n_latency > self.n:
            raise ValueError(f"n_latency={self.n_latency} is above n={self.n}, but it is taken from the same problems")
        return self
