"""Which row of the tables belongs to which request.

The rows are this plug-in's own, not the runner's batch rows or request slots, so they survive preemption, rows that
move within the batch, and prompts in chunks. A row is freed when the scheduler reports its request as finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from torch_specexit.plugin.worker.rule import (
    BEFORE,
    KNOBS,
    STATE,
    STEPS_BACK,
    THINKING,
    WEIGHTS,
    Admission,
    Tables,
)

_PHASE, _START = STATE.index("phase"), STATE.index("start")


class Slots:
    """The tables, and their rows by request.

    Args:
      device: of the tables.
      capacity: rows at the beginning; doubled when they do not suffice.
      ring: thinking tokens that are kept of each request.
    """

    def __init__(self, device: torch.device, capacity: int = 64, ring: int = 0):
        self.device, self.ring = device, ring
        self.row_of: dict[str, int] = {}
        self.admissions: dict[str, Admission] = {}
        self.interrupted: set[str] = set()
        self.changes = 0
        """Counts all changes of rows that the host makes: where it stands still, the rule looks nothing up anew."""
        self.tables = self._empty(0)
        self._free: list[int] = []
        self._new: dict[int, Admission] = {}
        self._opened: dict[int, Tensor] = {}
        self._rebuilt: dict[int, tuple[list[float], list[int]]] = {}
        self._policies: dict[int, list[int]] = {}
        self._grow(capacity)

    def _empty(self, rows: int) -> Tables:
        shapes = (
            ((len(STATE),), torch.float32),
            ((len(KNOBS),), torch.int32),
            ((len(WEIGHTS),), torch.float32),
            ((STEPS_BACK + 1, len(STATE)), torch.float32),
            ((self.ring,), torch.int32),
        )
        return Tables(*(torch.zeros(rows, *shape, dtype=dtype, device=self.device) for shape, dtype in shapes))

    def _grow(self, rows: int) -> None:
        old = self.capacity
        self.tables = Tables(*(torch.cat(pair) for pair in zip(self.tables, self._empty(rows), strict=True)))
        self._free.extend(reversed(range(old, old + rows)))

    @property
    def capacity(self) -> int:
        """Rows of the tables."""
        return self.tables.state.shape[0]

    def __len__(self) -> int:
        return len(self.row_of)

    def add(self, request: str, admission: Admission) -> None:
        """Give a request a row of its own, in its first state. A row that it has already is taken back."""
        self.remove([request])
        if not self._free:
            self._grow(self.capacity)
        self.changes += 1
        row = self.row_of[request] = self._free.pop()
        self._new[row] = self.admissions[request] = admission

    def open(self, request: str, thinking: Bool[Tensor, ""]) -> None:
        """Set whether the prompt of a new request has opened the thinking, where its admission did not know."""
        self.changes += 1
        self._opened[self.row_of[request]] = thinking

    def rebuild(self, request: str, state: list[float], recent: list[int]) -> None:
        """Leave a row of `Tables.state` among a request's past, and one of `Tables.recent`: what it has may not reach
        back to where vLLM goes on. A row that is still to be written needs none."""
        row = self.row_of[request]
        if row not in self._new:
            self.changes += 1
            self._rebuilt[row] = state, recent

    def interrupt(self, request: str, *, now: bool) -> None:
        """Have the thinking of a request end: at its next boundary, or now."""
        row = self.row_of[request]
        self.changes += 1
        self.interrupted.add(request)
        self._policies[row] = self.admissions[request].interrupted(now=now)

    def remove(self, requests: Iterable[str]) -> None:
        """Free the rows of requests; those without one are passed over."""
        for request in requests:
            row = self.row_of.pop(request, None)
            if row is not None:
                del self.admissions[request]
                self.interrupted.discard(request)
                self.changes += 1
                self._free.append(row)
                for waiting in (self._new, self._opened, self._rebuilt, self._policies):
                    waiting.pop(row, None)

    def flush(self) -> None:
        """Write what is new of the rows, with one copy to the device for each table."""
        if self._new:
            rows, admissions = self.to_device(list(self._new)).long(), self._new.values()
            self.tables.state[rows] = self.to_device([a.state() for a in admissions], torch.float32)
            self.tables.knobs[rows] = self.to_device([a.knobs() for a in admissions])
            self.tables.weights[rows] = self.to_device([a.weights() for a in admissions], torch.float32)
            self.tables.past[rows] = -1
            self._new.clear()
        if self._opened:
            rows, thinking = self.to_device(list(self._opened)).long(), torch.stack(list(self._opened.values()))
            self.tables.state[rows, _PHASE] = torch.where(thinking, float(THINKING), float(BEFORE))
            self.tables.state[rows, _START] = torch.where(thinking, 0.0, -1.0)
            self._opened.clear()
        if self._rebuilt:
            rows = self.to_device(list(self._rebuilt)).long()
            states, recent = zip(*self._rebuilt.values(), strict=True)
            self.tables.past[rows, STEPS_BACK] = self.to_device(states, torch.float32)
            self.tables.recent[rows] = self.to_device(recent)
            self._rebuilt.clear()
        if self._policies:
            rows = self.to_device(list(self._policies)).long()
            self.tables.knobs[rows] = self.to_device(list(self._policies.values()))
            self._policies.clear()

    def to_device(self, values: Sequence, dtype: torch.dtype = torch.int32) -> Shaped[Tensor, "*values"]:
        """A list on the device. Pinned, so that the host does not wait for the copy."""
        return torch.tensor(values, dtype=dtype, pin_memory=self.device.type == "cuda").to(
            self.device, non_blocking=True
        )

    def rows(self, requests: Sequence[str]) -> Int[Tensor, " requests"]:
        """Rows of requests, on the device."""
        return self.to_device([self.row_of[request] for request in requests])
