"""Whether a draft's weights are all in place.

vLLM loads a draft whole when it starts. Later, weights may come one by one, from a trainer; and a deep sleep leaves
them behind. For the tokens that is harmless, they are verified; a verdict read off half a draft is not.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

logger = logging.getLogger("vllm.specexit")

WHY_LOST = "specexit_why_lost"
"""Name of the worker's method, which a front end calls."""

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
        """The engine stands, and has not loaded them: what may still arrive need not be the draft of the directory."""
        self.lose("vLLM has not loaded the draft's tensors from its directory, as with load_format ipc_cache or dummy")
        self.loaded = True

    def begin(self) -> None:
        """Some tensors are about to arrive."""
        if self.loaded and self.whole:
            self.lose("an update of the draft's weights has begun")

    def arrived(self, name: str) -> None:
        """A tensor is in place."""
        if name not in self.awaited:  # one that is never sent, or there already
            return
        self.awaited.discard(name)
        if self.whole:
            if self.loaded:
                logger.warning("specexit: the draft's weights are whole again; requests from now on may exit")
                self.replaced = True  # until it is seen to be the same draft, behind a sleep
            self.loaded, self.lost, self._mark = True, None, None

    def lose(self, why: str) -> None:
        """The draft is not what it was; nothing exits until all of its tensors have arrived."""
        logger.warning("specexit: %s; nothing exits until all of them have arrived", why)
        self.awaited, self.lost = set(self.names), why

    def remember(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Take the weights as they are for right, where they are whole and nothing is remembered yet."""
        if not self.whole or self._mark is not None:
            return
        own = own_of(parameters)
        self._mark = fingerprint(own)
        if self._first is None and not self.replaced:
            self._first = self._mark
        elif self._first is not None and all(len(value) for value in own):
            self.replaced = not torch.equal(self._mark, self._first)

    def check(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Whether the weights are still what is remembered, behind a sleep."""
        if self.whole and self._mark is not None and not torch.equal(self._mark, fingerprint(own_of(parameters))):
            self.lose("the draft's weights have not survived a sleep")


def own_of(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[Tensor]:
    """The draft's own parameters. Embedding and head are left out: they may be the target's, which has updates of its
    own. One is empty where vLLM has packed it for a CPU, and nothing can be seen of it."""
    named = ((name, value) for name, value in parameters if "embed_tokens" not in name and "lm_head" not in name)
    return [torch.atleast_1d(value.detach()).contiguous() for _, value in named]


def fingerprint(own: Iterable[Tensor]) -> Int[Tensor, " sums"]:
    """Sums over the bytes of each parameter, on its device, weighted by row and by column, so that rows that change
    places are seen, too."""
    return torch.stack([total for value in own if len(value) for total in _sums(value)])


def _sums(value: Tensor) -> list[Tensor]:
    table = value.view(torch.uint8).reshape(len(value), -1)
    sums = [table.sum(dim=dim, dtype=torch.int64) for dim in (0, 1)]
    return [(part * torch.arange(1, len(part) + 1, device=part.device)).sum() for part in sums]


def why_lost(worker: Any) -> str | None:
    """The worker's method: why its draft is not whole; None where it is, or there is none."""
    from torch_specexit.plugin.worker.exits import exits_of

    exits = exits_of(worker.model_runner)
    return None if exits is None else exits.draft.weights.lost


def install(worker: type) -> None:
    """Give vLLM's worker class the method."""
    setattr(worker, WHY_LOST, why_lost)
