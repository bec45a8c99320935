"""What policies do to traces, added up: whole numbers, so that blocks of traces give what all of them at once would."""

from __future__ import annotations

from operator import add
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

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
        """The sums over the traces of both."""
        return Sums(*map(add, self, other))


NOTHING = Sums(*[0] * len(Sums._fields))
"""Over no traces."""


def sums_of(replay: Replay, outcome: Outcome) -> Sums:
    """Sums over all traces of a policy, which asks for no trials."""
    return Sums(*columns_of(replay, outcome).sum(axis=1).tolist())


def columns_of(
    replay: Replay, outcome: Outcome, probe_tokens: Int[np.ndarray, " traces"] | None = None
) -> Int[np.ndarray, "sums traces"]:
    """What each trace adds to the `Sums`, a row for each of their fields."""
    n = len(replay.traces)
    columns = {
        "traces": np.ones(n, np.int64),
        "full": replay.n_think,
        "kept": outcome.kept,
        "rest": replay.n_answer + 1,
        "probes": np.zeros(n, np.int64) if probe_tokens is None else probe_tokens,
        "changed": outcome.changed,
        "exited": outcome.exited & (outcome.kept < replay.n_think),
        "known": ~np.isnan(outcome.correct),
        "right": outcome.correct == 1,
    }
    return np.array([columns[name] for name in Sums._fields], np.int64)
