"""A set of what was seen before, on the disk: memory stays the same however many traces a file holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from specexit.data.scratch import Scratch

BITS = (1 << 64) - 1
HALF = 1 << 63
"""SQLite's integers are signed, so a hash is stored less this number, which keeps the order of hashes."""


class Seen(Collection[int]):
    """A set of 64-bit hashes. Among a hundred million, some two are alike by chance with probability 0.0003.

    Iteration gives them rising.

    Example:
      >>> seen = Seen()
      >>> seen.add(8), seen.add(7), seen.add(8), len(seen), list(seen)
      (True, True, False, 2, [7, 8])
    """

    def __init__(self) -> None:
        self._file = Scratch("create table seen (hash integer primary key)")
        self._n = 0

    def add(self, key: int) -> bool:
        """Add a hash, and return whether it is new."""
        return self.update([key]) == 1

    def update(self, keys: Iterable[int]) -> int:
        """Add some hashes, and return how many of them are new."""
        new = self._file.write("insert or ignore into seen values (?)", (((key & BITS) - HALF,) for key in keys))
        self._n += new
        return new

    def __contains__(self, key: object) -> bool:
        asked = (key & BITS) - HALF if isinstance(key, int) else None
        return self._file.first("select 1 from seen where hash = ?", asked) is not None

    def __iter__(self) -> Iterator[int]:
        return (kept + HALF for (kept,) in self._file.ask("select hash from seen order by hash"))

    def __len__(self) -> int:
        return self._n
