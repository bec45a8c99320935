"""Thinking that goes in circles: the same tokens over and over, until a limit ends the request. This file is the
definition; what the serving plug-in computes on the device is tested against it.

The guard is about runaway traces, not about answers: it looks at tokens alone, and ends a loop whatever signals say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class LoopGuard(NamedTuple):
    """What is a loop: a piece of text of at most ``period`` tokens that comes at least ``repeats`` times in a row."""

    period: int
    repeats: int

    @property
    def span(self) -> int:
        """Tokens that must follow a piece of ``period`` tokens to make ``repeats`` such pieces in a row."""
        return self.period * (self.repeats - 1)

    @property
    def latest(self) -> int:
        """A loop is found at most so many tokens behind its beginning."""
        return self.span + 2 * self.period


def loop_position(tokens: Sequence[int], guard: LoopGuard) -> int | None:
    """Where thinking is found to go in circles.

    Every ``period`` tokens, the last ``span`` tokens are remembered until the next time. If the last ``span`` tokens
    are the remembered ones again, ``p`` tokens later, then the last ``span + p`` tokens are one piece of ``p`` tokens,
    over and over. So whatever is found is a loop, and every loop is found, at most `LoopGuard.latest` tokens behind its
    beginning.

    Args:
      tokens: thinking tokens.
      guard: what is a loop.

    Returns:
      Index of the token behind which thinking is to end, or None where it does not go in circles.

    Example:
      >>> loop_position([7, 1, 2, 1, 2, 1, 2, 1, 2], LoopGuard(period=2, repeats=3))
      7
    """
    span = guard.span
    for n in range(span + 1, len(tokens) + 1):
        remembered = (n - 1) // guard.period * guard.period
        if remembered >= span and list(tokens[n - span : n]) == list(tokens[remembered - span : remembered]):
            return n - 1
    return None
