"""Exit at the k-th boundary."""

from collections.abc import Iterator

import numpy as np

from specexit.method.decision import Policy
from specexit.method.policies.method import Method, Played
from specexit.method.replay import Replay
from specexit.schemas.simulate import SimulateConfig


def _play(replay: Replay, config: SimulateConfig) -> Iterator[Played]:
    """Gives what `Replay.play` would, which looks at all boundaries for each of hundreds of settings."""
    there = np.array([len(trace.boundaries) for trace in replay.traces])
    for k in range(1, replay.largest.n_boundaries + 1):
        outcome = replay.outcome_at(np.where(there >= k, k - 1, -1))
        yield Played(f"k = {k}", outcome, policy=Policy(thresholds={}, patience=k))


METHOD = Method("boundary", "the k-th boundary", _play)
