"""Which boundary of a trace to try next: all of them, a few and then towards each change, back from the end, or by
bisection.

A trial costs a request and the tokens of an answer; a trace of 16,000 tokens has hundreds of boundaries, and its answer
changes a few times at most.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

from specexit.schemas.collect import TrialChoice

TRIED_WHOLE = 16
"""First trials that a trace gets at least, whatever the stride; one with fewer boundaries is tried at all of them."""

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese, Japanese
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"  # Korean, which writes particles right behind a word
)
"""Letters beside which another word may stand without a space."""
_IN_WORD = rf"(?:\d|[^\W{_UNSPACED}])"
_ENDS_WORD = re.compile(rf"(?!\d)[{_UNSPACED}]")


def next_boundary(
    n: int, tried: Mapping[int, bool | None], how: TrialChoice, stride: int, stated: Sequence[int] = ()
) -> int | None:
    """Index of the boundary to try next; None where enough is known.

    ``refine`` tries every ``stride``-th boundary, the first and the last, then the middle between neighbours of which
    one agrees and one does not, until no boundary lies between them: every change that these trials show is found
    exactly. An agreement that comes and goes between two first trials is not seen, unless a step there states the
    answer: such boundaries are tried between neighbours that both differ, the earliest first, until there are twice as
    many trials as first ones.
    ``stable`` goes back from the last boundary to the first that does not agree: the stable exit point is found
    exactly, however often verdicts change, and what is in front of it is not tried.
    ``bisect`` looks for the first boundary from which all agree, as if the verdict changed once.
    A trial that was cut off counts for ``refine`` as one that does not agree; where it may hide a change, boundaries in
    front of it are tried, too. The other two pass over it.

    Args:
      n: number of boundaries.
      tried: whether the trial there agrees, by index; None where it was cut off.
      how: the rule, see above.
      stride: boundaries from one first trial to the next; less where that would be fewer than `TRIED_WHOLE` trials.
      stated: indices of boundaries behind steps that state the trace's answer, rising; see `stating`.

    Example:
      >>> [next_boundary(40, dict.fromkeys(done, False), "refine", 8) for done in ((), (0,), range(0, 40, 2))]
      [0, 2, 39]
      >>> next_boundary(9, {0: False, 8: True}, "bisect", 8), next_boundary(9, {3: False, 4: True}, "bisect", 8)
      (4, None)
      >>> next_boundary(9, {7: True, 8: True}, "stable", 8), next_boundary(9, {7: False, 8: True}, "stable", 8)
      (6, None)
    """
    if how == "bisect":
        return _bisect(n, tried)
    if how == "stable":
        return _back(n, tried)
    step = 1 if how == "all" else max(1, min(stride, n // TRIED_WHOLE))
    first = range(0, n, step)
    for i in (*first, n - 1):
        if i >= 0 and i not in tried:
            return i
    neighbours = list(pairwise(sorted(tried)))
    for a, b in neighbours:
        if b - a > 1 and bool(tried[a]) != bool(tried[b]):
            return (a + b) // 2
    if (i := _before_cut_off(tried)) is not None:
        return i
    if len(tried) < 2 * len(first):
        differing = (range(a + 1, b) for a, b in neighbours if not tried[a] and not tried[b])
        return next((i for between in differing for i in stated if i in between), None)
    return None


def stating(steps: Iterable[str], answer: str | None) -> list[int]:
    """Indices of the steps that contain an answer, and not only as a part of a longer word or number. In scripts
    without spaces it may be a part of anything.

    Example:
      >>> stating(["28+9=37.", "That is 3.7", "So it is 37"], "37")
      [0, 2]
    """
    if answer is None:
        return []
    front = "" if _ENDS_WORD.match(answer[:1]) else rf"(?<!{_IN_WORD})"
    back = "" if _ENDS_WORD.match(answer[-1:]) else rf"(?!{_IN_WORD})"
    found = re.compile(rf"{front}(?<!\d\.){re.escape(answer)}{back}(?!\.\d)")
    return [i for i, step in enumerate(steps) if found.search(step)]


def boundaries_tried(
    agrees: Sequence[bool | None],
    how: TrialChoice,
    stride: int,
    stated: Sequence[int] = (),
    known: Collection[int] = (),
) -> list[int]:
    """Indices of all boundaries that `next_boundary` tries until it is done, the known ones included, rising.

    Args:
      agrees: whether a trial would agree, by boundary; None where it would be cut off.
      how, stride, stated: see `next_boundary`.
      known: indices of boundaries whose verdict is known before the first trial, such as the natural end.

    Example:
      >>> boundaries_tried([False, False, True, True, True], "bisect", 8, known=[4])
      [1, 2, 4]
    """
    found = {i: agrees[i] for i in known}
    while (i := next_boundary(len(agrees), found, how, stride, stated)) is not None:
        found[i] = agrees[i]
    return sorted(found)


def _before_cut_off(tried: Mapping[int, bool | None]) -> int | None:
    """The middle between a trial that differs and a cut-off one behind it, where the next one that ended agrees."""
    for a, b in pairwise(sorted(i for i, agrees in tried.items() if agrees is not None)):
        cut_off = min((i for i in tried if a < i < b), default=a)
        if tried[b] and not tried[a] and cut_off - a > 1:
            return (a + cut_off) // 2
    return None


def _bisect(n: int, tried: Mapping[int, bool | None]) -> int | None:
    low = max((i for i, agrees in tried.items() if agrees is False), default=-1)
    high = min((i for i, agrees in tried.items() if agrees and i > low), default=n)
    if high == n and n - 1 not in tried and n:
        return n - 1
    between = [i for i in range(low + 1, high) if i not in tried]
    return min(between, key=lambda i: abs(i - (low + high) // 2), default=None)


def _back(n: int, tried: Mapping[int, bool | None]) -> int | None:
    if False in tried.values():
        return None
    return next((i for i in reversed(range(n)) if i not in tried), None)
