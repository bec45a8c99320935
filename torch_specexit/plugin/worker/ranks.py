"""One verdict for all tensor-parallel ranks.

Each rank reads the signals off states that it has summed up for itself, and two ranks need not round alike. So the
values of the first rank count: they are handed round before anything is judged by them. The same message says whether
exits have failed on some rank, so that they end on all ranks in the same step, and whether the draft of some rank is
not whole, so that all ranks leave that step alone.

What else decides about a text each rank reads for itself, from its own environment and files. Before the first step
all take over what the first rank has, and compare what can no longer be changed.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from specexit.method.signals import NAMES

INCOMPLETE = 2.0**-10
"""What a rank whose draft is not whole adds to `Ranks.agree`'s count of failed ranks: less than one, however many."""


@runtime_checkable
class Group(Protocol):
    """What is used of vLLM's `GroupCoordinator`."""

    world_size: int
    rank_in_group: int
    device_group: Any

    def broadcast_object(self, obj: Any | None = None, src: int = 0) -> Any:
        """An object of one rank, on all of them."""
        ...


class Ranks:
    """The tensor-parallel ranks of one model.

    Args:
      group: of vLLM.
      rows: the most rows of signals that a step exchanges.
      device: of the signals.
    """

    def __init__(self, group: Group, rows: int, device: torch.device):
        self.group, self.several = group, group.world_size > 1
        self._message = torch.zeros((rows * len(NAMES) if self.several else 0) + 1, device=device)
        self._incomplete = torch.full((1,), INCOMPLETE, device=device)

    def of_first(self, value: Any) -> Any:
        """The first rank's value, which can be pickled. Every rank has to ask, whatever has happened to it."""
        return self.group.broadcast_object(value)

    def agree(
        self, signals: Float[Tensor, "rows signals"] | None, rows: int, *, whole: bool
    ) -> tuple[Float[Tensor, "rows signals"], Float[Tensor, " 1"]]:
        """Hand the first rank's signals round. Every rank has to call this in every step, whatever has happened to it.

        Args:
          signals: this rank's; None where exits have failed on it.
          rows: their number, the same on all ranks.
          whole: whether this rank's draft is whole.

        Returns:
          The signals to judge by, and the number of ranks on which exits have failed. Where they have failed on none,
          and the draft of some rank is not whole, that is a number between 0 and 1 instead of 0.
        """
        if not self.several:
            assert signals is not None
            return signals, self._message if whole else self._incomplete
        message = self._message[: rows * len(NAMES) + 1]
        values = message[:-1].view(rows, len(NAMES))
        message.fill_(0.0)
        if signals is None:
            message[-1:].fill_(1.0)
        elif not whole:
            message[-1:].copy_(self._incomplete)
        elif self.group.rank_in_group == 0:
            values.copy_(signals)
        # A sum with zeros is exact, and it is one message where a broadcast and a count would be two.
        torch.distributed.all_reduce(message, group=self.group.device_group)
        return values, message[-1:]
