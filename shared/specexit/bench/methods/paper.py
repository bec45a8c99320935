"""The paper's thresholds and rule on our draft's signals (arXiv 2509.24248; literals of the released code)."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Marks, Method, Problem, everything
from specexit.method.decision import PAPER


@dataclass(frozen=True)
class Paper(Method):
    """Confidence above 0.8, progress above 0.3, fewer than 200 tokens remaining, averaged per round."""

    name = "paper"
    engine = "specexit"
    says = "the paper's rule on the draft's signals: confidence 0.8, progress 0.3, remaining 200, averaged per round"
    reports = True
    policy = PAPER

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Ask for everything."""
        return everything(problem, marks)
