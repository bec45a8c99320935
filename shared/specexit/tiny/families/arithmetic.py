"""``chain``, ``vars`` and ``steps``: the tiny reasoner's own problems, thought through as it does."""

from __future__ import annotations

import random
from dataclasses import dataclass

from specexit.tiny.families.exercise import Exercise, Thought
from specexit.tiny.tasks import Problem, sample_problem
from specexit.tiny.traces import statement, write_trace


@dataclass(frozen=True)
class Arithmetic(Exercise):
    """One of `specexit.tiny.tasks`."""

    problem: Problem

    @property
    def family(self) -> str:
        """Its family's name."""
        return self.problem.family

    @property
    def question(self) -> str:
        """The text a user would send."""
        return self.problem.question

    @property
    def answer(self) -> str:
        """The right answer."""
        return str(self.problem.answer)

    def claim(self, answer: str) -> str:
        """An answer as a sentence, without its full stop."""
        claim = statement(self.problem, int(answer))
        return claim[0].upper() + claim[1:] if self.family == "steps" else claim

    def think(self, rng: random.Random) -> Thought:
        """Draw a reasoning trace."""
        trace = write_trace(rng, self.problem)
        return Thought(trace.paragraphs, str(trace.tentative), str(trace.final), trace.first_pass)


def draw(rng: random.Random) -> Arithmetic:
    """Draw a problem of any of the three."""
    return Arithmetic(sample_problem(rng))
