"""How each request ended, and how its thinking goes, from the worker's tables to the front end.

A snapshot of the tables rides on the model runner's output to the engine core. The engine core keeps the latest record
with each request, and puts what is new into ``EngineCoreOutput.kv_transfer_params["specexit"]``, the one field that
reaches both offline callers and the JSON of the OpenAI server. `torch_specexit.plugin.frontend.reports` reads it there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from specexit.method.decision import ENDED
from specexit.method.signals import NAMES
from torch_specexit.plugin.protocols import EngineCoreOutput, EngineCoreOutputs, SchedulerRequest
from torch_specexit.plugin.worker.rule import BEFORE, OVER, RECORD, THINKING

KEY = "specexit"
RECORD_KEY = "specexit_record"
"""Attribute of the scheduler's requests: the latest record. A step that has only added tokens brings none."""
INACTIVE_KEY = "specexit_inactive"
"""Attribute of a model runner's output: why exits have failed in it. Absent where they have not."""
AWAITING_KEY = "specexit_awaiting"
"""Attribute of a model runner's output: why the draft was not whole in that step, so that nothing exits; absent where
it was. It is also the key under which an `EngineCoreOutput` says so: the reason, and None in the first outputs after
the draft is whole again."""
REPLACED_KEY = "specexit_replaced"
"""Attribute of a model runner's output, present where the draft's weights are not those that the engine has started
with. It is also the key under which the `EngineCoreOutput` of a request that ends says so."""
UNCUT = "uncut"
"""Key in a report on a request with stop strings, which vLLM's front end looks for: how many output tokens the report
counts if it is final, else None, and the `Record`. Where a string is found, the front end makes the report from it."""


HANDED_OVER = "handed_over"
"""Outcome of a request on an instance that only reads its prompt: another one goes on with its thinking."""


class Record(NamedTuple):
    """What a snapshot says about one request; numbers are all floats, as in `rule.STATE`."""

    phase: float
    thoughts: float
    start: float
    exited: float
    """Why the thinking was ended: 0 where it was not, else one more than an index into `ENDED`."""
    judged: float
    on: float
    signals: tuple[float, ...]
    """At the last verdict. No verdict follows an exit or a would-be exit, so after one these are its signals."""
    would_exit: float = 0.0
    """Shadow mode: thinking tokens at the would-be exit, 0 for none."""
    kept: float = 0.0
    """Thinking tokens at the exit, before those that the plug-in writes there."""

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Record:
        """Read a row whose columns are those of `rule.RECORD`."""
        at, end = RECORD.index(NAMES[0]), RECORD.index(NAMES[0]) + len(NAMES)
        return cls(*row[:at], tuple(row[at:end]), *row[end:])  # pyright: ignore[reportCallIssue]

    @property
    def now(self) -> str:
        """The state of a request that still runs: ``thinking``, ``answering``, or ``off``."""
        if not self.on:
            return "off"
        return "thinking" if self.phase == THINKING else "answering"

    def progress(self) -> dict[str, Any]:
        """Report on a request that still runs, in the form of `describe`."""
        return self._report(self.now, int(self.thoughts))

    def describe(self, n_output: int, *, cut_off: bool, handed_over: bool = False) -> dict[str, Any]:
        """The outcome of a finished request.

        Args:
          n_output: tokens that the client gets. The worker may have seen a few more, after a stop.
          cut_off: whether the request was ended from outside (its token limit, an abort).
          handed_over: whether another instance goes on with it.

        Returns:
          ``outcome``: one of `ENDED`, ``natural_end`` (the model ended its thinking, or the request in the midst of
          it), ``length`` (cut off while thinking), ``handed_over`` (the same, by an instance that only reads prompts)
          or ``off`` (exits were off, or thinking never began);
          ``thinking_tokens`` kept, all of them the model's own; ``transition_tokens`` that were written behind them at
          the exit, if there were any; ``signals`` at the exit or, without one, at the last verdict, if there was one,
          as far as they are numbers; ``would_exit``, in shadow mode: thinking tokens at the exit that was not made,
          where there was one.
        """
        began = self.phase != BEFORE and self.start <= n_output
        end = int(self.start + self.thoughts)
        over = self.phase == OVER and end < n_output
        tokens = 0 if not began else int(self.thoughts) if over else n_output - int(self.start)
        if not began or not self.on:
            outcome = "off"
        elif not over and cut_off:
            outcome = HANDED_OVER if handed_over else "length"
        else:
            outcome = ENDED[int(self.exited) - 1] if over and self.exited else "natural_end"
        return self._report(outcome, tokens)

    def _report(self, outcome: str, tokens: int) -> dict[str, Any]:
        """Report an outcome, with ``tokens`` tokens of thinking, those that were written at an exit among them."""
        # JSON has no NaN, and a counter that takes one in is lost.
        known = zip(NAMES, self.signals, strict=True) if self.judged else ()
        signals = {name: value for name, value in known if not math.isnan(value)}
        # The worker's last step may have gone beyond what the client gets.
        kept = min(tokens, int(self.kept)) if self.exited else tokens
        report = {"outcome": outcome, "thinking_tokens": kept, "signals": signals}
        if tokens > kept:
            report["transition_tokens"] = tokens - kept
        seen = 0 < self.would_exit <= tokens
        return report | ({"would_exit": int(self.would_exit)} if seen else {})


UNKNOWN = Record.from_row([0.0] * len(RECORD))
"""Record of a request of which nothing is known: `Record.describe` calls it ``off``."""

MOST_GONE = 64
"""How many requests that ended without an output, by an abort, are kept here before they are dropped."""


class Reporter:
    """What the engine core knows of its requests: the latest record of each.

    Nearly all steps bring news of a few requests at most, so all others are passed over at once.
    """

    def __init__(self) -> None:
        self.requests: dict[str, SchedulerRequest] = {}
        """The scheduler's requests of which there is a record, by id."""
        self.replaced = False
        """Whether the draft's weights have been replaced."""
        self.awaiting: set[int] = set()
        """Clients that have been told that the draft is not whole, and not yet that it is whole again."""
        self.failed = False

    def take(self, records: Mapping[str, Sequence[float]], requests: Mapping[str, SchedulerRequest]) -> None:
        """Take in news, before the scheduler takes in the step.

        Args:
          records: rows for `Record.from_row` by request id, of the requests that have more news than tokens.
          requests: the scheduler's, by id.
        """
        for name, row in records.items():
            request = requests.get(name)
            if request is not None:
                record, known = Record.from_row(row), getattr(request, RECORD_KEY, None)
                # How thinking has ended stays known, even where exits are lost afterwards.
                if record.on or known is None or known.phase != OVER:
                    setattr(request, RECORD_KEY, record)
                self.requests[name] = request
        if len(self.requests) > len(requests) + MOST_GONE:
            self.requests = {name: requests[name] for name in self.requests if name in requests}

    def report(
        self,
        records: Mapping[str, Sequence[float]],
        outputs: Mapping[int, EngineCoreOutputs],
        inactive: str | None,
        awaiting: str | None = None,
    ) -> None:
        """Put the outcomes of finished requests, and what is new about the others, into the engine core's outputs.

        Args:
          records: of the step.
          outputs: ``EngineCoreOutputs`` by client.
          inactive: why exits have failed, if they have.
          awaiting: why the draft was not whole in the step, if it was not.
        """
        failing = inactive is not None and not self.failed
        if failing:
            self._lose()
        for number, client in outputs.items():
            if client.outputs and (awaiting is not None or number in self.awaiting):
                self._tell_of_weights(number, client, awaiting)
            for output in client.outputs:
                name = output.request_id
                if output.finish_reason is not None or failing or name in records:
                    self._tell(output, fresh=failing or name in records)
                if inactive is not None:
                    output.kv_transfer_params = {**(output.kv_transfer_params or {}), INACTIVE_KEY: inactive}
            for name in client.finished_requests or ():
                self.requests.pop(name, None)

    def _lose(self) -> None:
        """Drop what is known of thinking that goes on: exits have failed, and nobody will report where it ends."""
        self.failed = True
        for request in self.requests.values():
            if getattr(request, RECORD_KEY).phase != OVER:
                setattr(request, RECORD_KEY, UNKNOWN)

    def _tell_of_weights(self, number: int, client: EngineCoreOutputs, awaiting: str | None) -> None:
        for output in client.outputs:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), AWAITING_KEY: awaiting}
        if awaiting is None:
            self.awaiting.discard(number)
        else:
            self.awaiting.add(number)

    def _tell(self, output: EngineCoreOutput, *, fresh: bool) -> None:
        request = self.requests.get(output.request_id)
        if request is None:
            return
        told = _tell(request, getattr(request, RECORD_KEY), output.finish_reason, fresh=fresh)
        if told is not None:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: told}
        if output.finish_reason is not None:
            if self.replaced:
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), REPLACED_KEY: True}
            self.requests.pop(output.request_id, None)


def _tell(
    request: SchedulerRequest, record: Record, finish_reason: object | None, *, fresh: bool
) -> dict[str, Any] | None:
    """The report that goes with one output; None where there is no news of a running request: it has not been judged
    again, and its phase has not changed."""
    may_stop = bool(request.sampling_params.stop)
    if finish_reason is not None:
        cut_off, n_output = str(finish_reason) != "stop", request.num_output_tokens
        told = record.describe(n_output, cut_off=cut_off, handed_over=_is_handed_over(request))
        return told | ({UNCUT: (n_output, record)} if may_stop else {})
    news = record if may_stop else (record.now, record.judged, record.signals)
    if not fresh or getattr(request, KEY, None) == news:
        return None
    setattr(request, KEY, news)
    return record.progress() | ({UNCUT: (None, record)} if may_stop else {})


def _is_handed_over(request: SchedulerRequest) -> bool:
    """Whether a request is to be decoded by another instance, as its router has said in ``kv_transfer_params``."""
    transfer = (request.sampling_params.extra_args or {}).get("kv_transfer_params")
    return isinstance(transfer, dict) and bool(transfer.get("do_remote_decode"))
