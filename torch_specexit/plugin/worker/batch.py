"""The requests of one step, taken out of the tables: what the eager twin of the exit rule works on.

They stay out for as long as the same requests run in the same order, so that most steps need no gathering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specexit.method.signals import NAMES
from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.slots import Slots

Column = Float[Tensor, "batch 1"]
"""One number for each request."""

# Constants of the right type: a Python number would be converted in each operation.
ZERO, ONE, TWO, NEVER = (torch.tensor(value) for value in (0.0, 1.0, 2.0, torch.inf))
"""The last one is, as a position, beyond every step."""

_SIGNS = torch.tensor(rule.SIGNS)


@dataclass
class Batch:
    """The requests of a step, taken out of the tables and updated in place."""

    requests: list[str]
    rows: Int[Tensor, " batch"]
    state: Float[Tensor, "state batch"]
    """The columns that follow are views of it; see `rule.STATE`."""
    phase: Column
    thoughts: Column
    start: Column
    exited: Column
    judged: Column
    verdict: Float[Tensor, "batch signals"]
    would_exit: Column
    streak: Column
    pending: Column
    last: Column
    outputs: Column
    smoothed: Column
    moving: Float[Tensor, "batch signals"]
    wanted: Int[Tensor, "batch 1"]
    """This and what follows are its policies; see `rule.KNOBS` and `rule.WEIGHTS`."""
    patience: Column
    least: Column
    most: Column
    shadow: Bool[Tensor, "batch 1"]
    limits: Float[Tensor, "batch 1 signals"]
    alpha: Column
    any_before: bool
    """Whether there are requests whose thinking has not begun, that have a minimum, that end it at a maximum, that are
    in shadow mode, whose last verdict is exit."""
    any_least: bool
    any_most: bool
    any_shadow: bool
    any_pending: bool

    @classmethod
    def of(cls, requests: Sequence[str], slots: Slots) -> Batch:
        """Take requests out of the tables."""
        rows = slots.rows(requests).long()
        state, knobs, weights = (table[rows] for table in slots.tables)
        state = state.t().contiguous()
        at = dict(zip(rule.STATE, state[:, :, None].unbind(), strict=True))
        wanted, patience, least, most, shadow = knobs[:, :, None].unbind(dim=1)
        verdict, moving = (rule.STATE.index(name) for name in (NAMES[0], f"moving_{NAMES[0]}"))
        return cls(
            requests=list(requests),
            rows=rows,
            state=state,
            verdict=state[verdict : verdict + len(NAMES)].t(),
            moving=state[moving:].t(),
            **{name: column for name, column in at.items() if name in cls.__dataclass_fields__},
            wanted=wanted.contiguous(),
            patience=patience.float(),
            least=least.float(),
            most=most.float(),
            shadow=shadow > 0,
            limits=weights[:, None, :-1],
            alpha=weights[:, -1:],
            any_before=bool((at["phase"] == rule.BEFORE).any()),
            any_least=bool(least.any()),
            any_most=bool((most < rule.NO_LIMIT).any()),
            any_shadow=bool(shadow.any()),
            any_pending=bool(at["pending"].any()),
        )

    def put_back(self, slots: Slots) -> None:
        """Write what has changed into the tables."""
        slots.tables.state[self.rows] = self.state.t()

    def records(self) -> Float[Tensor, "batch record"]:
        """The columns of `rule.RECORD`."""
        return self.state[: len(rule.RECORD)].t()

    def judge(
        self,
        asks: Bool[Tensor, "batch step"],
        values: Callable[[], Float[Tensor, "batch step signals"]],
        counts: Float[Tensor, "batch step"] | None,
    ) -> Column | None:
        """Judge boundaries, one position after the other.

        Args:
          asks: where there is a boundary to be judged.
          values: gives its signals.
          counts: thinking tokens up to it, where a maximum of these matters.

        Returns:
          Positions of the first verdicts of exit, behind which nothing is judged any more; None where there is none.
        """
        columns = [j for j, wanted in enumerate(asks.any(dim=0).tolist()) if wanted]
        if not columns:
            return None
        signals, found = values(), None
        good = (signals * _SIGNS >= self.limits).all(dim=2)
        for j in columns:
            ask = asks[:, j : j + 1]
            if found is not None:
                ask = ask & (found == NEVER)
            streak = torch.where(good[:, j : j + 1], self.streak + ONE, ZERO)
            self.streak.copy_(torch.where(ask, streak, self.streak))
            self.verdict.copy_(torch.where(ask, signals[:, j], self.verdict))
            self.judged.masked_fill_(ask, 1)
            exits = self.streak >= self.patience
            if self.any_most:
                assert counts is not None
                exits |= counts[:, j : j + 1] >= self.most
            if exits.bitwise_and_(ask).any():
                hit = torch.full_like(self.last, torch.inf).masked_fill_(exits, j)
                found = hit if found is None else torch.minimum(found, hit)
        return found

    def smooth(
        self,
        values: Float[Tensor, "batch step signals"],
        valid: Bool[Tensor, "batch step"],
        inner: Bool[Tensor, "batch step"],
    ) -> Float[Tensor, "batch step signals"]:
        """Source ``fc``: the moving average behind each row, over those whose input is a thinking token.

        Args:
          values: signals at each row.
          valid: whether the row's token was accepted.
          inner: whether that token is a thinking token.
        """
        thought = torch.cat([self.last >= ONE, inner[:, :-1]], dim=1).bitwise_and_(valid)
        count = thought.cumsum(dim=1, dtype=torch.float32) + self.smoothed
        weight = torch.where(thought, torch.where(count > ONE, self.alpha, ONE), ZERO)
        moving, columns = self.moving, []
        for j in range(values.shape[1]):
            moving = torch.lerp(moving, values[:, j], weight[:, j : j + 1])
            columns.append(moving)
        self.moving.copy_(moving)
        self.smoothed.masked_fill_(count[:, -1:] > ZERO, 1)
        return torch.stack(columns, dim=1)
