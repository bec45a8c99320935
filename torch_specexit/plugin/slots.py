"""Per-request memory on the device: one row of a few small tables for each request, found by its id.

The rows are this plug-in's own, not the runner's batch rows or request slots, so they survive preemption, rows that
move within the batch, and prompts in chunks. A row is freed when the scheduler reports its request as finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from specexit.decision import OFF, Policy
from specexit.signals import NAMES
from torch_specexit.plugin.rule import BEFORE, THINKING, Averages, Settings, State, limits


@dataclass(frozen=True)
class Admission:
    """A new request: whether its prompt has opened the thinking, and its policy, or None where exits are off."""

    thinking: bool
    policy: Policy | None


@dataclass
class Batch:
    """The requests of one step, row by row. A step replaces what it has changed."""

    rows: Int[Tensor, " batch"]
    settings: Settings
    state: State
    averages: Averages


def opens_thinking(prompt_ids: Sequence[int], start: int, end: int) -> bool:
    """Whether the last think marker of a prompt is an opening one."""
    for token in reversed(prompt_ids):
        if token in (start, end):
            return token == start
    return False


def _initial(thinking: bool) -> list[int]:
    values = {"phase": THINKING, "start": 0} if thinking else {"phase": BEFORE, "start": -1}
    return [values.get(field, 0) for field in State._fields]


class Slots:
    """The tables, and which row belongs to which request.

    Args:
      device: of the tables.
      capacity: rows at the beginning; doubled when they do not suffice.
    """

    def __init__(self, device: torch.device, capacity: int = 64):
        self.device = device
        self.row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._staged: list[tuple[int, Admission]] = []
        self._batch: Batch | None = None
        self._batch_rows: list[int] = []
        self._state = self._table(0, len(State._fields), torch.int32)
        self._knobs = self._table(0, 3, torch.int32)
        self._weights = self._table(0, len(NAMES) + 1, torch.float32)
        self._verdict = self._table(0, len(NAMES), torch.float32)
        self._moving = self._table(0, len(NAMES), torch.float32)
        self._grow(capacity)

    def _table(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(rows, columns, dtype=dtype, device=self.device)

    def _grow(self, rows: int) -> None:
        old = self._state.shape[0]
        for name in ("_state", "_knobs", "_weights", "_verdict", "_moving"):
            table = getattr(self, name)
            setattr(self, name, torch.cat([table, self._table(rows, table.shape[1], table.dtype)]))
        self._free.extend(reversed(range(old, old + rows)))

    def __len__(self) -> int:
        return len(self.row_of)

    def add(self, request: str, admission: Admission) -> None:
        """Give a request its row. One that has a row already (it comes back after a preemption) keeps it."""
        if request in self.row_of:
            return
        if not self._free:
            self._grow(self._state.shape[0])
        self.row_of[request] = self._free.pop()
        self._staged.append((self.row_of[request], admission))

    def remove(self, requests: Iterable[str]) -> None:
        """Free the rows of requests; those without one are passed over."""
        for request in requests:
            row = self.row_of.pop(request, None)
            if row is not None:
                self._free.append(row)

    def flush(self) -> None:
        """Write the rows of all new requests with one copy to the device for each table."""
        if not self._staged:
            return
        self._put_back()  # a new request may have the row of one that has gone
        rows = self._to_device([row for row, _ in self._staged], torch.long)
        policies = [admission.policy or OFF for _, admission in self._staged]
        on = [int(admission.policy is not None) for _, admission in self._staged]
        states = [_initial(admission.thinking) for _, admission in self._staged]
        knobs = [[is_on, p.patience, p.min_thinking_tokens] for is_on, p in zip(on, policies, strict=True)]
        self._state[rows] = self._to_device(states, torch.int32)
        self._knobs[rows] = self._to_device(knobs, torch.int32)
        self._weights[rows] = self._to_device([[*limits(p.thresholds), p.alpha] for p in policies], torch.float32)
        self._verdict[rows] = 0.0
        self._moving[rows] = 0.0
        self._staged.clear()

    def _to_device(self, values: Sequence, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device, non_blocking=True)

    def batch(self, requests: Sequence[str]) -> Batch:
        """What is known of the requests of a batch.

        It stays out of the tables, and costs nothing, for as long as the same requests run in the same order.
        """
        rows = [self.row_of[request] for request in requests]
        if self._batch is None or rows != self._batch_rows:
            self._put_back()
            self._batch_rows = rows
            self._batch = self._take_out(self._to_device(rows, torch.long))
        return self._batch

    def _take_out(self, rows: Int[Tensor, " batch"]) -> Batch:
        on, patience, min_thinking_tokens = self._knobs[rows].unbind(dim=1)
        weights = self._weights[rows]
        settings = Settings(weights[:, :-1], weights[:, -1], on > 0, patience, min_thinking_tokens)
        state = State(*self._state[rows].unbind(dim=1))
        return Batch(rows, settings, state, Averages(self._verdict[rows], self._moving[rows]))

    def _put_back(self) -> None:
        """Write the batch into the tables; whoever needs it next takes it out again."""
        if self._batch is not None:
            rows = self._batch.rows
            self._state[rows] = torch.stack(list(self._batch.state), dim=1)
            self._verdict[rows], self._moving[rows] = self._batch.averages
        self._batch = None
