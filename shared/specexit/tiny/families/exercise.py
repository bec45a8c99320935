"""What all families have in common: a question, an answer of some kind, and a way of thinking."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from specexit.tiny.tasks import Step, operations
from specexit.tiny.traces import PARAGRAPH


@dataclass(frozen=True)
class Thought:
    """Thinking, written down. ``tentative`` is the first answer it states, ``final`` the one it gives."""

    paragraphs: tuple[str, ...]
    tentative: str
    final: str
    first_pass: int
    """Number of paragraphs before the tentative answer."""


class Exercise(ABC):
    """One problem."""

    kind: ClassVar[str] = "math"
    """How it is answered, see `specexit.data.answers`."""

    @property
    @abstractmethod
    def family(self) -> str:
        """Its family's name."""

    @property
    @abstractmethod
    def question(self) -> str:
        """The text a user would send."""

    @property
    @abstractmethod
    def answer(self) -> str:
        """The right answer."""

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The options of a multiple-choice question."""
        return None

    @abstractmethod
    def think(self, rng: random.Random) -> Thought:
        """Draw a reasoning trace."""

    @abstractmethod
    def claim(self, answer: str) -> str:
        """An answer as a sentence, without its full stop."""

    def response(self, thought: Thought) -> str:
        """What the model is trained to write behind the prompt."""
        thinking = PARAGRAPH.join(thought.paragraphs) + PARAGRAPH
        return f"{thinking}</think>\n\n{self.claim(thought.final)}. The answer is \\boxed{{{thought.final}}}.<|im_end|>"


@dataclass(frozen=True)
class Line:
    """A chain of steps and its values."""

    start: int
    steps: tuple[Step, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The start and the right value behind each step."""
        found = [self.start]
        for step in self.steps:
            found.append(step.apply(found[-1]))
        return tuple(found)

    @property
    def equations(self) -> list[str]:
        """Each step as ``28+7=35``."""
        values = self.values
        return [step.equation(a, b) for step, (a, b) in zip(self.steps, pairwise(values), strict=True)]


def draw_checks(rng: random.Random, written: Mapping[str, str], n: int) -> list[str]:
    """``n`` different checks of a family, in random order. None comes twice, so that a model can learn when to stop.

    Args:
      rng: where chance comes from.
      written: name of a check to its paragraph.
      n: how many; all where there are fewer.
    """
    return [written[name] for name in rng.sample(list(written), min(n, len(written)))]


def draw_steps(rng: random.Random, names: list[str], *, nines: float = 0.0) -> Line:
    """A chain of steps, one fewer than names, whose values stay within 1..99.

    Args:
      rng: where chance comes from.
      names: of the values, the start's first.
      nines: share of additions that add 9, which a first pass gets wrong where there is a carry; others add 2 to 8.
    """
    start = value = rng.randint(3, 60)
    steps = []
    for parent, name in pairwise(names):
        op = rng.choice(operations(value))
        operand = 2 if op in "*/" else rng.randint(2, 8)
        if op == "+" and rng.random() < nines:
            operand = 9
        steps.append(Step(name, op, operand, parent))
        value = steps[-1].apply(value)
    return Line(start, tuple(steps))
