"""What a set of labelled traces says about a target's thinking, counted block by block.

A `Tally` counts traces; two tallies add up to that of both, so that blocks can be counted in processes of their own.
`statistics` turns one into shares.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from jaxtyping import Bool

from specexit.data.answers import same_answer
from specexit.data.rows import (
    NO_TASK,
    LabelledTrace,
    first_trial,
    free_trials,
    is_tried_throughout,
    known_verdicts,
    short_hash,
)
from specexit.data.seen import Seen

FRACTIONS = tuple(tenth / 10 for tenth in range(1, 11))
"""Shares of a trace's thinking at which the oracle curve is read."""


@dataclass(frozen=True)
class Ending:
    """What one way of ending the thinking leads to, over all traces that can tell: where an early end leads is not
    known of traces that were not tried throughout, see `specexit.data.rows.is_tried_throughout`."""

    thinking_cut: float | None
    """Share of their thinking tokens that is saved, pooled; None where there is no such trace."""
    thinking_tokens: float | None
    """Mean thinking tokens kept; None where there is no such trace."""
    agreement: float | None
    """Share of them with the full trace's answer, of those whose answer there is known: behind a trial that was cut off
    it is not. None where it is known of none."""
    accuracy: float | None
    """Share of these with the right answer, of those with a reference; None where none has one."""


@dataclass(frozen=True)
class CurvePoint:
    """The state of all traces after a share of their thinking."""

    fraction: float
    settled: float | None
    """Share of traces whose earliest exit point has been passed, of those that were tried throughout."""
    settled_stable: float
    """Share of all traces whose stable exit point has been passed."""
    ending: Ending
    """Ending at the last boundary by then, and at the first where none has come."""


@dataclass(frozen=True)
class Part:
    """Traces of one task, or of one range of lengths."""

    n: int
    thinking_tokens: float
    """Mean thinking tokens of a trace."""
    redundant: float | None
    """Share of the thinking tokens behind the earliest exit point, pooled over the traces that were tried throughout;
    None where there is none, see `specexit.data.rows.is_tried_throughout`."""
    redundant_stable: float
    """Share of the thinking tokens behind the stable exit point, pooled over all traces."""
    at_once: float
    """Share of traces whose first boundary has the answer already, for good."""
    never: float
    """Share of traces that have the answer for good at their natural end only."""
    wavering: float | None
    """Share of the traces tried throughout that have the answer, lose it, and find it again, see `wavers`; None where
    there is none."""


@dataclass(frozen=True)
class Statistics:
    """What `annotate` says about a set of traces."""

    n: int
    """Labelled traces."""
    throughout: int
    """Of them, those that were tried throughout; where an early end leads is known of these alone."""
    referenced: int
    """Of them, those whose right answer is known: accuracy is of these alone."""
    prompts: int
    """Different prompts among them."""
    dropped: dict[str, int]
    """Traces that were left out, by reason."""
    boundaries_per_trace: float
    valid_boundaries: float | None
    """Share that agrees, of the boundaries with a verdict before the natural end."""
    differing_boundaries: int
    """Of these, those that do not agree."""
    boundaries_in_front: int
    """Boundaries in front of their trace's first trial, of which nothing is known."""
    hard_boundaries: int
    """Traces with a hard boundary, see `specexit.data.annotate.hard_boundary`."""
    hard_valid: float | None
    """Share that agrees, of the hard boundaries with a verdict."""
    thinking_tokens: int
    """Of all traces."""
    trials: int
    """Boundaries that were tried."""
    undecided: int
    """Of them, those whose trial was cut off."""
    trial_tokens: int
    """Generated for trials, where it is known."""
    free_trials: int
    """Boundaries where the whole answer was written too, nothing forced, and both came to an end."""
    free_same: float | None
    """Share of them with the forced trial's verdict."""
    lengths: dict[str, int]
    """Thinking tokens of a trace: the shortest, quantiles, the longest."""
    whole: Part
    by_task: dict[str, Part]
    by_length: dict[str, Part]
    """By ranges of thinking tokens."""
    full: Ending
    """Thinking to the natural end."""
    oracle_earliest: Ending
    oracle_stable: Ending
    first_boundary: Ending
    hard_boundary: Ending
    """Ending at the hard boundary; at the natural end where there is none."""
    curve: list[CurvePoint]


@dataclass
class _Sums:
    """Base of what adds up field by field."""

    def add(self, other: _Sums) -> None:
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


@dataclass
class _EndingSums(_Sums):
    n: int = 0
    thinking: int = 0
    kept: int = 0
    judged: int = 0
    agree: int = 0
    right: int = 0
    known: int = 0


@dataclass
class _PartSums(_Sums):
    n: int = 0
    thinking: int = 0
    throughout: int = 0
    thinking_throughout: int = 0
    redundant: int = 0
    redundant_stable: int = 0
    at_once: int = 0
    never: int = 0
    wavering: int = 0

    def shares(self) -> Part:
        return Part(
            n=self.n,
            thinking_tokens=self.thinking / self.n,
            redundant=_share(self.redundant, self.thinking_throughout),
            redundant_stable=self.redundant_stable / self.thinking,
            at_once=self.at_once / self.n,
            never=self.never / self.n,
            wavering=_share(self.wavering, self.throughout),
        )


@dataclass
class Tally:
    """Counts of labelled traces."""

    n: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    endings: dict[str, _EndingSums] = field(default_factory=dict)
    parts: dict[tuple[str, str], _PartSums] = field(default_factory=dict)
    settled: Counter[float] = field(default_factory=Counter)
    settled_stable: Counter[float] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    """How many traces have so many thinking tokens."""
    prompts: set[int] | Seen = field(default_factory=set)
    """Their hashes: of one block in memory, of all on the disk."""

    def count(self, trace: LabelledTrace) -> None:
        """Count one trace."""
        n_think = len(trace.think_ids)
        self.n += 1
        self.lengths[n_think] += 1
        self.prompts.add(short_hash(trace.prompt_hash))
        known = known_verdicts(trace.boundary_state)
        self._count_boundaries(trace, known)
        self._count_part("whole", "", trace)
        self._count_part("task", trace.task or NO_TASK, trace)
        self._count_part("length", length_range(n_think), trace)
        self._count_ending("full", trace, None, known)
        self._count_ending("oracle_stable", trace, _index(trace, trace.exit_stable), known)
        self.settled_stable.update(fraction for fraction in FRACTIONS if trace.exit_stable <= _at(fraction, n_think))
        # Where one exit point was looked for, the boundaries tried are those about it, and no sample of all.
        if is_tried_throughout(trace):
            self._count_early_endings(trace, known)

    def _count_early_endings(self, trace: LabelledTrace, known: Bool[np.ndarray, " boundaries"]) -> None:
        self._count_ending("oracle_earliest", trace, _index(trace, trace.exit_earliest), known)
        self._count_ending("first_boundary", trace, 0, known)
        self._count_ending("hard_boundary", trace, trace.hard_boundary, known)
        for fraction in FRACTIONS:
            at = _at(fraction, len(trace.think_ids))
            by_then = bisect_right(trace.boundaries, at)
            self._count_ending(f"curve {fraction}", trace, max(by_then - 1, 0), known)
            self.settled[fraction] += trace.exit_earliest <= at

    def _count_boundaries(self, trace: LabelledTrace, known: Bool[np.ndarray, " boundaries"]) -> None:
        early = bisect_right(trace.boundaries, len(trace.think_ids) - 1)
        free = [trial.same for trial in free_trials(trace) if trial.same is not None]
        hard = trace.hard_boundary
        judged = [trace.boundary_agrees[hard]] if hard is not None and known[hard] else []
        self.counts.update(
            boundaries=len(trace.boundaries),
            early=int(known[:early].sum()),
            early_agree=sum(trace.boundary_agrees[:early]),
            in_front=first_trial(trace.boundary_state),
            hard=hard is not None,
            hard_judged=len(judged),
            hard_agree=sum(judged),
            untried=trace.boundary_state.count("untried"),
            undecided=trace.boundary_state.count("undecided"),
            trial_tokens=sum(trace.boundary_trial_tokens),
            free=len(free),
            free_same=sum(free),
        )

    def _count_part(self, axis: str, name: str, trace: LabelledTrace) -> None:
        part = self.parts.setdefault((axis, name), _PartSums())
        n_think = len(trace.think_ids)
        part.n += 1
        part.thinking += n_think
        part.redundant_stable += n_think - trace.exit_stable
        part.at_once += trace.exit_stable == trace.boundaries[0] < n_think
        part.never += trace.exit_stable == n_think
        if is_tried_throughout(trace):
            part.throughout += 1
            part.thinking_throughout += n_think
            part.redundant += n_think - trace.exit_earliest
            part.wavering += wavers(trace)

    def _count_ending(
        self, name: str, trace: LabelledTrace, index: int | None, known: Bool[np.ndarray, " boundaries"]
    ) -> None:
        sums = self.endings.setdefault(name, _EndingSums())
        if index is not None and trace.boundaries[index] == len(trace.think_ids):
            index = None  # the natural end has the full trace's answer, whatever a trial there says
        sums.n += 1
        sums.thinking += len(trace.think_ids)
        sums.kept += len(trace.think_ids) if index is None else trace.boundaries[index]
        if index is not None and not known[index]:
            return
        agrees = index is None or trace.boundary_agrees[index]
        sums.judged += 1
        sums.agree += agrees
        if trace.reference is not None:
            sums.known += 1
            sums.right += _is_right(trace, None if agrees else index)

    def add(self, other: Tally) -> None:
        """Count another tally's traces too."""
        self.n += other.n
        self.counts.update(other.counts)
        self.settled.update(other.settled)
        self.settled_stable.update(other.settled_stable)
        self.lengths.update(other.lengths)
        self.prompts.update(other.prompts)
        for mine, theirs in ((self.endings, other.endings), (self.parts, other.parts)):
            for key, sums in theirs.items():
                mine.setdefault(key, type(sums)()).add(sums)  # pyright: ignore[reportArgumentType]

    def statistics(self, dropped: dict[str, int]) -> Statistics:
        """Shares of what was counted; at least one trace must have been."""
        counts, throughout = self.counts, self.parts["whole", ""].throughout
        lengths = _nearest(self.lengths, (0, 0.1, 0.5, 0.9, 1))
        return Statistics(
            n=self.n,
            throughout=throughout,
            referenced=self.endings["full"].known,
            prompts=len(self.prompts),
            dropped=dropped,
            boundaries_per_trace=counts["boundaries"] / self.n,
            valid_boundaries=_share(counts["early_agree"], counts["early"]),
            differing_boundaries=counts["early"] - counts["early_agree"],
            boundaries_in_front=counts["in_front"],
            hard_boundaries=counts["hard"],
            hard_valid=_share(counts["hard_agree"], counts["hard_judged"]),
            thinking_tokens=self.parts["whole", ""].thinking,
            trials=counts["boundaries"] - counts["untried"],
            undecided=counts["undecided"],
            trial_tokens=counts["trial_tokens"],
            free_trials=counts["free"],
            free_same=_share(counts["free_same"], counts["free"]),
            lengths=dict(zip(("shortest", "p10", "median", "p90", "longest"), lengths, strict=True)),
            whole=self.parts["whole", ""].shares(),
            by_task=self._parts("task"),
            by_length=self._parts("length"),
            full=self._ending("full"),
            oracle_earliest=self._ending("oracle_earliest"),
            oracle_stable=self._ending("oracle_stable"),
            first_boundary=self._ending("first_boundary"),
            hard_boundary=self._ending("hard_boundary"),
            curve=[
                CurvePoint(
                    fraction=fraction,
                    settled=_share(self.settled[fraction], throughout),
                    settled_stable=self.settled_stable[fraction] / self.n,
                    ending=self._ending(f"curve {fraction}"),
                )
                for fraction in FRACTIONS
            ],
        )

    def _parts(self, axis: str) -> dict[str, Part]:
        found = [(name, sums) for (kind, name), sums in self.parts.items() if kind == axis]
        by_size = sorted(found, key=lambda item: item[1].thinking / item[1].n)
        return {name: sums.shares() for name, sums in by_size}

    def _ending(self, name: str) -> Ending:
        sums = self.endings.get(name, _EndingSums())
        return Ending(
            thinking_cut=_share(sums.thinking - sums.kept, sums.thinking),
            thinking_tokens=_share(sums.kept, sums.n),
            agreement=_share(sums.agree, sums.judged),
            accuracy=_share(sums.right, sums.known),
        )


def summarise(traces: Iterable[LabelledTrace], dropped: dict[str, int]) -> Statistics:
    """Statistics of labelled traces, at least one."""
    tally = Tally()
    for trace in traces:
        tally.count(trace)
    return tally.statistics(dropped)


def wavers(trace: LabelledTrace) -> bool:
    """Whether a trial differs behind one that agrees; at the natural end the answer is there again.

    A trial that was cut off does not count as one that differs.
    """
    states = [state for at, state in zip(trace.boundaries, trace.boundary_state, strict=True) if at < trace.n_think]
    return "agrees" in states and "differs" in states[states.index("agrees") :]


def length_range(n: int) -> str:
    """The range between two powers of two that a length lies in.

    Example:
      >>> length_range(100), length_range(128), length_range(5000)
      ('64 to 127', '128 to 255', '4096 to 8191')
    """
    low = 1 << (max(n, 1).bit_length() - 1)
    return f"{low} to {2 * low - 1}"


def _at(fraction: float, n_think: int) -> int:
    """Thinking tokens by a share of them; in integers, as 0.7 * 90 is less than 63."""
    return round(10 * fraction) * n_think // 10


def _index(trace: LabelledTrace, offset: int) -> int | None:
    """Of the boundary at an offset; None for the natural end."""
    return None if offset == len(trace.think_ids) else bisect_right(trace.boundaries, offset) - 1


def _is_right(trace: LabelledTrace, index: int | None) -> bool:
    """Whether the answer at a boundary is right, or at None the full trace's."""
    if index is None:
        return (
            trace.correct
            if trace.correct is not None
            else same_answer(trace.answer, trace.reference, trace.answer_kind)
        )
    return same_answer(trace.boundary_answers[index], trace.reference, trace.answer_kind)


def _nearest(counts: Counter[int], levels: Sequence[float]) -> list[int]:
    """As `np.quantile` with method ``nearest``, of numbers that are there so many times.

    Example:
      >>> _nearest(Counter({30: 1, 10: 3}), (0, 0.5, 1))
      [10, 10, 30]
    """
    values = sorted(counts)
    behind = np.cumsum([counts[value] for value in values])
    ranks = np.rint(np.array(levels) * (behind[-1] - 1))
    return [values[at] for at in np.searchsorted(behind, ranks, side="right")]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
