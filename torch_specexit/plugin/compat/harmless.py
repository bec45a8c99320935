"""What the plug-in does beside vLLM's own work must not keep a request from its answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("vllm.specexit")

_complaints: set[str] = set()


def harmless(action: Callable[[], Any]) -> Any:
    """Run an action and return its result; None where it fails. The same failure is logged once, not at every step."""
    try:
        return action()
    except Exception as error:
        if repr(error) not in _complaints:
            _complaints.add(repr(error))
            logger.exception("specexit could not report on a request")
        return None
