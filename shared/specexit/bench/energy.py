"""Energy, where the machine tells: counters of its processors (RAPL, through Linux's powercap) and of its cards (NVML).

They count the whole package, whoever uses it: what else runs on the machine is in them, as are the engines that wait
their turn. A machine that has none, as most virtual ones, or lets nobody read one, tells nothing: then nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

ZONES = ("package", "dram")
"""How the names of zones that count begin. ``core`` and ``uncore`` are parts of a package, ``psys`` holds all."""


@dataclass(frozen=True)
class Counter:
    """One counter as it stands."""

    joules: float
    wraps_at: float | None
    """Joules at which it begins again from 0; None where it does not."""


Counters = dict[str, Counter]


def read_processors(root: Path = POWERCAP) -> Counters | None:
    """Counters of the processors and their memory, of which there may be none; None where some cannot be read."""
    found: Counters = {}
    for zone in sorted(root.glob("intel-rapl:*")):  # of AMD's processors, too
        try:
            if (zone / "name").read_text().startswith(ZONES):
                joules, wraps_at = (int((zone / f).read_text()) / 1e6 for f in ("energy_uj", "max_energy_range_uj"))
                found[zone.name] = Counter(joules, wraps_at)
        except (OSError, ValueError):
            return None
    return found


class EnergyMeter:
    """Joules between two moments.

    Args:
      cards: reads the counters of the accelerators in use, which the caller finds; gives None where one has no counter.
      root: where Linux has its powercap zones.
    """

    def __init__(self, cards: Callable[[], Counters | None] = dict, root: Path = POWERCAP):
        self._cards, self._root = cards, root

    def read(self) -> Counters:
        """All counters as they stand; none where one cannot be read: a sum without it would be taken for the whole."""
        processors, cards = read_processors(self._root), self._cards()
        return {} if processors is None or cards is None else processors | cards

    def since(self, before: Counters) -> float | None:
        """Joules from then to now; None where there are no counters, or others than there were.

        A counter may have begun again once in between; at 200 W that takes 20 minutes at the least.
        """
        now = self.read()
        if not now or set(now) != set(before):
            return None
        spent = 0.0
        for name, counter in now.items():
            difference = counter.joules - before[name].joules
            spent += difference + (counter.wraps_at or 0.0 if difference < 0 else 0.0)
        return spent
