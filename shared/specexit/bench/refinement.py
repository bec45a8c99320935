"""How much trials at a few boundaries tell of what trials at all of them do: the planner of `collect`, on traces that
were tried everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specexit.data.boundaries import boundaries_tried
from specexit.data.rows import infer_agrees, infer_decided
from specexit.method.labels import exit_point
from specexit.schemas.collect import TrialChoice

LETTERS = {"agrees": "a", "differs": "d", "undecided": "u"}
"""How a trial's state is written where there are many."""


@dataclass(frozen=True)
class Tried:
    """A trace that was tried at every boundary."""

    states: str
    """A letter of `LETTERS` for each boundary."""
    tokens: tuple[int, ...]
    """Of each trial."""
    stated: tuple[int, ...]
    """Boundaries behind steps that state the answer, see `specexit.data.boundaries.stating`."""
    at_end: bool
    """Whether the last boundary is the natural end, where the answer is known before any trial."""


@dataclass(frozen=True)
class Refinement:
    """A way of choosing boundaries against trying all, over traces."""

    boundaries: str
    stride: int
    traces: int
    all_trials: int
    trials: int
    all_trial_tokens: int
    trial_tokens: int
    same_earliest: int
    """Traces whose earliest exit point is the one that all trials give."""
    same_stable: int
    """The same of the stable exit point."""


def refinement(traces: Sequence[Tried], boundaries: TrialChoice, stride: int) -> Refinement:
    """Choose boundaries as `collect` does, and compare the exit points."""
    trials, tokens, same = 0, 0, np.zeros(2, int)
    for trace in traces:
        n = len(trace.states)
        agrees = [None if state == "u" else state == "a" for state in trace.states]
        known = [n - 1] if trace.at_end and n else []
        tried = boundaries_tried(agrees, boundaries, stride, trace.stated, known)
        trials += len(tried)
        tokens += sum(trace.tokens[i] for i in tried)
        same += np.equal(exits(trace.states, tried), exits(trace.states, range(n)))
    return Refinement(
        boundaries=boundaries,
        stride=stride,
        traces=len(traces),
        all_trials=sum(len(trace.states) for trace in traces),
        trials=trials,
        all_trial_tokens=sum(sum(trace.tokens) for trace in traces),
        trial_tokens=tokens,
        same_earliest=int(same[0]),
        same_stable=int(same[1]),
    )


def exits(states: str, tried: Sequence[int]) -> tuple[int, int]:
    """Exit points, earliest and stable, from trials at some boundaries: each the number of a boundary, from 1; where
    none qualifies, the last. They are `annotate`'s: an undecided trial does not interrupt a stable answer."""
    names = {letter: name for name, letter in LETTERS.items()}
    known = set(tried)
    seen = [names[state] if i in known else "untried" for i, state in enumerate(states)]
    n, agrees, decided = len(states), infer_agrees(seen), infer_decided(seen)
    earliest, stable = (exit_point(range(1, n + 1), agrees, n, kind, decided) for kind in ("earliest", "stable"))
    return earliest, stable
