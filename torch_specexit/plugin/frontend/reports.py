"""What the front end does with reports: it keeps the latest with each request, puts it into every output from then on,
and draws conclusions when the request has finished.

Some of vLLM's outputs never reach the client, and some swallow others on their way; so what an output says is not what
has just happened but how the request stands. With n > 1 that is ``{"choices": [...]}``, None where nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch_specexit.plugin.certified import ends_as_calibrated
from torch_specexit.plugin.frontend.own_end import BY_ITSELF, is_by_itself
from torch_specexit.plugin.frontend.protocols import OutputProcessor, RequestState
from torch_specexit.plugin.outcome import AWAITING_KEY, INACTIVE_KEY, KEY, REPLACED_KEY, UNCUT, Record
from torch_specexit.plugin.protocols import EngineCoreOutput

if TYPE_CHECKING:
    from torch_specexit.plugin.frontend.operation import Admitted
    from torch_specexit.plugin.frontend.server import FrontEnd

ADMITTED = "specexit_admitted"
"""Attribute of a `RequestState`: what the server has decided about the request."""

LATEST = "specexit_latest"
"""Attribute of an `OutputProcessor`, by id of each running request: what its outputs say while there is no news of it,
and its state where a stop string may end it, else None."""

MOST_GONE = 64
"""Aborted requests, which vLLM forgets without an output, that may pile up here before they are forgotten, too."""

LABELS = ("point", "certified")
"""Fields of a report that say which policy it is of."""

RUNNING = ("thinking", "answering")

NOTHING_KNOWN = {"outcome": "off", "thinking_tokens": 0, "signals": {}}
"""Report of a request that no worker tells of, as exits had failed before it came."""


def attach(processor: OutputProcessor, outputs: Iterable[EngineCoreOutput]) -> list[RequestState]:
    """Put into each output how its request stands, before vLLM processes it.

    In nearly all steps there is news of a few requests at most; for the others this loop is all that is done.

    Args:
      processor: vLLM's `OutputProcessor`.
      outputs: `EngineCoreOutput` of one step.

    Returns:
      States of the requests that there is news of, or that end or may, and of which anything is known.
    """
    latest: dict[str, tuple[dict[str, Any], RequestState | None]] = vars(processor).setdefault(LATEST, {})
    if len(latest) > len(processor.request_states) + MOST_GONE:
        for gone in latest.keys() - processor.request_states.keys():
            del latest[gone]
    front: FrontEnd | None = getattr(processor, KEY, None)
    ended, known = front is not None and front.activity.ended, []
    for output in outputs:
        if output.kv_transfer_params is None and output.finish_reason is None and not ended:
            if (at := latest.get(output.request_id)) is not None:
                output.kv_transfer_params, may_stop = at
                if may_stop is not None:
                    known.append(may_stop)
        elif (state := processor.request_states.get(output.request_id)) is not None:
            _take_in(processor, state, output)
            if (report := getattr(state, KEY, None)) is not None:
                told = {KEY: report} if state.parent_req is None else _of_all(state)
                latest[output.request_id] = told, state if hasattr(state, UNCUT) else None
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), **told}
                known.append(state)
    return known


def _take_in(processor: OutputProcessor, state: RequestState, output: EngineCoreOutput) -> None:
    """Keep with a request what an output says of it, and tell the front end what it says of exits as a whole."""
    params = output.kv_transfer_params or {}
    front: FrontEnd | None = getattr(processor, KEY, None)
    if front is not None and output.finish_reason is not None:
        setattr(state, BY_ITSELF, is_by_itself(output, front.end_tokens))
    if INACTIVE_KEY in params and front is not None:
        front.activity.fail("failed", params[INACTIVE_KEY])
    if AWAITING_KEY in params and front is not None:
        front.activity.awaits(params[AWAITING_KEY])
    if params.get(AWAITING_KEY, "") is None:
        del params[AWAITING_KEY]
    if params.pop(REPLACED_KEY, False) and front is not None:
        front.doubt("the draft's weights are not those that the server started with")
    if (report := params.get(KEY)) is not None:
        if (uncut := report.pop(UNCUT, None)) is not None:
            setattr(state, UNCUT, uncut)
        setattr(state, KEY, _as_admitted(processor, state, report))
    elif front is not None and front.activity.ended and not hasattr(state, KEY):
        setattr(state, KEY, dict(NOTHING_KNOWN))


def _as_admitted(processor: OutputProcessor, state: RequestState, report: dict[str, Any]) -> dict[str, Any]:
    """A report with the policy that its request runs under, and whether a certificate holds for how it has ended."""
    front: FrontEnd | None = getattr(processor, KEY, None)
    admitted: Admitted | None = getattr(state, ADMITTED, None)
    if admitted is not None and front is not None:
        # It may have begun before a lasting doubt was known.
        otherwise = not ends_as_calibrated(report, admitted.policy, front.operation.serving.thinking_margin)
        uncertified = otherwise or front.operation.lasting
        admitted = admitted._replace(certified=False) if uncertified else admitted
    return _labelled(report, admitted)


def _labelled(report: dict[str, Any], admitted: Admitted | None) -> dict[str, Any]:
    """A report with the policy that its request ran under: an operating point, or null for one of the request's own.

    There is none to name where exits were off, be it in the worker alone (a grammar that binds the thinking), or where
    thinking never began.
    """
    if admitted is None or admitted.mode == "off" or report["outcome"] == "off":
        return report
    return report | dict(zip(LABELS, (admitted.point, admitted.certified), strict=True))


def _of_all(state: RequestState) -> dict[str, Any]:
    """What outputs of a request with several choices say: one object, brought up to date, for all of its choices."""
    parent = state.parent_req
    if not hasattr(parent, LATEST):
        setattr(parent, LATEST, {})
    told: dict[str, Any] = getattr(parent, LATEST)
    told[KEY] = {"choices": choices_of(state)}
    return told


def choices_of(state: RequestState) -> list[dict[str, Any] | None]:
    """Reports of all choices of a request, given vLLM's `RequestState` of one of them."""
    if state.parent_req is None:
        return [getattr(state, KEY, None)]
    choices = getattr(state.parent_req, KEY, None) or [None] * state.parent_req.n
    choices[state.request_index] = getattr(state, KEY, None)
    setattr(state.parent_req, KEY, choices)
    return list(choices)


def cut(processor: OutputProcessor, state: RequestState) -> None:
    """Cut the report on a request that has ended down to the tokens that its client gets: vLLM's front end finds stop
    strings, and drops what a step has brought behind one, even the end of the thinking."""
    n_output, record = vars(state).pop(UNCUT, (0, None))
    if record is None:
        return
    sent = len(state.detokenizer.output_token_ids)
    if n_output is not None and sent >= n_output:
        return
    setattr(state, BY_ITSELF, False)  # though the model may have ended its answer in that step
    report: dict[str, Any] = getattr(state, KEY)
    ended = _as_admitted(processor, state, Record(*record).describe(sent, cut_off=False))
    # The very object is on its way to the client, who is served after this.
    report.clear()
    report.update(ended)


def settle(processor: OutputProcessor, states: Sequence[RequestState], stats: object | None) -> None:
    """Finish the reports of a step that vLLM has processed: those of requests that end are counted and remembered.

    Args:
      processor: vLLM's `OutputProcessor`.
      states: what `attach` has returned.
      stats: the `IterationStats` of the step, or None where nothing is counted.
    """
    front: FrontEnd | None = getattr(processor, KEY, None)
    latest: dict[str, Any] = getattr(processor, LATEST)
    for state in states:
        if state.request_id in processor.request_states:
            continue
        cut(processor, state)
        latest.pop(state.request_id, None)
        report = getattr(state, KEY)
        if report["outcome"] in RUNNING:  # the engine core could not say how it ended
            report["outcome"] = "off"
            for label in LABELS:
                report.pop(label, None)
        admitted: Admitted | None = getattr(state, ADMITTED, None)
        if admitted is not None and not admitted.counted:
            continue
        if stats is not None:
            setattr(stats, KEY, [*getattr(stats, KEY, ()), report])
        if front is not None:
            front.finish(state, report)
