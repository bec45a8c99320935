"""``late``: "Start with 34 coins. Step 1: add 9. ... How many coins are after step 2?" Late corrections are common.

The first pass forgets a carry as the tiny reasoner's does (see `specexit.tiny.traces`), here in three problems of four.
One to four checks follow that do not see it, and the one that repairs it comes behind them in every trace.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from specexit.tiny.families.exercise import Exercise, Line, Thought, draw_checks, draw_steps
from specexit.tiny.tasks import NOUNS, describe
from specexit.tiny.traces import slip

SLIPS = 0.75
"""Share of the problems that the first pass gets wrong."""


@dataclass(frozen=True)
class Late(Exercise):
    """Steps in order, with a first pass that is wrong where one of them adds 9 with a carry."""

    line: Line
    noun: str

    @property
    def family(self) -> str:
        """Its family's name."""
        return "late"

    @property
    def question(self) -> str:
        """The text a user would send."""
        steps = " ".join(f"{describe('steps', step)}." for step in self.line.steps)
        asked = f"How many {self.noun} are after step {len(self.line.steps)}?"
        return f"Start with {self.line.start} {self.noun}. {steps} {asked}"

    @property
    def answer(self) -> str:
        """The right answer."""
        return str(self.line.values[-1])

    def claim(self, answer: str) -> str:
        """An answer as a sentence, without its full stop."""
        return f"The result is {answer} {self.noun}"

    @property
    def stated(self) -> tuple[int, ...]:
        """The values of the first pass: the carry of one addition of 9 is forgotten."""
        values, slipped = [self.line.start], False
        for step in self.line.steps:
            wrong = None if slipped else slip(step, values[-1])
            slipped = slipped or wrong is not None
            values.append(step.apply(values[-1]) if wrong is None else wrong)
        return tuple(values)

    def think(self, rng: random.Random) -> Thought:
        """Draw a reasoning trace."""
        values, steps = self.stated, self.line.steps
        tentative, right = str(values[-1]), self.answer
        first = [
            f"{describe('steps', step)}, so {step.equation(a, b)}."
            for step, a, b in zip(steps, values, values[1:], strict=False)
        ]
        need = f"I need to find how many {self.noun} are after step {len(steps)}"
        blind = {
            "reread": f"Hmm, did I read the question correctly? {need}, and the result is {tentative}. Yes, "
            "that is right.",
            "missed": f"But what if I missed something? No, all {len(steps)} steps are done, so the answer is "
            f"{tentative}.",
            "last step": f"Alternatively, look at the last step. It gives {tentative}, so {tentative} it is.",
            "start": f"Let me look at the start again. Start with {self.line.start} {self.noun}. Yes, that is right.",
        }
        verdict = f"That gives {right} again, so the answer is {right}."
        if tentative != right:
            verdict = f"That gives {right}, not {tentative}. I made a mistake, so the answer is {right}."
        repair = f"Wait, let me double-check. Start with {self.line.start}. {', '.join(self.line.equations)}. {verdict}"
        gone = ", ".join(f"Step {step.name} gives {b}" for step, b in zip(steps, self.line.values[1:], strict=True))
        behind = {
            "go over": f"Let me go over it one more time. {gone}. So the result is {right}.",
            "sure": f"So the result is {right} {self.noun}, not more and not fewer.",
        }
        paragraphs = [f"Okay, {need}. Start with {self.line.start}.", *first, f"So the answer should be {tentative}."]
        paragraphs += draw_checks(rng, blind, rng.choices(range(1, 5), weights=[2, 4, 4, 2])[0])
        paragraphs += [repair, *draw_checks(rng, behind, rng.choices(range(3), weights=[4, 4, 2])[0])]
        return Thought((*paragraphs, f"Therefore, the answer is {right}."), tentative, right, 1 + len(first))


def draw(rng: random.Random) -> Late:
    """Draw a problem of two to five steps."""
    wanted = rng.random() < SLIPS
    n = rng.randint(2, 5)
    while True:
        line = draw_steps(rng, [str(i) for i in range(n + 1)], nines=0.4)
        exercise = Late(line, rng.choice(NOUNS))
        if (exercise.stated[-1] != line.values[-1]) == wanted and min(exercise.stated) > 0:
            return exercise
