"""What a request gets, as a worker sees it: what its front end has decided or, where none has, what the request asks
for and the operator permits.

Nothing is raised here: an error in a worker would end exits for everybody. Arguments that cannot be understood are
logged, and the draft's defaults apply.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from specexit.config import Config
from specexit.drafts.directory import Mode, Serving, SpecExitBlock
from specexit.errors import shown
from specexit.method.decision import Policy
from torch_specexit.plugin.frontend.arguments import (
    OFFLINE,
    RESOLVED,
    RequestArguments,
    RequestPolicy,
    check_splits,
    parse,
    policy_of,
    request_policy,
)
from torch_specexit.plugin.frontend.permissions import RISK, SAYS, not_permitted

logger = logging.getLogger("vllm.specexit")

_misunderstood: set[tuple[str, str | None]] = set()
"""Kinds of errors that have been logged, and the argument that each is about; None for one that there is not."""


class Resolved(Config):
    """What a front end tells of a request, under the key `RESOLVED`."""

    policy: Policy
    mode: Mode
    splits: tuple[str, ...] | None
    caller: str | None = None
    response: str | None = None


def request_policy_or_default(
    extra_args: Mapping[str, Any] | None, block: SpecExitBlock, serving: Serving, request: str
) -> RequestPolicy:
    """What a request gets; the draft's defaults where its arguments cannot be understood.

    Args:
      extra_args: of the request, unchecked.
      block: of the draft.
      serving: settings of the server, whose permission holds where no front end has decided.
      request: its id, for the log.
    """
    try:
        given = dict(extra_args or {})
        resolved, offline = given.pop(RESOLVED, None), given.pop(OFFLINE, None)
        if not _front_end_decides():
            resolved = offline = None  # only a client can have sent them
        if resolved is not None:
            told = Resolved.model_validate(resolved)
            return RequestPolicy(told.policy, told.splits, resolved=told.mode)
        if not (offline or serving.requests == "any"):
            return _permitted(given, block, serving)
        if given.get(RISK) is not None:  # all else that the request says holds
            _say_once(RISK, "there are no operating points to choose from")
        return request_policy(given, block)
    except Exception as error:
        _say_first(error, request)
        return RequestPolicy(block.policy)


def _permitted(given: Mapping[str, Any], block: SpecExitBlock, serving: Serving) -> RequestPolicy:
    """`request_policy`, without what the operator does not let requests ask for."""
    arguments, rule = parse(given), serving.requests
    check_splits(arguments, block)
    ignored = not_permitted(arguments, block.policy, serving)
    for key in ignored:
        _say_once(key, SAYS[rule])
    arguments = arguments.model_copy(update=dict.fromkeys(ignored))
    policy = policy_of(arguments, block.policy, keep_thresholds=True)
    return RequestPolicy(policy, arguments.specexit_splits, arguments.specexit, arguments.specexit_mode)


def _say_first(error: Exception, request: str) -> None:
    """Log an error with the request that is the first to have one of its kind: what clients send comes here unchecked,
    and must not fill the log."""
    parameter = getattr(error, "parameter", None)
    kind = type(error).__name__, parameter if parameter in RequestArguments.model_fields else None
    if kind not in _misunderstood:
        _misunderstood.add(kind)
        logger.warning(
            "request %s: %s; the draft's defaults are used (said once for errors of this kind)",
            shown(request, 80),
            error,
        )


@cache
def _say_once(key: str, why: str) -> None:
    logger.warning("specexit: %s of a request that no front end has checked is ignored: %s", key, why)


def _front_end_decides() -> bool:
    """Whether the front end can have decided about requests. vLLM's Rust front end has no plug-ins: what a client sends
    reaches the worker as it is, even under our own keys."""
    from vllm import envs

    return not getattr(envs, "VLLM_USE_RUST_FRONTEND", False)
