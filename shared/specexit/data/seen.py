"""What was seen before. It lies on the disk: memory stays the same however many traces a file holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from specexit.data.scratch import Scratch

BITS = (1 << 64) - 1
HALF = 1 << 63
"""SQLite's numbers have a sign: a hash is kept as what it is above this, which leaves the order as it is."""


class Seen(Collection[int]):
    """A set of hashes of 64 bits, of which among a hundred million two are alike by chance with probability 0.0003.

    They are given back rising.

    Example:
      >>> seen = Seen()
      >>> seen.add(8), seen.add(7), seen.add(8), len(seen), list(seen)
      (True, True, False, 2, [7, 8])
    """

    def __init__(self) -> None:
        self._file = Scratch("create table seen (hash integer primary key)")
        self._n = 0

    def add(self, key: int) -> bool:
        """Note a hash; whether it is new."""
        return self.update([key]) == 1

    def update(self, keys: Iterable[int]) -> int:
        """Note some hashes; how many of them are new."""
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
