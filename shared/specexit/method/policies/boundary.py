"""Exit at the k-th boundary."""

from specexit.method.decision import Policy
from specexit.method.policies.method import Method, play_policies

METHOD = Method(
    "boundary",
    "the k-th boundary",
    lambda replay, config: play_policies(
        replay,
        [Policy(thresholds={}, patience=k) for k in range(1, replay.largest.n_boundaries + 1)],
        lambda policy: f"k = {policy.patience}",
    ),
)
