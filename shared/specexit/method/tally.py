"""The settings of a method, played on a block of traces at a time and added up."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool

from specexit.method.decision import Policy
from specexit.method.policies import MethodError, Played
from specexit.method.replay import Replay
from specexit.method.sums import Sums, sums_of


class Tally:
    """Sums of the settings of a method over each part of the traces, which come block by block."""

    def __init__(self, name: str):
        self.name = name
        self.asks = False
        """Whether it makes the target answer while it thinks."""
        self._settings: list[tuple[str, Policy | None]] | None = None
        self._sums: list[dict[str, Sums]] = []

    def add(self, replay: Replay, played: Iterable[Played], parts: dict[str, Bool[np.ndarray, " traces"]]) -> None:
        """Count a block.

        Raises:
          MethodError: its settings are not those of the blocks before.
        """
        settings: list[tuple[str, Policy | None]] = []
        found: list[dict[str, Sums]] = []
        for one in played:
            settings.append((one.setting, one.policy))
            self.asks |= one.probe_tokens is not None
            found.append({name: sums_of(replay, one.outcome, one.probe_tokens, rows) for name, rows in parts.items()})
        if self._settings is None:
            self._settings, self._sums = settings, found
            return
        if settings != self._settings:
            raise MethodError(
                f"method {self.name}: other settings for one block of the traces than for another, expected settings "
                "that depend on the traces by `replay.largest` alone, which is of all of them"
            )
        pairs = zip(self._sums, found, strict=True)
        self._sums = [{name: sums.plus(more[name]) for name, sums in before.items()} for before, more in pairs]

    def of(self, part: str) -> list[tuple[Sums, Policy | None, str]]:
        """Sums of every setting over a part, with the setting as a policy, where it is one, and its name."""
        pairs = zip(self._sums, self._settings or [], strict=True)
        return [(sums[part], policy, setting) for sums, (setting, policy) in pairs]
