"""The page that ``specexit annotate`` writes: how much thinking is redundant, and what a few traces look like."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from specexit.data.rows import LabelledTrace, is_tried_throughout
from specexit.data.summary import Statistics, wavers
from specexit.method.splits import Tokenizer
from specexit.report.charts import oracle_chart
from specexit.report.page import environment, note_on

LONGEST_STEP = 600
"""Characters of a step that are shown."""

KINDS = {
    "redundant": "More than half of its thinking is behind the exit point",
    "at once": "It has the answer at its first boundary already, for good",
    "wavering": "It has the answer, loses it, and finds it again",
    "never": "It has the answer for good at its natural end only",
    "undecided": "A trial was cut off before it stated an answer",
}
"""Kinds of traces of which one each is shown, the first that was found."""


@dataclass(frozen=True)
class ExampleStep:
    """One step of a shown trace."""

    text: str
    state: str
    """Of the boundary at its end, see `specexit.data.rows.BoundaryState`; empty behind the last boundary."""
    answer: str | None
    """Of the trial there; None where there was none, or it gave none."""
    needed: bool
    """Whether it is in front of the earliest exit point."""


@dataclass(frozen=True)
class Example:
    """A trace to read."""

    kind: str
    id: str
    prompt: str
    answer: str | None
    reference: str | None
    thinking_tokens: int
    needed_tokens: int
    steps: tuple[ExampleStep, ...]

    @property
    def why(self) -> str:
        """What it is an example of."""
        return KINDS[self.kind]


def example_of(trace: LabelledTrace, tokenizer: Tokenizer, found: Container[str]) -> Example | None:
    """A trace as an example of the first of its kinds that is not in ``found``; None where all are."""
    n_think = len(trace.think_ids)
    holds = {
        "redundant": 2 * trace.exit_earliest < n_think,
        "at once": trace.exit_stable == trace.boundaries[0] < n_think,
        "wavering": is_tried_throughout(trace) and wavers(trace),
        "never": trace.exit_stable == n_think,
        "undecided": "undecided" in trace.boundary_state,
    }
    kind = next((kind for kind, true in holds.items() if true and kind not in found), None)
    if kind is None:
        return None
    return Example(
        kind,
        trace.id,
        trace.prompt,
        trace.answer,
        trace.reference,
        n_think,
        trace.exit_earliest,
        tuple(_steps(trace, tokenizer)),
    )


def _steps(trace: LabelledTrace, tokenizer: Tokenizer) -> list[ExampleStep]:
    states = [*trace.boundary_state, ""]
    said = zip(trace.boundary_state, trace.boundary_answers, strict=True)
    answers = [*(None if state == "untried" else answer for state, answer in said), None]
    steps, start = [], 0
    for end, state, answer in zip([*trace.boundaries, len(trace.think_ids)], states, answers, strict=True):
        text = tokenizer.decode(trace.think_ids[start:end]).strip()
        if text:
            short = text if len(text) <= LONGEST_STEP else f"{text[:LONGEST_STEP]} \N{HORIZONTAL ELLIPSIS}"
            steps.append(ExampleStep(short, state, answer, end <= trace.exit_earliest))
        start = end
    return steps


def traces_page(target: str, statistics: Statistics, examples: Sequence[Example]) -> str:
    """The HTML text, complete in itself."""
    template = environment().get_template("traces.html.j2")
    curve = oracle_chart(statistics.curve)
    return template.render(target=target, note=note_on(target), s=statistics, examples=examples, curve=curve)
