"""Reports on vLLM's own OpenTelemetry spans, as attributes ``specexit.*``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_report: ContextVar[Mapping[str, Any] | None] = ContextVar("specexit_report", default=None)


def attributes_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a report; OpenTelemetry knows no nested ones, and no null.

    Example:
      >>> attributes_of({"outcome": "exit", "thinking_tokens": 9, "signals": {"validity": 0.9}, "point": None})
      {'specexit.outcome': 'exit', 'specexit.thinking_tokens': 9, 'specexit.signals.validity': 0.9}
    """
    flat = {name: value for name, value in report.items() if name != "signals" and value is not None}
    flat |= {f"signals.{name}": value for name, value in report.get("signals", {}).items()}
    return {f"specexit.{name}": value for name, value in flat.items()}


@contextmanager
def of_request(report: Mapping[str, Any] | None) -> Iterator[None]:
    """In this block, spans are those of a request with this report; None for no report."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def with_ours(attributes: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A span's attributes, and those of the report in whose context it is made."""
    report = _report.get()
    return attributes if report is None else {**(attributes or {}), **attributes_of(report)}
