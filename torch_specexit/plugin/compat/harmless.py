"""What the plug-in does beside vLLM's own work must not keep a request from its answer."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger("vllm.specexit")

_complaints: set[tuple[type[Exception], str, int]] = set()
"""Kinds of errors that have been logged, each with the file and the line that raised it. What an error says may name a
request, and so be new each time."""


def harmless(action: Callable[[], T]) -> T | None:
    """Run an action and return its result; None where it fails. The same failure is logged once, not at every step."""
    try:
        return action()
    except Exception as error:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        complaint = (type(error), frame.f_code.co_filename, line)
        if complaint not in _complaints:
            _complaints.add(complaint)
            logger.exception("specexit could not report on a request")
        return None
