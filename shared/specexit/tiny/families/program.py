"""``program``: what a short program prints.

The language is R, which can assign to the right: ``k + 4 -> m`` names the known value first, as the model needs it
(see `specexit.tiny.tasks`). Four in ten print whether the last value is even: a trial that guesses is right half of the
time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from specexit.tiny.families.exercise import Exercise, Line, Thought, draw_checks, draw_steps
from specexit.tiny.tasks import LETTERS, Step


@dataclass(frozen=True)
class Program(Exercise):
    """Assignments, each made of the value before it; what is printed comes from the last one that matters."""

    line: Line
    root: str
    n_needed: int
    """Assignments up to the printed value; what follows them does not matter."""
    parity: bool
    """Whether the program prints if the value is even, and not the value itself."""

    kind = "text"

    @property
    def needed(self) -> Line:
        """The assignments that matter."""
        return Line(self.line.start, self.line.steps[: self.n_needed])

    @property
    def printed(self) -> str:
        """The variable that is printed."""
        return self.line.steps[self.n_needed - 1].name

    @property
    def family(self) -> str:
        """Its family's name."""
        return "program"

    @property
    def question(self) -> str:
        """The text a user would send."""
        lines = [f"{self.line.start} -> {self.root}", *(f"{assignment(step)}" for step in self.line.steps)]
        shown = f"{self.printed} %% 2 == 0" if self.parity else self.printed
        return "\n".join(["What does this R program print?", *lines, f"cat({shown})"])

    @property
    def answer(self) -> str:
        """The right answer."""
        value = self.needed.values[-1]
        return ("TRUE" if value % 2 == 0 else "FALSE") if self.parity else str(value)

    def claim(self, answer: str) -> str:
        """An answer as a sentence, without its full stop."""
        return f"It gives {answer}"

    def think(self, rng: random.Random) -> Thought:
        """Draw a reasoning trace."""
        needed, answer, value = self.needed, self.answer, self.needed.values[-1]
        first = [
            f"{assignment(step)}, so {step.name} is {equation}."
            for step, equation in zip(needed.steps, needed.equations, strict=True)
        ]
        stated = f"{self.printed} is {value}, so {self.printed} %% 2 is {value % 2}. " if self.parity else ""
        sums = ", ".join(needed.equations)
        values = ", ".join(f"{step.name} is {b}" for step, b in zip(needed.steps, needed.values[1:], strict=True))
        checks = {
            "recalculate": f"Wait, let me double-check. {self.root} is {needed.start}. {sums}. {stated}That gives "
            f"{answer} again, so the answer is {answer}.",
            "go over": f"Let me go over it one more time. {values}. So the result is {answer}.",
            "reread": f"Hmm, did I read the question correctly? I need to find the value of {self.printed}, and "
            f"{self.printed} is {value}. Yes, that is right.",
            "last step": f"Alternatively, look at the last step. {needed.equations[-1]}. That is consistent, so "
            f"{answer} it is.",
            "missed": f"But what if I missed something? No, all {self.n_needed} steps are done, so the answer is "
            f"{answer}.",
        }
        checked = draw_checks(rng, checks, rng.choices(range(6), weights=[2, 4, 6, 6, 4, 2])[0])
        paragraphs = [f"Okay, I need to find the value of {self.printed}. {self.root} is {needed.start}.", *first]
        n_first = len(paragraphs)
        paragraphs += [f"{stated}So the answer should be {answer}.", *checked]
        if checked:
            paragraphs.append(f"Therefore, the answer is {answer}.")
        return Thought(tuple(paragraphs), answer, answer, n_first)


def assignment(step: Step) -> str:
    """A step as R writes it."""
    return f"{step.parent} {step.op} {step.operand} -> {step.name}"


def draw(rng: random.Random) -> Program:
    """Draw a program of one to five assignments that matter and up to two that do not."""
    needed, tail = rng.randint(1, 5), rng.choice([0, 0, 1, 2])
    names = rng.sample(LETTERS, needed + tail + 1)
    line = draw_steps(rng, names)
    return Program(line, names[0], needed, rng.random() < 0.4)
