"""Numbers that are read back in their order, however many there are: they lie on the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Bool, Float

from specexit.errors import InputError
from specexit.method.statistics import Counted

AT_ONCE = 1 << 16


class Ordered:
    """Numbers, each a hit or a miss. SQLite sorts them in a file of its own, in the folder for temporary files.

    Example:
      >>> with Ordered() as numbers:
      ...     numbers.add(np.array([0.5, 0.25, 0.5]), np.array([True, False, False]))
      ...     numbers.quantiles([0.25, 1])
      [0.375, 0.5]
    """

    def __init__(self) -> None:
        self._file = sqlite3.connect("")
        self._file.execute("create table seen (value real, hit integer)")

    def __enter__(self) -> Ordered:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._file
        except sqlite3.OperationalError as error:
            raise InputError(
                f"TMPDIR: a temporary file cannot be written: {error}, expected a folder with room"
            ) from error

    def add(self, values: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"] | None = None) -> None:
        """Note some numbers; none is a hit unless it is said.

        Raises:
          InputError: there is no room for them.
        """
        marks = np.zeros(len(values), bool) if hits is None else hits
        with self._written() as file:
            file.executemany("insert into seen values (?, ?)", zip(values.tolist(), marks.tolist(), strict=True))

    def counted(self) -> Iterator[Counted]:
        """All of them, some at a time; equal ones are one.

        Raises:
          InputError: there is no room to sort them.
        """
        with self._written() as file:
            rows = file.execute("select value, count(*), sum(hit) from seen group by value order by value")
        while some := rows.fetchmany(AT_ONCE):
            value, n, hits = zip(*some, strict=True)
            yield Counted(np.array(value, np.float64), np.array(n), np.array(hits))

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """As `np.quantile` of all of them."""
        [[n]] = self._file.execute("select count(*) from seen")
        at = np.array(levels) * (n - 1)
        ranks = np.stack([np.floor(at), np.ceil(at)]).astype(np.int64)
        ends, passed = np.full(ranks.shape, np.nan), 0
        for some in self.counted():
            behind = passed + np.cumsum(some.n)
            here = (ranks >= passed) & (ranks < behind[-1])
            ends[here] = some.value[np.searchsorted(behind, ranks[here], side="right")]
            passed = int(behind[-1])
        return (ends[0] + (ends[1] - ends[0]) * (at - ranks[0])).tolist()
