"""What a request may say about its exits: flat keys in ``SamplingParams.extra_args`` (``vllm_xargs`` over HTTP).

They are checked where a request is admitted, so that a client gets an error (HTTP 400), and once more in the worker:
see `torch_specexit.plugin.worker.asked`. What an operator lets requests ask for is in
`torch_specexit.plugin.frontend.operation`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StringConstraints, ValidationError

from specexit.config import Config
from specexit.drafts.directory import DraftError, Mode, SpecExitBlock, read_config
from specexit.drafts.policy import Effort
from specexit.errors import dotted
from specexit.method.decision import MOST_TOKENS, Policy
from specexit.method.signals import NAMES, SIGNALS, column
from torch_specexit.plugin.compat.checks import draft_cache, draft_folder
from torch_specexit.plugin.frontend.protocols import EngineCoreRequest
from torch_specexit.plugin.protocols import VllmConfig
from torch_specexit.plugin.settings import is_ours

PREFIX = "specexit"

RESOLVED = "specexit_resolved"
"""Key under which a front end tells its workers what a request gets, and whose it is; no client may give it."""

OFFLINE = "specexit_offline"
"""Key under which `vllm.LLM` tells its workers that whoever asks may ask for anything; no client may give it."""

FOR_SERVERS = ("specexit_risk", "specexit_effort")
"""Keys that choose among the points that only a server has."""

MOST_SPLITS, LONGEST_SPLIT = 64, 64
LONGEST_SHOWN = 100
"""Characters of a bad value that are repeated in an error: it comes from the client, and may be anything."""


class ArgumentError(ValueError):
    """A request's argument is unknown or out of range; the message names the key, the value and what was expected."""

    def __init__(self, message: str, parameter: str | None = None):
        super().__init__(message)
        self.parameter = parameter


class RequestArguments(Config):
    """The keys. A threshold replaces all of the policy's, but is added to them where exits may only become rarer."""

    specexit: bool | None = Field(
        default=None, description="whether this request may exit; as the server does if unset"
    )
    specexit_validity: float | None = Field(default=None, ge=0, le=1, description="smallest validity")
    specexit_confidence: float | None = Field(default=None, ge=0, le=1, description="smallest confidence")
    specexit_progress: float | None = Field(default=None, ge=0, le=1, description="smallest progress")
    specexit_remaining: float | None = Field(
        default=None, ge=0, le=MOST_TOKENS, description="largest number of tokens still needed"
    )
    specexit_min_thinking_tokens: int | None = Field(
        default=None, ge=0, le=MOST_TOKENS, description="no exit before this many tokens"
    )
    specexit_max_thinking_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TOKENS,
        description="exit at the first boundary with this many tokens, whatever the signals say",
    )
    specexit_patience: int | None = Field(
        default=None, ge=1, le=MOST_TOKENS, description="boundaries in a row that must pass"
    )
    specexit_alpha: float | None = Field(default=None, gt=0, le=1, description="weight of the newest value")
    specexit_splits: tuple[Annotated[str, StringConstraints(max_length=LONGEST_SPLIT)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_SPLITS,
        description="the draft's split strings at which this request may exit",
    )
    specexit_mode: Literal["exit", "shadow"] | None = Field(
        default=None, description="in place of the server's; shadow: decide and report, but do not cut"
    )
    specexit_effort: Effort | None = Field(
        default=None, description="the operating point that the server has for it; by default reasoning_effort's"
    )
    specexit_risk: float | None = Field(
        default=None, gt=0, lt=1, description="the boldest operating point whose certified risk is at most this"
    )


class RequestPolicy(NamedTuple):
    """What a request gets: its own arguments over the draft's defaults."""

    policy: Policy
    splits: tuple[str, ...] | None = None
    """Split strings; None for all."""
    on: bool | None = None
    """Whether it may exit; None for what the server does."""
    mode: Literal["exit", "shadow"] | None = None
    """None for the server's."""
    resolved: Mode | None = None
    """The mode that a front end has decided on; None where none has."""

    def mode_under(self, server: Mode) -> Mode:
        """How this request is treated by a server. What an operator has switched off stays off.

        Example:
          >>> from specexit.method.decision import Policy
          >>> asks = RequestPolicy(Policy(thresholds={"validity": 0.9}), on=True)
          >>> asks.mode_under("off"), asks.mode_under("shadow"), asks._replace(on=False).mode_under("exit")
          ('off', 'shadow', 'off')
        """
        if self.resolved is not None:
            return self.resolved
        if self.on is False or server == "off":
            return "off"
        return self.mode or server


def parse(extra_args: Mapping[str, Any] | None) -> RequestArguments:
    """Check a request's arguments. Keys that are not ours are ignored.

    Raises:
      ArgumentError: an unknown ``specexit`` key, or a value of the wrong type or out of range.
    """
    ours = {key: value for key, value in (extra_args or {}).items() if names_ours(key)}
    try:
        return RequestArguments.model_validate(ours)
    except ValidationError as error:
        problem = error.errors()[0]
        key = shown(dotted(problem))
        if problem["type"] == "extra_forbidden":
            known = ", ".join(RequestArguments.model_fields)
            raise ArgumentError(f"extra_args: unknown key {key!r}, expected one of {known}", key) from error
        raise ArgumentError(f"extra_args: {key} is {shown(repr(problem['input']))}: {problem['msg']}", key) from error


def names_ours(key: str) -> bool:
    """Whether a key of a request's arguments is meant for us: ``specexit-validity`` is a slip of the pen."""
    return key.lower().startswith(PREFIX)


def shown(text: str) -> str:
    """A client's text as far as an error repeats it.

    Example:
      >>> shown("[1, 2]"), len(shown("1" * 5000))
      ('[1, 2]', 103)
    """
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def request_policy(extra_args: Mapping[str, Any] | None, block: SpecExitBlock) -> RequestPolicy:
    """What a request gets where there is no front end: its arguments over the draft's defaults, but for those of
    `FOR_SERVERS`, which are passed over.

    Raises:
      ArgumentError: see `_checked`.
    """
    arguments, policy = _checked(extra_args, block)
    return RequestPolicy(policy, arguments.specexit_splits, arguments.specexit, arguments.specexit_mode)


def _checked(extra_args: Mapping[str, Any] | None, block: SpecExitBlock) -> tuple[RequestArguments, Policy]:
    """A request's arguments, and the draft's policy with them in it.

    Raises:
      ArgumentError: see `parse`, `check_splits` and `policy_of`.
    """
    arguments = parse(extra_args)
    check_splits(arguments, block)
    return arguments, policy_of(arguments, block.policy)


def _for_servers(key: str) -> ArgumentError:
    return ArgumentError(f"extra_args: {key} is for servers, expected none without one", key)


def check_splits(arguments: RequestArguments, block: SpecExitBlock) -> None:
    """Check that a request names split strings of its draft.

    Raises:
      ArgumentError: one of them is not.
    """
    known = (*block.split_endings, *block.split_connectors)
    for string in arguments.specexit_splits or ():
        if string not in known:
            expected = ", ".join(map(repr, known))
            raise ArgumentError(
                f"extra_args: specexit_splits has {string!r}, expected some of the draft's: {expected}",
                "specexit_splits",
            )


def given_thresholds(arguments: RequestArguments) -> dict[str, float]:
    """The thresholds that a request gives, by signal."""
    values = {name: getattr(arguments, f"{PREFIX}_{name}") for name in NAMES}
    return {name: value for name, value in values.items() if value is not None}


def policy_of(arguments: RequestArguments, default: Policy, *, keep_thresholds: bool = False) -> Policy:
    """A policy with a request's arguments in it.

    Args:
      arguments: of the request.
      default: what it gets where it says nothing.
      keep_thresholds: a threshold of the request's leaves those of other signals in force, and early thresholds.

    Raises:
      ArgumentError: a maximum of thinking tokens below the minimum.
    """
    policy = _merged(arguments, default, keep_thresholds=keep_thresholds)
    least, most = policy.min_thinking_tokens, policy.max_thinking_tokens
    if most is not None and most < least:
        fields = ("min_thinking_tokens", "max_thinking_tokens")
        whose = {field: " (the draft's)" if _given(arguments, field) is None else "" for field in fields}
        raise ArgumentError(
            f"extra_args: specexit_max_thinking_tokens is {most}{whose['max_thinking_tokens']}, expected at least "
            f"specexit_min_thinking_tokens, which is {least}{whose['min_thinking_tokens']}",
            "specexit_max_thinking_tokens",
        )
    return policy


def imposed_policy_of(arguments: RequestArguments, imposed: Policy) -> Policy:
    """A policy of audits with the arguments of a request in it, that fit the point in whose place it serves. Where they
    do not fit this one, it is no fault of the client's: a maximum below the minimum gives way."""
    policy = _merged(arguments, imposed)
    most = policy.max_thinking_tokens
    return policy.model_copy(
        update={"max_thinking_tokens": None if most is None else max(most, policy.min_thinking_tokens)}
    )


def _merged(arguments: RequestArguments, default: Policy, *, keep_thresholds: bool = False) -> Policy:
    thresholds = given_thresholds(arguments)
    changes: dict[str, Any] = {}
    if thresholds and keep_thresholds:
        changes["thresholds"] = {**default.thresholds, **thresholds}
    elif thresholds:
        changes |= {"thresholds": thresholds, "early": _early_for(thresholds, default.early)}
    for field in ("min_thinking_tokens", "max_thinking_tokens", "patience", "alpha"):
        value = _given(arguments, field)
        if value is not None:
            changes[field] = value
    return default.model_copy(update=changes)


def _given(arguments: RequestArguments, field: str) -> Any:
    return getattr(arguments, f"{PREFIX}_{field}")


def _early_for(thresholds: Mapping[str, float], early: Mapping[str, float]) -> dict[str, float]:
    """Early thresholds to go with given thresholds: for the same signals only, and none stricter than its threshold."""
    return {
        name: (min if SIGNALS[column(name)].exits_above else max)(limit, thresholds[name])
        for name, limit in early.items()
        if name in thresholds
    }


def vouch(request: EngineCoreRequest) -> None:
    """Have the workers take a request's arguments as they are: who asks in `vllm.LLM` is the operator.

    Args:
      request: vLLM's `EngineCoreRequest`, whose parameters may be shared with others and are replaced.

    Raises:
      ArgumentError: for a risk or an effort, for which only a server has points; of the class that `refusal` returns.
    """
    params = request.sampling_params
    if params is None:
        return
    given = params.extra_args or {}
    if not any(names_ours(key) for key in given):
        return
    for key in FOR_SERVERS:
        if given.get(key) is not None:
            with _refusing():
                raise _for_servers(key)
    request.sampling_params = ours = copy.copy(params)
    ours.extra_args = {**given, OFFLINE: True}


def check(extra_args: Mapping[str, Any] | None, vllm_config: VllmConfig) -> None:
    """Check a request's arguments at its admission, where no front end says what requests may ask for: in `vllm.LLM`,
    or in a server without exits, as this vLLM does not fit.

    Raises:
      ArgumentError: see `_checked`; where this engine has no SpecExit draft, see `parse`.
    """
    draft = getattr(vllm_config.speculative_config, "draft_model_config", None)
    block = None
    if draft is not None and is_ours(draft):
        block = _block_of(draft.model, draft.revision, draft_cache(vllm_config))
    if block is None:
        parse(extra_args)
    else:
        _checked(extra_args, block)


@cache
def _block_of(model: str, revision: str | None, cache: str | None) -> SpecExitBlock | None:
    """The block of a draft; None where there is none (or none that could be read, which the worker complains of)."""
    try:
        return read_config(draft_folder(model, revision, cache)).specexit
    except (DraftError, OSError):
        return None


def admit(extra_args: Mapping[str, Any] | None, vllm_config: VllmConfig) -> None:
    """`check`, with an error that vLLM's servers answer with HTTP 400.

    Raises:
      ArgumentError: of the class that `refusal` returns.
    """
    with _refusing():
        check(extra_args, vllm_config)


def admit_beams(extra_args: Mapping[str, Any] | None) -> None:
    """`parse` for a beam search, whose steps reach the engine without these arguments.

    Raises:
      ArgumentError: of the class that `refusal` returns.
    """
    with _refusing():
        parse(extra_args)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except ArgumentError as error:
        raise refusal()(str(error), error.parameter) from error


def admit_sampling(temperature: float, problem: str | None) -> None:
    """Refuse to sample where an engine would do it wrongly.

    Args:
      temperature: of the request; 0 is never refused.
      problem: what is wrong with this engine's sampling, None for nothing.

    Raises:
      ArgumentError: of the class that `refusal` returns.
    """
    if temperature > 0 and problem is not None:
        raise refusal()(f"temperature is {temperature}, expected 0: {problem}", "temperature")


def admit_reading(tokens: Sequence[int] | None, problem: str | None) -> None:
    """Refuse to say how likely given tokens are, as ``/generative_scoring`` asks, where an engine would die of it.

    Args:
      tokens: the tokens asked for.
      problem: why this engine would die, None where it would not.

    Raises:
      ArgumentError: of the class that `refusal` returns.
    """
    if tokens and problem is not None:
        said = f"logprob_token_ids has {len(tokens)} tokens, expected none (label_token_ids of /generative_scoring)"
        raise refusal()(f"{said}: {problem}", "logprob_token_ids")


@cache
def refusal() -> type[ArgumentError]:
    """The kind of `ArgumentError` that the installed vLLM's servers answer with HTTP 400: older ones do so for any
    ValueError, newer ones for errors of their own kind alone."""
    try:
        from vllm.exceptions import VLLMValidationError
    except ImportError:
        return ArgumentError
    return type("RefusedArgument", (ArgumentError, VLLMValidationError), {"value": None})
