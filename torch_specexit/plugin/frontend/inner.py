"""Requests that no client has sent: those of audits, and the steps of a beam search, which are requests to the engine.

They run without exits and are counted nowhere. What they are is known where they are made; an id does not say it, for
clients choose theirs.
"""

from __future__ import annotations

from contextvars import ContextVar

inner: ContextVar[bool] = ContextVar("specexit_inner", default=False)
"""Whether requests that are admitted now are such."""
