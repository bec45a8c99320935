"""The exit rule of a runner, one launch of one Triton kernel a step (`torch_specexit.plugin.worker.kernel`).

Nothing is allocated in a step, as what the kernel writes to grows with the tables; and the host learns nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.kernel import step
from torch_specexit.plugin.worker.rule import Forced, Markers, Raw, Sampled
from torch_specexit.plugin.worker.slots import Slots

BLOCK = 32
"""Requests of a program: a warp."""


class Fused:
    """The rule for the requests of one runner, with the interface of `torch_specexit.plugin.worker.twin.Twin`.

    Args:
      slots: of the runner.
      markers: what tokens mean.
      source: of the signals.
      signals: source ``draft``: where the draft leaves the raw signals of each row's last token.
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
        self._requests: list[str] = []
        self._row_of: dict[str, int] = {}
        self._changes = -1
        self._rows = slots.to_device([])
        self._records = torch.empty(0, len(rule.RECORD), device=slots.device)
        self._forced = torch.empty(0, dtype=torch.bool, device=slots.device)

    def settle(self) -> None:
        """Judge what the last step has left to be judged, before the draft's signals are overwritten out of turn."""
        if self._requests:
            tokens = torch.zeros(0, 1, dtype=torch.int32, device=self.slots.device)
            self.step(Sampled([], tokens, tokens[:, 0], tokens[:, 0]), lambda: self._records)

    def records(self) -> Float[Tensor, "batch record"]:
        """What `torch_specexit.plugin.outcome` reports of the requests of the last step; the next one overwrites it."""
        return self._records[: len(self._requests)]

    def step(self, sampled: Sampled, raw: Raw) -> Forced:
        """One decoding step.

        Args:
          sampled: the step's result, rewritten in place.
          raw: source ``fc``: gives signals at the target rows; the first of a request belongs to the last step's last
            token, the next to the first token of this one, and so on.

        Returns:
          Where ``</think>`` was forced; the next step overwrites it.
        """
        n_rows = self._place(sampled.requests)
        n_batch, width = sampled.tokens.shape
        signals = self.signals if self.source == "draft" else raw()
        if n_rows:
            step[(triton.cdiv(n_rows, BLOCK),)](
                tuple(self.slots.tables),
                (self._rows, sampled.ends, signals, self.markers.bits),
                (sampled.tokens, sampled.n, sampled.n if sampled.rejected is None else sampled.rejected),
                (self._records, self._forced),
                sampled.tokens.stride(0),
                n_batch,
                n_rows,
                width,
                len(self.markers.bits) - 1,
                END=self.markers.end,
                DRAFT=self.source == "draft",
                SMOOTH=self.smooth,
                COUNTS=sampled.rejected is not None,
                PADDED=sampled.padded,
                BLOCK=BLOCK,
                num_warps=1,  # pyright: ignore[reportCallIssue]
            )
        return self._forced[:n_batch]

    def _place(self, requests: Sequence[str]) -> int:
        """Put the table rows of a step's requests where the kernel finds them. Behind them, with source ``draft``, come
        those of the last step that this one leaves out: their last token is still to be judged.

        Nothing is done while the same requests run in the same order. Returns the number of rows.
        """
        if self._changes == self.slots.changes and requests == self._requests:
            return len(requests)
        self.slots.flush()
        row_of = self.slots.row_of
        here = {request: row_of[request] for request in requests}
        left_out = [row for request, row in self._row_of.items() if request not in here and row_of.get(request) == row]
        rows = [*here.values(), *(left_out if self.source == "draft" else ())]
        if rows:
            self._rows = self.slots.to_device(rows)
        if self._records.shape[0] < self.slots.capacity:
            self._records = self._records.new_empty(self.slots.capacity, len(rule.RECORD))
            self._forced = self._forced.new_empty(self.slots.capacity)
        self._requests, self._row_of, self._changes = list(requests), here, self.slots.changes
        return len(rows)
