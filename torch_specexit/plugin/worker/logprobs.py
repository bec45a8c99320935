"""Logprobs of a forced token: the entry must name the token that the client gets.

vLLM's servers look the token up in its own entry, and vLLM has filled that with the token that was drawn instead. The
logits are those that vLLM has sampled from, so nothing is computed twice; and only requests that have asked for
logprobs, and may exit, are looked at.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_specexit.plugin.worker.protocols import LogprobsTensors

MOST_BYTES = 1 << 26
"""Of logits in float32 at a time."""


def name_forced_tokens(
    tensors: LogprobsTensors,
    entries: Int[Tensor, " asked"],
    forced: Bool[Tensor, " asked"],
    tokens: Int[Tensor, " asked"],
    logits: Float[Tensor, "rows vocab"],
    rows: Int[Tensor, " asked"],
) -> None:
    """Put forced tokens into vLLM's `LogprobsTensors`, in place, with the model's own logprob and rank of them.

    Args:
      tensors: of the step.
      entries: for each request that asks, the row of its last token in ``tensors``.
      forced: whether that token was forced.
      tokens: that token.
      logits: the target's raw logits.
      rows: for each of these requests, the one that its last token was drawn from.
    """
    most = max(MOST_BYTES // (4 * logits.shape[1]), 1)
    for start in range(0, len(entries), most):
        part = slice(start, start + most)
        _name(tensors, entries[part], forced[part], tokens[part], logits[rows[part]])


def _name(
    tensors: LogprobsTensors,
    entries: Int[Tensor, " asked"],
    forced: Bool[Tensor, " asked"],
    tokens: Int[Tensor, " asked"],
    logits: Float[Tensor, "asked vocab"],
) -> None:
    logits = logits.float()
    chosen = logits.gather(1, tokens.long()[:, None]).squeeze(1)
    rank = (logits >= chosen[:, None]).sum(dim=1)
    for column, value in (
        (tensors.logprob_token_ids[:, 0], tokens),
        (tensors.logprobs[:, 0], chosen - logits.logsumexp(dim=1)),
        (tensors.selected_token_ranks, rank),
    ):
        column[entries] = torch.where(forced, value.to(column.dtype), column[entries])
