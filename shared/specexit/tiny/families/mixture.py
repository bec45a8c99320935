"""Problems of all families, drawn by weight and split by their text as the tiny reasoner's are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from specexit.tiny import tasks
from specexit.tiny.families import arithmetic, choice, late, lookup, program, sums
from specexit.tiny.families.exercise import Exercise

FAMILIES: dict[str, tuple[Callable[[random.Random], Exercise], float]] = {
    "arithmetic": (arithmetic.draw, 0.375),
    "sums": (sums.draw, 0.125),
    "lookup": (lookup.draw, 0.125),
    "late": (late.draw, 0.125),
    "choice": (choice.draw, 0.125),
    "program": (program.draw, 0.125),
}
"""How a problem is drawn, and its share. ``arithmetic`` is the three families of the tiny reasoner."""


def stream(split: str, seed: int, *, shares: Mapping[str, float] | None = None) -> Iterator[Exercise]:
    """Endless problems of one split. Reproducible from ``seed``; repeats are possible.

    Args:
      split: whose problems.
      seed: where chance comes from.
      shares: of the families, by name; by default those in `FAMILIES`.

    Raises:
      ValueError: ``split`` is not one of `specexit.tiny.tasks.SPLITS`.
    """
    if split not in tasks.SPLITS:
        raise ValueError(f"split {split!r} does not exist, expected one of {', '.join(tasks.SPLITS)}")
    rng = random.Random(f"mixed-{split}-{seed}")
    draws = [draw for draw, _ in FAMILIES.values()]
    weights = [share if shares is None else shares[name] for name, (_, share) in FAMILIES.items()]
    while True:
        exercise = rng.choices(draws, weights=weights)[0](rng)
        if tasks.split_of(exercise.question) == split:
            yield exercise


def exercises(split: str, n: int, *, seed: int = 0) -> list[Exercise]:
    """The first ``n`` distinct problems of a split.

    Raises:
      ValueError: see `stream`.
    """
    distinct: dict[str, Exercise] = {}
    for exercise in stream(split, seed):
        distinct.setdefault(exercise.question, exercise)
        if len(distinct) == n:
            break
    return list(distinct.values())
