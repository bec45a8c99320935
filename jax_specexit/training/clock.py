"""Where the wall time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Callable

SPENT_ON: tuple[str, ...] = ("compile", "data", "step", "save", "evaluate")
"""``compile`` is the first step of a process; ``data``, waiting for a batch; ``step``, everything that trains."""


class Clock:
    """Splits wall time, in seconds, into what it is spent on."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now = now
        self.last = now()
        self.spent = dict.fromkeys(SPENT_ON, 0.0)

    def lap(self, kind: str) -> None:
        """Count the seconds since the last lap as spent on ``kind``, one of `SPENT_ON`."""
        before, self.last = self.last, self.now()
        self.spent[kind] += self.last - before

    def take(self) -> dict[str, float]:
        """Seconds spent on each kind since the last call."""
        spent, self.spent = self.spent, dict.fromkeys(SPENT_ON, 0.0)
        return spent
