"""Reports on requests that have lately finished, which their clients may still ask for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_FINISHED = 1024
"""Finished requests that can still be asked for."""


class Told(NamedTuple):
    """How a finished request has ended."""

    response: str
    """Id of the response that it is part of."""
    choices: list[dict[str, Any] | None]


class Finished:
    """The latest finished requests, by caller and id: clients choose ids, and two may choose the same.

    Where there are too many, the oldest goes of the caller who has most of them, so that nobody pushes out another's.

    Example:
      >>> finished = Finished()
      >>> finished.add("a caller", "cmpl-1-0", Told("cmpl-1", [None]))
      >>> list(finished.of("a caller")), list(finished.of("another"))
      (['cmpl-1-0'], [])
    """

    def __init__(self) -> None:
        self._of: dict[str | None, OrderedDict[str, Told]] = {}
        self._size = 0

    def add(self, caller: str | None, request: str, told: Told) -> None:
        """Remember a request, or what is new about it."""
        own = self._of.setdefault(caller, OrderedDict())
        self._size += request not in own
        own[request] = told
        own.move_to_end(request)
        if self._size > MOST_FINISHED:
            self._forget_one()

    def _forget_one(self) -> None:
        most = max(self._of, key=lambda caller: len(self._of[caller]))
        self._of[most].popitem(last=False)
        self._size -= 1
        if not self._of[most]:
            del self._of[most]

    def of(self, caller: str | None) -> Mapping[str, Told]:
        """What is remembered of one caller."""
        return self._of.get(caller, {})
