"""Whether a draft's weights are all in place.

vLLM loads a draft whole when it starts. Later, weights may come one by one, from a trainer; and a deep sleep leaves
them behind. For the tokens that is harmless, they are verified; a verdict read off half a draft is not.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

import torch
from jaxtyping import Int
from torch import Tensor, nn

logger = logging.getLogger("vllm.specexit")

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
        """Whether there has been a whole draft."""
        self.replaced = False
        """Whether they are others than those that the engine has started with, which a certificate is about."""
        self._mark: Int[Tensor, " tensors"] | None = None
        self._first: Int[Tensor, " tensors"] | None = None

    @property
    def whole(self) -> bool:
        """Whether verdicts may be read off the draft."""
        return not self.awaited

    def begin(self) -> None:
        """Some tensors are about to arrive."""
        if self.loaded and self.whole:
            self.lose("an update of the draft's weights has begun")

    def arrived(self, name: str) -> None:
        """A tensor is in place."""
        self.awaited.discard(name)
        if self.whole:
            if self.loaded:
                logger.warning("specexit: the draft's weights are whole again; requests from now on may exit")
            self.loaded, self._mark = True, None

    def lose(self, why: str) -> None:
        """The draft is not what it was; nothing exits until all of its tensors have arrived."""
        logger.warning("specexit: %s; nothing exits until all of them have arrived", why)
        self.awaited = set(self.names)

    def remember(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Take the weights as they are for right, where they are whole and nothing is remembered yet."""
        if self.whole and self._mark is None:
            self._mark = fingerprint(parameters)
            self._first = self._mark if self._first is None else self._first
            self.replaced = not torch.equal(self._first, self._mark)

    def check(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Whether the weights are still what is remembered, behind a sleep."""
        if self.whole and self._mark is not None and not torch.equal(self._mark, fingerprint(parameters)):
            self.lose("the draft's weights have not survived a sleep")


def fingerprint(parameters: Iterable[tuple[str, nn.Parameter]]) -> Int[Tensor, " tensors"]:
    """A sum over the bytes of each parameter of the draft's own, on its device. Embedding and head are left out: they
    may be the target's, which has updates of its own."""
    own = [value for name, value in parameters if "embed_tokens" not in name and "lm_head" not in name]
    return torch.stack([value.detach().contiguous().view(torch.uint8).sum(dtype=torch.int64) for value in own])
