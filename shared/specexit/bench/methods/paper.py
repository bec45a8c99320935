"""The paper's thresholds on signals of its own source (arXiv 2509.24248; literals of the released code)."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.interface import Asks, Marks, Method, Problem, everything
from specexit.method.decision import PAPER


@dataclass(frozen=True)
class Paper(Method):
    """Confidence above 0.8, progress above 0.3, fewer than 200 tokens remaining.

    The released code averages over the tokens of a decoding round, whose number depends on what else is decoded. That
    can be replayed (`simulate`) and not served: here the same moving average is taken token by token.
    """

    name = "paper"
    engine = "specexit-fc"
    says = (
        "the paper's rule on signals of source fc: confidence 0.8, progress 0.3, remaining 200, as a moving average by "
        "token (the released code's is by round)"
    )
    reports = True
    policy = PAPER.model_copy(update={"smoothing": "ewma"})

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Ask for everything."""
        return everything(problem, marks)
