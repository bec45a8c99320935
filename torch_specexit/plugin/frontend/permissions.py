"""What an operator lets requests change: nothing, switch exits off, make them rarer, or whatever they like."""

from __future__ import annotations

from typing import Any

from specexit.drafts.policy import Mode, OperatingPoint, Requests, Serving
from specexit.method.decision import Policy
from specexit.method.signals import NAMES, SIGNALS, column
from torch_specexit.plugin.frontend.arguments import PREFIX, ArgumentError, RequestArguments

RISK = f"{PREFIX}_risk"

SAYS = {
    "none": "this server takes no specexit arguments",
    "off-only": "this server lets requests switch exits off, and nothing else",
    "stricter": "this server lets requests make exits rarer only",
}


def check_permitted(arguments: RequestArguments, rule: Requests) -> None:
    """Check that a request gives only keys that it may.

    Args:
      arguments: of the request; what it says about its effort is the operator's own offer, and always allowed.
      rule: what the server lets requests change.

    Raises:
      ArgumentError: names the key, the value, what was expected, and the rule.
    """
    for key, value in _given(arguments).items():
        if rule == "none" or (rule == "off-only" and key != PREFIX):
            raise _not_permitted(key, value, "none", rule)


def check_rarer(arguments: RequestArguments, offered: OperatingPoint, point: OperatingPoint, mode: Mode) -> None:
    """Check that a request makes exits at most rarer.

    Args:
      arguments: of the request.
      offered: the point that it gets where it says nothing.
      point: the one that it asks for by its risk, else `offered`; all else that it says is compared with this one.
      mode: the server's.

    Raises:
      ArgumentError: see `check_permitted`.
    """
    for key, value in _given(arguments).items():
        expected = _less_risk(value, offered) if key == RISK else _rarer(key, value, point.policy, mode)
        if expected is not None:
            raise _not_permitted(key, value, expected, "stricter")


def not_permitted(arguments: RequestArguments, policy: Policy, serving: Serving) -> list[str]:
    """Keys that a request gives and may not, where there are no points to choose from and the rule is not ``any``.

    Args:
      arguments: of the request.
      policy: what it gets where it says nothing.
      serving: settings of the server.
    """
    given = _given(arguments)
    if serving.requests == "stricter":
        return [k for k, v in given.items() if k == RISK or _rarer(k, v, policy, serving.mode) is not None]
    return [key for key in given if serving.requests == "none" or key != PREFIX]


def _given(arguments: RequestArguments) -> dict[str, Any]:
    return arguments.model_dump(exclude_none=True, exclude={"specexit_effort"})


def _not_permitted(key: str, value: Any, expected: str, rule: Requests) -> ArgumentError:
    return ArgumentError(f"extra_args: {key} is {value!r}, expected {expected}: {SAYS[rule]}", key)


def _less_risk(risk: float, offered: OperatingPoint) -> str | None:
    """What was expected, where a risk is not at most that of the point on offer; None where it is."""
    if offered.certificate is None or offered.uncertified_because() is not None:
        return f"none, as nothing says how large the risk of the server's point {offered.name} is"
    return None if risk <= offered.certificate.epsilon else f"at most {offered.certificate.epsilon:g}"


def _rarer(key: str, value: Any, policy: Policy, mode: Mode) -> str | None:
    """What was expected, where a value would make exits more frequent than they are; None where it does not."""
    field = key.removeprefix(f"{PREFIX}_")
    if field in NAMES and field in policy.thresholds:
        limit, above = policy.thresholds[field], SIGNALS[column(field)].exits_above
        rarer = value >= limit if above else value <= limit
        return None if rarer else f"at {'least' if above else 'most'} {limit:g}"
    if field == "max_thinking_tokens":
        if policy.max_thinking_tokens is None:
            return "none, as the server has no maximum"
        return None if value >= policy.max_thinking_tokens else f"at least {policy.max_thinking_tokens}"
    if field in ("min_thinking_tokens", "patience"):
        least = getattr(policy, field)
        return None if value >= least else f"at least {least}"
    if field == "alpha":
        return None if value == policy.alpha else f"the server's {policy.alpha:g}"
    if field == "splits" and policy.patience > 1:  # without one that fails, others come in a row
        return f"none, as the server wants {policy.patience} boundaries in a row"
    if field == "mode":
        return "shadow" if value == "exit" and mode != "exit" else None
    return None
