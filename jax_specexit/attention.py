r"""Attention of training-time test (TTT): what a draft sees when it is fed its own outputs, for all positions at once.

At TTT step k the draft has run k times on its own outputs. In serving, its query at position t sees the keys of the
*target's* positions up to t (step 0, causal) and the keys of the draft tokens that lead to it, one per earlier step. In
training that is one causal block and k diagonals:

.. math:: s_{t} = [\,q_t \cdot k^{(0)}_{\le t},\; q_t \cdot k^{(1)}_t,\; \dots,\; q_t \cdot k^{(k)}_t\,]

so no mask of ``T x (k+1)T`` is ever formed. `ttt_attention_reference` forms it, and is the oracle.

Shape legend: batch, time, heads (query), kv (key/value heads), dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_specexit.layers import repeat_kv

Queries = Float[Array, "batch time heads dim"]
Keys = Sequence[Float[Array, "batch time kv dim"]]


def ttt_attention(q: Queries, keys: Keys, values: Keys, mask: Bool[Array, "batch 1 time time"]) -> Queries:
    """Causal block plus one diagonal per later step.

    Args:
      q: queries of the newest step.
      keys, values: of steps 0..k, the newest last.
      mask: of the causal block; packed segments are kept apart here.
    """
    heads, dim, time = q.shape[2], q.shape[3], q.shape[1]
    scale, wide = dim**-0.5, jnp.promote_types(q.dtype, jnp.float32)
    block = jnp.einsum("btnd,bsnd->bnts", q, repeat_kv(keys[0], heads)).astype(wide) * scale
    scores = [jnp.where(mask, block, -jnp.inf)]
    for k in keys[1:]:
        diagonal = jnp.einsum("btnd,btnd->bnt", q, repeat_kv(k, heads)).astype(wide) * scale
        scores.append(diagonal[..., None])
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q.dtype)
    mixed = jnp.einsum("bnts,bsnd->btnd", weights[..., :time], repeat_kv(values[0], heads))
    for i, v in enumerate(values[1:]):
        mixed += weights[..., time + i].swapaxes(1, 2)[..., None] * repeat_kv(v, heads)
    return mixed


def ttt_attention_reference(q: Queries, keys: Keys, values: Keys, mask: Bool[Array, "batch 1 time time"]) -> Queries:
    """The same through one explicit mask over all (k+1) T keys. Slow and large; for tests."""
    heads, dim, time = q.shape[2], q.shape[3], q.shape[1]
    all_keys = jnp.concatenate([repeat_kv(k, heads) for k in keys], axis=1)
    all_values = jnp.concatenate([repeat_kv(v, heads) for v in values], axis=1)
    diagonal = jnp.broadcast_to(jnp.eye(time, dtype=bool), mask.shape)
    full_mask = jnp.concatenate([mask] + [diagonal] * (len(keys) - 1), axis=-1)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("btnd,bsnd->bnts", q, all_keys).astype(wide) * dim**-0.5
    weights = jax.nn.softmax(jnp.where(full_mask, scores, -jnp.inf), axis=-1).astype(q.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights, all_values)
