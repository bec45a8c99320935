"""``reasoning_effort``: OpenAI's name for how much a model is to think, as an argument of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from specexit.drafts.policy import Effort

KEY = "specexit_effort"


BELOW: dict[Effort, Effort] = {"max": "xhigh", "xhigh": "high"}
"""Efforts above ``high``, which some models know -> the next lower one."""


def point_for(effort: Effort | None, points: Mapping[Effort, str]) -> str | None:
    """The operating point for an effort; None where there is none for it.

    Who asks for more than ``high`` gets at least what is served for ``high``.

    Example:
      >>> point_for("max", {"high": "careful"}), point_for("medium", {"high": "careful"})
      ('careful', None)
    """
    while effort in BELOW and effort not in points:
        effort = BELOW[effort]
    return None if effort is None else points.get(effort)


def effort_of(request: object) -> str | None:
    """The effort of a chat or a responses request; None where it has none that an operating point could be for."""
    effort = getattr(request, "reasoning_effort", None)
    if effort is None:
        effort = getattr(getattr(request, "reasoning", None), "effort", None)
    return effort if effort in get_args(Effort) else None


def with_effort(extra_args: Mapping[str, Any] | None, request: object) -> dict[str, Any] | None:
    """A request's arguments with its effort among them; an effort under our own key takes precedence.

    Example:
      >>> from types import SimpleNamespace
      >>> with_effort({"other": 1}, SimpleNamespace(reasoning_effort="low"))
      {'specexit_effort': 'low', 'other': 1}
      >>> with_effort(None, SimpleNamespace(reasoning_effort="none")) is None
      True
    """
    effort = effort_of(request)
    if effort is None:
        return None if extra_args is None else dict(extra_args)
    return {KEY: effort, **(extra_args or {})}
