"""``specexit bench-replay``: whether served exits are the simulated ones, request by request.

`simulate`, `calibrate` and `ablate` judge policies by replaying traces; what they say is worth as much as the replay is
true. With greedy decoding it foretells every exit exactly, but for rounding: an engine's batches add up in another
order than `score` did, so a signal next to its threshold may fall on the other side, and of two tokens that are nearly
as probable the other may be written. Every difference is listed with what explains it, or with nothing that does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field
from rich.console import Console
from rich.table import Table

from specexit.bench.inputs import draft_inputs, others, read_scores_of
from specexit.bench.requests import Request, read_requests
from specexit.bench.results import ResultsError, read_results
from specexit.config import Config, write_text
from specexit.data.traces import Trace, check_one_target, data_sha256, read_traces
from specexit.differences import file_sha256
from specexit.drafts.directory import DraftError, read_config
from specexit.errors import listed
from specexit.method.decision import EARLY_TOKENS, Policy
from specexit.method.replay import Replay, with_boundaries
from specexit.method.signals import SIGNALS, column
from specexit.schemas.bench_replay import BenchReplayConfig
from specexit.schemas.sampling import is_greedy

Why = Literal[
    "rounding of a signal",
    "rounding of an early signal",
    "rounding of a signal and an early one",
    "other text",
    "out of tokens",
    "not replayed",
    "unexplained",
]
"""What explains an exit that is not the replayed one.

An early signal is one `EARLY_TOKENS` tokens before the boundary, by which that is passed over or judged. A signal and
an early one: the exit needed both to cross their thresholds, or either may have prevented it. Other text: request and
trace differ in a token, or in where the thinking ends. Out of tokens: the request, or its trace. Not replayed: thinking
that went in circles (``loop_period``), that a client ended, or that had no boundary within ``thinking_margin`` of its
maximum; a replay knows the policy alone, and ends at boundaries."""


class Difference(Config):
    """One request whose exit is not the replayed one."""

    id: str
    served: int | None = Field(description="thinking tokens at the exit; None where there was none")
    replayed: int | None
    why: Why
    at: int | None = Field(
        default=None,
        description="other text: the first token that differs; out of tokens: how many there were; else the boundary "
        "that only one exits at",
    )
    signals: dict[str, float] = Field(default={}, description="there, by the scores: those that the policy reads")
    early_signals: dict[str, float] = Field(
        default={}, description="likewise, where the policy's early thresholds look; none where there is no such token"
    )
    served_signals: dict[str, float] = Field(default={}, description="of the served request's last verdict")


class ReplayCheck(Config):
    """What ``bench-replay`` writes."""

    n: int = Field(description="requests")
    same: int = Field(description="those that exit where the replay does, or, like the replay, nowhere")
    share: float
    method: str
    policy: Policy
    differences: tuple[Difference, ...]
    inputs: dict[str, str] = Field(
        default={}, description="hashes of requests.jsonl, traces and draft; none in files of before"
    )


class ReplayError(ResultsError):
    """A benchmark that cannot be held against a replay, or differs from it too often; the message says in what."""


def check_exits(
    traces: Sequence[Trace],
    signals: Sequence[np.ndarray],
    policy: Policy,
    requests: dict[str, Request],
    *,
    method: str,
    near: float,
) -> ReplayCheck:
    """Compare exits, one trace and one request a problem.

    Args:
      traces: with the tokens that greedy decoding wrote without exits.
      signals: their scores, [thinking tokens, signals] each.
      policy: that the requests were served with.
      requests: by the trace's id.
      method: whose they are.
      near: distance to a threshold that rounding may cross.
    """
    traces = with_boundaries(traces)
    outcome = Replay(traces, signals).play(policy)
    differences = []
    for i, trace in enumerate(traces):
        request = requests[trace.id]
        served = request.thinking_tokens if request.reason == "exit" else None
        replayed = int(outcome.kept[i]) if outcome.exited[i] else None
        if served != replayed:
            differences.append(_explain(trace, signals[i], policy, request, served, replayed, near))
    same = len(traces) - len(differences)
    return ReplayCheck(
        n=len(traces),
        same=same,
        share=same / len(traces),
        method=method,
        policy=policy,
        differences=tuple(differences),
    )


def _explain(
    trace: Trace,
    signals: np.ndarray,
    policy: Policy,
    request: Request,
    served: int | None,
    replayed: int | None,
    near: float,
) -> Difference:
    """The first cause: text that is another before either exit, or the boundary that only one of the two exits at."""
    first = min(end for end in (served, replayed) if end is not None)
    written = request.token_ids[: request.thinking_tokens]
    common = min(len(written), len(trace.think_ids), first)
    apart = next((t for t in range(common) if written[t] != trace.think_ids[t]), None)
    found = {"id": trace.id, "served": served, "replayed": replayed, "served_signals": request.signals}
    if apart is not None:
        return Difference(**found, why="other text", at=apart)
    cut = request.reason == "length"
    if len(written) < first + cut:  # an exit needs room for its marker
        return Difference(**found, why="out of tokens" if cut else "other text", at=len(written))
    if len(trace.think_ids) < first:
        cut = trace.finish_reason == "length" and not trace.answer_ids
        return Difference(**found, why="out of tokens" if cut else "other text", at=len(trace.think_ids))
    if served == first and _is_beyond_replay(trace, request):
        return Difference(**found, why="not replayed", at=first)
    values, early = _values_at(signals, first - 1, policy.thresholds), {}
    if first > EARLY_TOKENS:
        early = _values_at(signals, first - 1 - EARLY_TOKENS, policy.early)
    why = _tipped(values, early, policy, near) if _by_signals(trace, policy, first) else "unexplained"
    return Difference(**found, why=why, at=first, signals=values, early_signals=early)


def _is_beyond_replay(trace: Trace, request: Request) -> bool:
    between = request.thinking_tokens not in trace.boundaries
    return request.ended_by in ("loop", "interrupt") or (request.ended_by == "cap" and between)


def _values_at(
    signals: Float[np.ndarray, "think signals"], at: int, thresholds: Mapping[str, float]
) -> dict[str, float]:
    """The values of one token that thresholds are held against."""
    return {name: float(signals[at, column(name)]) for name in thresholds}


def _by_signals(trace: Trace, policy: Policy, first: int) -> bool:
    """Whether the verdict behind so many tokens hangs on the signals there, and on nothing else."""
    # With patience or an average, the boundary is not decided by its own values alone.
    alone = policy.patience == 1 and policy.smoothing == "none"
    most = policy.max_thinking_tokens
    bounded = policy.min_thinking_tokens <= first and (most is None or first < most)
    return alone and bounded and first in trace.boundaries


def _tipped(values: Mapping[str, float], early: Mapping[str, float], policy: Policy, near: float) -> Why:
    """Which verdicts explain the difference, being others if every signal moves by at most ``near``."""
    sides: dict[Why, tuple[Mapping[str, float], Mapping[str, float]]] = {
        "rounding of a signal": (values, policy.thresholds),
        "rounding of an early signal": (early, policy.early),
    }
    close: list[Why] = [why for why, (found, thresholds) in sides.items() if _may_tip(found, thresholds, near)]
    failing: list[Why] = [
        why for why, (found, thresholds) in sides.items() if not all(_held(found, thresholds).values())
    ]
    # No exit by the scores: each side that fails has to tip. An exit by the scores: any side that may tip explains it.
    needed = failing or close
    if not needed or not set(needed) <= set(close):
        return "unexplained"
    return needed[0] if len(needed) == 1 else "rounding of a signal and an early one"


def _may_tip(values: Mapping[str, float], thresholds: Mapping[str, float], near: float) -> bool:
    """Whether a verdict is another if every signal moves by at most ``near``."""
    close = {name for name, value in values.items() if abs(value - thresholds[name]) <= near}
    failing = {name for name, holds in _held(values, thresholds).items() if not holds}
    return failing <= close if failing else bool(close)


def _held(values: Mapping[str, float], thresholds: Mapping[str, float]) -> dict[str, bool]:
    return {name: SIGNALS[column(name)].holds(value, thresholds[name]) for name, value in values.items()}


def bench_replay(config: BenchReplayConfig) -> ReplayCheck:
    """Compare, write the file, print the differences.

    Raises:
      ResultsError, TraceError, ScoreError, DraftError: a file is unreadable, or the traces are of several targets.
      ReplayError: the benchmark was sampled, asked other problems or another draft or policy, or its exits differ too
        often.
      ConfigError: the traces are of another target than the one given.
    """
    inputs = _inputs(config)
    policy, traces, signals, requests = _read(config, inputs)
    check = check_exits(traces, signals, policy, requests, method=config.method, near=config.near)
    check = check.model_copy(update={"inputs": inputs})
    write_text(config.out, json.dumps(check.model_dump(mode="json"), indent=1) + "\n")
    console = Console(markup=False)  # problems have any ids
    console.print(f"{check.method}: {check.same} of {check.n} requests exit as replayed ({100 * check.share:.2f} %)")
    if check.differences:
        console.print(_table(check))
    if check.share < config.least_same:
        reasons = Counter(difference.why for difference in check.differences)
        raise ReplayError(
            f"{config.bench}: {check.same} of {check.n} exits are the replayed ones ({listed(reasons)}), expected a "
            f"share of at least {config.least_same}; {config.out} lists them"
        )
    return check


def _inputs(config: BenchReplayConfig) -> dict[str, str]:
    draft = draft_inputs(config.draft, "draft_fc" if config.method == "specexit-fc" else "draft")
    return {"requests": file_sha256(config.bench / "requests.jsonl"), "traces": data_sha256(config.traces)} | draft


def _read(
    config: BenchReplayConfig, inputs: Mapping[str, str]
) -> tuple[Policy, list[Trace], list[np.ndarray], dict[str, Request]]:
    results = read_results(config.bench / "results.json")
    # Not of the traces: labelled ones are another file of the same.
    if told := others(results.inputs, {key: found for key, found in inputs.items() if key.startswith("draft")}):
        raise ReplayError(
            f"{config.bench}: measured with {told}, expected a draft with the weights, the config and the policy that "
            "were measured"
        )
    if not is_greedy(results.sampling):
        raise ReplayError(
            f"{config.bench}: sampled at temperature {results.sampling['temperature']}, expected greedy decoding: "
            "sampled text is another than the trace's"
        )
    requests = read_requests(config.bench / "requests.jsonl", config.method, config.batch)
    if not requests and config.method in results.methods:
        sizes = " or ".join(results.n_seconds)
        raise ReplayError(f"{config.bench}: batch is {config.batch}, expected one that was measured: {sizes}")
    if not requests:
        raise ReplayError(
            f"{config.bench}: no requests of method {config.method!r}, measured were {', '.join(results.methods)}"
        )
    check_one_target(config.traces, config.target)
    traces = {trace.id: trace for trace in read_traces(config.traces) if trace.sample == 0}
    if missing := sorted(set(requests) - set(traces)):
        raise ReplayError(f"{config.traces}: problem {missing[0]!r} of the benchmark is missing")
    asked = [traces[name] for name in requests]
    block = read_config(config.draft).specexit
    if block is None:
        raise DraftError(f"{config.draft / 'config.json'}: no specexit block, so this draft exits nowhere")
    return block.policy, asked, read_scores_of(config.scores, config.draft).of(asked), requests


def _table(check: ReplayCheck) -> Table:
    table = Table(title="exits that differ", title_justify="left")
    for heading in ("problem", "served", "replayed", "why", "at", "signals there"):
        table.add_column(heading)
    for difference in check.differences:
        cells = (difference.served, difference.replayed, difference.why, difference.at)
        sides = (("", difference.signals), ("early ", difference.early_signals))
        values = ", ".join(f"{side}{name} {value:.5f}" for side, of in sides for name, value in of.items())
        table.add_row(difference.id, *("none" if cell is None else str(cell) for cell in cells), values)
    return table
