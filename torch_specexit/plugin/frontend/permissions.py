"""What an operator lets requests change: nothing, switch exits off, make them rarer, or whatever they like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specexit.drafts.policy import OperatingPoint, Requests, Serving
from specexit.method.decision import Policy
from specexit.method.signals import NAMES, SIGNALS, column
from torch_specexit.plugin.frontend.arguments import PREFIX, ArgumentError, RequestArguments

RISK, MODE = f"{PREFIX}_risk", f"{PREFIX}_mode"

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


def check_rarer(arguments: RequestArguments, offered: OperatingPoint, asked: OperatingPoint) -> None:
    """Check that a request makes exits at most rarer than its operator has them.

    What audits impose, and a mode, are not compared with: they come at any time, and are no fault of a client that asks
    what it has always asked. It gets the stricter of both, see `stricter_of`.

    Args:
      arguments: of the request.
      offered: the operator's point for it, where it says nothing.
      asked: the one that it asks for by its risk, else `offered`; all else that it says is compared with this one.

    Raises:
      ArgumentError: see `check_permitted`.
    """
    for key, value in _given(arguments).items():
        if key == MODE:
            continue
        expected = _less_risk(value, offered) if key == RISK else _rarer(key, value, asked.policy)
        if expected is not None:
            raise _not_permitted(key, value, expected, "stricter")


def stricter_of(asked: Policy, imposed: Policy) -> Policy:
    """A policy that exits nowhere before what audits have imposed, nor before what a request asks.

    The latter holds where both smooth the signals alike. Where not, neither is the stricter: that of the audits is
    taken.

    Args:
      asked: a request's policy; the operator allows it, and audits may have imposed a stricter one since.
      imposed: by audits.
    """
    caps = [most for most in (asked.max_thinking_tokens, imposed.max_thinking_tokens) if most is not None]
    return imposed.model_copy(
        update={
            "thresholds": _stricter_limits(asked.thresholds, imposed.thresholds),
            # None with `round`: it averages over rounds, and a policy has no early thresholds with it.
            "early": {} if imposed.smoothing == "round" else _stricter_limits(asked.early, imposed.early),
            "patience": max(asked.patience, imposed.patience),
            "min_thinking_tokens": max(asked.min_thinking_tokens, imposed.min_thinking_tokens),
            "max_thinking_tokens": max(caps) if len(caps) == 2 else None,
        }
    )


def _stricter_limits(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    pick = {name: max if SIGNALS[column(name)].exits_above else min for name in (*one, *other)}
    return {name: pick[name](limits[name] for limits in (one, other) if name in limits) for name in pick}


def not_permitted(arguments: RequestArguments, policy: Policy, serving: Serving) -> list[str]:
    """Keys that a request gives and may not, where there are no points to choose from and the rule is not ``any``.

    Args:
      arguments: of the request.
      policy: what it gets where it says nothing.
      serving: settings of the server.
    """
    given = _given(arguments)
    if serving.requests == "stricter":
        bolder = {RISK, MODE} if given.get(MODE) == "exit" and serving.mode != "exit" else {RISK}
        return [key for key, value in given.items() if key in bolder or _rarer(key, value, policy) is not None]
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


def _rarer(key: str, value: Any, policy: Policy) -> str | None:
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
    return None
