"""From what each method wrote for the same problems to ``results.json``: means, comparisons and their intervals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from specexit.bench.requests import Request, Run
from specexit.bench.results import (
    BASELINE,
    LOSS_MARGIN,
    Comparison,
    Exits,
    Identity,
    Latency,
    MethodResult,
    Oracle,
    TaskResult,
    Triple,
)
from specexit.data.rows import NO_TASK, infer_decided, is_tried_throughout
from specexit.data.traces import Trace
from specexit.method.labels import ExitKind, exit_point
from specexit.method.statistics import (
    cluster_bootstrap,
    cluster_means,
    equivalence,
    holm,
    paired_bootstrap,
    paired_t_test,
    relative_cut,
    sign_flip_test,
)

TASK_RESAMPLES = 2000
"""Of the intervals by task, of which there are hundreds."""


def summarise(run: Run, *, says: str | None = None, parameters: Mapping[str, Any] | None = None) -> MethodResult:
    """Means of one method.

    Args:
      run: what it wrote.
      says: its definition.
      parameters: what it was run with.
    """
    requests = run.all_requests
    answers = [request.answer_tokens for request in requests]
    return MethodResult(
        accuracy=_mean(requests, lambda request: request.correct),
        accuracy_interval=accuracy(requests),
        thinking_tokens=_mean(requests, lambda request: request.thinking_tokens),
        total_tokens=_mean(requests, lambda request: len(request.token_ids)),
        probe_tokens=_mean(requests, lambda request: request.probe_tokens),
        answer_tokens=None if None in answers else float(np.mean(np.array(answers, np.float64))),
        seconds={str(batch): sum(seconds) for batch, seconds in run.seconds.items()},
        throughput={str(batch): _throughput(run, batch) for batch in run.seconds},
        latency={str(batch): latency(found) for batch, found in run.requests.items() if found[0].seconds is not None},
        open_loop={f"{rate:g}": latency(list(chain(*slices))) for rate, slices in run.open_loop.items()},
        joules=_joules(run),
        acceptance_length=1 + run.n_accepted / run.n_drafts if run.n_drafts else None,
        preempted=run.n_preempted,
        exits=Exits(**Counter(request.reason for request in requests)),
        says=says,
        parameters=dict(parameters or {}),
    )


def accuracy(requests: Sequence[Request]) -> Triple:
    """Share of right responses, with an interval over problems: all samples of a problem are drawn together."""
    of_problems: dict[str, list[bool]] = {}
    for request in requests:
        of_problems.setdefault(request.id, []).append(request.correct)
    return paired_bootstrap(np.mean, np.array([np.mean(right) for right in of_problems.values()]))


def _throughput(run: Run, batch: int) -> float:
    """Tokens of the responses a second."""
    return sum(len(request.token_ids) for request in run.requests[batch]) / sum(run.seconds[batch])


def _joules(run: Run) -> dict[str, float]:
    """Batch size -> joules per response; only of batch sizes with a reading for every slice."""
    found = {}
    for batch, slices in run.joules.items():
        told = [joules for joules in slices if joules is not None]
        if len(told) == len(slices):
            found[str(batch)] = sum(told) / len(run.requests[batch])
    return found


def latency(requests: Sequence[Request]) -> Latency:
    """Times of single requests."""
    times = _column(requests, _seconds)
    answers = [request.first_answer_seconds for request in requests if request.first_answer_seconds is not None]
    return Latency(
        mean=float(times.mean()),
        p50=float(np.quantile(times, 0.5)),
        p95=float(np.quantile(times, 0.95)),
        first_answer=float(np.mean(answers)) if answers else None,
        n=len(times),
    )


def compare(run: Run, baseline: Run, seed: int = 0) -> Comparison:
    """A method against the baseline on the same problems; several samples of one count as one cluster.

    Raises:
      ValueError: the two did not answer the same problems in the same order.
    """
    ours, theirs = run.all_requests, baseline.all_requests
    clusters = paired(ours, theirs)

    def cut(of: Callable[[Request], int]) -> Triple:
        return _interval(relative_cut, clusters, _column(theirs, of), _column(ours, of), seed=seed)

    gain = _column(ours, lambda request: request.correct) - _column(theirs, lambda request: request.correct)
    return Comparison(
        accuracy_delta=_interval(np.mean, clusters, gain, seed=seed),
        thinking_cut=cut(lambda request: request.thinking_tokens),
        total_cut=cut(lambda request: len(request.token_ids)),
        speedup={str(batch): speedup_at(batch, run, baseline, seed) for batch in baseline.seconds},
        open_loop={f"{rate:g}": open_loop_speedup(rate, run, baseline, seed) for rate in baseline.open_loop},
        p_loss=equivalence(-gain, LOSS_MARGIN, clusters).p_worse,
    )


def _interval(
    statistic: Callable[..., float], clusters: Shaped[np.ndarray, " n"], *columns: Shaped[np.ndarray, " n"], seed: int
) -> Triple:
    if len(set(clusters.tolist())) == len(clusters):
        return paired_bootstrap(statistic, *columns, seed=seed)
    return cluster_bootstrap(statistic, clusters, *columns, seed=seed)


def speedup_at(batch: int, run: Run, baseline: Run, seed: int = 0) -> Triple:
    """Seconds of the baseline over those of a method, with an interval by problem at batch 1, and by slice of the
    problems at larger batch sizes. All samples of a slice are one unit.

    Raises:
      ValueError: the two runs were sliced differently.
    """
    units = run.units[batch]
    if units != baseline.units[batch]:
        raise ValueError(
            f"at batch {batch} the two runs have different slices of the problems, so nothing can be paired"
        )
    return _interval(
        _speedup, np.array(units), np.array(baseline.seconds[batch]), np.array(run.seconds[batch]), seed=seed
    )


def open_loop_speedup(rate: float, run: Run, baseline: Run, seed: int = 0) -> Triple:
    """Seconds of the baseline's responses over those of a method's, as problems come in. The interval is by slice of
    the problems, as responses of one slice wait for each other.

    Raises:
      ValueError: the two did not answer the same problems in the same order.
    """
    theirs, ours = (list(chain(*of.open_loop[rate])) for of in (baseline, run))
    paired(ours, theirs)
    slices = np.repeat(np.arange(len(run.open_loop[rate])), [len(part) for part in run.open_loop[rate]])
    return _interval(_speedup, slices, _column(theirs, _seconds), _column(ours, _seconds), seed=seed)


def paired(ours: Sequence[Request], theirs: Sequence[Request]) -> Shaped[np.ndarray, " n"]:
    """The problems of two runs, one entry per response.

    Raises:
      ValueError: the two did not answer the same problems in the same order.
    """
    ids = [request.id for request in ours]
    if ids != [request.id for request in theirs]:
        raise ValueError("the two runs have different problems or another order of them, so nothing can be paired")
    return np.array(ids)


def faster(runs: Mapping[str, Run], name: str, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Batch size -> other method -> P-value of "``name`` answers sooner", Holm-corrected over all of them together.

    Of single requests' times: at batch 1 paired by problem. Above it the responses of a slice wait for each other, and
    whatever slows the machine down meanwhile hits all of them, so the slices are what is tested; a single one tells
    nothing. The oracle is left out: nothing is to be better than that.
    """
    raw: dict[tuple[str, str], float] = {}
    for batch, requests in runs[name].requests.items():
        slices = np.array(runs[name].unit_of[batch])
        for other, run in runs.items():
            if other in (name, "oracle") or any(request.seconds is None for request in run.requests[batch]):
                continue
            problems = paired(requests, run.requests[batch])
            theirs, ours = _column(run.requests[batch], _seconds), _column(requests, _seconds)
            if batch == 1:
                raw[str(batch), other] = sign_flip_test(theirs - ours, problems, seed=seed)
            elif len(set(slices.tolist())) > 1:
                ratios = cluster_means(theirs, slices) / cluster_means(ours, slices)
                raw[str(batch), other] = paired_t_test(np.log(ratios))
    adjusted = holm(np.array(list(raw.values()))) if raw else []
    found: dict[str, dict[str, float]] = {}
    for (batch, other), p in zip(raw, adjusted, strict=True):
        found.setdefault(batch, {})[other] = float(p)
    return found


def by_task(runs: Mapping[str, Run], seed: int = 0) -> dict[str, dict[str, TaskResult]]:
    """Task, or `NO_TASK` -> method -> its means there; empty where all problems are of one task, or of none."""
    tasks = sorted({request.task or NO_TASK for run in runs.values() for request in run.all_requests})
    if len(tasks) < 2:
        return {}
    found: dict[str, dict[str, TaskResult]] = {}
    for task in tasks:
        for name, run in runs.items():
            part = [request for request in run.all_requests if (request.task or NO_TASK) == task]
            found.setdefault(task, {})[name] = TaskResult(
                n=len({request.id for request in part}),
                accuracy=_mean(part, lambda request: request.correct),
                thinking_tokens=_mean(part, lambda request: request.thinking_tokens),
                exits=Exits(**Counter(request.reason for request in part)),
                speedup={} if name == BASELINE else _speedups_on(task, run, runs[BASELINE], seed),
            )
    return found


def _speedups_on(task: str, run: Run, baseline: Run, seed: int) -> dict[str, Triple]:
    """Batch size -> speed-up of single responses on one task; only where all of them were timed. The interval is by
    problem at batch 1, and by slice above it."""
    found = {}
    for batch, requests in run.requests.items():
        paired(requests, baseline.requests[batch])
        slices = np.array(run.unit_of[batch])
        of_task = np.array([(request.task or NO_TASK) == task for request in requests])
        both = (*requests, *baseline.requests[batch])
        if of_task.any() and all(request.seconds is not None for request in both):
            theirs, ours = _column(baseline.requests[batch], _seconds), _column(requests, _seconds)
            columns = (column[of_task] for column in (theirs, ours))
            found[str(batch)] = cluster_bootstrap(
                _speedup, slices[of_task], *columns, resamples=TASK_RESAMPLES, seed=seed
            )
    return found


def oracle(traces: Sequence[Trace], comparisons: Mapping[str, Comparison]) -> Oracle:
    """The cut of ending every trace at its earliest agreeing boundary, and how much of it each method reaches.

    In front of a trace's first trial nothing is known: where traces were not tried throughout, it cuts at least that.
    """

    def cut_at(kind: ExitKind) -> float:
        needed = (
            exit_point(t.boundaries, t.boundary_agrees, len(t.think_ids), kind, infer_decided(t.boundary_state))
            for t in traces
        )
        return 1 - sum(needed) / sum(len(trace.think_ids) for trace in traces)

    cut = cut_at("earliest")
    # A target that never overthinks leaves nothing to cut, and of nothing there is no share.
    reached = {name: versus.thinking_cut[0] / cut if cut else None for name, versus in comparisons.items()}
    return Oracle(
        thinking_cut=cut,
        for_good=cut_at("stable"),
        fraction_reached=reached,
        sampling=json.loads(traces[0].sampling),
        one_point=sum(not is_tried_throughout(trace) for trace in traces),
    )


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


def _identity(some: Sequence[Request], others: Sequence[Request]) -> Identity:
    by_id = {request.id: request.token_ids for request in others}
    return Identity(n=len(some), mismatches=sum(request.token_ids != by_id[request.id] for request in some))


def _column(requests: Sequence[Request], of: Callable[[Request], float]) -> Float[np.ndarray, " n"]:
    return np.array([of(request) for request in requests], np.float64)


def _mean(requests: Sequence[Request], of: Callable[[Request], float]) -> float:
    return float(_column(requests, of).mean())


def _seconds(request: Request) -> float:
    return request.seconds or 0.0


def _speedup(base: Float[np.ndarray, " n"], ours: Float[np.ndarray, " n"]) -> float:
    return float(base.sum() / ours.sum())
