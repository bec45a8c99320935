"""Reports on requests that have lately finished, which their clients may still ask for."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

from torch_specexit.plugin.frontend.callers import MOST_ID

MOST_FINISHED = 1024
"""Finished requests that can still be asked for."""

FIRST = ("", "-0", "_0")
"""What follows the id of a response in that of its first part, which begins before all others: nothing in the id of a
request that is the whole response. Of the others not all need be known, as vLLM drops some without a word."""

Choices = list[dict[str, Any] | None]


class Finished:
    """The latest finished requests, by caller and id: clients choose ids, and two may choose the same.

    Where there are too many, the caller who has most of them loses the oldest, so that nobody pushes out another's.

    Example:
      >>> finished = Finished()
      >>> finished.add("a caller", "cmpl-1-0", "cmpl-1", [None])
      >>> finished.of("a caller", "cmpl-1"), finished.of("another", "cmpl-1")
      ({'cmpl-1-0': [None]}, {})
    """

    def __init__(self) -> None:
        self._responses: defaultdict[str | None, OrderedDict[str, str]] = defaultdict(OrderedDict)
        """By caller: request -> response that it is part of, the oldest first."""
        self._parts: defaultdict[tuple[str | None, str], dict[str, Choices]] = defaultdict(dict)
        """By caller and response: request -> how it has ended."""
        self._size = 0

    def add(self, caller: str | None, request: str, response: str, choices: Choices) -> None:
        """Remember a request, or what is new about it; one whose id is too long to be asked for is left out."""
        if len(response) > MOST_ID:
            return
        self._forget(caller, request)
        self._responses[caller][request] = response
        self._parts[caller, response][request] = choices
        self._size += 1
        if self._size > MOST_FINISHED:
            most = max(self._responses, key=lambda who: len(self._responses[who]))
            self._forget(most, next(iter(self._responses[most])))

    def begins(self, caller: str | None, request: str, response: str) -> None:
        """Forget how a response has ended whose first part begins: its client has given the id once more."""
        if request.removeprefix(response) in FIRST:
            for part in self.of(caller, response):
                self._forget(caller, part)

    def _forget(self, caller: str | None, request: str) -> None:
        response = self._responses[caller].pop(request, None)
        if response is not None:
            self._size -= 1
            del self._parts[caller, response][request]
            if not self._parts[caller, response]:
                del self._parts[caller, response]
        if not self._responses[caller]:
            del self._responses[caller]

    def of(self, caller: str | None, response: str) -> dict[str, Choices]:
        """The parts of a response, by their ids."""
        return dict(self._parts.get((caller, response), {}))

    def one(self, caller: str | None, request: str) -> dict[str, Choices]:
        """A request by its own id; empty where it is not known."""
        response = self._responses.get(caller, {}).get(request)
        return {} if response is None else {request: self._parts[caller, response][request]}
