"""What policies do to traces, added up: whole numbers, so that blocks of traces give what all of them at once would."""

from __future__ import annotations

from operator import add
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from specexit.method.replay import Outcome, Replay


class Sums(NamedTuple):
    """What happened to traces, added up."""

    traces: int
    full: int
    """Thinking tokens without an exit."""
    kept: int
    rest: int
    """Marker and answer."""
    probes: int
    changed: int
    exited: int
    """Traces whose thinking is cut: an exit where it ends by itself is none."""
    known: int
    """Traces whose right answer is known."""
    right: int

    def plus(self, other: Sums) -> Sums:
        """Those of both."""
        return Sums(*map(add, self, other))


NOTHING = Sums(*[0] * len(Sums._fields))
"""Over no traces."""


def sums_of(
    replay: Replay,
    outcome: Outcome,
    probe_tokens: Int[np.ndarray, " traces"] | None = None,
    rows: Bool[np.ndarray, " traces"] | slice = slice(None),
) -> Sums:
    """Sums over some traces, by default over all."""
    correct = outcome.correct[rows]
    return Sums(
        traces=len(correct),
        full=int(replay.n_think[rows].sum()),
        kept=int(outcome.kept[rows].sum()),
        rest=int(replay.n_answer[rows].sum()) + len(correct),
        probes=0 if probe_tokens is None else int(probe_tokens[rows].sum()),
        changed=int(outcome.changed[rows].sum()),
        exited=int((outcome.exited & (outcome.kept < replay.n_think))[rows].sum()),
        known=int((~np.isnan(correct)).sum()),
        right=int((correct == 1).sum()),
    )
