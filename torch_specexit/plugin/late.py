"""The exit rule where a step's result is held back until its tokens have been drafted from (source ``draft``, V1 on a
CPU): whole steps are judged behind drafting, so acceptance stops nowhere.

This is where every operation shows, so most steps take a short way: those whose tokens mean nothing, and those that
bring boundaries and no verdict of exit. All others go through what `Twin` has for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_specexit.plugin import rule
from torch_specexit.plugin.batch import ONE, ZERO, Batch, Column
from torch_specexit.plugin.rule import Forced, Raw, Sampled
from torch_specexit.plugin.twin import STRINGS, Twin, activate

_NOTHING = torch.tensor(0, dtype=torch.int32)
_SIGNS = torch.tensor(rule.SIGNS)


class Late(Twin):
    """The rule for the requests of one runner; arguments are those of `Twin`.

    Behind ``n`` tokens, the rows of a step have to hold -1.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._news: list[bool] | None = None
        """Which requests the last step has changed in more than how many tokens they have; None for all of them."""
        self._moves: Float[Tensor, "state batch"] | None = None
        """What one more token adds to the state of a request; None where it has to be found out again."""
        self._asking: Int[Tensor, "batch 1"] = torch.empty(0, 1, dtype=torch.int32)
        """Bits of the split tokens at which a request would have to be judged."""
        self._order: Int[Tensor, " batch"] = torch.empty(0, dtype=torch.int64)
        """Of the requests: 0, 1, ..."""

    def settle(self) -> None:
        """Bring the tables up to date, before their rows change hands."""
        super().settle()
        self._news, self._moves = None, None

    def news(self) -> dict[str, list[float]]:
        """What the last step has changed: columns of `rule.RECORD` by request, of those that it has only brought tokens
        left out."""
        assert self._batch is not None
        changed = [self._news is None or self._news[i] for i in range(len(self._batch.requests))]
        self._news = [False] * len(changed)
        if not any(changed):
            return {}
        records = zip(self._batch.requests, self.records().tolist(), changed, strict=True)
        return {request: record for request, record, fresh in records if fresh}

    def owes(self, requests: Sequence[str]) -> bool:
        """Whether the last step has left an exit to this one; then `force` has to be called before drafting."""
        return self._take(requests).any_pending

    def force(self, sampled: Sampled) -> Forced:
        """The part of a step that is done before drafting: verdicts that were left from the last step are carried out,
        so that the draft goes on from the right token."""
        batch = self._take(sampled.requests)
        if not batch.any_pending:
            return None
        exits = (batch.pending > ZERO) & (sampled.n[:, None] > 0) & ~batch.shadow
        forced = exits & (sampled.tokens[:, :1] != self.markers.end)
        sampled.tokens[:, :1].masked_fill_(exits, self.markers.end)
        sampled.tokens[:, 1:].masked_fill_(exits, -1)
        sampled.n.masked_fill_(exits[:, 0], 1)
        return forced[:, 0]

    def step(self, sampled: Sampled, raw: Raw) -> Forced:
        """The rest of the step, behind drafting.

        Args:
          sampled: what `force` has left, rewritten in place.
          raw: signals at the rows that were sampled from; the first of a request belongs to its first token.

        Returns:
          Where ``</think>`` was forced.
        """
        batch = self._take(sampled.requests)
        if not batch.requests:
            return None
        codes = self.markers.bits[sampled.tokens]  # -1 is the last entry, of no token
        lowest, highest = (int(extreme) for extreme in codes.aminmax())
        if batch.any_pending or lowest < 0 or highest >= rule.BEGINS:
            return self._long(batch, sampled, raw)
        if self._moves is None:
            self._find_moves(batch)
        if highest:
            asks = self._asks(batch, sampled, codes)
            asked = asks.any(dim=1, keepdim=True)
            if asked.any():
                if self._news is not None:
                    self._news = asked.squeeze(1).tolist()
                values = activate(self._by_position(raw(), sampled))
                good = (values * _SIGNS >= batch.limits).all(dim=2).bitwise_and_(asks)
                if batch.any_most or good.any():
                    return self._long(batch, sampled, lambda: values, by_position=True)
                last = (asks * (self._at(sampled) + ONE)).argmax(dim=1)
                newest = values[self._order, last]
                batch.verdict.copy_(torch.where(asked, newest, batch.verdict))
                batch.streak.masked_fill_(asked, 0)
                batch.judged.masked_fill_(asked, 1)
        assert self._moves is not None
        batch.state.addcmul_(self._moves, sampled.n.float())
        return None

    def _find_moves(self, batch: Batch) -> None:
        self._order = torch.arange(len(batch.requests))
        thinking = batch.phase == ONE
        self._moves = torch.zeros_like(batch.state)
        self._moves[rule.STATE.index("outputs")] = 1
        self._moves[rule.STATE.index("thoughts")] = thinking.squeeze(1).float()
        judged = thinking & (batch.would_exit == ZERO)  # shadow mode: nothing is judged behind a would-be exit
        self._asking = torch.where(judged, batch.wanted & STRINGS, _NOTHING)

    def _asks(self, batch: Batch, sampled: Sampled, codes: Int[Tensor, "batch step"]) -> Bool[Tensor, "batch step"]:
        asks = (codes & self._asking) > _NOTHING
        if batch.any_least:
            # A boundary with too few thinking tokens before it is none: its verdict could only be "go on".
            asks &= self._at(sampled) >= batch.least - batch.thoughts - ONE
        return asks

    def _long(self, batch: Batch, sampled: Sampled, raw: Raw, *, by_position: bool = False) -> Forced:
        """Any step."""
        self._news, self._moves = None, None
        n: Column = sampled.n.float().unsqueeze(1)
        exits = self._take_pending(batch, n)
        reading = self._read(batch, sampled, n)
        if reading is None and exits is None:
            return self._pass(batch, n)
        found = None
        if reading is not None:
            counts = batch.thoughts + self._at(sampled) + ONE - reading.begin if batch.any_most else None

            def values() -> Float[Tensor, "batch step signals"]:
                return raw() if by_position else activate(self._by_position(raw(), sampled))

            found = batch.judge(reading.boundary, values, counts)
        if found is not None:
            found = found + ONE
            exits = found if exits is None else torch.minimum(exits, found)
            batch.pending.masked_fill_(found == n, 1)
            batch.any_pending = True
        return self._advance(batch, sampled, n, exits, reading, stops=False)
