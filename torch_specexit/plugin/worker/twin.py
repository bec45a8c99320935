"""One step of the exit rule in eager torch: the oracle of the Triton kernel, and what runs where there is no Triton.

Written for few operations, as each costs a microsecond or two on a CPU, which is where it runs. For the same reason it
looks at values, to leave out what has nothing to do in a step: free where host and device share their memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specexit.method.signals import RAW_LIMIT, SIGNALS
from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.batch import NEVER, ONE, TWO, ZERO, Batch, Column
from torch_specexit.plugin.worker.rule import BOUNDARY, OTHER, OVER, THINKING, THOUGHT, Forced, Markers, Raw, Sampled
from torch_specexit.plugin.worker.slots import Slots

_EXPONENTIAL = torch.tensor([signal.activation == "exp" for signal in SIGNALS])
_NONE, _BEGINS, STRINGS = (torch.tensor(value, dtype=torch.int32) for value in (0, rule.BEGINS, rule.BEGINS - 1))


def activate(raw: Float[Tensor, "*batch signals"]) -> Float[Tensor, "*batch signals"]:
    """`specexit.method.signals.activate` in torch."""
    clamped = raw.float().clamp(-RAW_LIMIT, RAW_LIMIT)
    return torch.where(_EXPONENTIAL, clamped.exp(), clamped.sigmoid())


class Reading(NamedTuple):
    """A step's tokens, understood."""

    begin: Column
    """Position of the first thinking token."""
    end: Column
    """Position of ``</think>``."""
    boundary: Bool[Tensor, "batch step"]


class Twin:
    """The rule for the requests of one runner.

    Args:
      slots: of the runner.
      markers: what tokens mean.
      source: of the signals.
      signals: source ``draft``, stopping: where the draft leaves the raw signals of each row's last token.
      smooth: source ``fc``: whether a moving average over thinking tokens is judged, or the values as they are.
    """

    def __init__(
        self,
        slots: Slots,
        markers: Markers,
        source: str,
        *,
        signals: Float[Tensor, "rows signals"] | None = None,
        smooth: bool = False,
    ):
        self.slots, self.markers, self.source = slots, markers, source
        self.signals, self.smooth = signals, smooth
        self._batch: Batch | None = None
        self._positions: dict[int, Float[Tensor, "1 step"]] = {}
        self._padding = torch.tensor(len(markers.bits) - 1)

    def settle(self) -> None:
        """Bring the tables up to date, before their rows change hands or the draft's signals are overwritten."""
        if self._batch is not None:
            self._judge_last(self._batch)
            self._batch.put_back(self.slots)
        self._batch = None

    def records(self) -> Float[Tensor, "batch record"]:
        """What `torch_specexit.plugin.outcome` reports of the requests of the last step."""
        assert self._batch is not None
        return self._batch.records()

    def step(self, sampled: Sampled, raw: Raw) -> Forced:
        """One decoding step, with what is known as it has been sampled.

        Args:
          sampled: the step's result, rewritten in place.
          raw: source ``fc``: signals at the target rows; the first of a request belongs to the last step's last token,
            the next to the first token of this one, and so on.

        Returns:
          Where ``</think>`` was forced.
        """
        batch = self._take(sampled.requests)
        n = sampled.n.float().unsqueeze(1)
        exits = self._take_pending(batch, n)
        reading = self._read(batch, sampled, n)
        if self.source == "fc":
            exits = self._judge_rows(batch, sampled, n, reading, raw)
        if reading is None and exits is None:
            return self._pass(batch, n)
        return self._advance(batch, sampled, n, exits, reading, stops=self.source == "draft")

    def _at(self, sampled: Sampled) -> Float[Tensor, "1 step"]:
        width = sampled.tokens.shape[1]
        if width not in self._positions:
            self._positions[width] = torch.arange(width, dtype=torch.float32)[None]
        return self._positions[width]

    def _by_position(self, raw: Float[Tensor, "rows signals"], sampled: Sampled) -> Float[Tensor, "batch step signals"]:
        """Signals by row to signals by position; those behind a request's own rows are another's, or repeated."""
        if raw.shape[0] == sampled.tokens.numel():  # nobody has fewer rows than the others
            return raw.view(*sampled.tokens.shape, raw.shape[1])
        rows = sampled.first_row.unsqueeze(1) + self._at(sampled).int()
        return raw[rows.clamp_(max=raw.shape[0] - 1)]

    def _take(self, requests: Sequence[str]) -> Batch:
        """The requests of a step. They stay out of the tables for as long as the same ones run in the same order."""
        if self._batch is None or self.slots.staged or self._batch.requests != requests:
            self.settle()  # first of all: a new request may have the row of one that has gone
            self.slots.flush()
            self._batch = Batch.of(requests, self.slots)
        else:
            self._judge_last(self._batch)
        return self._batch

    def _read(self, batch: Batch, sampled: Sampled, n: Column) -> Reading | None:
        """Understand the first ``n`` tokens of each row; what lies behind them may be anything. None where no token
        means anything."""
        positions = self._at(sampled)
        tokens = torch.where(positions < n, sampled.tokens, self._padding)
        codes = self.markers.bits[tokens].bitwise_and_(batch.wanted)
        if not codes.any():
            return None
        begin = torch.where(batch.phase > ONE, NEVER, ZERO)
        if batch.any_before:
            starts = (codes >= _BEGINS) & (batch.phase == ZERO)
            begin = torch.where(batch.phase == ZERO, _first(starts, positions) + ONE, begin)
        end = _first((codes < _NONE).bitwise_and_(positions >= begin), positions)
        # A boundary with too few thinking tokens before it is none: its verdict could only be "go on".
        enough = torch.maximum(begin + (batch.least - batch.thoughts - ONE), begin)
        boundary = torch.bitwise_and(codes, STRINGS) > _NONE
        boundary.bitwise_and_(positions >= enough).bitwise_and_(positions < end)
        if batch.any_shadow:
            boundary.bitwise_and_(batch.would_exit == ZERO)
        return Reading(begin, end, boundary)

    def _take_pending(self, batch: Batch, n: Column) -> Column | None:
        """Source ``draft``: exits that the last step has left to this one, as positions."""
        if not batch.any_pending:
            return None
        exits = torch.where(batch.pending > ZERO, ZERO, NEVER)
        batch.pending.masked_fill_(n > ZERO, 0)
        batch.any_pending = bool(batch.pending.any())
        return self._in_shadow(batch, n, exits, ZERO) if batch.any_shadow else exits

    def _judge_last(self, batch: Batch) -> None:
        """Source ``draft``, stopping: judge the boundaries that the last step has ended with. Else there are none."""
        if self.signals is None:
            return
        signals, asks = self.signals[: len(batch.requests)], batch.last == TWO
        found = batch.judge(asks, lambda: activate(signals).unsqueeze(1), batch.thoughts)
        batch.last.masked_fill_(asks, THOUGHT)
        if found is not None:
            batch.pending.masked_fill_(found == ZERO, 1)
            batch.any_pending = True

    def _judge_rows(
        self, batch: Batch, sampled: Sampled, n: Column, reading: Reading | None, raw: Raw
    ) -> Column | None:
        """Source ``fc``: judge the input token of every row; returns the positions of the tokens behind exits."""
        asks = batch.last == TWO
        if batch.any_shadow:
            asks &= batch.would_exit == ZERO
        positions = self._at(sampled)
        valid = positions < n
        behind = torch.zeros_like(valid) if reading is None else reading.boundary
        asks = torch.cat([asks, behind[:, :-1]], dim=1).bitwise_and_(valid)
        begin = ZERO if reading is None else reading.begin
        counts = batch.thoughts + (positions - begin).clamp(min=0) if batch.any_most else None
        if not self.smooth:
            return batch.judge(asks, lambda: activate(self._by_position(raw(), sampled)), counts)
        values = activate(self._by_position(raw(), sampled))
        if reading is None:
            inner = (batch.phase == ONE).expand_as(valid)
        else:
            inner = (positions >= reading.begin).bitwise_and_(positions < reading.end)
        smoothed = batch.smooth(values, valid, inner)
        return batch.judge(asks, lambda: smoothed, counts)

    def _pass(self, batch: Batch, n: Column) -> None:
        """A step in which no token means anything."""
        thinking = batch.phase == ONE
        batch.thoughts.add_(torch.where(thinking, n, ZERO))
        batch.outputs.add_(n)
        batch.last.masked_fill_(thinking & (n > ZERO), THOUGHT)

    def _advance(
        self, batch: Batch, sampled: Sampled, n: Column, exits: Column | None, reading: Reading | None, *, stops: bool
    ) -> Forced:
        """Rewrite the step's result, and bring the state behind it. Rows without tokens stay as they are.

        Args:
          batch: of the step.
          sampled: its result, rewritten in place.
          n: number of its tokens.
          exits: positions that ``</think>`` takes.
          reading: of its tokens.
          stops: whether acceptance stops at a boundary.
        """
        positions = self._at(sampled)
        if reading is None:
            begin = torch.where(batch.phase == ONE, ZERO, NEVER)
            reading = Reading(begin, torch.full_like(begin, torch.inf), torch.zeros_like(positions < n))
        begin, end, boundary = reading
        if batch.any_shadow and exits is not None:
            exits = self._in_shadow(batch, n, exits, begin)
            boundary = boundary & (batch.would_exit == ZERO)
        # Of the tokens that were drawn, the first `kept` are; an exit adds one that was not.
        kept = n if exits is None else torch.minimum(n, exits)
        total = n if exits is None else torch.minimum(n, exits + ONE)
        if stops:
            stop = _first(boundary, positions) + ONE
            kept = torch.minimum(kept, stop)
            total = kept if exits is None else torch.minimum(total, stop)
        if batch.any_before:
            began = (batch.phase == ZERO) & (begin <= kept)
            batch.start.copy_(torch.where(began, batch.outputs + begin, batch.start))
            batch.phase.masked_fill_(began, THINKING)
            batch.any_before = bool((batch.phase == ZERO).any())
        is_thought = (begin < kept).bitwise_and_(kept <= end)
        is_boundary = stop == kept if stops else (boundary & (positions + ONE == kept)).any(dim=1, keepdim=True)
        batch.last.masked_fill_(n > ZERO, OTHER).masked_fill_(is_thought, THOUGHT)
        batch.last.masked_fill_(is_boundary.bitwise_and_(is_thought), BOUNDARY)
        batch.thoughts.add_((torch.minimum(end, kept) - begin).relu_())
        batch.phase.masked_fill_(end < kept, OVER)
        batch.outputs.add_(total)
        forced = None if exits is None else self._write_exits(batch, sampled, n, exits)
        if total is not n:
            self._cut(sampled, total)
        if sampled.padded and total is not n:
            sampled.tokens.masked_fill_((positions >= total) & (n > ZERO), -1)
        return forced

    def _cut(self, sampled: Sampled, total: Column) -> None:
        if sampled.rejected is not None:
            sampled.rejected.add_(sampled.n)
        sampled.n.copy_(total.squeeze(1))
        if sampled.rejected is not None:
            sampled.rejected.sub_(sampled.n)

    def _in_shadow(self, batch: Batch, n: Column, exits: Column, begin: Tensor) -> Column:
        """Take note of would-be exits in shadow mode; returns the others."""
        seen = batch.shadow & (exits < n) & (batch.would_exit == ZERO)
        here = batch.thoughts + (exits - begin).clamp(min=0)
        batch.would_exit.copy_(torch.where(seen, here, batch.would_exit))
        return torch.where(batch.shadow, NEVER, exits)

    def _write_exits(self, batch: Batch, sampled: Sampled, n: Column, exits: Column) -> Forced:
        exiting = exits < n
        at = (self._at(sampled) == exits).bitwise_and_(exiting)
        forced = (at & (sampled.tokens != self.markers.end)).any(dim=1)
        sampled.tokens.masked_fill_(at, self.markers.end)
        batch.phase.masked_fill_(exiting, OVER)
        batch.last.masked_fill_(exiting, OTHER)
        batch.exited.masked_fill_(exiting, 1)
        return forced


def _first(mask: Bool[Tensor, "batch step"], positions: Float[Tensor, "1 step"]) -> Column:
    """First position at which the mask holds; never where it does not."""
    return torch.where(mask, positions, NEVER).amin(dim=1, keepdim=True)
