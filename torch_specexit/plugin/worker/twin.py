"""One step of the exit rule in numpy, for tables on a CPU: the oracle of the Triton kernel, line by line, and what runs
where there is no Triton.

Lanes are requests, as in the kernel. The arrays share the tensors' memory, so nothing is copied but the rows of the
step's requests, out of the tables and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specexit.method.signals import NAMES, activate
from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.loops import BASES, FINGERPRINT, PRIMES, LoopSearch
from torch_specexit.plugin.worker.rule import (
    BEFORE,
    BOUNDARY,
    EXIT,
    INTERRUPT,
    LOOP,
    OVER,
    THINKING,
    THOUGHT,
    Markers,
    Sampled,
)
from torch_specexit.plugin.worker.slots import Slots

_SIGNS = np.array(rule.SIGNS, np.float32)
_STRINGS = np.int32(rule.BEGINS - 1)
_OUTPUTS = rule.STATE.index("outputs")

Lane = np.ndarray
"""One value for each request."""


class Lanes:
    """The rows of some requests, out of the tables: a column of each by its name, views of one array."""

    def __init__(self, tables: rule.Tables, rows: Int[np.ndarray, " lanes"]):
        self.rows = rows
        self.state = tables.state.numpy()[rows]
        self.column = dict(zip(rule.STATE, self.state.T, strict=True))
        self.knob = dict(zip(rule.KNOBS, tables.knobs.numpy()[rows].T, strict=True))
        weights = tables.weights.numpy()[rows]
        self.limits, self.early, self.alpha = np.split(weights, (len(NAMES), 2 * len(NAMES)), axis=1)
        verdict, moving = (rule.STATE.index(name) for name in (NAMES[0], f"moving_{NAMES[0]}"))
        self.verdict = self.state[:, verdict : verdict + len(NAMES)]
        self.moving = self.state[:, moving : moving + len(NAMES)]
        looks = rule.STATE.index(FINGERPRINT[0])
        self.rolling, self.anchor = self.state[:, looks : looks + 2], self.state[:, looks + 2 : looks + 4]

    def put(self, name: str, where: Bool[np.ndarray, " lanes"], value: Any) -> None:
        """Set a column where a condition holds."""
        np.copyto(self.column[name], value, where=where, casting="unsafe")

    def may_end(self) -> Bool[np.ndarray, " lanes"]:
        """Whether thinking may still be ended: exits are wanted, and there was none in shadow mode; or the client says
        so."""
        wanted = (self.column["would_exit"] == 0) & (self.column["on"] > 0)
        return wanted | (self.knob["cause"] == INTERRUPT)

    def was_near(self) -> Bool[np.ndarray, " lanes"]:
        """Whether the early thresholds held so many tokens before the last one, as far as that is known."""
        behind = rule.EARLY_TOKENS - self.column["unread"].astype(int)
        return (behind < 0) | (self.column["near"].astype(int) >> np.maximum(behind, 0) & 1 > 0)

    def pass_over(self, boundary: Bool[np.ndarray, " lanes"]) -> Bool[np.ndarray, " lanes"]:
        """Boundaries that are to be judged; those that the early thresholds pass over have not passed."""
        judged = boundary & (self.was_near() | (self.column["thoughts"] >= self.knob["most"]))
        self.put("streak", boundary & ~judged, 0)
        return judged

    def take_in(self, known: Bool[np.ndarray, " lanes"], values: Float[np.ndarray, "lanes signals"]) -> None:
        """The signals of the next thinking token."""
        near = (values * _SIGNS >= self.early).all(axis=1)
        self.put("near", known, (self.column["near"].astype(int) << 1 | near) & rule.ALL_NEAR)

    def tell(self, where: Bool[np.ndarray, " lanes"]) -> None:
        """There is news of some."""
        self.put("told", where, 0)


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
        self._meaning, self._closing = markers.bits.numpy(), markers.closing.numpy()
        self._marker = self._closing[len(self._closing) - markers.n_marker :]
        self._loops = markers.loops
        self._before: dict[str, int] = {}
        self.forced = torch.zeros(0, dtype=torch.bool)
        self.report = torch.zeros(0, len(rule.REPORT))

    def step(self, sampled: Sampled, signals: Float[Tensor, "rows *last signals"], failed: Float[Tensor, " 1"]) -> None:
        """See `torch_specexit.plugin.worker.rule.Rule`."""
        self.slots.flush()
        active, raw = not failed.item() > 0, signals.numpy()
        if self.source == "draft":
            self._judge_left_out(sampled.requests, raw, active=active)
        lanes = Lanes(self.slots.tables, np.array([self.slots.row_of[name] for name in sampled.requests], int))
        drawn, tokens = sampled.n.numpy().astype(np.int64), sampled.tokens.numpy()
        first = np.concatenate([[0], sampled.ends.numpy()])[:-1].astype(np.int64)
        self._reconcile(lanes, sampled, drawn, first)
        if self.source == "draft":
            self._judge_last(lanes, raw, active=active)
        self._remember(lanes, drawn > 0)
        n, forced = drawn.copy(), np.zeros(len(drawn), bool)
        for j in range(tokens.shape[1]):
            now = j < n
            if self.source == "fc":
                self._judge_row(lanes, now, raw, first + j, active=active)
            replaced = self._force(lanes, now, tokens[:, j], active=active)
            boundary = self._read(lanes, now, tokens[:, j])
            forced |= replaced
            stops = boundary & active if self.source == "draft" else False
            n = np.where(replaced | stops, np.minimum(n, j + 1), n)
        self._write(lanes, sampled, drawn, n, forced, active=active)

    def _reconcile(self, lanes: Lanes, sampled: Sampled, drawn: Lane, first: Lane) -> None:
        """Go back to where vLLM has gone on from, where that is not behind the last step that a row has seen."""
        fed = sampled.logits_rows.numpy()[np.minimum(first, len(sampled.logits_rows) - 1)] if len(first) else first
        outputs = sampled.positions.numpy()[fed] + 1 - lanes.knob["prompt"] if len(first) else first
        for i in np.flatnonzero((drawn > 0) & (outputs != lanes.column["outputs"])):
            past = self.slots.tables.past.numpy()[lanes.rows[i]]
            found = np.flatnonzero(past[:, _OUTPUTS] == outputs[i])
            past[past[:, _OUTPUTS] > outputs[i], _OUTPUTS] = -1  # of a branch that vLLM has dropped
            if len(found):
                lanes.state[i] = past[found[0]]
            else:  # nothing is left to be judged, or due
                for name in ("on", "unread", "last", "matched", "deferred", "closed", "looping"):
                    lanes.column[name][i] = 0
            lanes.column["outputs"][i] = outputs[i]
            lanes.column["told"][i] = 0

    def _judge_left_out(
        self, requests: Sequence[str], raw: Float[np.ndarray, "rows last signals"], *, active: bool
    ) -> None:
        """Source ``draft``: judge the requests of the last step that this one leaves out."""
        here, row_of = set(requests), self.slots.row_of
        rows = [row for name, row in self._before.items() if name not in here and row_of.get(name) == row]
        if rows:
            lanes = Lanes(self.slots.tables, np.array(rows, int))
            self._judge_last(lanes, raw, active=active)
            self.slots.tables.state.numpy()[lanes.rows] = lanes.state
        self._before = {name: row_of[name] for name in requests}

    def _judge_last(self, lanes: Lanes, raw: Float[np.ndarray, "rows last signals"], *, active: bool) -> None:
        """Source ``draft``: take in the signals of the last step, and judge the boundaries that it has ended with."""
        rows, unread = lanes.column["row"].astype(int), lanes.column["unread"].astype(int)
        if np.isfinite(lanes.early).any():
            for back in reversed(range(unread.max(initial=0))):
                known = unread > back
                lanes.take_in(known, activate(raw[np.where(known, rows, 0), back]))
        lanes.column["unread"][:] = 0
        asks = lanes.pass_over(lanes.column["last"] == BOUNDARY) & active
        if asks.any():
            self._judge(lanes, asks, activate(raw[np.where(asks, rows, 0), 0]))
        lanes.put("last", lanes.column["last"] == BOUNDARY, THOUGHT)  # only once

    def _judge_row(
        self, lanes: Lanes, now: Lane, raw: Float[np.ndarray, "rows signals"], rows: Lane, *, active: bool
    ) -> None:
        """Source ``fc``: judge the input token of a row."""
        asks = now & (lanes.column["last"] == BOUNDARY) & lanes.may_end() & active
        thought = now & (lanes.column["last"] >= THOUGHT)
        lanes.put("unread", now, 0)
        if not self.smooth and not asks.any() and not np.isfinite(lanes.early).any():
            return
        values = activate(raw[np.where(now, rows, 0)])
        if self.smooth:
            values = self._average(lanes, thought, values)
        lanes.take_in(thought, values)
        self._judge(lanes, asks, values)

    def _average(
        self, lanes: Lanes, thought: Bool[np.ndarray, " lanes"], values: Float[np.ndarray, "lanes signals"]
    ) -> Float[np.ndarray, "lanes signals"]:
        """The moving average, behind one more value where there is a thinking token."""
        mixed = lanes.alpha * values + (1 - lanes.alpha) * lanes.moving
        started = lanes.column["smoothed"][:, None] > 0
        np.copyto(lanes.moving, np.where(started, mixed, values), where=thought[:, None])
        lanes.put("smoothed", thought, 1)
        return lanes.moving

    def _judge(
        self, lanes: Lanes, asks: Bool[np.ndarray, " lanes"], values: Float[np.ndarray, "lanes signals"]
    ) -> None:
        """Judge where there is a boundary."""
        good = (values * _SIGNS >= lanes.limits).all(axis=1)
        lanes.put("streak", asks, np.where(good, lanes.column["streak"] + 1, 0))
        lanes.put("judged", asks, 1)
        np.copyto(lanes.verdict, values, where=asks[:, None])
        passed = lanes.column["streak"] >= lanes.knob["patience"]
        lanes.put("deferred", asks & (lanes.column["thoughts"] >= lanes.knob["most"]), lanes.knob["cause"])
        lanes.put("deferred", asks & passed, EXIT)
        lanes.tell(asks)

    def _remember(self, lanes: Lanes, here: Bool[np.ndarray, " lanes"]) -> None:
        """Leave a copy of each row, for steps that vLLM may drop."""
        slot = lanes.column["slot"].astype(int)
        self.slots.tables.past.numpy()[lanes.rows[here], slot[here]] = lanes.state[here]
        lanes.put("slot", here, (slot + 1) % rule.STEPS_BACK)

    def _force(self, lanes: Lanes, now: Bool[np.ndarray, " lanes"], tokens: Lane, *, active: bool) -> Lane:
        """Put the closing token that is due in the place of what was drawn; in shadow mode, only take note of it.

        Returns:
          Where something else was drawn.
        """
        column, knob = lanes.column, lanes.knob
        thinking = now & (column["phase"] == THINKING) & lanes.may_end()
        capped = column["thoughts"] >= knob["hard"]
        at_any = thinking & (column["deferred"] == 0) & (column["matched"] == 0) & (capped | (column["looping"] > 0))
        lanes.put("deferred", at_any & active, np.where(capped, knob["cause"], LOOP))
        due = now & (column["deferred"] > 0)
        noted = due & (knob["shadow"] > 0)
        lanes.put("would_exit", noted & (column["would_exit"] == 0), column["thoughts"])
        lanes.put("deferred", noted, 0)
        lanes.tell(noted)
        due &= ~noted & active
        if not due.any():
            return due
        closed = column["closed"].astype(int)
        wanted = self._closing[np.where(due, closed, 0)]
        replaced = due & (tokens != wanted)
        np.copyto(tokens, wanted, where=replaced, casting="unsafe")
        lanes.put("exited", due, column["deferred"])
        lanes.put("on", due, 1)
        done = due & (closed + 1 == len(self._closing))
        lanes.put("closed", due, np.where(done, 0, closed + 1))
        lanes.put("deferred", done, 0)
        lanes.tell(due)
        return replaced

    def _read(self, lanes: Lanes, now: Bool[np.ndarray, " lanes"], tokens: Lane) -> Lane:
        """Take in one token; returns where it is a boundary."""
        column, knob = lanes.column, lanes.knob
        inside = now & (tokens >= 0) & (tokens < len(self._meaning) - 1)
        meant = self._meaning[np.where(inside, tokens, -1)] & knob["wanted"]
        thinking = now & (column["phase"] == THINKING)
        begins = now & (column["phase"] == BEFORE) & (meant >= rule.BEGINS)
        matched = column["matched"].astype(int)
        goes_on = tokens == self._marker[np.where(thinking, matched, 0)]
        matched = np.where(goes_on, matched + 1, tokens == self._marker[0])
        ends = thinking & (matched == len(self._marker))
        thought = thinking & ~ends
        lanes.put("matched", thinking, np.where(ends, 0, matched))
        if self._loops is not None:
            self._look_for_loops(lanes, thought, tokens, self._loops)
        column["thoughts"] += thought
        column["unread"] += thought
        column["thoughts"] -= (len(self._marker) - 1) * ends
        column["outputs"] += now
        boundary = thought & (column["matched"] == 0) & (column["closed"] == 0) & ((meant & _STRINGS) != 0)
        boundary = lanes.pass_over(boundary & (column["thoughts"] >= knob["least"]) & lanes.may_end())
        lanes.put("start", begins, column["outputs"])
        lanes.put("phase", begins, THINKING)
        lanes.put("phase", ends, OVER)
        lanes.put("last", now, thought.astype(int) + boundary)
        lanes.tell(begins | ends)
        return boundary

    def _look_for_loops(
        self, lanes: Lanes, thought: Bool[np.ndarray, " lanes"], tokens: Lane, search: LoopSearch
    ) -> None:
        """Take a thinking token into the fingerprint of the last ones; see `torch_specexit.plugin.worker.loops`."""
        recent, n = self.slots.tables.recent.numpy(), lanes.column["thoughts"].astype(np.int64)
        oldest = np.where(n >= search.span, recent[lanes.rows, (n - search.span) % search.ring], 0).astype(np.int64)
        entering = tokens.astype(np.int64) + 1
        mixed = lanes.rolling.astype(np.int64) * BASES + entering[:, None] + oldest[:, None] * search.leaving
        np.copyto(lanes.rolling, mixed % PRIMES, where=thought[:, None], casting="unsafe")
        recent[lanes.rows[thought], n[thought] % search.ring] = entering[thought]
        lanes.put("looping", thought & (lanes.rolling == lanes.anchor).all(axis=1), 1)
        remembered = thought & (n + 1 >= search.span) & ((n + 1) % search.period == 0)
        np.copyto(lanes.anchor, lanes.rolling, where=remembered[:, None])

    def _write(self, lanes: Lanes, sampled: Sampled, drawn: Lane, n: Lane, forced: Lane, *, active: bool) -> None:
        """Hand the step back, and the rows to the tables."""
        here, size = drawn > 0, len(drawn)
        changed = (here & (lanes.column["told"] == 0)).astype(np.float32) if active else np.full(size, -1, np.float32)
        lanes.put("told", here, 1)
        lanes.column["row"][:] = np.arange(size)
        self.slots.tables.state.numpy()[lanes.rows] = lanes.state
        sampled.n.numpy()[:] = n
        if sampled.rejected is not None:
            sampled.rejected.numpy()[:] += (drawn - n).astype(np.int32)
        if sampled.padded:
            behind = np.arange(sampled.tokens.shape[1]) >= n[:, None]
            sampled.tokens.numpy()[behind & here[:, None]] = -1
        self.forced = torch.from_numpy(forced)
        self.report = torch.from_numpy(np.column_stack([lanes.state[:, : len(rule.RECORD)], changed]))
