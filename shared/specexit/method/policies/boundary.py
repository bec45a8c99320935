"""Exit at the k-th boundary."""

from specexit.method.decision import Policy
from specexit.method.policies.method import Method, play_policies

METHOD = Method(
    "boundary",
    "the k-th boundary",
    lambda replay, config: play_policies(
        replay,
        [
            Policy(thresholds={}, patience=k)
            for k in range(1, max((len(trace.boundaries) for trace in replay.traces), default=0) + 1)
        ],
        lambda policy: f"k = {policy.patience}",
    ),
)
