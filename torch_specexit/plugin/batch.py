"""The requests of one step, taken out of the tables: what the eager twin of the exit rule works on.

They stay out for as long as the same requests run in the same order, so that most steps need no gathering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from specexit.signals import NAMES
from torch_specexit.plugin import rule
from torch_specexit.plugin.slots import Slots

Column = Float[Tensor, "batch 1"]
"""One number for each request."""


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
    """Whether there are requests whose thinking has not begun, that end it at a maximum, that are in shadow mode, whose
    last verdict is exit."""
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
