"""The exit rule where a step's result is held back until its tokens have been drafted from (source ``draft``, V1 on a
CPU): whole steps are judged behind drafting, so acceptance stops nowhere.

This is where every operation shows, so most steps take a short way: those whose tokens mean nothing, and those that
bring boundaries and no verdict of exit. It is written in numpy, on arrays that share the tensors' memory: with so few
numbers an operation takes a fraction of what it takes in torch. All other steps go through what `Twin` has for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specexit.method.signals import NAMES, activate
from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.batch import ONE, ZERO, Batch, Column
from torch_specexit.plugin.worker.rule import Forced, Sampled
from torch_specexit.plugin.worker.twin import Twin

_SIGNS = np.array(rule.SIGNS, np.float32)
_STREAK, _JUDGED, _THOUGHTS, _OUTPUTS = map(rule.STATE.index, ("streak", "judged", "thoughts", "outputs"))
_PENDING, _VERDICT = rule.STATE.index("pending"), rule.STATE.index(NAMES[0])

RawAt = Callable[[Int[np.ndarray, " rows"]], Float[Tensor, "rows signals"]]
"""Gives raw signals at some of the rows that were sampled from; the first of a request belongs to its first token."""

Places = tuple[Int[np.ndarray, " boundaries"], ...]
"""Requests and positions of boundaries, in this order."""


class Views(NamedTuple):
    """A batch as arrays in its memory, and what holds for as long as its requests go on as they do."""

    state: Float[np.ndarray, "state batch"]
    limits: Float[np.ndarray, "batch signals"]
    least: Float[np.ndarray, "batch 1"]
    moves: Float[np.ndarray, "state batch"]
    """What one more token adds to the state of a request."""
    asking: Int[np.ndarray, "batch 1"]
    """Bits of the split tokens at which a request would have to be judged."""

    @classmethod
    def of(cls, batch: Batch) -> Views:
        """Look at a batch."""
        thinking = batch.phase == ONE
        judged = thinking & (batch.would_exit == ZERO)  # shadow mode: nothing is judged behind a would-be exit
        moves = np.zeros(batch.state.shape, np.float32)
        moves[_OUTPUTS], moves[_THOUGHTS] = 1, thinking.squeeze(1).numpy()
        asking = np.where(judged.numpy(), batch.wanted.numpy() & np.int32(rule.BEGINS - 1), np.int32(0))
        return cls(batch.state.numpy(), batch.limits.squeeze(1).numpy(), batch.least.numpy(), moves, asking)


class Late(Twin):
    """The rule for the requests of one runner; arguments are those of `Twin`.

    Behind ``n`` tokens, the rows of a step have to hold -1.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._bits = self.markers.bits.numpy()
        self._views: Views | None = None
        """None where they have to be made again."""
        self._fresh: list[int] | None = None
        """Which requests the last step has changed in more than how many tokens they have; None for all of them."""
        self._owing = False
        """Whether some request may have a verdict of exit that was not carried out yet."""

    def settle(self) -> None:
        """Bring the tables up to date, before their rows change hands."""
        super().settle()
        self._fresh, self._views = None, None

    def news(self) -> dict[str, list[float]]:
        """What the last step has changed: columns of `rule.RECORD` by request, of those that it has only brought tokens
        left out."""
        assert self._batch is not None
        fresh, self._fresh = self._fresh, []
        if fresh is not None and not fresh:
            return {}
        requests, records = self._batch.requests, self.records()
        return {requests[i]: records[i].tolist() for i in (range(len(requests)) if fresh is None else fresh)}

    def owes(self, requests: Sequence[str]) -> bool:
        """Whether the last step has left an exit to this one; then `force` has to be called before drafting."""
        if not self._owing:
            return False
        if self._take(requests).any_pending:
            return True
        self._owing = bool(self.slots.tables.state[list(self.slots.row_of.values()), _PENDING].any())
        return False

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

    def step(self, sampled: Sampled, raw: RawAt) -> Forced:
        """The rest of the step, behind drafting.

        Args:
          sampled: what `force` has left, rewritten in place.
          raw: gives the signals that are needed.

        Returns:
          Where ``</think>`` was forced.
        """
        batch = self._take(sampled.requests)
        if not batch.requests:
            return None
        codes = self._bits[sampled.tokens.numpy()]  # -1 is the last entry, of no token
        meaning = np.count_nonzero(codes)
        if batch.any_pending or (meaning and (codes.max() >= rule.BEGINS or codes.min() < 0)):
            return self._long(batch, sampled, raw)
        if self._views is None:
            self._views = Views.of(batch)
        views = self._views
        if meaning:
            places = self._asks(batch, views, codes).nonzero()
            if len(places[0]):
                values = activate(raw(_rows(sampled, places)).numpy())
                good = (values * _SIGNS >= views.limits[places[0]]).all(axis=1)
                if batch.any_most or good.any():
                    return self._long(batch, sampled, raw, _spread(places, values, sampled))
                self._remember(views, places[0], values)
        np.add(views.state, views.moves * sampled.n.numpy().astype(np.float32, copy=False), out=views.state)
        return None

    def _asks(self, batch: Batch, views: Views, codes: Int[np.ndarray, "batch step"]) -> Bool[np.ndarray, "batch step"]:
        asks = (codes & views.asking) > 0
        if batch.any_least:
            # A boundary with too few thinking tokens before it is none: its verdict could only be "go on".
            asks &= np.arange(codes.shape[1]) >= views.least - views.state[_THOUGHTS][:, None] - 1
        return asks

    def _remember(
        self, views: Views, requests: Int[np.ndarray, " boundaries"], values: Float[np.ndarray, "boundaries signals"]
    ) -> None:
        """Take note of verdicts to go on."""
        views.state[_VERDICT : _VERDICT + len(NAMES), requests] = values.T  # of several the last one stays
        views.state[_STREAK, requests] = 0
        views.state[_JUDGED, requests] = 1
        if self._fresh is not None:
            self._fresh = sorted(set(requests.tolist()))

    def _long(
        self,
        batch: Batch,
        sampled: Sampled,
        raw: RawAt,
        values: Float[Tensor, "batch step signals"] | None = None,
    ) -> Forced:
        """Any step; ``values`` where they are known."""
        self._fresh, self._views = None, None
        n: Column = sampled.n.float().unsqueeze(1)
        exits = self._take_pending(batch, n)
        reading = self._read(batch, sampled, n)
        if reading is None and exits is None:
            return self._pass(batch, n)
        found = None
        if reading is not None:
            counts = batch.thoughts + self._at(sampled) + ONE - reading.begin if batch.any_most else None
            boundary = reading.boundary

            def judged() -> Float[Tensor, "batch step signals"]:
                if values is not None:
                    return values
                places = boundary.numpy().nonzero()
                return _spread(places, activate(raw(_rows(sampled, places)).numpy()), sampled)

            found = batch.judge(boundary, judged, counts)
        if found is not None:
            found = found + ONE
            exits = found if exits is None else torch.minimum(exits, found)
            batch.pending.masked_fill_(found == n, 1)
            batch.any_pending = self._owing = True
        return self._advance(batch, sampled, n, exits, reading, stops=False)


def _rows(sampled: Sampled, places: Places) -> Int[np.ndarray, " boundaries"]:
    """Rows that boundaries were sampled from."""
    (requests, positions), (batch, width), ends = places, sampled.tokens.shape, sampled.ends.numpy()
    if ends[-1] == batch * width:  # nobody has fewer rows than the others
        return requests * width + positions
    return np.where(requests > 0, ends[requests - 1], 0) + positions


def _spread(
    places: Places, values: Float[np.ndarray, "boundaries signals"], sampled: Sampled
) -> Float[Tensor, "batch step signals"]:
    """Signals of boundaries to signals by position, 0 elsewhere."""
    spread = np.zeros((*sampled.tokens.shape, len(NAMES)), np.float32)
    spread[places] = values
    return torch.from_numpy(spread)
