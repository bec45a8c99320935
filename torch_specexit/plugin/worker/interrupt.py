"""A client ends the thinking of its running request: what a front end calls on every worker, by name.

vLLM makes ids of its own out of those that a client knows; any API server process may be asked, and only the workers
know all requests of an engine.
"""

from __future__ import annotations

import re
from typing import Any

from torch_specexit.plugin.worker.protocols import SamplingParams

METHOD = "specexit_end_thinking"
"""Name of the worker's method."""

RESOLVED = "specexit_resolved"
"""Key of a request's ``extra_args`` under which a front end tells what it has decided, its caller among it."""


def is_part_of(name: str, request: str) -> bool:
    """Whether a request in the engine is one that a client knows, or one of its prompts or samples.

    Example:
      >>> is_part_of("1_cmpl-a-0-0123abcd", "cmpl-a"), is_part_of("cmpl-ab-0123abcd", "cmpl-a")
      (True, False)
    """
    return re.fullmatch(rf"(\d+_)?{re.escape(request)}([-_]\d+)?(-[0-9a-f]{{8}})?", name) is not None


def caller_of(params: SamplingParams | None) -> str | None:
    """Who has sent a request, as its front end says; None where it does not."""
    resolved = ((params.extra_args if params else None) or {}).get(RESOLVED)
    return resolved.get("caller") if isinstance(resolved, dict) else None


def end_thinking(worker: Any, request: str, caller: str | None, now: bool) -> bool:
    """The worker's method; see `torch_specexit.plugin.worker.exits.Exits.end_thinking`."""
    from torch_specexit.plugin.worker.exits import exits_of

    exits = exits_of(worker.model_runner)
    return exits is not None and exits.end_thinking(request, caller, now=now)


def install(worker: type) -> None:
    """Give vLLM's worker class the method."""
    setattr(worker, METHOD, end_thinking)
