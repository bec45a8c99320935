"""What a whole server does with exits: from its draft directory, overridden when it is started."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from specexit.config import ConfigError
from specexit.drafts.config import ARCHITECTURES
from specexit.drafts.directory import DraftConfig, Mode, Serving, SpecExitBlock, read_config
from specexit.drafts.files import TensorError, parse_json
from specexit.drafts.policy import FILE
from specexit.errors import dotted, repeated
from torch_specexit.plugin.compat.checks import draft_cache, draft_folder
from torch_specexit.plugin.frontend.own_end import end_tokens
from torch_specexit.plugin.protocols import ModelConfig, VllmConfig

logger = logging.getLogger("vllm.specexit")

KEY = "specexit"
ENVIRONMENT = "SPECEXIT_SERVING"
COMMAND_LINE = "--additional-config"

MODES: tuple[Mode, ...] = get_args(Mode)
"""Each is stricter than the one before."""


def is_ours(draft: object) -> bool:
    """Whether vLLM's ``ModelConfig`` of a draft names one of the plug-in's classes."""
    named = getattr(getattr(draft, "hf_config", None), "architectures", None) or ()
    return not set(ARCHITECTURES.values()).isdisjoint(named)


def draft_config(vllm_config: VllmConfig) -> DraftConfig | None:
    """The SpecExit draft that an engine is configured with, or None where it has none.

    Raises:
      DraftError: the draft is not there, see `draft_folder`, or its ``config.json`` cannot be used.
    """
    draft = getattr(vllm_config.speculative_config, "draft_model_config", None)
    if draft is None or not is_ours(draft):
        return None
    return read_config(draft_folder(draft.model, draft.revision, draft_cache(vllm_config)))


def serving_over(below: Serving, additional_config: object) -> Serving:
    """A draft's settings with the server's own on top.

    The server's come from ``--additional-config '{"specexit": {"mode": "shadow"}}'`` and, on top of that, from the
    environment variable `ENVIRONMENT`, an object in JSON. vLLM hashes the first into the key of its compile cache, and
    not the second. The strictest mode is in force, and a tenant or an adapter that is off anywhere has no exits.

    Raises:
      ConfigError: there is no valid JSON in `ENVIRONMENT`, or a key twice, an unknown one, or a value out of range.
    """
    given = additional_config.get(KEY, {}) if isinstance(additional_config, dict) else {}
    settings, text = _on_top(below, given, COMMAND_LINE, over=FILE), os.environ.get(ENVIRONMENT, "")
    if not text:
        return settings
    try:
        given = parse_json(os.fsencode(text), Path(ENVIRONMENT))
    except TensorError as error:
        raise ConfigError(str(error)) from error
    return _on_top(settings, given, ENVIRONMENT, over=f"{COMMAND_LINE} or {FILE}")


def check_transition(serving: Serving, block: SpecExitBlock) -> None:
    """Check that a server's transition text leaves opening and ending the thinking to the markers.

    Raises:
      ConfigError: it holds a marker. The answer would begin within the text, and the end marker come twice.
    """
    for marker in (block.think_start.strip(), block.think_end.strip()):
        if marker in serving.transition:
            raise ConfigError(
                f"{KEY}.transition is {serving.transition!r}, expected a text without {marker!r}: "
                f"{block.think_end.strip()!r} is written behind it anyway"
            )


def check_ends_nothing(serving: Serving, written: Sequence[int], model_config: ModelConfig) -> None:
    """Check that no token of a server's transition text ends the answer.

    Args:
      serving: the settings.
      written: the tokens of the text.
      model_config: vLLM's, of the target.

    Raises:
      ConfigError: one does. Every request that exits would end within the text, without an answer.
    """
    own = getattr(model_config.hf_text_config, "eos_token_id", None)
    ends = end_tokens(model_config).union([own] if isinstance(own, int) else own or ())
    for token in written:
        if token in ends:
            raise ConfigError(
                f"{KEY}.transition is {serving.transition!r}, expected a text without token {token}, with which the "
                "target ends its answer"
            )


def _on_top(below: Serving, given: object, where: str, *, over: str) -> Serving:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: {KEY} is {given!r}, expected an object with mode, audit_rate or the like")
    try:
        settings = Serving.model_validate(below.model_dump() | given)
    except ValidationError as error:
        problem = error.errors()[0]
        key = f"{KEY}.{dotted(problem)}"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(Serving.model_fields)
            raise ConfigError(f"{where}: unknown key {key!r}, expected one of {known}") from error
        raise ConfigError(
            f"{where}: {key} is {repeated(problem)}: {problem['msg'].removeprefix('Value error, ')}"
        ) from error
    settings = settings.model_copy(
        update={place: getattr(settings, place) | _off(getattr(below, place)) for place in ("loras", "tenants")}
    )
    if MODES.index(settings.mode) >= MODES.index(below.mode):
        return settings
    logger.warning(
        "specexit: mode %s of %s has no effect: %s says %s, and the stricter one is in force",
        settings.mode,
        where,
        over,
        below.mode,
    )
    return settings.model_copy(update={"mode": below.mode})


def _off(points: Mapping[str, str]) -> dict[str, str]:
    return {key: name for key, name in points.items() if name == "off"}
