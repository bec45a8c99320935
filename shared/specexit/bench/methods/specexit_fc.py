"""Our method with signals that are read off the target's hidden states, as in the paper's released code."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Marks, Method, Problem, everything


@dataclass(frozen=True)
class SpecExitFc(Method):
    """Exits by the second draft's policy."""

    name = "specexit-fc"
    engine = "specexit-fc"
    says = "the same with signals of source fc: a linear probe of the target's hidden states, as in the paper's code"
    reports = True

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Ask for everything."""
        return everything(problem, marks)
