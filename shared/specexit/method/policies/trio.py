"""Exit where confidence, progress and remaining all pass: the paper's three signals, their thresholds tuned."""

from itertools import product

from specexit.method.decision import Policy
from specexit.method.policies.method import Method, play_policies

CONFIDENCE_GRID = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
PROGRESS_GRID = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
REMAINING_GRID = (200.0, 100.0, 50.0, 30.0, 20.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5)


def _name(policy: Policy) -> str:
    at = policy.thresholds
    return f"confidence >= {at['confidence']:g}, progress >= {at['progress']:g}, remaining <= {at['remaining']:g}"


METHOD = Method(
    "trio",
    "the paper's three signals, thresholds tuned",
    lambda replay, config: play_policies(
        replay,
        [
            Policy(
                thresholds={"confidence": c, "progress": p, "remaining": r},
                smoothing=config.smoothing,
                alpha=config.alpha,
            )
            for c, p, r in product(CONFIDENCE_GRID, PROGRESS_GRID, REMAINING_GRID)
        ],
        _name,
    ),
)
