"""``choice``: "Start with 12. Step 1: add 4. What is the result? 1 to 19 is A, 20 to 39 is B, ..." Multiple choice.

The options are the same in all questions. Where they were shuffled values, a model of this size chose as by chance.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from specexit.tiny.families.exercise import Exercise, Line, Thought, draw_checks, draw_steps
from specexit.tiny.tasks import describe

OPTIONS = {"A": "1 to 19", "B": "20 to 39", "C": "40 to 59", "D": "60 to 99"}


@dataclass(frozen=True)
class Choice(Exercise):
    """Steps in order, and four options."""

    line: Line

    kind = "choice"

    @property
    def family(self) -> str:
        """Its family's name."""
        return "choice"

    @property
    def question(self) -> str:
        """The text a user would send."""
        steps = " ".join(f"{describe('steps', step)}." for step in self.line.steps)
        options = ", ".join(f"{values} is {letter}" for letter, values in OPTIONS.items())
        return f"Start with {self.line.start}. {steps} What is the result? {options}."

    @property
    def answer(self) -> str:
        """The right answer."""
        return "AABBCCDDDD"[self.line.values[-1] // 10]

    @property
    def choices(self) -> tuple[str, ...]:
        """The options, in the order in which they are asked."""
        return tuple(OPTIONS.values())

    def claim(self, answer: str) -> str:
        """An answer as a sentence, without its full stop."""
        return f"The result is {self.line.values[-1]}, which is {answer}"

    def think(self, rng: random.Random) -> Thought:
        """Draw a reasoning trace."""
        value, letter, steps = self.line.values[-1], self.answer, self.line.steps
        first = [
            f"{describe('steps', step)}, so {equation}."
            for step, equation in zip(steps, self.line.equations, strict=True)
        ]
        back = ", ".join(f"{b} back to {a}" for a, b in reversed(list(pairwise(self.line.values))))
        sums = ", ".join(self.line.equations)
        checks = {
            "recalculate": f"Wait, let me double-check. Start with {self.line.start}. {sums}. That gives {value} "
            f"again, so the answer is {letter}.",
            "backwards": f"But let me check it backwards. {back}. This matches {self.line.start} at the start, so "
            f"{letter} is right.",
            "options": f"Let me look at the question again. {value} is {letter}, so the answer is {letter}.",
            "last step": f"Alternatively, look at the last step. {self.line.equations[-1]}. That is consistent, so "
            f"{letter} it is.",
            "missed": f"But what if I missed something? No, all {len(steps)} steps are done, so the answer is "
            f"{letter}.",
        }
        checked = draw_checks(rng, checks, rng.choices(range(6), weights=[2, 4, 6, 6, 4, 2])[0])
        paragraphs = [f"Okay, I need to find the result. Start with {self.line.start}.", *first]
        n_first = len(paragraphs)
        paragraphs += [f"So the result is {value}. {value} is {letter}.", *checked]
        if checked:
            paragraphs.append(f"Therefore, the answer is {letter}.")
        return Thought(tuple(paragraphs), letter, letter, n_first)


def draw(rng: random.Random) -> Choice:
    """Draw a problem of one to four steps."""
    return Choice(draw_steps(rng, [str(i) for i in range(rng.randint(1, 4) + 1)]))
