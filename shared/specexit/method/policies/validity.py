"""Exit where the draft's validity, the probability that the answer would stay the same, reaches a threshold (ours).

The family is the one that `calibrate` certifies a policy of, early threshold included, so that what is replayed at a
threshold is what would be served at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from specexit.method.decision import Policy
from specexit.method.policies.method import Method, Played, play_policies
from specexit.method.replay import Replay
from specexit.schemas.simulate import SimulateConfig

VALIDITY_GRID = tuple(round(0.99 - 0.005 * i, 3) for i in range(189))
"""0.99, 0.985, ... 0.05: from cautious to bold."""


def policy_at(tau: float, early: float, **shared: Any) -> Policy:
    """The policy that exits where validity is at least ``tau``.

    Args:
      tau: the threshold.
      early: share of it that has to be there `EARLY_TOKENS` before; 0 judges every boundary.
      shared: the policy's other fields. An average over rounds has no early threshold, see `Policy`.
    """
    share = 0.0 if shared.get("smoothing") == "round" else early
    before = {"validity": round(share * tau, 6)} if share else {}
    return Policy(thresholds={"validity": tau}, early=before, **shared)


def early_of(source: str, early: float) -> float:
    """The early share for signals of a source: 0 for ``fc``, where no step waits for verdicts, and passing boundaries
    over would save nothing."""
    return 0.0 if source == "fc" else early


def _play(replay: Replay, config: SimulateConfig) -> Iterator[Played]:
    shared = {"smoothing": config.smoothing, "alpha": config.alpha}
    policies = [policy_at(tau, config.early, **shared) for tau in VALIDITY_GRID]
    return play_policies(replay, policies, lambda policy: f"validity >= {policy.thresholds['validity']:g}")


METHOD = Method("validity", "the draft's validity reaches a threshold", _play)
