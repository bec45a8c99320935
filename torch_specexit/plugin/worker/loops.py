"""Loops, found by fingerprints: what `specexit.method.loops` defines by comparing whole pieces of text, in a few
operations a token.

The fingerprint of a request is two polynomials of its last `LoopSearch.span` thinking tokens, modulo two primes. With
each token that comes in the oldest goes out, for which a ring keeps the tokens. Residues are below 2^24, which float32
holds. Two different texts agree in both by chance once in 2^48 comparisons.
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
    """What is looked for, in the form that the fast versions use."""

    period: int
    span: int
    ring: int
    """Thinking tokens that are kept."""
    leaving: tuple[int, int]
    """Factors by which the oldest token is multiplied to take it out of each polynomial."""

    @classmethod
    def of(cls, guard: LoopGuard, slack: int) -> LoopSearch:
        """The search for what a guard calls a loop.

        Args:
          guard: what is a loop.
          slack: the most tokens by which a request may fall back.
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
        """The ring: token number ``i`` plus one at ``i % ring``, and 0 where there is none."""
        ring = [0] * self.search.ring
        for i in range(max(len(self.tokens) - self.search.ring, 0), len(self.tokens)):
            ring[i % self.search.ring] = self.tokens[i] + 1
        return ring
