"""Which row of the tables belongs to which request.

The rows are this plug-in's own, not the runner's batch rows or request slots, so they survive preemption, rows that
move within the batch, and prompts in chunks. A row is freed when the scheduler reports its request as finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from torch_specexit.plugin.worker.rule import KNOBS, STATE, WEIGHTS, Admission, Tables


def opens_thinking(prompt_ids: Sequence[int], start: int, end: int) -> bool:
    """Whether the last think marker of a prompt is an opening one."""
    for token in reversed(prompt_ids):
        if token in (start, end):
            return token == start
    return False


class Slots:
    """The tables, and their rows by request.

    Args:
      device: of the tables.
      capacity: rows at the beginning; doubled when they do not suffice.
    """

    def __init__(self, device: torch.device, capacity: int = 64):
        self.device = device
        self.row_of: dict[str, int] = {}
        self.changes = 0
        """How often a row has been given away or taken back."""
        self.tables = self._empty(0)
        self._free: list[int] = []
        self._staged: dict[int, Admission] = {}
        self._grow(capacity)

    def _empty(self, rows: int) -> Tables:
        columns = (STATE, torch.float32), (KNOBS, torch.int32), (WEIGHTS, torch.float32)
        return Tables(*(torch.zeros(rows, len(names), dtype=dtype, device=self.device) for names, dtype in columns))

    def _grow(self, rows: int) -> None:
        old = self.capacity
        self.tables = Tables(*(torch.cat(pair) for pair in zip(self.tables, self._empty(rows), strict=True)))
        self._free.extend(reversed(range(old, old + rows)))

    @property
    def capacity(self) -> int:
        """Rows of the tables."""
        return self.tables.state.shape[0]

    @property
    def staged(self) -> bool:
        """Whether there are requests that the tables do not know yet."""
        return bool(self._staged)

    def __len__(self) -> int:
        return len(self.row_of)

    def add(self, request: str, admission: Admission) -> None:
        """Give a request its row. One that has a row already (it comes back after a preemption) keeps it."""
        if request in self.row_of:
            return
        if not self._free:
            self._grow(self.capacity)
        self.changes += 1
        self.row_of[request] = self._free.pop()
        self._staged[self.row_of[request]] = admission

    def remove(self, requests: Iterable[str]) -> None:
        """Free the rows of requests; those without one are passed over."""
        for request in requests:
            row = self.row_of.pop(request, None)
            if row is not None:
                self.changes += 1
                self._free.append(row)

    def flush(self) -> None:
        """Write the rows of all new requests with one copy to the device for each table."""
        if not self._staged:
            return
        rows, admissions = self.to_device(list(self._staged)).long(), self._staged.values()
        self.tables.state[rows] = self.to_device([a.state() for a in admissions], torch.float32)
        self.tables.knobs[rows] = self.to_device([a.knobs() for a in admissions])
        self.tables.weights[rows] = self.to_device([a.weights() for a in admissions], torch.float32)
        self._staged.clear()

    def to_device(self, values: Sequence, dtype: torch.dtype = torch.int32) -> Tensor:
        """A list on the device. Pinned, so that the host does not wait for the copy."""
        return torch.tensor(values, dtype=dtype, pin_memory=self.device.type == "cuda").to(
            self.device, non_blocking=True
        )

    def rows(self, requests: Sequence[str]) -> Int[Tensor, " requests"]:
        """Rows of requests, on the device."""
        return self.to_device([self.row_of[request] for request in requests])
