"""Loops, found from fingerprints: what `specexit.method.loops` says with comparisons of whole pieces of text, in a few
operations a token.

Of the last `LoopSearch.span` thinking tokens of a request there are two polynomials, modulo two primes. A token comes
in and the oldest goes out, for which the tokens are kept in a ring. Residues are below 2^24, which float32 holds. By
accident, two texts have both in common once in 2^48 comparisons.
"""

from __future__ import annotations

from typing import NamedTuple

from specexit.method.loops import LoopGuard

PRIMES = 16_777_213, 16_777_199
BASES = 10_368_889, 5_716_517
FINGERPRINT = ("rolling_0", "rolling_1", "anchor_0", "anchor_1", "looping")
"""Columns of `rule.STATE`. rolling: of the last tokens; anchor: of those that are remembered, -1 for none; looping:
a loop was found."""

NOTHING = {"anchor_0": -1, "anchor_1": -1}
"""Columns that do not begin at 0."""


class LoopSearch(NamedTuple):
    """What is looked for, as the fast versions want it."""

    period: int
    span: int
    ring: int
    """Thinking tokens that are kept."""
    leaving: tuple[int, int]
    """What takes a token out of each polynomial, by which it is multiplied."""

    @classmethod
    def of(cls, guard: LoopGuard, slack: int) -> LoopSearch:
        """For a guard.

        Args:
          guard: what is a loop.
          slack: tokens by which a request may fall back.
        """
        leaving = [-pow(base, guard.span, prime) % prime for base, prime in zip(BASES, PRIMES, strict=True)]
        return cls(guard.period, guard.span, guard.span + slack, (leaving[0], leaving[1]))


class Follower:
    """The search over the tokens of one request, in plain Python, as they come."""

    def __init__(self, search: LoopSearch):
        self.search = search
        self.tokens: list[int] = []
        self.rolling, self.anchor = [0, 0], [-1, -1]
        self.looping = False

    def push(self, token: int) -> None:
        """Take in a thinking token."""
        search, n = self.search, len(self.tokens)
        oldest = self.tokens[n - search.span] + 1 if n >= search.span else 0
        for i in range(2):
            mixed = self.rolling[i] * BASES[i] + token + 1 + oldest * search.leaving[i]
            self.rolling[i] = mixed % PRIMES[i]
        self.tokens.append(token)
        self.looping |= self.rolling == self.anchor
        if n + 1 >= search.span and (n + 1) % search.period == 0:
            self.anchor = list(self.rolling)

    def columns(self) -> dict[str, int]:
        """The columns of `FINGERPRINT`."""
        return dict(zip(FINGERPRINT, [*self.rolling, *self.anchor, int(self.looping)], strict=True))

    def kept(self) -> list[int]:
        """The ring: tokens plus one by their number, 0 where there is none."""
        ring = [0] * self.search.ring
        for i in range(max(len(self.tokens) - self.search.ring, 0), len(self.tokens)):
            ring[i % self.search.ring] = self.tokens[i] + 1
        return ring
