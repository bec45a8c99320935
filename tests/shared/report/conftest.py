"""A benchmark of one problem, exited behind its third step, as the report's tests show it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from specexit.bench.comparison import summarise
from specexit.bench.requests import Request, Run, write_requests
from specexit.bench.results import (
    Comparison,
    MethodResult,
    Oracle,
    Results,
    write_results,
)
from specexit.data.traces import Trace, write_traces
from specexit.schemas.target import load_target_config
from tests.shared.report.pages import STEPS


@pytest.fixture(scope="module")
def trace(make_trace: Callable[..., Trace]) -> Trace:
    """Four steps: a confident wrong answer behind the second, the right one from the third on."""
    tokenizer = load_target_config("tiny-reasoner").tokenizer()
    steps = [tokenizer.encode(step) for step in STEPS]
    boundaries = np.cumsum([len(step) for step in steps]).tolist()
    return make_trace(
        prompt="What is 3 + 4 <script>alert(1)</script>?",
        think_ids=[token for step in steps for token in step],
        boundaries=boundaries,
        boundary_answers=[None, "8", "7", "7"],
        boundary_agrees=[False, False, True, True],
        boundary_confidence=[0.1, 0.9, 1.0, 1.0],
    )


@pytest.fixture(scope="module")
def runs(trace: Trace) -> dict[str, Run]:
    """One problem, exited behind its third step."""
    kept = trace.boundaries[2]
    end = load_target_config("tiny-reasoner").think_tokens().end

    def run(thinking: int, reason: str) -> Run:
        ids = [*trace.think_ids[:thinking], end, *trace.answer_ids]
        request = Request("a", ids, thinking, reason, "7", True, {}, seconds=thinking / 10)  # pyright: ignore[reportArgumentType]
        found = Run()
        found.add(1, [request], [2.0], 10, 19)
        found.add(16, [request], [1.0], 0, 0)
        return found

    return {"eagle3": run(len(trace.think_ids), "natural_end"), "specexit": run(kept, "exit")}


@pytest.fixture(scope="module")
def summaries(runs: dict[str, Run]) -> dict[str, MethodResult]:
    """Resampled once."""
    return {name: summarise(run) for name, run in runs.items()}


@pytest.fixture
def bench(tmp_path: Path, trace: Trace, runs: dict[str, Run], summaries: dict[str, MethodResult]) -> Path:
    """A benchmark's folder."""
    versus = Comparison(
        accuracy_delta=(-0.01, -0.02, 0.0),
        thinking_cut=(0.581, 0.56, 0.6),
        total_cut=(0.5, 0.48, 0.52),
        speedup={"1": (2.04, 1.9, 2.2), "16": (1.7, 1.6, 1.8)},
    )
    folder = tmp_path / "bench"
    results = Results(
        n=1,
        n_seconds={"1": 1, "16": 1},
        target="tiny-reasoner",
        hardware={"processor": "a slow one", "accelerator": None},
        versions={"vllm": "0.0"},
        seed=0,
        num_speculative_tokens=3,
        methods=summaries,
        against_eagle3={"specexit": versus},
        oracle=Oracle(thinking_cut=0.6, fraction_reached={"specexit": 0.968}),
        lossless={},
    )
    write_results(folder / "results.json", results)
    write_requests(folder / "requests.jsonl", runs)
    write_traces(folder / "traces.parquet", [trace])
    return folder
