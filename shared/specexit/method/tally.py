"""The settings of a method, played on a block of traces at a time and added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int

from specexit.method.decision import Policy
from specexit.method.policies import MethodError, Played
from specexit.method.replay import Replay
from specexit.method.sums import Sums, columns_of


class Tally:
    """Sums of the settings of a method over each part of the traces, which come block by block.

    Args:
      name: of the method, for messages.
      n_parts: parts that the traces are in, each in one.
    """

    def __init__(self, name: str, n_parts: int = 1):
        self.name = name
        self.asks = False
        """Whether it makes the target answer while it thinks."""
        self._settings: list[tuple[str, Policy | None]] | None = None
        self._shape = (n_parts, len(Sums._fields))
        self._sums: list[Int[np.ndarray, "parts sums"]] = []

    def add(self, replay: Replay, played: Iterable[Played], part: Int[np.ndarray, " traces"]) -> None:
        """Count a block.

        Args:
          replay: its traces.
          played: the settings, played on them.
          part: of each trace, from 0.

        Raises:
          MethodError: its settings are not those of the blocks before.
        """
        order = np.argsort(part, kind="stable")
        present, starts = np.unique(part[order], return_index=True)
        settings: list[tuple[str, Policy | None]] = []
        for i, one in enumerate(played):
            settings.append((one.setting, one.policy))
            self.asks |= one.probe_tokens is not None
            if i == len(self._sums):
                self._sums.append(np.zeros(self._shape, np.int64))
            columns = columns_of(replay, one.outcome, one.probe_tokens)[:, order]
            self._sums[i][present] += np.add.reduceat(columns, starts, axis=1).T
        if self._settings not in (None, settings):
            raise MethodError(
                f"method {self.name}: other settings for one block of the traces than for another, expected settings "
                "that depend on the traces by `replay.largest` alone, which is of all of them"
            )
        self._settings = settings

    def of(self, part: int | None) -> Iterator[tuple[Sums, Policy | None, str]]:
        """Sums of every setting over a part, or over all, with the setting as a policy, where it is one, and its
        name."""
        for sums, (setting, policy) in zip(self._sums, self._settings or [], strict=True):
            found = sums.sum(axis=0) if part is None else sums[part]
            yield Sums(*found.tolist()), policy, setting
