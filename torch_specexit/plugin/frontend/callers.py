"""Who is asking, and for which response: nobody reads another one's reports, or ends another one's thinking.

A caller is known by a mark of the API key that comes with an HTTP request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from torch_specexit.plugin.frontend.inner import inner

caller: ContextVar[str | None] = ContextVar("specexit_caller", default=None)
"""Mark of the API key of the HTTP request that is being answered; None without a key, and outside of a server."""

batched: ContextVar[bool] = ContextVar("specexit_batched", default=False)
"""Whether the HTTP request that is being answered holds several conversations; its id does not say it."""

BATCH = "/v1/chat/completions/batch"
"""End of vLLM's path for such requests."""

MOST_ID = 4096
"""Characters of the longest id by which a request can be asked for, or ended: clients choose ids, of any length."""

WHOLE = ("chatcmpl-", "generate-tokens-")
"""Beginnings of ids whose request is the whole response."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def mark_of(key: str) -> str:
    """The mark of an API key: 16 hexadecimal digits of its SHA-256, as ``serving.tenants`` names it.

    Example:
      >>> mark_of("secret")
      '2bb80d537b1da3e3'
    """
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def caller_of(scope: Scope) -> str | None:
    """The mark of the key in the ``Authorization`` header of an ASGI scope."""
    for name, value in scope.get("headers", ()):
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            return mark_of(key) if scheme.lower() == "bearer" else None
    return None


def response_of(request: str, *, batch: bool = False) -> str:
    """The id of the response that a request is part of, as its client gets it.

    vLLM numbers the prompts of a completion (``-0``), and the turns of a response and the conversations of a batch
    (``_0``), even where there is only one. Any other chat is one request. Clients choose the rest of an id, so whatever
    else looks like a number there is not one of vLLM's.

    Args:
      request: the id under which an API server hands the request to its engine (``external_req_id``).
      batch: it is one of a batch's conversations.

    Example:
      >>> response_of("cmpl-a-0"), response_of("resp_a_0"), response_of("chatcmpl-a-1"), response_of("chatcmpl-1_0")
      ('cmpl-a', 'resp_a', 'chatcmpl-a-1', 'chatcmpl-1_0')
      >>> response_of("chatcmpl-1_0", batch=True)
      'chatcmpl-1'
    """
    if request.startswith(WHOLE) and not batch:
        return request
    return re.sub(r"-\d+$" if request.startswith("cmpl-") else r"_\d+$", "", request)


class MarkCallers:
    """ASGI middleware that sets `caller` and `batched` for whatever answers the request.

    vLLM's own middleware has refused unknown keys by then, where the server has any.
    """

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            caller.set(caller_of(scope))
            batched.set(scope["path"].endswith(BATCH))
            inner.set(False)  # a request that is pipelined behind another inherits that one's
        await self.app(scope, receive, send)
