"""Exact offline replay of a policy on collected traces: where it would have exited, and what the answer would be.

Nothing is generated. A trace carries the target's trial answer behind every boundary, so the outcome of an exit is
known; with greedy decoding it is what serving would give. `specexit.method.decision` is the rule; this is its fast
form for trying thousands of policies: which boundaries are judged, and by which values, does not depend on the
thresholds, so it is worked out once, and a policy then is a handful of array operations. The tests hold the two
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from specexit.data.answers import same_answer
from specexit.data.rows import AnyTrace, BoundaryState, Trace, infer_agrees
from specexit.data.scores import StoredScores
from specexit.method.decision import EARLY_TOKENS, Policy
from specexit.method.labels import exit_point
from specexit.method.signals import NAMES, SIGNALS, column

NO_VALUES = np.zeros((0, len(NAMES)), np.float32)


@dataclass(frozen=True)
class Verdicts:
    """Every judged boundary of all traces, one row each, in order."""

    trace: Int[np.ndarray, " judged"]
    boundary: Int[np.ndarray, " judged"]
    """Index into the trace's boundaries."""
    offset: Int[np.ndarray, " judged"]
    """Thinking tokens kept if the exit is here."""
    values: Float[np.ndarray, "judged signals"]
    before: Float[np.ndarray, "judged signals"] | None
    """Values `EARLY_TOKENS` tokens earlier, NaN where there is no such token; None where they are not known."""


@dataclass(frozen=True)
class AtBoundaries:
    """Signal values of traces at their boundaries alone: enough for policies that smooth nothing."""

    values: Sequence[Float[np.ndarray, "_boundaries signals"]]


@dataclass(frozen=True)
class Outcome:
    """What a policy does to each trace."""

    kept: Int[np.ndarray, " traces"]
    """Thinking tokens."""
    exited: Bool[np.ndarray, " traces"]
    """The rule fires, also where the thinking ends by itself: there a server writes what the model would."""
    changed: Bool[np.ndarray, " traces"]
    """The answer is not that of the full trace."""
    correct: Float[np.ndarray, " traces"]
    """1 or 0; NaN where the right answer is not known."""
    inferred: Bool[np.ndarray, " traces"]
    """The exit is at a boundary that was not tried: its verdict is that of others."""


@dataclass(frozen=True)
class Largest:
    """The sizes that settings of a method may depend on."""

    n_think: int
    """Thinking tokens of the longest trace."""
    n_boundaries: int
    """Boundaries of the trace that has most."""


class Replay:
    """Traces and their signals, ready for policies.

    Args:
      traces: with trial answers.
      signals: values at every thinking token of each trace, in memory or on the disk, where they are read once for each
        smoothing; or at its boundaries alone; None for policies without thresholds.
      round_tokens: step size that ``smoothing: round`` assumes; serving's steps vary with acceptance.
      largest: of all traces, where these are a block of them.
      right: what `_right` says of each trace, where its boundaries alone do not tell.
    """

    def __init__(
        self,
        traces: Sequence[AnyTrace],
        signals: Sequence[Float[np.ndarray, "_think signals"]] | StoredScores | AtBoundaries | None = None,
        *,
        round_tokens: int = 3,
        largest: Largest | None = None,
        right: Sequence[Float[np.ndarray, " boundaries"]] | None = None,
    ):
        self.traces = traces
        self.signals = signals
        self.round_tokens = round_tokens
        self.n_think = np.array([trace.n_think for trace in traces], np.int64)
        self.n_answer = np.array([trace.n_answer for trace in traces], np.int64)
        self.largest = largest or Largest(
            int(self.n_think.max(initial=0)), max((len(trace.boundaries) for trace in traces), default=0)
        )
        self.correct = np.array([_truth(trace, trace.correct) for trace in traces], np.float64)
        self.right = [_right(trace) for trace in traces] if right is None else right
        sizes = [len(trace.boundaries) for trace in traces]
        self._n_boundaries = np.array(sizes, np.int64)
        self._first = np.cumsum([0, *sizes])[:-1]
        """Row of each trace's first boundary in the columns of all boundaries."""
        self._at = _column((trace.boundaries for trace in traces), np.int32)
        self._agrees = _column((trace.boundary_agrees for trace in traces), bool)
        self._right = _column(self.right, np.float32)
        self._untried = _column(([state == "untried" for state in t.boundary_state] for t in traces), bool)
        self._verdicts: dict[tuple[str, float], Verdicts] = {}

    def play(self, policy: Policy) -> Outcome:
        """Apply a policy to every trace.

        Raises:
          ValueError: the policy has early thresholds, and the signals are those at boundaries alone.
        """
        verdicts = self.verdicts(policy)
        allowed = verdicts.offset >= policy.min_thinking_tokens
        allowed &= _pass(verdicts.values, policy.thresholds)
        if policy.early:
            if verdicts.before is None:
                raise ValueError(f"early thresholds {policy.early} need the signals of every thinking token")
            allowed &= _pass(verdicts.before, policy.early) | np.isnan(verdicts.before[:, 0])
        hit = allowed if policy.patience == 1 else _streak(allowed, verdicts.trace) >= policy.patience
        if policy.max_thinking_tokens is not None:
            hit |= verdicts.offset >= policy.max_thinking_tokens
        rows = np.flatnonzero(hit)
        first = rows[np.diff(verdicts.trace[rows], prepend=-1) != 0]
        return self._outcome(verdicts.trace[first], verdicts.boundary[first])

    def oracle(self) -> Outcome:
        """Exit at the first boundary that is known to have the full trace's answer: nothing sound cuts more, but in
        front of a trace's first trial, where nothing is known."""
        exits = [exit_point(t.boundaries, t.boundary_agrees, t.n_think) for t in self.traces]
        pairs = enumerate(zip(self.traces, exits, strict=True))
        found = [(i, trace.boundaries.index(at)) for i, (trace, at) in pairs if at in trace.boundaries]
        traces, boundaries = np.array(found, np.int64).reshape(-1, 2).T
        return self._outcome(traces, boundaries)

    def outcome_at(self, boundary: Int[np.ndarray, " traces"]) -> Outcome:
        """What an exit at the given boundary of each trace does; -1 lets a trace think to its end.

        Raises:
          ValueError: there is not one for each trace, or a trace has no such boundary.
        """
        if np.shape(boundary) != self.n_think.shape:
            raise ValueError(f"boundary has shape {np.shape(boundary)}, expected ({len(self.n_think)},), the traces")
        if (beyond := np.flatnonzero(boundary >= self._n_boundaries)).size:
            i, n = beyond[0], self._n_boundaries[beyond[0]]
            raise ValueError(f"boundary is {boundary[i]} for trace {i}, expected less than its {n} boundaries, or -1")
        traces = np.flatnonzero(boundary >= 0)
        return self._outcome(traces, boundary[traces])

    def verdicts(self, policy: Policy) -> Verdicts:
        """The boundaries that a policy's smoothing judges, with the values it judges them by."""
        key = (policy.smoothing, policy.alpha)
        if key not in self._verdicts:
            self._verdicts[key] = self._judge(policy)
        return self._verdicts[key]

    def _judge(self, policy: Policy) -> Verdicts:
        if isinstance(self.signals, AtBoundaries):
            return self._all_boundaries(policy, self.signals.values)
        found: list[tuple[np.ndarray, ...]] = [()] * len(self.traces)
        for i, signals in self._signals():
            offsets = np.array(self.traces[i].boundaries, np.int32)
            if policy.smoothing == "round":
                judged, seen = _round_values(offsets, signals, policy.alpha, self.round_tokens)
                found[i] = _row(i, judged), judged, offsets[judged], seen, np.full_like(seen, np.nan)
                continue
            smoothed = ewma(signals, policy.alpha) if policy.smoothing == "ewma" else signals
            judged, last = np.arange(len(offsets), dtype=np.int32), offsets - 1
            before = np.array(smoothed[np.maximum(last - EARLY_TOKENS, 0)])
            before[last < EARLY_TOKENS] = np.nan
            found[i] = _row(i, judged), judged, offsets, smoothed[last], before
        nothing = np.zeros(0, np.int32)
        parts = zip((nothing, nothing, nothing, NO_VALUES, NO_VALUES), *found, strict=True)
        return Verdicts(*map(np.concatenate, parts))

    def _all_boundaries(self, policy: Policy, values: Sequence[np.ndarray]) -> Verdicts:
        if policy.smoothing != "none":
            raise ValueError(f"smoothing {policy.smoothing!r} needs the signals of every thinking token")
        # Column by column: there may be millions of boundaries, and all columns in pieces are as much again.
        sizes = [len(seen) for seen in values]
        nothing = np.zeros(0, np.int32)
        return Verdicts(
            trace=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            boundary=np.concatenate([nothing, *(np.arange(size, dtype=np.int32) for size in sizes)]),
            offset=np.concatenate([nothing, *(np.array(trace.boundaries, np.int32) for trace in self.traces)]),
            values=np.concatenate([NO_VALUES, *values]),
            before=None,
        )

    def _signals(self) -> Iterable[tuple[int, Float[np.ndarray, "_think signals"]]]:
        """Index and signals of every trace, in any order."""
        assert not isinstance(self.signals, AtBoundaries)
        if isinstance(self.signals, StoredScores):
            return self.signals
        if self.signals is None:
            return ((i, np.zeros((n, len(NAMES)), np.float32)) for i, n in enumerate(self.n_think.tolist()))
        return ((i, signals) for i, (signals, _) in enumerate(zip(self.signals, self.traces, strict=True)))

    def _outcome(self, traces: np.ndarray, boundaries: np.ndarray) -> Outcome:
        kept, correct = self.n_think.copy(), self.correct.copy()
        exited, changed, inferred = (np.zeros(len(kept), bool) for _ in range(3))
        exited[traces] = True
        row = self._first[traces] + boundaries
        # Where the thinking ends by itself, an exit leaves the text as it is, though a forced trial may say otherwise.
        before = self._at[row] < self.n_think[traces]
        cut, row = traces[before], row[before]
        kept[cut], changed[cut] = self._at[row], ~self._agrees[row]
        correct[cut], inferred[cut] = self._right[row], self._untried[row]
        return Outcome(kept, exited, changed, correct, inferred)


def with_boundaries(traces: Sequence[Trace]) -> list[Trace]:
    """The traces, where those without boundaries get the ones that their tokens give them.

    `collect` tries nothing in a trace that states no answer, and writes it without boundaries; a policy exits in it all
    the same. At which tokens a step may end is read off the other traces. Nothing was tried at such a boundary.
    """
    split = {token for trace in traces for token in trace.split_ids}
    return [trace if trace.boundaries else _untried(trace, split) for trace in traces]


def _untried(trace: Trace, split: set[int]) -> Trace:
    boundaries = [i + 1 for i, token in enumerate(trace.think_ids) if token in split]
    n = len(boundaries)
    return replace(
        trace,
        boundaries=boundaries,
        boundary_answers=[None] * n,
        boundary_agrees=[False] * n,
        boundary_confidence=[0.0] * n,
        boundary_state=["untried"] * n,
        boundary_trial_tokens=[0] * n,
    )


def _column(parts: Iterable[Sequence[Any] | np.ndarray], dtype: Any) -> np.ndarray:
    """Values at all boundaries, trace by trace."""
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype) for part in parts)])


def _row(trace: int, judged: Int[np.ndarray, " judged"]) -> Int[np.ndarray, " judged"]:
    return np.full(len(judged), trace, np.int32)


def _pass(values: Float[np.ndarray, "judged signals"], thresholds: dict[str, float]) -> Bool[np.ndarray, " judged"]:
    good = np.ones(len(values), bool)
    for name, threshold in thresholds.items():
        good &= SIGNALS[column(name)].holds(values[:, column(name)], threshold)
    return good


def ewma(values: Float[np.ndarray, "think signals"], alpha: float) -> Float[np.ndarray, "think signals"]:
    """Moving average per token, starting at the first value: ``alpha * new + (1 - alpha) * old``."""
    if not len(values):
        return values
    weighted = alpha * values[1:]
    return np.array(list(accumulate(weighted, lambda old, new: new + (1 - alpha) * old, initial=values[0])))


def _round_values(
    offsets: Int[np.ndarray, " boundaries"], signals: Float[np.ndarray, "think signals"], alpha: float, size: int
) -> tuple[Int[np.ndarray, " judged"], Float[np.ndarray, "judged signals"]]:
    """The reference code's rule: the first boundary of each round is judged by the average up to the round before."""
    full = len(signals) // size * size
    means = signals[:full].reshape(-1, size, signals.shape[1]).mean(axis=1)
    if full < len(signals):
        means = np.concatenate([means, signals[full:].mean(axis=0, keepdims=True)])
    rounds, first = np.unique((offsets - 1) // size, return_index=True)
    first = first[rounds > 0]  # the first round has no average to be judged by
    return first, ewma(means, alpha)[rounds[rounds > 0] - 1]


def _streak(passed: Bool[np.ndarray, " judged"], trace: Int[np.ndarray, " judged"]) -> Int[np.ndarray, " judged"]:
    """Number of passed boundaries in a row up to and including each, counted within a trace."""
    index = np.arange(1, len(passed) + 1, dtype=np.int32)
    starts = np.diff(trace, prepend=-1) != 0
    resets = np.where(~passed, index, np.where(starts, index - 1, 0))
    return index - np.maximum.accumulate(resets)


def _truth(trace: AnyTrace, correct: bool | None) -> float:
    return np.nan if trace.reference is None or correct is None else float(correct)


def _right(trace: AnyTrace) -> Float[np.ndarray, " boundaries"]:
    """Whether the trial answer behind each boundary is right; one that agrees is as right as the full trace's.

    An untried boundary is right where the trials on both sides are. What is not known counts as wrong: behind a trial
    that was undecided, which is no answer whatever it had written, and in front of the first trial.
    """
    rows = zip(trace.boundary_state, trace.boundary_agrees, trace.boundary_answers, strict=True)
    tried = [state if state == "untried" else _verdict(trace, state, same, answer) for state, same, answer in rows]
    return np.array([_truth(trace, right) for right in infer_agrees(tried)], np.float32)


def _verdict(trace: AnyTrace, state: str, agrees: bool, answer: str | None) -> BoundaryState:
    """Whether a trial agrees with the reference, in the words for whether it agrees with the trace's answer."""
    if agrees:
        return "agrees" if trace.correct else "differs"
    right = state == "differs" and same_answer(answer, trace.reference, trace.answer_kind)
    return "agrees" if right else "differs"
