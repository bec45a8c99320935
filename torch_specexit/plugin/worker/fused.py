"""The exit rule of a runner, one launch of one Triton kernel a step (`torch_specexit.plugin.worker.kernel`).

A step allocates nothing for it, as the buffers that the kernel writes to grow with the tables, and the host reads
nothing back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from torch_specexit.plugin.worker import rule
from torch_specexit.plugin.worker.kernel import step
from torch_specexit.plugin.worker.rule import Markers, Sampled
from torch_specexit.plugin.worker.slots import Slots

BLOCK = 32
"""Requests that one program of the kernel takes: a warp."""

NO_SEARCH = (0,) * 5
"""What the kernel gets where loops are not looked for."""


class Fused:
    """The rule for the requests of one runner; see `torch_specexit.plugin.worker.rule.Rule`.

    Args:
      slots: of the runner.
      markers: what tokens mean.
      source: of the signals.
      smooth: source ``fc``: whether a moving average over thinking tokens is judged, or the values as they are.
    """

    def __init__(self, slots: Slots, markers: Markers, source: str, *, smooth: bool = False):
        self.slots, self.markers, self.source, self.smooth = slots, markers, source, smooth
        self._requests: list[str] = []
        self._row_of: dict[str, int] = {}
        self._changes = -1
        self._n_rows = 0
        self._rows = slots.to_device([0])
        self.report = torch.empty(0, len(rule.REPORT), device=slots.device)
        self.forced = torch.empty(0, dtype=torch.bool, device=slots.device)

    def step(self, sampled: Sampled, signals: Float[Tensor, "rows *last signals"], failed: Float[Tensor, " 1"]) -> None:
        """See `torch_specexit.plugin.worker.rule.Rule`."""
        self._place(sampled.requests)
        n_batch, width = sampled.tokens.shape
        tables, loops = self.slots.tables, self.markers.loops
        # A step of no request is launched as well: the first one compiles the kernel, before anyone waits for it.
        step[(max(triton.cdiv(self._n_rows, BLOCK), 1),)](
            tables.state,
            tables.knobs,
            tables.weights,
            tables.past,
            self._rows,
            sampled.ends,
            sampled.logits_rows,
            sampled.positions,
            signals,
            failed,
            self.markers.bits,
            self.markers.closing,
            sampled.tokens,
            sampled.n,
            sampled.n if sampled.rejected is None else sampled.rejected,
            self.report,
            self.forced,
            tables.recent,
            sampled.tokens.stride(0),
            n_batch,
            self._n_rows,
            width,
            signals.shape[1],
            len(self.markers.bits) - 1,
            DRAFT=self.source == "draft",
            SMOOTH=self.smooth,
            COUNTS=sampled.rejected is not None,
            PADDED=sampled.padded,
            CLOSING=(len(self.markers.closing), self.markers.n_marker),
            SEARCH=(loops.period, loops.span, loops.ring, *loops.leaving) if loops else NO_SEARCH,
            BLOCK=BLOCK,
            num_warps=1,  # pyright: ignore[reportCallIssue]
        )

    def _place(self, requests: Sequence[str]) -> None:
        """Put the table rows of a step's requests where the kernel finds them. With source ``draft``, they are followed
        by those of the last step that this one leaves out: their last token is still to be judged.

        Nothing is done while the same requests run in the same order.
        """
        if self._changes == self.slots.changes and requests == self._requests:
            return
        self.slots.flush()
        row_of = self.slots.row_of
        here = {request: row_of[request] for request in requests}
        left_out = [row for request, row in self._row_of.items() if request not in here and row_of.get(request) == row]
        rows = [*here.values(), *(left_out if self.source == "draft" else ())]
        if rows:
            self._rows = self.slots.to_device(rows)
        if self.report.shape[0] < self.slots.capacity:
            self.report = self.report.new_empty(self.slots.capacity, len(rule.REPORT))
            self.forced = self.forced.new_empty(self.slots.capacity)
        self._n_rows, self._requests, self._row_of = len(rows), list(requests), here
        # Those left out are judged once; the next step leaves them out for good.
        self._changes = self.slots.changes if len(rows) == len(here) else -1
