"""A fixed budget that cuts wherever it falls, as serving engines offer it."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.budget import chosen
from specexit.bench.methods.interface import Asks, Chain, Marks, Method, Problem, Tuning


@dataclass(frozen=True)
class BudgetHard(Method):
    """End the thinking behind exactly so many tokens."""

    tokens: int

    name = "budget-hard"
    engine = "eagle3"
    says = "the same budget cut off exactly there, in mid-sentence if need be, as serving engines' own budgets do"
    pauses = True

    @classmethod
    def tuned(cls, tuning: Tuning) -> BudgetHard:
        """The budget of `budget`.

        Raises:
          MethodError: neither a budget nor traces are given.
        """
        return cls(chosen(cls.name, tuning))

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """Think so long, then answer."""
        chain = Chain(problem, marks)
        yield from chain.further(self.tokens)
        yield from chain.conclude()
