"""``lookup``: "Ann has 40 coins. Leo has 12 coins. How many coins does Ann have?" The first answer is always right.

Who is asked for stands first. Further on, a model of this size does not find a name: it was right two times in five.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from specexit.tiny.families.exercise import Exercise, Thought, draw_checks
from specexit.tiny.tasks import NAMES, NOUNS


@dataclass(frozen=True)
class Lookup(Exercise):
    """Who has how many, and who is asked for."""

    people: tuple[tuple[str, int], ...]
    asked: str
    noun: str

    @property
    def family(self) -> str:
        """Its family's name."""
        return "lookup"

    @property
    def question(self) -> str:
        """The text a user would send."""
        known = " ".join(f"{name} has {number} {self.noun}." for name, number in self.people)
        return f"{known} How many {self.noun} does {self.asked} have?"

    @property
    def answer(self) -> str:
        """The right answer."""
        return str(dict(self.people)[self.asked])

    def claim(self, answer: str) -> str:
        """An answer as a sentence, without its full stop."""
        return f"{self.asked} has {answer} {self.noun}"

    def think(self, rng: random.Random) -> Thought:
        """Draw a reasoning trace."""
        value, claim = self.answer, self.claim(self.answer)
        need = f"I need to find how many {self.noun} {self.asked} has"
        values = ", ".join(f"{name} has {number}" for name, number in self.people)
        checks = {
            "recalculate": f"Wait, let me double-check. {claim}. That gives {value} again, so the answer is {value}.",
            "go over": f"Let me go over it one more time. {values}. So {claim}.",
            "reread": f"Hmm, did I read the question correctly? {need}, and {claim}. Yes, that is right.",
            "last step": f"Alternatively, look at the question again. {claim}. That is consistent, so {value} it is.",
            "missed": f"But what if I missed something? No, that is all, so the answer is {value}.",
        }
        checked = draw_checks(rng, checks, rng.choices(range(1, 6), weights=[2, 4, 6, 6, 4])[0])
        paragraphs = (f"Okay, {need}. {claim}.", *checked, f"Therefore, the answer is {value}.")
        return Thought(paragraphs, value, value, 0)


def draw(rng: random.Random) -> Lookup:
    """Draw a problem with three to six people, no two of whom have the same."""
    n = rng.randint(3, 6)
    people = tuple(zip(rng.sample(NAMES, n), rng.sample(range(2, 100), n), strict=True))
    return Lookup(people, people[0][0], rng.choice(NOUNS))
