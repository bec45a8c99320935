"""How a request stands, by the id that its client knows: that of a response, or of one of its parts.

Parts are the prompts of a completion, the turns of a response, the conversations of a batch: vLLM makes a request of
each. Which these are is kept with the parts that run, as clients ask often, and there may be many requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakValueDictionary

from torch_specexit.plugin.frontend.callers import response_of
from torch_specexit.plugin.frontend.finished import Choices, Finished
from torch_specexit.plugin.frontend.operation import Admitted
from torch_specexit.plugin.frontend.protocols import OutputProcessor, RequestState
from torch_specexit.plugin.frontend.reports import ADMITTED, choices_of

PARTS = "specexit_parts"
"""Attribute of a `RequestState`: the `Parts` of its response."""


class Parts(dict[str, int]):
    """The parts of a response that have been admitted, by their ids: how many choices each has."""


class Running:
    """The parts of each response of which one runs: vLLM forgets some without a word, so its own states keep them.

    Example:
      >>> from unittest.mock import NonCallableMock
      >>> running, state = Running(), NonCallableMock(RequestState, external_req_id="cmpl-1-0", parent_req=None)
      >>> running.add("a caller", "cmpl-1", state)
      >>> running.of("a caller", "cmpl-1"), running.of("another", "cmpl-1")
      ({'cmpl-1-0': 1}, {})
      >>> del state
      >>> running.of("a caller", "cmpl-1")
      {}
    """

    def __init__(self) -> None:
        self._of: WeakValueDictionary[tuple[str | None, str], Parts] = WeakValueDictionary()

    def add(self, caller: str | None, response: str, state: RequestState) -> None:
        """Take in a part of a caller's response, given its `RequestState`."""
        parts = self._of.setdefault((caller, response), Parts())
        parts[state.external_req_id] = 1 if state.parent_req is None else state.parent_req.n
        setattr(state, PARTS, parts)

    def of(self, caller: str | None, response: str) -> dict[str, int]:
        """The parts of a caller's response; empty where none of them runs."""
        return dict(self._of.get((caller, response), {}))


def find(
    processor: OutputProcessor, running: Running, finished: Finished, request: str, caller: str | None
) -> dict[str, Any] | None:
    """How a caller's request stands.

    Args:
      processor: vLLM's `OutputProcessor`, which has the running requests.
      running: which parts each of their responses has.
      finished: the requests that have lately finished.
      request: exactly the id of a response, or of one of its parts.
      caller: mark of who asks.

    Returns:
      ``request_id``, ``finished``, and in ``choices`` a report for each choice, None where nothing is known of it yet,
      or any more; None for a request that is unknown, or another caller's.
    """
    parts = running.of(caller, request)
    run, ended = dict(_running_parts(processor, parts, request, caller)), finished.of(caller, request)
    if not ended and not run:
        one = _running(processor, request, caller)
        parts, run = {}, {} if one is None else {request: choices_of(one)}
        ended = finished.one(caller, request)
    forgotten: dict[str, Choices] = {part: [None] * n for part, n in parts.items()}
    known = forgotten | ended | run
    in_order = sorted(known, key=lambda part: (len(part), part))  # they differ in the number at their end
    choices = [choice for part in in_order for choice in known[part]]
    return {"request_id": request, "finished": not run, "choices": choices} if known else None


def response_of_state(state: RequestState) -> str:
    """Id of the response that a request is part of, given vLLM's `RequestState`."""
    admitted: Admitted | None = getattr(state, ADMITTED, None)
    known = None if admitted is None else admitted.response
    return known or response_of(state.external_req_id)


def _running_parts(
    processor: OutputProcessor, parts: Iterable[str], response: str, caller: str | None
) -> Iterator[tuple[str, Choices]]:
    for part in parts:
        state = _running(processor, part, caller)
        if state is not None and response_of_state(state) == response:
            yield part, choices_of(state)


def _running(processor: OutputProcessor, request: str, caller: str | None) -> RequestState | None:
    """The state of a caller's running request, or of one of its choices where there are several; None for no such."""
    states = (processor.request_states[name] for name in processor.external_req_ids.get(request, ()))
    for state in states:
        admitted: Admitted | None = getattr(state, ADMITTED, None)
        if admitted is None or admitted.caller == caller:
            return state
    return None
