"""``sums``: "Add 34 and 5 and 7 and 8." Nothing can be cut: the answer is known in the last step and not before."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate, pairwise

from specexit.tiny.families.exercise import Exercise, Thought


@dataclass(frozen=True)
class Sum(Exercise):
    """Numbers to be added one after the other."""

    numbers: tuple[int, ...]

    @property
    def family(self) -> str:
        """Its family's name."""
        return "sums"

    @property
    def question(self) -> str:
        """The text a user would send."""
        return f"Add {' and '.join(map(str, self.numbers))}. What is the result?"

    @property
    def answer(self) -> str:
        """The right answer."""
        return str(sum(self.numbers))

    def claim(self, answer: str) -> str:
        """An answer as a sentence, without its full stop."""
        return f"The result is {answer}"

    def think(self, rng: random.Random) -> Thought:
        """Draw a reasoning trace."""
        del rng  # there is one way
        totals = pairwise(accumulate(self.numbers))
        sums = [f"{a}+{k}={b}." for (a, b), k in zip(totals, self.numbers[1:], strict=True)]
        paragraphs = (f"Okay, I need to find the result. Start with {self.numbers[0]}.", *sums)
        return Thought(paragraphs, self.answer, self.answer, len(sums))


def draw(rng: random.Random) -> Sum:
    """Draw a problem: a start and three to seven different numbers from 2 to 8."""
    return Sum((rng.randint(3, 60), *rng.sample(range(2, 9), rng.randint(3, 7))))
