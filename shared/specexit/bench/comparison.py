"""From what each method wrote for the same problems to ``results.json``: means, comparisons and their intervals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from specexit.bench.results import BASELINE, Comparison, Exits, Identity, MethodResult, Oracle, ResultsError, Triple
from specexit.config import write_text
from specexit.data.traces import Trace
from specexit.method.labels import exit_point
from specexit.method.statistics import paired_bootstrap, relative_cut

Reason = Literal["exit", "natural_end", "length"]


@dataclass(frozen=True)
class Request:
    """What a method wrote for one problem."""

    id: str
    """Of the problem, which is the id of its trace."""
    token_ids: list[int]
    """Everything generated, end of turn included."""
    thinking_tokens: int
    reason: Reason
    answer: str | None
    correct: bool
    signals: dict[str, float]
    """Signal values at the exit, or at the last verdict; empty where nothing was judged."""


@dataclass
class Run:
    """All that was measured of one method. Requests and seconds of all methods are in the same order of problems."""

    requests: dict[int, list[Request]] = field(default_factory=dict)
    """Batch size -> one entry per problem."""
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Batch size -> one entry per problem at batch 1, per slice of problems above."""
    n_drafts: int = 0
    """Speculation steps, of all batch sizes."""
    n_accepted: int = 0
    """Draft tokens that the target accepted in them."""

    def add(
        self, batch: int, requests: Sequence[Request], seconds: Sequence[float], n_drafts: int, n_accepted: int
    ) -> None:
        """Append what one slice of the problems gave."""
        self.requests.setdefault(batch, []).extend(requests)
        self.seconds.setdefault(batch, []).extend(seconds)
        self.n_drafts += n_drafts
        self.n_accepted += n_accepted

    @property
    def all_requests(self) -> list[Request]:
        """The requests at the largest batch size, where every problem is asked."""
        return self.requests[max(self.requests)]


def reason_of(outcome: Mapping[str, Any] | None, *, closed: bool, finish_reason: str) -> Reason:
    """How thinking ended.

    Args:
      outcome: what the plug-in reported; None where it is not there.
      closed: whether ``</think>`` was generated.
      finish_reason: vLLM's; ``length`` where the tokens ran out.
    """
    if outcome is not None and outcome["outcome"] == "exit":
        return "exit"
    return "natural_end" if closed or finish_reason != "length" else "length"


def summarise(run: Run) -> MethodResult:
    """Means of one method."""
    requests = run.all_requests
    return MethodResult(
        accuracy=float(np.mean([request.correct for request in requests])),
        thinking_tokens=float(np.mean([request.thinking_tokens for request in requests])),
        total_tokens=float(np.mean([len(request.token_ids) for request in requests])),
        seconds={str(batch): sum(seconds) for batch, seconds in run.seconds.items()},
        acceptance_length=1 + run.n_accepted / run.n_drafts if run.n_drafts else None,
        exits=Exits(**Counter(request.reason for request in requests)),
    )


def compare(run: Run, baseline: Run, seed: int = 0) -> Comparison:
    """A method against the baseline on the same problems.

    Raises:
      ValueError: the two did not answer the same problems in the same order.
    """
    ours, theirs = run.all_requests, baseline.all_requests
    if [request.id for request in ours] != [request.id for request in theirs]:
        raise ValueError("the two runs have different problems or another order of them, so nothing can be paired")

    def cut(of: Callable[[Request], int]) -> Triple:
        return paired_bootstrap(relative_cut, _column(theirs, of), _column(ours, of), seed=seed)

    gain = _column(ours, lambda request: request.correct) - _column(theirs, lambda request: request.correct)
    return Comparison(
        accuracy_delta=paired_bootstrap(np.mean, gain, seed=seed),
        thinking_cut=cut(lambda request: request.thinking_tokens),
        total_cut=cut(lambda request: len(request.token_ids)),
        speedup={
            str(batch): paired_bootstrap(_speedup, np.array(seconds), np.array(run.seconds[batch]), seed=seed)
            for batch, seconds in baseline.seconds.items()
        },
    )


def oracle(traces: Sequence[Trace], comparisons: Mapping[str, Comparison]) -> Oracle:
    """The cut of ending every trace at its earliest agreeing boundary, and how much of it each method reaches."""
    full = sum(len(trace.think_ids) for trace in traces)
    needed = sum(exit_point(trace.boundaries, trace.boundary_agrees, len(trace.think_ids)) for trace in traces)
    cut = 1 - needed / full
    # A target that never overthinks leaves nothing to cut, and then no share of it can be reached.
    reached = {name: versus.thinking_cut[0] / cut if cut else 0.0 for name, versus in comparisons.items()}
    return Oracle(thinking_cut=cut, fraction_reached=reached)


def identities(runs: Mapping[str, Run]) -> dict[str, Identity]:
    """Runs that have to give the same token ids under greedy decoding in float32: EAGLE-3 and plain decoding, and each
    method alone and in a batch."""
    found = {}
    if "none" in runs:
        found["eagle3_vs_none"] = _identity(runs[BASELINE].all_requests, runs["none"].all_requests)
    for name, run in runs.items():
        small, large = min(run.requests), max(run.requests)
        if small != large:
            found[f"{name}_batch_{small}_vs_{large}"] = _identity(run.requests[small], run.requests[large])
    return found


def write_requests(path: Path, runs: Mapping[str, Run]) -> None:
    """Write every request of every method as JSON lines, with ``method`` and ``batch``."""
    lines = [
        json.dumps({"method": name, "batch": batch} | asdict(request))
        for name, run in runs.items()
        for batch, requests in run.requests.items()
        for request in requests
    ]
    write_text(path, "\n".join(lines) + "\n")


def read_requests(path: Path, method: str) -> dict[str, Request]:
    """The requests of one method at its largest batch size, by problem.

    Raises:
      ResultsError: not there, or a line is not a request.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        ours = sorted((row for row in rows if row.pop("method") == method), key=lambda row: row.pop("batch"))
        return {row["id"]: Request(**row) for row in ours}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{path}: cannot be read as the requests of a benchmark: {error!r}") from error


def _identity(some: Sequence[Request], others: Sequence[Request]) -> Identity:
    by_id = {request.id: request.token_ids for request in others}
    return Identity(n=len(some), mismatches=sum(request.token_ids != by_id[request.id] for request in some))


def _column(requests: Sequence[Request], of: Callable[[Request], float]) -> Float[np.ndarray, " n"]:
    return np.array([of(request) for request in requests], np.float64)


def _speedup(base: Float[np.ndarray, " n"], ours: Float[np.ndarray, " n"]) -> float:
    return float(base.sum() / ours.sum())
