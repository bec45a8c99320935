"""Who is asking: a mark of the API key that an HTTP request came with, so that nobody reads another one's reports."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

caller: ContextVar[str | None] = ContextVar("specexit_caller", default=None)
"""Of the HTTP request that is being answered; None without an API key, and outside of a server."""

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


class MarkCallers:
    """ASGI middleware that sets `caller` for whatever answers the request.

    vLLM's own middleware has refused unknown keys by then, where the server has any.
    """

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            caller.set(caller_of(scope))
        await self.app(scope, receive, send)
