"""What hindsight would give, with its price in the engine."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Chain, Known, Marks, Method, Problem, everything
from specexit.method.labels import exit_point


@dataclass(frozen=True)
class Oracle(Method):
    """Exit at the earliest boundary whose trial answer is that of the full trace."""

    name = "oracle"
    engine = "eagle3"
    says = "ends each trace at its earliest right moment, known from its recording; the engine is paused once for it"
    pauses = True

    def hints(self, known: Known) -> list[int | None]:
        """Thinking tokens that each trace needs; None where it needs all of them."""
        needed = [exit_point(t.boundaries, t.boundary_agrees, len(t.think_ids)) for t in known.traces]
        return [n if n < len(t.think_ids) else None for n, t in zip(needed, known.traces, strict=True)]

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Think as long as needed."""
        return scripted(problem, marks)


def scripted(problem: Problem, marks: Marks) -> Asks:
    """Think for as many tokens as the hint says, then answer; without a hint, everything."""
    if problem.hint is None:
        yield from everything(problem, marks)
        return
    chain = Chain(problem, marks)
    yield from chain.further(problem.hint)
    yield from chain.conclude()
