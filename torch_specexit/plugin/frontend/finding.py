"""How a request stands, by the id that its client knows: that of a response, or of one of its parts.

Parts are the prompts of a completion, the turns of a response, the conversations of a batch: vLLM makes a request of
each. Only ids that may be parts are looked up, as clients ask often, and there may be many requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from torch_specexit.plugin.frontend.callers import response_of
from torch_specexit.plugin.frontend.finished import Choices, Finished
from torch_specexit.plugin.frontend.operation import Admitted
from torch_specexit.plugin.frontend.reports import ADMITTED, choices_of


def find(processor: Any, finished: Finished, request: str, caller: str | None) -> dict[str, Any] | None:
    """How a caller's request stands.

    Args:
      processor: vLLM's `OutputProcessor`, which has the running requests.
      finished: the requests that have lately finished.
      request: exactly the id of a response, or of one of its parts.
      caller: mark of who asks.

    Returns:
      ``request_id``, ``finished``, and in ``choices`` a report for each choice, None where nothing is known of it yet;
      None for a request that is unknown, or another caller's.
    """
    ended = finished.of(caller, request)
    running = dict(_running_parts(processor, request, caller, len(ended)))
    if not ended and not running:
        one = _running(processor, request, caller)
        running = {} if one is None else {request: choices_of(one)}
        ended = finished.one(caller, request)
    known = ended | running
    in_order = sorted(known, key=lambda part: (len(part), part))  # they differ in the number at their end
    choices = [choice for part in in_order for choice in known[part]]
    return {"request_id": request, "finished": not running, "choices": choices} if known else None


def response_of_state(state: Any) -> str:
    """Id of the response that a request is part of, given vLLM's `RequestState`."""
    admitted: Admitted | None = getattr(state, ADMITTED, None)
    known = None if admitted is None else admitted.response
    return known or response_of(state.external_req_id)


def _running_parts(processor: Any, response: str, caller: str | None, n_ended: int) -> Iterator[tuple[str, Choices]]:
    """The running parts of a response: the one of its own id, or those that vLLM has numbered."""
    mark = "-" if response.startswith("cmpl-") else "_"
    for number in count(-1):
        part = response if number < 0 else f"{response}{mark}{number}"
        if part not in processor.external_req_ids and number >= n_ended:
            return
        state = _running(processor, part, caller)
        if state is not None and response_of_state(state) == response:
            yield part, choices_of(state)


def _running(processor: Any, request: str, caller: str | None) -> Any:
    """The state of a caller's running request, or of one of its choices where there are several; None for no such."""
    states = (processor.request_states[name] for name in processor.external_req_ids.get(request, ()))
    for state in states:
        admitted: Admitted | None = getattr(state, ADMITTED, None)
        if admitted is None or admitted.caller == caller:
            return state
    return None
