"""Whether a draft's weights are all in place.

vLLM loads a draft whole when it starts. Later, weights may come one by one, from a trainer, and a deep sleep loses
them. That does no harm to tokens, which the target verifies, but a verdict read off half a draft is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

logger = logging.getLogger("vllm.specexit")

WHY_LOST = "specexit_why_lost"
"""Name of the worker's method, which a front end calls."""

BLOCK = 1 << 22
"""Bytes of a parameter that are summed up at a time: as integers, of which torch makes a copy, they take eight times as
much."""

NEVER_SENT = ("d2t", "t2d", "embed_tokens.weight")
"""What an update leaves as it is: the draft's vocabulary, and what may be the target's."""


class Weights:
    """The tensors of one draft.

    Args:
      names: of all tensors of a draft directory.
    """

    def __init__(self, names: Collection[str]):
        self.names = frozenset(names).difference(NEVER_SENT)
        self.awaited = set(self.names)
        self.loaded = False
        """Whether there has been a whole draft, or the engine has started without one."""
        self.lost: str | None = None
        """Why it is not whole any more; None where it is, or has not been yet."""
        self.replaced = False
        """Whether it is another draft now than the first that was whole."""
        self._first: Int[Tensor, " sums"] | None = None
        self._mark: Int[Tensor, " sums"] | None = None

    @property
    def whole(self) -> bool:
        """Whether verdicts may be read off the draft."""
        return not self.awaited

    def start_without(self) -> None:
        """The engine has started without loading the tensors: those that arrive later need not be the directory's."""
        self.lose("vLLM has not loaded the draft's tensors from its directory, as with load_format ipc_cache or dummy")
        self.loaded = True

    def begin(self) -> None:
        """Some tensors are about to arrive: a whole draft is lost until all of them have."""
        if self.loaded and self.whole:
            self.lose("an update of the draft's weights has begun")

    def arrived(self, name: str) -> None:
        """A tensor is in place; the draft is whole when all that are awaited are."""
        if name not in self.awaited:  # one that is never sent, or there already
            return
        self.awaited.discard(name)
        if self.whole:
            if self.loaded:
                logger.warning("specexit: the draft's weights are whole again; requests from now on may exit")
                self.replaced = True  # until it is seen to be the same draft, behind a sleep
            self.loaded, self.lost, self._mark = True, None, None

    def lose(self, why: str) -> None:
        """The draft is not whole any more: nothing exits until all of its tensors have arrived."""
        logger.warning("specexit: %s; nothing exits until all of them have arrived", why)
        self.awaited, self.lost = set(self.names), why

    def remember(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Remember the weights as they are, where they are whole and nothing is remembered yet."""
        if not self.whole or self._mark is not None:
            return
        own = own_of(parameters)
        self._mark = fingerprint(own)
        if self._first is None and not self.replaced:
            self._first = self._mark
        elif self._first is not None and all(len(value) for value in own):
            self.replaced = not torch.equal(self._mark, self._first)

    def check(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Compare the weights with what is remembered, after a sleep; the draft is lost where they differ."""
        if self.whole and self._mark is not None and not torch.equal(self._mark, fingerprint(own_of(parameters))):
            self.lose("the draft's weights have not survived a sleep")


def own_of(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[Tensor]:
    """The draft's own parameters. Embedding and head are left out: they may be the target's, which has updates of its
    own. A parameter that vLLM has packed for a CPU is empty: its values cannot be seen."""
    named = ((name, value) for name, value in parameters if "embed_tokens" not in name and "lm_head" not in name)
    return [torch.atleast_1d(value.detach()) for _, value in named]


def fingerprint(own: Iterable[Tensor]) -> Int[Tensor, " sums"]:
    """Sums over the bytes of each parameter, on its device, weighted by row and by column, so that rows that change
    places are seen, too."""
    return torch.stack([total for value in own if len(value) for total in _sums(value)])


def _sums(value: Tensor) -> list[Tensor]:
    rows = max(BLOCK // (value[0].numel() * value.element_size()), 1)
    columns = torch.zeros((), dtype=torch.int64, device=value.device)
    by_row: list[Tensor] = []
    for part in value.split(rows):
        table = part.contiguous().view(torch.uint8).reshape(len(part), -1)
        columns = columns + table.sum(dim=0, dtype=torch.int64)
        by_row.append(table.sum(dim=1, dtype=torch.int64))
    sums = (columns, torch.cat(by_row))
    return [(part * torch.arange(1, len(part) + 1, device=part.device)).sum() for part in sums]


def why_lost(worker: object) -> str | None:
    """The worker's method: why its draft is not whole; None where it is, or there is none."""
    from torch_specexit.plugin.worker.exits import exits_of
    from torch_specexit.plugin.worker.protocols import Worker

    exits = exits_of(cast(Worker, worker).model_runner)
    return None if exits is None else exits.draft.weights.lost


def install(worker: type) -> None:
    """Give vLLM's worker class the method."""
    setattr(worker, WHY_LOST, why_lost)
