"""Our method: the policy that the draft directory carries."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Marks, Method, Problem, everything


@dataclass(frozen=True)
class SpecExit(Method):
    """Exits by the draft's own policy."""

    name = "specexit"
    engine = "specexit"
    says = "exits by the default operating point of the draft directory, in the engine"
    reports = True

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Ask for everything."""
        return everything(problem, marks)
