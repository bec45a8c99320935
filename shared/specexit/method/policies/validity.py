"""Exit where the draft's validity, the probability that the answer would stay the same, reaches a threshold (ours)."""

from specexit.method.decision import Policy
from specexit.method.policies.method import Method, play_policies

VALIDITY_GRID = tuple(round(0.99 - 0.005 * i, 3) for i in range(189))
"""0.99, 0.985, ... 0.05: from cautious to bold."""

METHOD = Method(
    "validity",
    "the draft's validity reaches a threshold",
    lambda replay, config: play_policies(
        replay,
        [Policy(thresholds={"validity": tau}, smoothing=config.smoothing, alpha=config.alpha) for tau in VALIDITY_GRID],
        lambda policy: f"validity >= {policy.thresholds['validity']:g}",
    ),
)
