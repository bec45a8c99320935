"""What an operator lets requests change: nothing, switch exits off, make them rarer, or whatever they like."""

from __future__ import annotations

from typing import Any

from specexit.drafts.policy import Mode, OperatingPoint, Requests
from specexit.method.signals import NAMES, SIGNALS, column
from torch_specexit.plugin.frontend.arguments import PREFIX, ArgumentError, RequestArguments

SAYS = {
    "none": "this server takes no specexit arguments",
    "off-only": "this server lets requests switch exits off, and nothing else",
    "stricter": "this server lets requests make exits rarer only",
}


def check_permitted(arguments: RequestArguments, rule: Requests, served: OperatingPoint | None, mode: Mode) -> None:
    """Check that a request changes only what it may.

    Args:
      arguments: of the request; what it says about its effort is the operator's own offer, and always allowed.
      rule: the server's.
      served: what the request gets where it says nothing; None for no exits.
      mode: the server's.

    Raises:
      ArgumentError: names the key, the value, what was expected, and the rule.
    """
    given = arguments.model_dump(exclude_none=True, exclude={"specexit_effort"})
    if rule == "any":
        return
    for key, value in given.items():
        if rule == "none" or (rule == "off-only" and key != PREFIX):
            raise ArgumentError(f"extra_args: {key} is {value!r}, expected none: {SAYS[rule]}", key)
        expected = None if served is None else _rarer(key, value, served, mode)
        if expected is not None:
            raise ArgumentError(f"extra_args: {key} is {value!r}, expected {expected}: {SAYS[rule]}", key)


def _rarer(key: str, value: Any, served: OperatingPoint, mode: Mode) -> str | None:
    """What was expected, where a value would make exits more frequent than they are; None where it does not."""
    policy, field = served.policy, key.removeprefix(f"{PREFIX}_")
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
    if field == "mode":
        return "shadow" if value == "exit" and mode != "exit" else None
    if field == "risk" and served.certificate is not None:
        return None if value <= served.certificate.epsilon else f"at most {served.certificate.epsilon:g}"
    return None
