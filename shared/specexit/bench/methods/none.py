"""The target alone."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Marks, Method, Problem, everything


@dataclass(frozen=True)
class Alone(Method):
    """No speculation, no exits."""

    name = "none"
    engine = "none"
    says = "the target alone: no speculation, no exits"

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Ask for everything."""
        return everything(problem, marks)
