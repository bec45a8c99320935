"""A fixed budget that cuts wherever it falls: vLLM's own."""

from __future__ import annotations

from dataclasses import dataclass

from specexit.bench.methods.budget import chosen
from specexit.bench.methods.interface import Ask, Asks, Marks, Method, Problem, Tuning


@dataclass(frozen=True)
class BudgetHard(Method):
    """End the thinking behind exactly so many tokens."""

    tokens: int

    name = "budget-hard"
    engine = "eagle3"
    says = (
        "the same budget as vLLM's own thinking_token_budget, which ends the thinking right there, in mid-sentence too"
    )
    budgets = True

    @classmethod
    def tuned(cls, tuning: Tuning) -> BudgetHard:
        """The budget of `budget`.

        Raises:
          MethodError: neither a budget nor traces are given.
        """
        return cls(chosen(cls.name, tuning))

    def respond(self, problem: Problem, marks: Marks) -> Asks:
        """One request, whose thinking the engine ends."""
        yield Ask("think", problem.prompt_ids, marks.max_new_tokens, budget=self.tokens)
