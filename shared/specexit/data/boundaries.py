"""Which boundary of a trace to try next: all of them, a few and then towards each change, or by bisection.

A trial costs a request and the tokens of an answer; a trace of 16,000 tokens has hundreds of boundaries, and its answer
changes a few times at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from specexit.schemas.collect import TrialChoice

TRIED_WHOLE = 16
"""Traces of so few boundaries are tried at nearly all of them, whatever the stride."""


def next_boundary(n: int, tried: Mapping[int, bool], how: TrialChoice, stride: int) -> int | None:
    """Index of the boundary to try next; None where enough is known.

    ``refine`` tries every ``stride``-th boundary, the first and the last, then the middle between neighbours of which
    one agrees and one does not, until no boundary lies between them: every change that it has seen is found exactly,
    and one that comes and goes between two first trials is not seen. ``bisect`` looks for the first boundary from which
    all agree, as if the verdict changed once.

    Args:
      n: number of boundaries.
      tried: whether the trial there agrees, by index.
      how: see the module.
      stride: see above; less where that would be fewer than `TRIED_WHOLE` trials.

    Example:
      >>> [next_boundary(40, dict.fromkeys(done, False), "refine", 8) for done in ((), (0,), range(0, 40, 2))]
      [0, 2, 39]
      >>> next_boundary(9, {0: False, 8: True}, "bisect", 8), next_boundary(9, {3: False, 4: True}, "bisect", 8)
      (4, None)
    """
    if how == "bisect":
        return _bisect(n, tried)
    step = 1 if how == "all" else max(1, min(stride, n // TRIED_WHOLE))
    for i in (*range(0, n, step), n - 1):
        if i >= 0 and i not in tried:
            return i
    for a, b in pairwise(sorted(tried)):
        if b - a > 1 and tried[a] != tried[b]:
            return (a + b) // 2
    return None


def _bisect(n: int, tried: Mapping[int, bool]) -> int | None:
    low = max((i for i, agrees in tried.items() if not agrees), default=-1)
    if low == n - 1:
        return None
    high = min((i for i, agrees in tried.items() if agrees and i > low), default=n)
    if high == n:
        return n - 1
    return (low + high) // 2 if high - low > 1 else None
