"""Procedural arithmetic problems with a checkable answer, in three wordings.

A problem is a chain of named values, each defined from the one before it, and asks for one of them:

* ``chain``: "Zoe has 42 shells. Zoe has half as many as Joy. ... How many shells does Sam have?"
* ``vars``: "Let d be 11. d = y - 2. y = z + 4. ... What is g?"
* ``steps``: "Start with 55. Step 1: subtract 9. ... What is the result after step 4?"

Definitions name the known value first, so the model only ever looks *forward* for the next one, and some problems
go on past the value that is asked for (an irrelevant tail). A small model learns this; the child-first wording of
the same problems left it at 38 % accuracy.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

NAMES = ["Sam", "Tom", "Ann", "Ben", "Mia", "Leo", "Eva", "Max", "Zoe", "Kim", "Dan", "Amy", "Ray", "Joy", "Ian", "Liz"]
NOUNS = ["coins", "apples", "books", "cards", "stamps", "shells"]
LETTERS = list("bcdfghkmnprstwxz")
"""As many as there are names: with all letters each was seen too rarely to be followed."""

FAMILIES = {"chain": 3, "vars": 3, "steps": 2}
"""Family name to sampling weight."""

MAX_STEPS = 6
STEP_WEIGHTS = [6, 10, 14, 16, 14, 10]

SPLITS = {"pretrain": range(0, 12), "draft": range(12, 14), "calibration": range(14, 15), "test": range(15, 16)}
"""Split name to hash buckets. A question's split is a function of its text, so splits cannot overlap."""


@dataclass(frozen=True)
class Step:
    """``name = parent op operand``; halving and doubling have operand 2."""

    name: str
    op: str
    operand: int
    parent: str

    def apply(self, value: int) -> int:
        """The exact result of the step."""
        return {"+": value + self.operand, "-": value - self.operand, "*": value * 2, "/": value // 2}[self.op]

    def equation(self, value: int, result: int) -> str:
        """The step as it is written in a reasoning trace, e.g. ``28+9=37``."""
        return f"{value}{self.op}{self.operand}={result}"


@dataclass(frozen=True)
class Problem:
    """One question. ``steps`` lead to the asked value, ``tail`` goes on past it and does not matter."""

    family: str
    root: str
    start: int
    steps: tuple[Step, ...]
    tail: tuple[Step, ...]
    noun: str

    @property
    def asked(self) -> str:
        """The name of the value that the question asks for."""
        return self.steps[-1].name

    @property
    def answer(self) -> int:
        """The right answer."""
        value = self.start
        for step in self.steps:
            value = step.apply(value)
        return value

    @property
    def question(self) -> str:
        """The text a user would send."""
        body = " ".join(describe(self.family, step) + "." for step in self.steps + self.tail)
        if self.family == "chain":
            return f"{self.root} has {self.start} {self.noun}. {body} How many {self.noun} does {self.asked} have?"
        if self.family == "vars":
            return f"Let {self.root} be {self.start}. {body} What is {self.asked}?"
        return f"Start with {self.start}. {body} What is the result after step {self.asked}?"


def describe(family: str, step: Step) -> str:
    """One definition in the wording of its family, the known value first."""
    name, op, k, parent = step.name, step.op, step.operand, step.parent
    if family == "chain":
        relation = {"+": f"{k} fewer than", "-": f"{k} more than", "*": "half as many as", "/": "twice as many as"}
        return f"{parent} has {relation[op]} {name}"
    if family == "vars":
        inverse = {"+": f"- {k}", "-": f"+ {k}", "*": "/ 2", "/": "* 2"}
        return f"{parent} = {name} {inverse[op]}"
    order = {"+": f"add {k}", "-": f"subtract {k}", "*": "double it", "/": "halve it"}
    return f"Step {name}: {order[op]}"


def operations(value: int) -> list[str]:
    """Operations that keep a value within 1..99; the usual ones are repeated, so that they are drawn more often."""
    ops = ["+"] * 4 * (value <= 85) + ["-"] * 4 * (value >= 12) + ["*"] * (3 <= value <= 45)
    return ops + ["/"] * (value % 2 == 0 and value >= 8)


def _next_step(rng: random.Random, name: str, parent: str, value: int) -> Step:
    op = rng.choice(operations(value))
    return Step(name, op, rng.randint(2, 9) if op in "+-" else 2, parent)


def sample_problem(rng: random.Random, *, max_steps: int = MAX_STEPS) -> Problem:
    """Draw one problem with 1 to ``max_steps`` steps; every value stays within 1..99."""
    family = rng.choices(list(FAMILIES), weights=list(FAMILIES.values()))[0]
    n_steps = rng.choices(range(1, max_steps + 1), weights=STEP_WEIGHTS[:max_steps])[0]
    n_tail = rng.choice([0, 0, 1, 2, 3] if family == "chain" else [0, 0, 1, 2])
    total = n_steps + n_tail
    if family == "steps":
        names = ["start"] + [str(i) for i in range(1, total + 1)]
    else:
        names = rng.sample(NAMES if family == "chain" else LETTERS, total + 1)
    noun = rng.choice(NOUNS)
    start = value = rng.randint(3, 60)
    steps = []
    for parent, name in pairwise(names):
        steps.append(_next_step(rng, name, parent, value))
        value = steps[-1].apply(value)
    return Problem(family, names[0], start, tuple(steps[:n_steps]), tuple(steps[n_steps:]), noun)


def split_of(question: str) -> str:
    """The split a question belongs to, from a hash of its text."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 16
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def stream(split: str, seed: int, *, max_steps: int = MAX_STEPS) -> Iterator[Problem]:
    """Endless problems of one split. Reproducible from ``seed``; repeats are possible.

    Raises:
      ValueError: ``split`` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} does not exist, expected one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    while True:
        problem = sample_problem(rng, max_steps=max_steps)
        if split_of(problem.question) == split:
            yield problem


def problems(split: str, n: int, *, seed: int = 0) -> list[Problem]:
    """The first ``n`` distinct problems of a split.

    Raises:
      ValueError: see `stream`.
    """
    distinct: dict[str, Problem] = {}
    for problem in stream(split, seed):
        distinct.setdefault(problem.question, problem)
        if len(distinct) == n:
            return list(distinct.values())
    raise AssertionError("stream() is endless")
