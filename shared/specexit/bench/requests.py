"""What each method wrote for each problem, and ``requests.jsonl``, where all of it is kept but for an open loop's."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from specexit.bench.results import ResultsError
from specexit.config import write_text
from specexit.method.decision import ENDED

Reason = Literal["exit", "natural_end", "length"]


@dataclass(frozen=True)
class Request:
    """What a method wrote for one problem."""

    id: str
    """Of the problem, which is the id of its trace."""
    token_ids: list[int]
    """Everything generated, end of turn included."""
    thinking_tokens: int
    reason: Reason
    answer: str | None
    correct: bool
    signals: dict[str, float]
    """Signal values at the exit, or at the last verdict; empty where nothing was judged."""
    probe_tokens: int = 0
    """Generated besides: trial answers that are no part of the response."""
    seconds: float | None = None
    """From when the problem came in to the last token."""
    first_answer_seconds: float | None = None
    """To the first token behind ``</think>``; None where there is none."""
    sample: int = 0
    """Which of the responses to the problem."""
    task: str | None = None
    answer_tokens: int | None = None
    """Behind ``</think>``, end of turn included; None where they were not counted."""
    finish_reason: str | None = None
    """vLLM's of the whole response: ``length`` where it ran out of tokens, in its thinking or in its answer; None in
    files of older versions."""
    ended_by: str | None = None
    """Which of `ENDED`, where the plug-in has ended the thinking; else None, and in files of older versions."""


NEEDED = ("method", "batch", *(one.name for one in fields(Request) if one.default is MISSING))
"""What every line of ``requests.jsonl`` has."""


@dataclass
class Run:
    """All that was measured of one method. Requests and seconds of all methods are in the same order of problems."""

    requests: dict[int, list[Request]] = field(default_factory=dict)
    """Batch size -> one entry per problem."""
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """Batch size -> one entry per problem at batch 1, per slice of problems above."""
    units: dict[int, list[str]] = field(default_factory=dict)
    """Batch size -> which problems each entry of ``seconds`` is of. Samples of a slice are of the same problems."""
    unit_of: dict[int, list[str]] = field(default_factory=dict)
    """Batch size -> of each request, the entry of ``units`` that it belongs to."""
    n_drafts: int = 0
    """Speculation steps, of all batch sizes."""
    n_accepted: int = 0
    """Draft tokens that the target accepted in them."""
    open_loop: dict[float, list[list[Request]]] = field(default_factory=dict)
    """Arrivals per second -> slices of the problems. What waits for what is within a slice."""
    joules: dict[int, list[float | None]] = field(default_factory=dict)
    """Batch size -> one entry per slice of problems; None where the machine did not tell."""
    n_preempted: int = 0
    """How often a request lost its KV cache to others and was computed again, at all batch sizes and rates."""

    def add(
        self,
        batch: int,
        requests: Sequence[Request],
        seconds: Sequence[float],
        n_drafts: int,
        n_accepted: int,
        joules: float | None = None,
    ) -> None:
        """Append what one slice of the problems gave: the seconds of each request, or of all of them together."""
        self.joules.setdefault(batch, []).append(joules)
        self.requests.setdefault(batch, []).extend(requests)
        self.seconds.setdefault(batch, []).extend(seconds)
        each = len(seconds) == len(requests)
        units = [request.id for request in requests] if each else [f"{requests[0].id} to {requests[-1].id}"]
        self.units.setdefault(batch, []).extend(units)
        self.unit_of.setdefault(batch, []).extend(units if each else units * len(requests))
        self.n_drafts += n_drafts
        self.n_accepted += n_accepted

    @property
    def all_requests(self) -> list[Request]:
        """The requests at the largest batch size, where every problem is asked."""
        return self.requests[max(self.requests)]


def reason_of(outcome: Mapping[str, Any] | None, *, closed: bool, finish_reason: str, forced: bool = False) -> Reason:
    """How thinking ended.

    Args:
      outcome: what the plug-in reported; None where it is not there.
      forced: whether a method wrote ``</think>`` itself.
      closed: whether ``</think>`` was generated.
      finish_reason: vLLM's; ``length`` where the tokens ran out.
    """
    if forced or ended_by(outcome) is not None:
        return "exit"
    return "natural_end" if closed or finish_reason != "length" else "length"


def ended_by(outcome: Mapping[str, Any] | None) -> str | None:
    """Which of `ENDED` the plug-in has reported; None where it has not ended the thinking."""
    found = None if outcome is None else outcome["outcome"]
    return found if found in ENDED else None


def write_requests(path: Path, runs: Mapping[str, Run]) -> None:
    """Write every request of every method as JSON lines, with ``method`` and ``batch``."""
    lines = [
        json.dumps({"method": name, "batch": batch} | asdict(request))
        for name, run in runs.items()
        for batch, requests in run.requests.items()
        for request in requests
    ]
    write_text(path, "\n".join(lines) + "\n")


def read_requests(path: Path, method: str, batch: int | None = None) -> dict[str, Request]:
    """`read_responses`, by problem; of samples, the last.

    Raises:
      ResultsError: not there, or a line is not a request.
    """
    return {request.id: request for request in read_responses(path, method, batch)}


def read_responses(path: Path, method: str, batch: int | None = None) -> list[Request]:
    """The requests of one method at a batch size, by default its largest, every sample of each problem.

    Raises:
      ResultsError: not there, or a line is not a request.
    """
    found: list[Request] = []
    wanted = batch or 0
    for _, size, request in requests_in(path, (method,)):
        if batch is None and size > wanted:
            found, wanted = [], size
        if size == wanted:
            found.append(request)
    return found


def requests_in(path: Path, methods: Collection[str]) -> Iterator[tuple[str, int, Request]]:
    """The requests of methods, one line of the file after another, each with its method and batch size.

    Raises:
      ResultsError: not there, or a line is not a request.
    """
    where = f"{path}:"
    try:
        with path.open() as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}: line {number}"
                row = json.loads(line)
                if lacking := [name for name in NEEDED if name not in row]:
                    raise ValueError(f"{lacking[0]!r} is missing")
                if (method := row.pop("method")) in methods:
                    yield method, row.pop("batch"), Request(**row)
    except (OSError, ValueError, TypeError) as error:
        raise ResultsError(f"{where} cannot be read as a request of a benchmark: {error}") from error
