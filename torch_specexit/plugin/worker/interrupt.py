"""A client ends the thinking of its running request: what a front end calls on every worker, by name.

Any API server process may be asked, and only the workers know all requests of an engine. vLLM makes ids of its own out
of those that a client knows, but no request can be found by them: clients choose theirs, and one may begin like
another. So the front end that admits a request tells the workers which response the request belongs to.
"""

from __future__ import annotations

from typing import NamedTuple

from torch_specexit.plugin.frontend.arguments import RESOLVED
from torch_specexit.plugin.protocols import SamplingParams
from torch_specexit.plugin.worker.protocols import Worker

END_THINKING = "specexit_end_thinking"
"""Name of the worker's method, which a front end calls."""


class Owner(NamedTuple):
    """Whose a request is, as its front end says."""

    caller: str | None
    """See `torch_specexit.plugin.frontend.callers`."""
    response: str
    """Id of the response that it is part of, see `torch_specexit.plugin.frontend.callers.response_of`."""


def owner_of(params: SamplingParams | None) -> Owner | None:
    """Who may interrupt a request; None where no front end has said."""
    resolved = ((params.extra_args if params else None) or {}).get(RESOLVED)
    if not isinstance(resolved, dict) or resolved.get("response") is None:
        return None
    return Owner(resolved.get("caller"), resolved["response"])


def end_thinking(worker: Worker, request: str, caller: str | None, now: bool) -> bool:
    """The worker's method; see `torch_specexit.plugin.worker.exits.Exits.end_thinking`."""
    from torch_specexit.plugin.worker.exits import exits_of

    exits = exits_of(worker.model_runner)
    return exits is not None and exits.end_thinking(request, caller, now=now)


def install(worker: type) -> None:
    """Give vLLM's worker class the method."""
    setattr(worker, END_THINKING, end_thinking)
