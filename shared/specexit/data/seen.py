"""What was seen before, eight bytes of each: memory stays small however many traces a file holds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

MERGED = 1 << 16
"""New ones that are kept apart, until they are sorted in among the others."""
BITS = (1 << 64) - 1


class Seen:
    """A set of hashes of 64 bits, of which among a hundred million two are alike by chance with probability 0.0003.

    Example:
      >>> seen = Seen()
      >>> seen.add(7), seen.add(8), seen.add(7), len(seen), seen.hashes().tolist()
      (True, True, False, 2, [7, 8])
    """

    def __init__(self) -> None:
        self._sorted: UInt64[np.ndarray, " seen"] = np.zeros(0, np.uint64)
        self._new: set[int] = set()

    def add(self, key: int) -> bool:
        """Note a hash; whether it is new."""
        key &= BITS
        at = int(np.searchsorted(self._sorted, np.uint64(key)))
        if key in self._new or (at < len(self._sorted) and self._sorted[at] == key):
            return False
        self._new.add(key)
        if len(self._new) >= MERGED:
            self.hashes()
        return True

    def update(self, keys: Iterable[int]) -> None:
        """Note some hashes."""
        for key in keys:
            self.add(key)

    def hashes(self) -> UInt64[np.ndarray, " seen"]:
        """All of them, rising."""
        new = np.fromiter(self._new, np.uint64, len(self._new))
        self._sorted, self._new = np.sort(np.concatenate([self._sorted, new])), set()
        return self._sorted

    def __len__(self) -> int:
        return len(self._sorted) + len(self._new)
