"""What a whole server does with exits: from its draft directory, overridden by vLLM's ``--additional-config``."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from specexit.config import ConfigError
from specexit.drafts.directory import ARCHITECTURE, DraftConfig, Serving, SpecExitBlock, read_config
from torch_specexit.plugin.compat.checks import folder_of

KEY = "specexit"


def draft_config(vllm_config: Any) -> DraftConfig | None:
    """The SpecExit draft that an engine is configured with, or None where it has none.

    Raises:
      DraftError: its ``config.json`` cannot be used.
    """
    draft = getattr(vllm_config.speculative_config, "draft_model_config", None)
    if draft is None or ARCHITECTURE not in (getattr(draft.hf_config, "architectures", None) or ()):
        return None
    return read_config(folder_of(draft.model, draft.revision, "config.json"))


def serving_of(block: SpecExitBlock, additional_config: Any) -> Serving:
    """The draft's settings with the server's own on top: ``--additional-config '{"specexit": {"mode": "shadow"}}'``.

    Raises:
      ConfigError: an unknown key, or a value out of range.
    """
    given = additional_config.get(KEY, {}) if isinstance(additional_config, dict) else {}
    if not isinstance(given, dict):
        raise ConfigError(f"--additional-config: {KEY} is {given!r}, expected an object with mode or audit_rate")
    try:
        return Serving.model_validate(block.serving.model_dump() | given)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join((KEY, *(str(part) for part in problem["loc"])))
        if problem["type"] == "extra_forbidden":
            known = ", ".join(Serving.model_fields)
            raise ConfigError(f"--additional-config: unknown key {key!r}, expected one of {known}") from error
        raise ConfigError(f"--additional-config: {key} is {problem['input']!r}: {problem['msg']}") from error
