"""Logprobs of a forced ``</think>``: the entry must name the token that the client gets.

vLLM's servers look the token up in its own entry, and vLLM has filled that with the token that was drawn instead.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, where


def name_forced_token(
    tensors: Any,
    entries: Int[Tensor, " batch"],
    forced: Bool[Tensor, " batch"],
    token: int,
    logits: Float[Tensor, "batch vocab"],
) -> None:
    """Put a forced token into vLLM's `LogprobsTensors`, in place, with the model's own logprob and rank of it.

    Args:
      tensors: first column: the sampled token; the others: the most likely ones.
      entries: for each request, the row of its last token in ``tensors``.
      forced: whether that token was forced.
      token: ``</think>``.
      logits: the target's raw logits of that row.
    """
    logits = logits.float()
    chosen = logits[:, token]
    rank = (logits >= chosen[:, None]).sum(dim=1)
    for column, value in (
        (tensors.logprob_token_ids[:, 0], logits.new_full(chosen.shape, token)),
        (tensors.logprobs[:, 0], chosen - logits.logsumexp(dim=1)),
        (tensors.selected_token_ranks, rank),
    ):
        column[entries] = where(forced, value.to(column.dtype), column[entries])
