"""The literals of the released code (0.8, 0.3, 200), by its own rule and by two that do not depend on steps."""

from specexit.method.decision import PAPER
from specexit.method.policies.method import Method, play_policies

METHOD = Method(
    "paper",
    "the released code's literals, by its rule (round) and others",
    lambda replay, config: play_policies(
        replay,
        [PAPER.model_copy(update={"smoothing": smoothing}) for smoothing in ("round", "ewma", "none")],
        lambda policy: f"paper, {policy.smoothing}",
    ),
    tuned=False,
)
