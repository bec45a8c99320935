"""A draft's block, a policy file of four operating points, and a server's operation of them."""

from __future__ import annotations

from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Serving, policy_sha256
from specexit.method.decision import Policy
from torch_specexit.plugin.frontend.operation import Operation

BLOCK = SpecExitBlock(target="t", split_connectors=("Wait",))
POLICY = Policy(thresholds={"validity": 0.9}, patience=2, min_thinking_tokens=30, max_thinking_tokens=900)


def certificate(epsilon, risk="answer_changed"):
    return {"risk": risk, "epsilon": epsilon, "delta": 0.1, "n": 400, "errors": 0, "bound": epsilon, "data_sha256": "0"}


def point(name, threshold, epsilon=None, risk="answer_changed", **changes):
    policy = POLICY.model_copy(update={"thresholds": {"validity": threshold}} | changes)
    return {
        "name": name,
        "policy": policy.model_dump(),
        "certificate": None
        if epsilon is None
        else certificate(epsilon, risk) | {"policy_sha256": policy_sha256(policy)},
    }


POINTS = (point("bold", 0.7, 0.05), point("usual", 0.9, 0.02), point("careful", 0.97, 0.005), point("untested", 0.5))


def operation(*, reasons=(), **serving):
    file = PolicyFile.model_validate({"points": POINTS, "default": "usual"})
    return Operation(BLOCK, file, Serving.model_validate(serving), reasons)


def get(server, **arguments):
    return server.resolve({f"specexit_{name}" if name else "specexit": value for name, value in arguments.items()})


RARER = [
    {"specexit": False},
    {"specexit": True},
    {"specexit_mode": "shadow"},
    {"specexit_mode": "exit"},
    {"specexit_validity": 0.95},
    {"specexit_confidence": 0.3},
    {"specexit_remaining": 5},
    {"specexit_min_thinking_tokens": 31},
    {"specexit_max_thinking_tokens": 900},
    {"specexit_patience": 2},
    {"specexit_alpha": 0.1},
    {"specexit_risk": 0.01},
]
BOLDER = [
    ({"specexit_validity": 0.89}, "expected at least 0.9"),
    ({"specexit_min_thinking_tokens": 29}, "expected at least 30"),
    ({"specexit_max_thinking_tokens": 899}, "expected at least 900"),
    ({"specexit_patience": 1}, "expected at least 2"),
    ({"specexit_alpha": 0.2}, "expected the server's 0.1"),
    ({"specexit_splits": ["\n\n"]}, "expected none, as the server wants 2 boundaries in a row"),
    ({"specexit_risk": 0.05}, "expected at most 0.02"),
]
