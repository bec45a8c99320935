"""Logprobs of a forced token: the entry must name the token that the client gets.

vLLM's servers look each token up in its own entry, and vLLM has filled that entry for the token that was drawn instead.
The logits are those that vLLM has sampled from, so no pass is repeated, and only requests that have asked for logprobs
and may exit are looked at. Where vLLM overwrites the logits as it samples, they are read before, for all tokens that
may be forced: a copy of the logits would be as large as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_specexit.plugin.worker.protocols import LogprobsTensors

MOST_BYTES = 1 << 26
"""Bytes of logits that are taken to float32 at a time."""


def name_forced_tokens(
    tensors: LogprobsTensors,
    entries: Int[Tensor, " asked"],
    forced: Bool[Tensor, " asked"],
    tokens: Int[Tensor, " asked"],
    logits: Float[Tensor, "rows vocab"],
    rows: Int[Tensor, " asked"],
    *,
    as_logits: bool = False,
) -> None:
    """Put forced tokens into vLLM's `LogprobsTensors`, in place, with the model's own logprob and rank of them.

    Args:
      tensors: of the step.
      entries: for each request that asks for logprobs, the row of its last token in ``tensors``.
      forced: whether that token was forced.
      tokens: that token.
      logits: the target's raw logits.
      rows: for each of these requests, the row of ``logits`` that its last token was drawn from.
      as_logits: whether logits stand in the place of logprobs, as ``--logprobs-mode raw_logits`` has it.
    """
    for part in _parts(logits, len(entries)):
        logprobs, ranks = _read(logits[rows[part]], tokens[part, None], as_logits=as_logits)
        _put(tensors, entries[part], forced[part], tokens[part], logprobs[:, 0], ranks[:, 0])


class Closing(NamedTuple):
    """What the target's raw logits say of every token that may be forced."""

    tokens: Int[Tensor, " closing"]
    logprobs: Float[Tensor, "asked closing"]
    ranks: Int[Tensor, "asked closing"]

    def name_forced_tokens(
        self,
        tensors: LogprobsTensors,
        entries: Int[Tensor, " asked"],
        forced: Bool[Tensor, " asked"],
        tokens: Int[Tensor, " asked"],
    ) -> None:
        """As the function `name_forced_tokens`, with the same arguments."""
        place = (tokens[:, None] == self.tokens).int().argmax(dim=1, keepdim=True)
        logprobs, ranks = (values.gather(1, place).squeeze(1) for values in (self.logprobs, self.ranks))
        _put(tensors, entries, forced, tokens, logprobs, ranks)


def read_closing(
    logits: Float[Tensor, "rows vocab"],
    rows: Int[Tensor, " asked"],
    tokens: Int[Tensor, " closing"],
    *,
    as_logits: bool = False,
) -> Closing:
    """What raw logits say of tokens that may be forced.

    Args:
      logits: of the target.
      rows: those of the requests that ask for logprobs.
      tokens: those that may be forced.
      as_logits: see `name_forced_tokens`.
    """
    parts = _parts(logits, len(rows))
    each = [_read(logits[rows[part]], tokens.expand(len(rows[part]), -1), as_logits=as_logits) for part in parts]
    logprobs, ranks = (torch.cat(parts) for parts in zip(*each, strict=True))
    return Closing(tokens, logprobs, ranks)


def _parts(logits: Float[Tensor, "rows vocab"], n: int) -> list[slice]:
    most = max(MOST_BYTES // (4 * logits.shape[1]), 1)
    return [slice(start, start + most) for start in range(0, n, most)]


def _read(
    logits: Float[Tensor, "asked vocab"], tokens: Int[Tensor, "asked some"], *, as_logits: bool
) -> tuple[Float[Tensor, "asked some"], Int[Tensor, "asked some"]]:
    """Logprobs and ranks of tokens."""
    logits = logits.float()
    chosen = logits.gather(1, tokens.long())
    ranks = [(logits >= values[:, None]).sum(dim=1) for values in chosen.unbind(dim=1)]
    values = chosen if as_logits else chosen - logits.logsumexp(dim=1, keepdim=True)
    return values, torch.stack(ranks, dim=1)


def _put(
    tensors: LogprobsTensors,
    entries: Int[Tensor, " asked"],
    forced: Bool[Tensor, " asked"],
    tokens: Int[Tensor, " asked"],
    logprobs: Float[Tensor, " asked"],
    ranks: Int[Tensor, " asked"],
) -> None:
    for column, value in (
        (tensors.logprob_token_ids[:, 0], tokens),
        (tensors.logprobs[:, 0], logprobs),
        (tensors.selected_token_ranks, ranks),
    ):
        column[entries] = torch.where(forced, value.to(column.dtype), column[entries])
