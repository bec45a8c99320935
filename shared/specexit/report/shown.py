"""The traces that the report shows, chosen by rule: the best cut, a wrong exit, and one that should have been cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from specexit.bench.requests import Request
from specexit.data.traces import Trace
from specexit.errors import InputError
from specexit.method.decision import Policy
from specexit.method.labels import exit_point
from specexit.method.signals import column
from specexit.method.splits import FastTokenizer
from specexit.report.figures import Figure, signals

Signals = Float[np.ndarray, "_think signals"]

MOST_STEPS = 24
"""A longer trace is folded, but for its ends and what lies about the exit."""

ABOUT = 3


class ReportError(InputError):
    """A report that cannot be made; the message names the file and what was expected."""


@dataclass(frozen=True)
class Step:
    """One step of a shown trace."""

    text: str
    kept: bool
    last: bool
    """Whether the exit is behind it."""
    validity: float | None
    """Of its split token; None without scores."""
    state: str
    """Of the boundary at its end, see `specexit.data.rows.BoundaryState`; empty behind the last boundary."""
    trial_answer: str | None
    """Of the trial there; None where there was none, or it gave none."""


@dataclass(frozen=True)
class Shown:
    """A trace that is shown."""

    title: str
    why: str
    trace: Trace
    request: Request
    steps: tuple[Step, ...]
    chart: Figure | None

    @property
    def cut(self) -> float:
        """Share of its thinking that was saved."""
        return 1 - self.request.thinking_tokens / len(self.trace.think_ids)

    @property
    def groups(self) -> list[tuple[bool, Sequence[Step]]]:
        """The steps in order, in groups that are folded or not."""
        n = len(self.steps)
        at = next((i for i, step in enumerate(self.steps) if step.last), n - 1)
        open_ = [n <= MOST_STEPS or i < ABOUT or i >= n - ABOUT or at - ABOUT < i <= at + ABOUT for i in range(n)]
        found: list[tuple[bool, list[Step]]] = []
        for step, shown in zip(self.steps, open_, strict=True):
            if not found or found[-1][0] == shown:
                found.append((not shown, []))
            found[-1][1].append(step)
        return [(folded, steps) for folded, steps in found]


TITLES = {
    "best": ("The best cut", "of the problems that exited with the right answer, the one that saved the most tokens"),
    "wrong": ("A wrong exit", "of those whose exit lost a right answer, the one that saved the most tokens"),
    "missed": ("A missed exit", "of those that thought to the end, the one that could have been cut the most"),
    "asked": ("One trace", "the one that was asked for"),
}


Response = tuple[Trace, Request]
"""A response to a problem, and the recorded trace of that problem."""


def choose(responses: Sequence[Response]) -> dict[str, Response]:
    """Kind -> the response that shows it; kinds without one are left out.

    Only a request that walked the very path of the trace, as under greedy decoding all do, can be set beside it.
    """
    own = [(trace, request) for trace, request in responses if follows(trace, request)]
    ended = [(trace, request) for trace, request in own if exited(trace, request)]
    right = [(trace, request) for trace, request in ended if request.correct]
    wrong = [(trace, request) for trace, request in ended if not request.correct and trace.correct]
    missed = [(trace, request) for trace, request in own if request.reason == "natural_end" and _could_save(trace) > 0]
    found = {}
    if right:
        found["best"] = max(right, key=lambda one: saved(*one))
    if wrong:
        found["wrong"] = max(wrong, key=lambda one: saved(*one))
    if missed:
        found["missed"] = max(missed, key=lambda one: _could_save(one[0]))
    return found


def saved(trace: Trace, request: Request) -> int:
    """Thinking tokens of the trace that a response did without."""
    return len(trace.think_ids) - request.thinking_tokens


def _could_save(trace: Trace) -> int:
    return len(trace.think_ids) - exit_point(trace.boundaries, trace.boundary_agrees, len(trace.think_ids))


def show(
    kind: str,
    trace: Trace,
    request: Request,
    tokenizer: FastTokenizer,
    values: Signals | None,
    policy: Policy | None,
) -> Shown:
    """A trace, its steps and its signals."""
    steps, start, kept = [], 0, request.thinking_tokens
    trials = zip(trace.boundaries, trace.boundary_state, trace.boundary_answers, strict=True)
    for boundary, state, answer in trials:
        validity = None if values is None else float(values[boundary - 1, column("validity")])
        text = tokenizer.decode(trace.think_ids[start:boundary]).strip("\n")
        exits = boundary == kept and request.reason == "exit"
        heard = answer if state in ("agrees", "differs") else None  # an untried one has that of its neighbour
        steps.append(Step(text, boundary <= kept, exits, validity, state, heard))
        start = boundary
    if rest := trace.think_ids[start:]:
        text = tokenizer.decode(rest).strip("\n")
        steps.append(Step(text, len(trace.think_ids) <= kept, False, None, "", None))
    chart = None if values is None else signals(values, trace.boundaries, kept, policy, request.reason)
    title, why = TITLES[kind]
    return Shown(title, why, trace, request, tuple(steps), chart)


def exited(trace: Trace, request: Request) -> bool:
    """Whether a request exited at a boundary of the trace, where a page can mark it: the loop guard, a client and a
    margin of tokens end thinking anywhere."""
    by_rule = request.reason == "exit" and request.ended_by in (None, "exit", "cap")
    return by_rule and request.thinking_tokens in trace.boundaries


def follows(trace: Trace, request: Request) -> bool:
    """Whether a request's thinking is the trace's, as far as it went: only then can it be set beside it."""
    kept = request.thinking_tokens
    return request.token_ids[:kept] == trace.think_ids[:kept]
