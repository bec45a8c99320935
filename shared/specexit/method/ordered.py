"""Numbers that are read back in their order, however many there are: they lie on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from specexit.data.scratch import Scratch
from specexit.method.statistics import Counted


class Ordered:
    """Numbers, each a hit or a miss.

    Raises:
      InputError: in every method, see `Scratch`.

    Example:
      >>> numbers = Ordered()
      >>> numbers.add(np.array([0.5, 0.25, 0.5]), np.array([True, False, False]))
      >>> numbers.quantiles([0.25, 1])
      [0.375, 0.5]
    """

    def __init__(self) -> None:
        self._file = Scratch("create table seen (value real, hit integer)")
        self._n = 0

    def add(self, values: Shaped[np.ndarray, " n"], hits: Bool[np.ndarray, " n"] | None = None) -> None:
        """Note some numbers; without ``hits`` none of them is a hit."""
        marks = np.zeros(len(values), bool) if hits is None else hits
        rows = zip(values.tolist(), marks.tolist(), strict=True)
        self._n += self._file.write("insert into seen values (?, ?)", rows)

    def counted(self) -> Iterator[Counted]:
        """All numbers, rising and a piece at a time, with equal ones counted together."""
        for some in self._file.pieces("select value, count(*), sum(hit) from seen group by value order by value"):
            value, n, hits = zip(*some, strict=True)
            yield Counted(np.array(value, np.float64), np.array(n), np.array(hits))

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        """Quantiles of all numbers, as `np.quantile` has them; NaN where there are no numbers."""
        at = np.array(levels) * (self._n - 1)
        ranks = np.stack([np.floor(at), np.ceil(at)]).astype(np.int64)
        ends, passed = np.full(ranks.shape, np.nan), 0
        for some in self.counted():
            behind = passed + np.cumsum(some.n)
            here = (ranks >= passed) & (ranks < behind[-1])
            ends[here] = some.value[np.searchsorted(behind, ranks[here], side="right")]
            passed = int(behind[-1])
        return (ends[0] + (ends[1] - ends[0]) * (at - ranks[0])).tolist()
