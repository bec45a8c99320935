r"""Attention of training-time test (TTT): memory linear in length, exact gradients.

TTT shows a draft what it meets when it is fed its own outputs, for all positions at once. At TTT step k the draft has
run k times on its own outputs. In serving, its query at position t sees the keys of the *target's* positions up to t
(step 0, causal) and the keys of the draft tokens that lead to it, one per earlier step. In training that is one causal
block and k diagonals:

.. math:: s_{t} = [\,q_t \cdot k^{(0)}_{\le t},\; q_t \cdot k^{(1)}_t,\; \dots,\; q_t \cdot k^{(k)}_t\,]

So no mask of ``T x (k+1)T`` is ever formed. The causal block is that of ordinary attention, and a `Causal` does it: the
splash kernel on TPUs (`jax_specexit.model.splash`), tiles in plain JAX elsewhere (`jax_specexit.model.blockwise`). A
draft's sliding window (`specexit.drafts.window`) shortens this block alone. The `Causal` gives the block's output
:math:`o` and the log of its normaliser :math:`\ell`; with the scores :math:`s_j` of the diagonals,

.. math:: L = \log\Bigl(e^{\ell} + \sum_j e^{s_j}\Bigr), \qquad O = e^{\ell - L}\, o + \sum_j e^{s_j - L}\, v_j .

The gradient of ordinary attention depends on the rest of a row through L and O alone, so the causal block's own
backward pass, handed the merged L and O, is exact. Where a row lies on several chips
(`jax_specexit.model.context`), only the causal block knows of it: the diagonals are of one row each.
`ttt_attention_reference` forms the whole mask, and is the oracle.

Shape legend: batch, time, heads (query), kv (key/value heads), group (query heads of one kv), dim.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jax_specexit.model import context
from jax_specexit.model.blockwise import Blockwise
from jax_specexit.model.layers import repeat_kv, segment_starts
from jax_specexit.model.splash import LANES, Splash, fits
from jax_specexit.sharding import BATCH, CONTEXT, ROWS
from specexit.drafts.window import first_pass_rows

Queries = Float[Array, "batch time heads dim"]
Keys = Sequence[Float[Array, "batch time kv dim"]]


@runtime_checkable
class Causal(Protocol):
    """Causal attention within segments, over the keys of a whole row; the queries may be one chip's part of it.

    Queries are in `context.order`; ``starts`` says where the segment of each place in the whole row begins.
    """

    @property
    def shards(self) -> int:
        """Number of chips that a row lies on."""
        ...

    def forward(
        self,
        q: Queries,
        k: Float[Array, "batch all kv dim"],
        v: Float[Array, "batch all kv dim"],
        starts: Int[Array, "batch all"],
    ) -> tuple[Queries, Float[Array, "batch time heads"]]:
        """The output, and the log of its normaliser."""
        ...

    def backward(
        self,
        q: Queries,
        k: Float[Array, "batch all kv dim"],
        v: Float[Array, "batch all kv dim"],
        starts: Int[Array, "batch all"],
        out: Queries,
        log_total: Float[Array, "batch time heads"],
        d_out: Queries,
    ) -> tuple[Queries, Float[Array, "batch all kv dim"], Float[Array, "batch all kv dim"]]:
        """Gradients of q, k and v; ``out`` and ``log_total`` are those merged with the diagonals."""
        ...


def ttt_attention(
    q: Queries, keys: Keys, values: Keys, segment_ids: Int[Array, "batch time"], window: int | None = None
) -> Queries:
    """Causal block within segments, plus one diagonal per later step.

    Where a mesh is in force, every device attends with its own heads and rows, or stretches of rows.

    Args:
      q: queries of the newest step.
      keys, values: of steps 0..k, the newest last. One of each is ordinary causal attention.
      segment_ids: of packed rows; equal neighbours belong together.
      window: of a draft, see `specexit.drafts.window`; None is full attention.

    Raises:
      InputError: the window ends before the first pass.
    """
    seen = None if window is None else first_pass_rows(window, len(keys) - 1)
    mesh, starts = jax.sharding.get_abstract_mesh(), segment_starts(segment_ids)
    device = mesh.abstract_device
    on_tpu = (device.platform if device else jax.default_backend()) == "tpu"
    shards = 1 if mesh.empty else mesh.shape[CONTEXT]
    kind = device.device_kind if device else jax.devices()[0].device_kind
    causal = Splash(shards, kind, window=seen) if on_tpu and fits(q, shards) else Blockwise(shards, seen)
    if on_tpu and isinstance(causal, Blockwise):
        found = f"length {q.shape[1]}, head size {q.shape[3]}, expected multiples of {LANES}"
        warnings.warn(f"attention without the splash kernel, slower: {found}", stacklevel=2)
    attend_here = partial(attend, causal)
    if mesh.empty:
        return attend_here(q, list(keys), list(values), starts)
    heads, rows = PartitionSpec(*BATCH, "tensor"), PartitionSpec(ROWS)
    # Custom gradients do not support the check of replication; nothing is replicated, as every axis is in use.
    sharded = jax.shard_map(attend_here, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return sharded(q, list(keys), list(values), starts)


def attend(
    causal: Causal, q: Queries, keys: list[Array], values: list[Array], starts: Int[Array, "batch all"]
) -> Queries:
    """`ttt_attention` on one device; ``starts`` says where the segment of each place begins."""
    return cast(Array, _attend(causal, q, keys, values, starts))  # custom_vjp hides the type


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(causal: Causal, q: Array, keys: list[Array], values: list[Array], starts: Array) -> Array:
    return _forward(causal, q, keys, values, starts)[0]


def _grouped(q: Array, kv: int) -> Float[Array, "batch time kv group dim"]:
    return q.reshape(*q.shape[:2], kv, q.shape[2] // kv, q.shape[3])


def _own_products(q: Array, key: Array) -> Float[Array, "batch time heads"]:
    """Product of every query with the key at its own place, in at least float32."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    products = jnp.einsum("btkgd,btkd->btkg", _grouped(q, key.shape[2]), key, preferred_element_type=wide)
    return products.reshape(q.shape[:3])


def _own_scores(q: Array, key: Array) -> Float[Array, "batch time heads"]:
    return _own_products(q, key) * q.shape[-1] ** -0.5


def _forward(causal: Causal, q, keys, values, starts):
    n = causal.shards
    parts = causal.forward(context.spread(q, n), context.gather(keys[0], n), context.gather(values[0], n), starts)
    out, log_total = (context.collect(x, n) for x in parts)
    own = [_own_scores(q, k) for k in keys[1:]]
    merged = jax.nn.logsumexp(jnp.stack([log_total, *own]), axis=0)
    out = out.astype(merged.dtype) * jnp.exp(log_total - merged)[..., None]
    for score, v in zip(own, values[1:], strict=True):
        weight = _grouped(jnp.exp(score - merged)[..., None], v.shape[2])
        out += (weight * v[:, :, :, None]).reshape(out.shape)
    out = out.astype(q.dtype)
    return out, (q, keys, values, starts, out, merged)


def _backward(causal: Causal, residuals, d_out):
    q, keys, values, starts, out, merged = residuals
    n, scale, wide = causal.shards, q.shape[-1] ** -0.5, merged.dtype
    gathered = (context.gather(keys[0], n), context.gather(values[0], n))
    per_row = (context.spread(x, n) for x in (out, merged, d_out))
    d_q, *rest = causal.backward(context.spread(q, n), *gathered, starts, *per_row)
    d_q = context.collect(d_q, n).astype(wide)
    d_keys, d_values = ([context.scatter_sum(x.astype(wide), n)] for x in rest)
    shared = jnp.sum(d_out.astype(wide) * out.astype(wide), axis=-1)
    for k, v in zip(keys[1:], values[1:], strict=True):
        kv = k.shape[2]
        weight = jnp.exp(_own_scores(q, k) - merged)
        d_score = _grouped((weight * (_own_products(d_out, v) - shared) * scale)[..., None], kv)
        d_q += (d_score * k[:, :, :, None]).reshape(d_q.shape)
        d_keys.append(jnp.sum(d_score * _grouped(q, kv), axis=3))
        d_values.append(jnp.sum(_grouped(weight[..., None], kv) * _grouped(d_out, kv), axis=3))
    return *jax.tree.map(lambda x: x.astype(q.dtype), (d_q, d_keys, d_values)), None


_attend.defvjp(_forward, _backward)


def ttt_attention_reference(
    q: Queries, keys: Keys, values: Keys, segment_ids: Int[Array, "batch time"], window: int | None = None
) -> Queries:
    """`ttt_attention` through one explicit mask over all (k+1) T keys.

    It is slow and large: tests use it, and `bench-training` compares the memory of `ttt_attention` with it.
    """
    heads, dim, time = q.shape[2], q.shape[3], q.shape[1]
    all_keys = jnp.concatenate([repeat_kv(k, heads) for k in keys], axis=1)
    all_values = jnp.concatenate([repeat_kv(v, heads) for v in values], axis=1)
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    causal = same & jnp.tril(jnp.ones((time, time), bool))
    if window is not None:  # the query stands a position further on for each step
        query, key = jnp.arange(time)[:, None] + len(keys) - 1, jnp.arange(time)
        causal &= key > query - window
    diagonal = jnp.broadcast_to(jnp.eye(time, dtype=bool), causal.shape)
    mask = jnp.concatenate([causal] + [diagonal] * (len(keys) - 1), axis=-1)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("btnd,bsnd->bnts", q, all_keys).astype(wide) * dim**-0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(q.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights, all_values)
