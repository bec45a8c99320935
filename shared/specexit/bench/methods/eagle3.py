"""The baseline that everything is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Marks, Method, Problem, everything


@dataclass(frozen=True)
class Eagle3(Method):
    """Speculation without exits."""

    name = "eagle3"
    engine = "eagle3"
    says = "plain EAGLE-3: the draft of specexit without its signal rows"

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Ask for everything."""
        return everything(problem, marks)
