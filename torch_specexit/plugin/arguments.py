"""What a request may say about its exits: flat keys in ``SamplingParams.extra_args`` (``vllm_xargs`` over HTTP).

They are checked where a request is admitted, so that a client gets an error (HTTP 400), and once more in the worker,
where an error would take the engine down and the server's own policy is used instead.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from specexit.config import Config
from specexit.decision import Policy
from specexit.signals import NAMES

logger = logging.getLogger("vllm.specexit")

PREFIX = "specexit"


class ArgumentError(ValueError):
    """A request's argument is unknown or out of range; the message names the key, the value and what was expected."""

    def __init__(self, message: str, parameter: str | None = None):
        super().__init__(message)
        self.parameter = parameter


class RequestArguments(Config):
    """The keys. Giving any threshold replaces all of the server's."""

    specexit: bool = Field(default=True, description="whether this request may exit")
    specexit_validity: float | None = Field(default=None, ge=0, le=1, description="smallest validity")
    specexit_confidence: float | None = Field(default=None, ge=0, le=1, description="smallest confidence")
    specexit_progress: float | None = Field(default=None, ge=0, le=1, description="smallest progress")
    specexit_remaining: float | None = Field(default=None, ge=0, description="largest number of tokens still needed")
    specexit_min_thinking_tokens: int | None = Field(default=None, ge=0, description="no exit before this many tokens")
    specexit_patience: int | None = Field(default=None, ge=1, description="boundaries in a row that must pass")
    specexit_alpha: float | None = Field(default=None, gt=0, le=1, description="weight of the newest value")


def parse(extra_args: Mapping[str, Any] | None) -> RequestArguments:
    """Check a request's arguments. Keys of others are passed over.

    Raises:
      ArgumentError: an unknown ``specexit`` key, or a value of the wrong type or out of range.
    """
    ours = {key: value for key, value in (extra_args or {}).items() if key.split("_")[0] == PREFIX}
    try:
        return RequestArguments.model_validate(ours)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(RequestArguments.model_fields)
            raise ArgumentError(f"extra_args: unknown key {key!r}, expected one of {known}", key) from error
        raise ArgumentError(f"extra_args: {key} is {problem['input']!r}: {problem['msg']}", key) from error


def request_policy(extra_args: Mapping[str, Any] | None, default: Policy) -> Policy | None:
    """The policy of a request; None where it is off.

    Raises:
      ArgumentError: see `parse`.
    """
    arguments = parse(extra_args)
    if not arguments.specexit:
        return None
    given = arguments.model_dump(exclude_none=True)
    thresholds = {name: given[f"{PREFIX}_{name}"] for name in NAMES if f"{PREFIX}_{name}" in given}
    changes: dict[str, Any] = {"thresholds": thresholds} if thresholds else {}
    for field in ("min_thinking_tokens", "patience", "alpha"):
        if f"{PREFIX}_{field}" in given:
            changes[field] = given[f"{PREFIX}_{field}"]
    return default.model_copy(update=changes)


def policy_or_default(extra_args: Mapping[str, Any] | None, default: Policy, request: str) -> Policy | None:
    """`request_policy` for the worker, where nothing may be raised: bad arguments are logged and the default serves."""
    try:
        return request_policy(extra_args, default)
    except ArgumentError as error:
        logger.warning("request %s: %s; the server's policy is used", request, error)
        return default


def admit(extra_args: Mapping[str, Any] | None) -> None:
    """Check a request's arguments where it enters.

    Raises:
      ArgumentError: see `parse`; of the kind that `refusal` names.
    """
    try:
        parse(extra_args)
    except ArgumentError as error:
        raise refusal()(str(error), error.parameter) from error


@functools.cache
def refusal() -> type[ArgumentError]:
    """`ArgumentError` as the installed vLLM's servers want it for an HTTP 400: older ones answer any ValueError with
    that, newer ones errors of their own kind alone."""
    try:
        from vllm.exceptions import VLLMValidationError
    except ImportError:
        return ArgumentError
    return type("RefusedArgument", (ArgumentError, VLLMValidationError), {"value": None})
