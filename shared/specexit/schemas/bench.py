"""Schema of `specexit bench`."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field, model_validator

from specexit.config import Config
from specexit.schemas.engine import EngineConfig, check_largest_batch
from specexit.schemas.sampling import SamplingConfig, is_greedy


class BenchConfig(Config):
    """Methods side by side on the same problems, taking turns.

    Without ``methods``, what is given decides what is run: ``none`` and ``eagle3`` always, ``specexit`` where the draft
    has signals, ``specexit-fc`` with ``draft_fc``, ``budget`` with ``budget`` or ``calibration_traces``.
    """

    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the draft names"
    )
    draft: Path = Field(description="draft directory; eagle3 is its trunk without the signal rows")
    draft_fc: Path | None = Field(default=None, description="a second draft directory, with signals of source fc")
    traces: Path = Field(description="traces of the test split: prompts, references, and the oracle's exit points")
    out: Path = Field(
        description="new folder for results.json, requests.jsonl, report.html and run.yaml; simulation.json with scores"
    )
    methods: tuple[str, ...] | None = Field(
        default=None,
        description="names (see docs/bench.md), or paths of Python files with a Method in them; by default those of "
        "none, eagle3, specexit, specexit-fc and budget that what is given allows",
    )
    scores: Path | None = Field(
        default=None,
        description="the draft's signals of the traces, from `score`: for exits-alone, and for the report's curves",
    )
    n: int | None = Field(
        default=None, gt=0, description="problems: the first n; traces of one prompt are one problem. By default all"
    )
    tasks: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="problems of these tasks alone; by default of all"
    )
    n_latency: int = Field(
        default=40,
        gt=0,
        description="how many of them, at most, are asked one at a time, and in every batch but the largest: of each "
        "task its share",
    )
    batches: tuple[int, ...] = Field(default=(16,), min_length=1, description="problems in progress at once, besides 1")
    rates: tuple[float, ...] = Field(
        default=(),
        description="arrivals per second of an open loop, each on the same n_latency problems, slice by slice",
    )
    sampling: SamplingConfig | None = Field(
        default=None,
        description="how responses are drawn, such as {temperature: 0.6, top_p: 0.95, top_k: 20}; by default as the "
        "traces were",
    )
    samples: int = Field(default=1, gt=0, description="responses to each problem in the largest batch, a seed each")
    budget: int | None = Field(default=None, ge=0, description="thinking tokens of the fixed budget")
    calibration_traces: Path | None = Field(
        default=None,
        description="traces of other prompts, on which methods choose their parameters, to lose at most what the "
        "draft's certificate allows, where its risk is accuracy_lost, else 1 pt of accuracy",
    )
    num_speculative_tokens: int = Field(default=3, gt=0, description="draft tokens per step")
    rounds: int = Field(
        default=6,
        gt=0,
        description="slices of the problems, at most: none is smaller than the batch; methods take turns by slice",
    )
    max_new_tokens: int | None = Field(
        default=None, gt=0, description="of one response, thinking included; by default the target's"
    )
    max_unfinished: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of eagle3's responses that may run out of tokens, answer included; above it, an error",
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="here always the largest of batches")
    seed: int = Field(default=0, description="of the engine and of the bootstrap")

    @model_validator(mode="after")
    def _batches(self) -> BenchConfig:
        if list(self.batches) != sorted(set(self.batches)) or self.batches[0] < 2:
            raise ValueError(f"batches={list(self.batches)}: expected rising sizes above 1, which is always measured")
        check_largest_batch(self.engine, self.batches[-1])
        if self.samples > 1 and self.sampling is not None and is_greedy(self.sampling.model_dump()):
            raise ValueError(f"samples={self.samples}: without a temperature, or with top_k=1, all would be the same")
        if self.tasks and self.scores:
            raise ValueError("tasks and scores: the curves would be of all tasks' traces, expected one of the two")
        if list(self.rates) != sorted(set(self.rates)) or not all(0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"rates={list(self.rates)}: expected rising numbers of arrivals per second above 0")
        return self
