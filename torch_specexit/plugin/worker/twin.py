"""One step of the exit rule in plain Python, one request after the other, for tables on a CPU: the oracle of the Triton
kernel, and what runs where there is no Triton.

The kernel's lanes and masks are requests and conditions here. For the few requests of a CPU that is faster than numpy
over lanes, where each of many operations costs as much for one request as for a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from specexit.method.signals import NAMES, activate
from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.loops import BASES, PRIMES, LoopSearch
from torch_specexit.plugin.worker.rule import (
    BEFORE,
    BOUNDARY,
    EXIT,
    INTERRUPT,
    LOOP,
    OTHER,
    OVER,
    THINKING,
    THOUGHT,
    Markers,
    Sampled,
)
from torch_specexit.plugin.worker.slots import Slots

_STRINGS = rule.BEGINS - 1
_OUTPUTS = rule.STATE.index("outputs")
_MOVING = tuple(f"moving_{name}" for name in NAMES)

Signals = Sequence[float]
"""One value for each of `specexit.method.signals.SIGNALS`, as float32 has it."""


class Asked:
    """What a request asks for: its rows of `Tables.knobs`, by the names of their columns, and of `Tables.weights`."""

    def __init__(self, knobs: list[int], weights: list[float]):
        self.knob: Any = SimpleNamespace(**dict(zip(rule.KNOBS, knobs, strict=True)))
        self.limits, self.early, self.alpha = weights[: len(NAMES)], weights[len(NAMES) : -1], weights[-1]
        self.has_early = not all(map(math.isnan, self.early))


class Row:
    """A request: its row of `Tables.state`, by the names of its columns, and what it asks for."""

    def __init__(self, place: int, state: list[float], asked: Asked):
        self.place, self.asked, self.knob = place, asked, asked.knob
        self.state: Any = SimpleNamespace(**dict(zip(rule.STATE, state, strict=True)))

    def columns(self) -> list[float]:
        """Its row of `Tables.state`."""
        return list(vars(self.state).values())

    def lose(self) -> None:
        """Switch exits off, with nothing left to be judged or due. The text is read on; a client may interrupt."""
        lost = ("on", "unread", "last", "deferred", "closed", "looping", "told")
        vars(self.state).update(dict.fromkeys(lost, 0))

    def may_end(self) -> bool:
        """Whether thinking may still be ended: exits are wanted, and there was none in shadow mode; or the client says
        so."""
        return (self.state.would_exit == 0 and self.state.on > 0) or self.knob.cause == INTERRUPT

    def pass_over(self) -> bool:
        """Whether the early thresholds pass over a boundary at the last token, which then ends the streak.

        It is to be judged where they held `EARLY_TOKENS` tokens before it, or that is not known yet, or at the cap.
        """
        behind = rule.EARLY_TOKENS - int(self.state.unread)
        if behind < 0 or int(self.state.near) >> behind & 1 or self.state.thoughts >= self.knob.most:
            return False
        self.state.streak = 0
        return True

    def take_in(self, values: Signals) -> None:
        """Take in the signals of the next thinking token: whether the early thresholds hold there."""
        if self.asked.has_early:
            self.state.near = (int(self.state.near) << 1 | passes(values, self.asked.early)) & rule.ALL_NEAR

    def judge(self, values: Signals) -> None:
        """Judge a boundary, after its token's signals were taken in. One judged for the cap alone does not pass."""
        state, knob = self.state, self.knob
        good = int(state.near) >> rule.EARLY_TOKENS & 1 and passes(values, self.asked.limits)
        state.streak = state.streak + 1 if good else 0
        vars(state).update(zip(NAMES, values, strict=True), judged=1, told=0)
        if state.thoughts >= knob.most:
            state.deferred = knob.cause
        if state.streak >= knob.patience:
            state.deferred = EXIT


def passes(values: Signals, limits: Signals) -> bool:
    """`specexit.method.decision.passes`."""
    each = zip(rule.SIGNS, values, limits, strict=True)
    return all(sign * value >= limit or math.isnan(limit) for sign, value, limit in each)


class Twin:
    """The rule for the requests of one runner; see `torch_specexit.plugin.worker.rule.Rule`.

    Args:
      slots: of the runner.
      markers: what tokens mean.
      source: of the signals.
      smooth: source ``fc``: whether a moving average over thinking tokens is judged, or the values as they are.
    """

    def __init__(self, slots: Slots, markers: Markers, source: str, *, smooth: bool = False):
        self.slots, self.source, self.smooth = slots, source, smooth
        self._meaning, self._closing = markers.bits.numpy(), markers.closing.tolist()
        self._marker = self._closing[len(self._closing) - markers.n_marker :]
        self._loops = markers.loops
        self._before: dict[str, int] = {}
        self._asked: dict[int, Asked] = {}
        """By table row, since the slots last changed."""
        self._changes = slots.changes
        self.forced = torch.zeros(0, dtype=torch.bool)
        self.report = torch.zeros(0, len(rule.REPORT))

    def step(self, sampled: Sampled, signals: Float[Tensor, "rows *last signals"], failed: Float[Tensor, " 1"]) -> None:
        """See `torch_specexit.plugin.worker.rule.Rule`."""
        self.slots.flush()
        stopped, values = failed.item(), activate(signals.numpy()).tolist()
        active, left_alone = stopped == 0, 0 < stopped < 1
        if self.source == "draft":
            self._judge_left_out(sampled.requests, values, active=active)
        rows = self._rows([self.slots.row_of[name] for name in sampled.requests])
        fed, positions = sampled.logits_rows.numpy(), sampled.positions.numpy()
        drawn, tokens, begin = list(map(int, sampled.n.tolist())), sampled.tokens.tolist(), 0
        kept, forced = [], []
        for row, text, n, end in zip(rows, tokens, drawn, sampled.ends.tolist(), strict=True):
            if n:
                self._reconcile(row, int(positions[fed[begin]]) + 1 - row.knob.prompt)
            if n and left_alone:
                row.lose()
            if self.source == "draft":
                self._judge_last(row, values, active=active)
            if n:
                self._remember(row)
            read, replaced = self._read_step(row, text, n, values[begin:end], active=active)
            kept.append(read)
            forced.append(replaced)
            begin = end
        self._write(rows, sampled, drawn, kept, tokens, stopped)
        self.forced = torch.tensor(forced, dtype=torch.bool)

    def _rows(self, places: list[int]) -> list[Row]:
        if self._changes != self.slots.changes:
            self._asked.clear()
            self._changes = self.slots.changes
        unknown = [place for place in places if place not in self._asked]
        if unknown:
            knobs, weights = (table.numpy()[unknown].tolist() for table in self.slots.tables[1:3])
            self._asked |= zip(unknown, map(Asked, knobs, weights), strict=True)
        state = self.slots.tables.state.numpy()[places].tolist()
        return [Row(place, columns, self._asked[place]) for place, columns in zip(places, state, strict=True)]

    def _reconcile(self, row: Row, outputs: int) -> None:
        """Go back to the token from which vLLM goes on, where that is not the last one that a row has seen."""
        if outputs == row.state.outputs:
            return
        past = self.slots.tables.past.numpy()[row.place]
        found = np.flatnonzero(past[:, _OUTPUTS] == outputs)
        past[past[:, _OUTPUTS] > outputs, _OUTPUTS] = -1  # of a branch that vLLM has dropped
        if len(found):
            vars(row.state).update(zip(rule.STATE, past[found[0]].tolist(), strict=True))
        else:
            row.lose()
            row.state.matched = 0  # nor is it known what was written last
        row.state.outputs, row.state.told = outputs, 0

    def _judge_left_out(self, requests: Sequence[str], values: Sequence[Sequence[Signals]], *, active: bool) -> None:
        """Source ``draft``: judge the requests of the last step that this one leaves out."""
        here, row_of = set(requests), self.slots.row_of
        left_out = [row for name, row in self._before.items() if name not in here and row_of.get(name) == row]
        for row in self._rows(left_out) if left_out else []:
            self._judge_last(row, values, active=active)
            self.slots.tables.state.numpy()[row.place] = row.columns()
        self._before = {name: row_of[name] for name in requests}

    def _judge_last(self, row: Row, values: Sequence[Sequence[Signals]], *, active: bool) -> None:
        """Source ``draft``: take in the signals of the last step, and judge its last token, if it was a boundary."""
        state = row.state
        for back in reversed(range(int(state.unread))):
            row.take_in(values[int(state.row)][back])
        state.unread = 0
        if state.last == BOUNDARY:
            if not row.pass_over() and active:
                row.judge(values[int(state.row)][0])
            state.last = THOUGHT  # only once

    def _remember(self, row: Row) -> None:
        """Leave a copy of a row, for steps that vLLM may drop."""
        slot = int(row.state.slot)
        self.slots.tables.past.numpy()[row.place, slot] = row.columns()
        row.state.slot = (slot + 1) % rule.STEPS_BACK

    def _read_step(
        self, row: Row, tokens: list[int], drawn: int, values: Sequence[Any], *, active: bool
    ) -> tuple[int, bool]:
        """Take in the tokens of a step, and put closing tokens in their place where they are due.

        Returns:
          How many are left of them, and whether the last one was put there.
        """
        for j in range(drawn):
            if self.source == "fc":
                self._judge_token(row, values[j], active=active)
            forced = self._force(row, tokens, j, active=active)
            boundary = self._read(row, tokens[j])
            if forced or (boundary and active and self.source == "draft"):
                return j + 1, forced
        return drawn, False

    def _judge_token(self, row: Row, values: Signals, *, active: bool) -> None:
        """Source ``fc``: judge the last token, if it was a boundary, by the row that has drawn the next one."""
        state = row.state
        state.unread = 0
        if state.last >= THOUGHT:
            values = self._average(row, values) if self.smooth else values
            row.take_in(values)
        if state.last == BOUNDARY and row.may_end() and active:
            row.judge(values)

    def _average(self, row: Row, values: Signals) -> Signals:
        """The moving average, with one more value in it."""
        state, alpha = row.state, np.float32(row.asked.alpha)
        if state.smoothed:
            moving = np.array([getattr(state, name) for name in _MOVING], np.float32)
            values = (alpha * np.array(values, np.float32) + (1 - alpha) * moving).tolist()
        vars(state).update(zip(_MOVING, values, strict=True), smoothed=1)
        return values

    def _force(self, row: Row, tokens: list[int], j: int, *, active: bool) -> bool:
        """Put the closing token that is due in the place of what was drawn; in shadow mode, only take note of
        it, except where the client wants it.

        Returns:
          Whether something else was drawn.
        """
        state, knob = row.state, row.knob
        capped = state.thoughts >= knob.hard and (state.on > 0 or knob.hard == 0)
        circles = state.looping and state.on > 0 and state.would_exit == 0  # elsewhere a client waits for a boundary
        at_any = state.phase == THINKING and (capped or circles) and not state.deferred and not state.matched
        if at_any and active and row.may_end():
            state.deferred = knob.cause if capped else LOOP
        if not state.deferred:
            return False
        if knob.shadow and state.deferred != INTERRUPT:
            state.would_exit = state.would_exit or state.thoughts
            state.deferred = state.told = 0
            return False
        if not active:
            return False
        closed = int(state.closed)
        replaced = tokens[j] != self._closing[closed]
        tokens[j] = self._closing[closed]
        state.exited, state.on, state.told = state.deferred, 1, 0
        state.kept = state.kept if closed else state.thoughts
        if closed + 1 == len(self._closing):
            state.closed = state.deferred = 0
        else:
            state.closed = closed + 1
        return replaced

    def _read(self, row: Row, token: int) -> bool:
        """Take in one token; returns whether it is a boundary that is to be judged."""
        state, knob = row.state, row.knob
        meant = int(self._meaning[token]) & knob.wanted if 0 <= token < len(self._meaning) - 1 else 0
        state.outputs += 1
        state.last = OTHER
        if state.phase == BEFORE and meant >= rule.BEGINS:
            state.phase, state.start, state.told = THINKING, state.outputs, 0
        elif state.phase == THINKING:
            matched = int(state.matched)
            state.matched = matched + 1 if token == self._marker[matched] else int(token == self._marker[0])
            if state.matched == len(self._marker):
                state.phase, state.matched, state.told = OVER, 0, 0
                state.thoughts -= len(self._marker) - 1
            else:
                state.last = THOUGHT
                self._think(row, token)
        is_split = state.last == THOUGHT and not state.matched and not state.closed and meant & _STRINGS
        if is_split and state.thoughts >= knob.least and row.may_end() and not row.pass_over():
            state.last = BOUNDARY
        return state.last == BOUNDARY

    def _think(self, row: Row, token: int) -> None:
        """Count one more thinking token."""
        if self._loops is not None:
            self._look_for_loops(row, token, self._loops)
        row.state.thoughts += 1
        row.state.unread += 1

    def _look_for_loops(self, row: Row, token: int, search: LoopSearch) -> None:
        """Take a thinking token into the fingerprint of the last ones; see `torch_specexit.plugin.worker.loops`."""
        recent, n, state = self.slots.tables.recent.numpy()[row.place], int(row.state.thoughts), row.state
        oldest = int(recent[(n - search.span) % search.ring]) if n >= search.span else 0
        recent[n % search.ring] = token + 1
        rolling = [
            (int(value) * base + token + 1 + oldest * leaving) % prime
            for value, base, leaving, prime in zip(
                (state.rolling_0, state.rolling_1), BASES, search.leaving, PRIMES, strict=True
            )
        ]
        state.rolling_0, state.rolling_1 = rolling
        if rolling == [state.anchor_0, state.anchor_1]:
            state.looping = 1
        if n + 1 >= search.span and (n + 1) % search.period == 0:
            state.anchor_0, state.anchor_1 = rolling

    def _write(
        self,
        rows: Sequence[Row],
        sampled: Sampled,
        drawn: list[int],
        kept: list[int],
        tokens: list[list[int]],
        stopped: float,
    ) -> None:
        """Hand the step back, and the rows to the tables."""
        changed = []
        for i, row in enumerate(rows):
            if drawn[i] and sampled.padded:
                tokens[i][kept[i] :] = [-1] * (len(tokens[i]) - kept[i])
            changed.append(-stopped if stopped else float(drawn[i] > 0 and row.state.told == 0))
            row.state.told, row.state.row = int(stopped == 0) if drawn[i] else row.state.told, i
        columns = [row.columns() for row in rows]
        if rows:
            self.slots.tables.state.numpy()[[row.place for row in rows]] = columns
            sampled.tokens.numpy()[:] = tokens
            sampled.n.numpy()[:] = kept
        if sampled.rejected is not None:
            sampled.rejected.numpy()[:] += np.subtract(drawn, kept).astype(np.int32)
        report = [[*state[: len(rule.RECORD)], news] for state, news in zip(columns, changed, strict=True)]
        self.report = torch.tensor(report, dtype=torch.float32).reshape(len(rows), len(rule.REPORT))
