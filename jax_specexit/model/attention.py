r"""Attention of training-time test (TTT), blockwise: memory linear in length, exact gradients.

TTT shows a draft what it meets when it is fed its own outputs, for all positions at once. At TTT step k the draft has
run k times on its own outputs. In serving, its query at position t sees the keys of the *target's* positions up to t
(step 0, causal) and the keys of the draft tokens that lead to it, one per earlier step. In training that is one causal
block and k diagonals:

.. math:: s_{t} = [\,q_t \cdot k^{(0)}_{\le t},\; q_t \cdot k^{(1)}_t,\; \dots,\; q_t \cdot k^{(k)}_t\,]

So no mask of ``T x (k+1)T`` is ever formed, and of the causal block only tiles of ``BLOCK x BLOCK``, in a running
softmax (Milakov & Gimelshein 2018; Dao et al. 2022) that starts from the diagonals. Tiles that lie wholly before the
segments of their rows are skipped, so short texts packed into long rows cost little more than alone.
On TPUs the causal block is the splash kernel's, see `jax_specexit.model.splash`. `ttt_attention_reference` forms the
whole mask, and is the oracle.

Shape legend: batch, time, heads (query), kv (key/value heads), group (query heads of one kv), dim, rows (of one tile).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial, reduce
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jax_specexit.model.layers import repeat_kv, segment_starts
from jax_specexit.model.splash import LANES, fits, splash_attention
from jax_specexit.sharding import BATCH, ROWS

BLOCK = 128
"""Rows and columns of one tile: large enough for matrix units, small enough for a cache."""

NEVER = -1e30
"""Score of a masked pair; finite, so that differences of two of them are not NaN."""

Queries = Float[Array, "batch time heads dim"]
Keys = Sequence[Float[Array, "batch time kv dim"]]


def ttt_attention(q: Queries, keys: Keys, values: Keys, segment_ids: Int[Array, "batch time"]) -> Queries:
    """Causal block within segments, plus one diagonal per later step.

    Every device attends with its own heads and rows where a mesh is in force.

    Args:
      q: queries of the newest step.
      keys, values: of steps 0..k, the newest last. One of each is ordinary causal attention.
      segment_ids: of packed rows; equal neighbours belong together.
    """
    mesh, starts = jax.sharding.get_abstract_mesh(), segment_starts(segment_ids)
    device = mesh.abstract_device
    on_tpu = (device.platform if device else jax.default_backend()) == "tpu"
    attend = splash_attention if on_tpu and fits(q) else blockwise_attention
    if on_tpu and attend is not splash_attention:
        found = f"length {q.shape[1]}, head size {q.shape[3]}, expected multiples of {LANES}"
        warnings.warn(f"attention without the splash kernel, slower: {found}", stacklevel=2)
    if mesh.empty:
        return attend(q, list(keys), list(values), starts)
    heads = PartitionSpec(ROWS, None, "tensor")
    # Without the check of replication, which custom gradients do not speak; every axis is in use, so there is none.
    sharded = jax.shard_map(attend, in_specs=(heads, heads, heads, BATCH), out_specs=heads, check_vma=False)
    return sharded(q, list(keys), list(values), starts)


def blockwise_attention(
    q: Queries, keys: list[Array], values: list[Array], starts: Int[Array, "batch time"]
) -> Queries:
    """`ttt_attention` of one device in plain JAX, for any length; ``starts`` is where each row's segment begins."""
    batch, time, heads, dim = q.shape
    kv, block = keys[0].shape[2], min(BLOCK, time)
    grouped = q.reshape(batch, time, kv, heads // kv, dim)
    pad = -time % block
    grouped, keys, values = jax.tree.map(lambda x: _pad(x, pad), (grouped, keys, values))
    starts = jnp.pad(starts, [(0, 0), (0, pad)], constant_values=time)  # the padding is a segment of its own
    mixed = cast(Array, _attention(grouped, keys, values, starts, block))  # custom_vjp hides the type
    return mixed[:, :time].reshape(q.shape)


def _pad(x: Array, rows: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, rows)] + [(0, 0)] * (x.ndim - 2))


def _tiles(x: Array, block: int) -> Array:
    """[batch, time, ...] -> [blocks, batch, rows, ...], for a scan over blocks."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)


def _whole(x: Array) -> Array:
    """The way back from `_tiles`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _visible(i: Array, j: Array, starts: Int[Array, "batch rows"]) -> Bool[Array, "batch 1 1 rows rows"]:
    """Which keys of tile j the rows of query block i see."""
    rows = jnp.arange(starts.shape[1])
    key, query = j * rows.size + rows, i * rows.size + rows
    return ((key >= starts[..., None]) & (key <= query[:, None]))[:, None, None]


def _scores(q: Array, k: Array, pattern: str) -> Array:
    """Scaled scores in at least float32."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum(pattern, q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5


ROWS_BY_KEYS = "btkgd,bskd->bkgts"
ROWS_BY_OWN = "btkgd,btkd->bkgt"


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    q: Float[Array, "batch time kv group dim"], keys: list[Array], values: list[Array], starts: Array, block: int
) -> Float[Array, "batch time kv group dim"]:
    return _forward(q, keys, values, starts, block)[0]


def _forward(q, keys, values, starts, block):
    key_tiles, value_tiles = _tiles(keys[0], block), _tiles(values[0], block)

    def rows(_, xs):
        """One query block: its mixed values and the log of its softmax' normaliser."""
        i, q, starts, own_keys, own_values = xs
        first = jnp.min(starts) // block

        # The running softmax begins with the diagonals: (maximum, sum of exponentials, weighted values).
        own = [_scores(q, k, ROWS_BY_OWN) for k in own_keys]
        shape = (q.shape[0], q.shape[2], q.shape[3], block)
        wide = jnp.promote_types(q.dtype, jnp.float32)
        top = reduce(jnp.maximum, own, jnp.full(shape, NEVER, wide))
        total, mixed = jnp.zeros(shape, wide), jnp.zeros((*shape, q.shape[-1]), wide)
        for score, v in zip(own, own_values, strict=True):
            weight = jnp.exp(score - top)
            total += weight
            mixed += weight[..., None] * jnp.moveaxis(v, 1, 2)[:, :, None]

        def tile(j, running):
            top, total, mixed = running
            visible = _visible(i, j, starts)
            score = jnp.where(visible, _scores(q, key_tiles[j], ROWS_BY_KEYS), NEVER)
            higher = jnp.maximum(top, jnp.max(score, axis=-1))
            weight = jnp.where(visible, jnp.exp(score - higher[..., None]), 0.0)
            shrink = jnp.exp(top - higher)
            new = jnp.einsum("bkgts,bskd->bkgtd", weight.astype(q.dtype), value_tiles[j], preferred_element_type=wide)
            return higher, total * shrink + jnp.sum(weight, axis=-1), mixed * shrink[..., None] + new

        top, total, mixed = jax.lax.fori_loop(first, i + 1, tile, (top, total, mixed))
        mixed = jnp.moveaxis(mixed / total[..., None], 3, 1).astype(q.dtype)
        return None, (mixed, jnp.moveaxis(top + jnp.log(total), 3, 1))

    own = [[_tiles(x, block) for x in part[1:]] for part in (keys, values)]
    xs = (jnp.arange(q.shape[1] // block), _tiles(q, block), _tiles(starts, block), *own)
    _, (mixed, log_total) = jax.lax.scan(rows, None, xs)
    out = _whole(mixed)
    return out, (q, keys, values, starts, out, _whole(log_total))


def _backward(block, residuals, d_out):
    """With the log-sum-exp over *all* keys at hand, every part's gradient is that of ordinary attention."""
    q, keys, values, starts, out, log_total = residuals
    wide = log_total.dtype
    scale = q.shape[-1] ** -0.5
    # The part of d(score) that all scores of a row share.
    shared = jnp.sum(d_out.astype(wide) * out.astype(wide), axis=-1)
    key_tiles, value_tiles = _tiles(keys[0], block), _tiles(values[0], block)

    def rows(d_tiles, xs):
        """One query block: its own gradient, and what it adds to those of the key and value tiles."""
        i, q, starts, d_out, log_total, shared = xs
        log_total, shared = (jnp.moveaxis(x, 1, 3)[..., None] for x in (log_total, shared))

        def tile(j, carry):
            d_q, d_keys, d_values = carry
            score = jnp.where(_visible(i, j, starts), _scores(q, key_tiles[j], ROWS_BY_KEYS), NEVER)
            weight = jnp.exp(score - log_total)
            pull = jnp.einsum("btkgd,bskd->bkgts", d_out, value_tiles[j], preferred_element_type=wide)
            d_score = (weight * (pull - shared) * scale).astype(q.dtype)
            d_v = jnp.einsum("bkgts,btkgd->bskd", weight.astype(q.dtype), d_out, preferred_element_type=wide)
            d_k = jnp.einsum("bkgts,btkgd->bskd", d_score, q, preferred_element_type=wide)
            d_q += jnp.einsum("bkgts,bskd->btkgd", d_score, key_tiles[j], preferred_element_type=wide)
            return d_q, d_keys.at[j].add(d_k), d_values.at[j].add(d_v)

        first = jnp.min(starts) // block
        d_q, *d_tiles = jax.lax.fori_loop(first, i + 1, tile, (jnp.zeros(q.shape, wide), *d_tiles))
        return tuple(d_tiles), d_q

    xs = (jnp.arange(q.shape[1] // block), *(_tiles(x, block) for x in (q, starts, d_out, log_total, shared)))
    nothing = jnp.zeros(key_tiles.shape, wide)
    (d_key_tiles, d_value_tiles), d_q_tiles = jax.lax.scan(rows, (nothing, nothing), xs)
    d_q, d_keys, d_values = _whole(d_q_tiles), [_whole(d_key_tiles)], [_whole(d_value_tiles)]
    log_total, shared = (jnp.moveaxis(x, 1, 3) for x in (log_total, shared))
    for k, v in zip(keys[1:], values[1:], strict=True):
        weight = jnp.exp(_scores(q, k, ROWS_BY_OWN) - log_total)
        pull = jnp.einsum("btkgd,btkd->bkgt", d_out, v, preferred_element_type=wide)
        d_score = weight * (pull - shared) * scale
        d_q += jnp.einsum("bkgt,btkd->btkgd", d_score, k)
        d_keys.append(jnp.einsum("bkgt,btkgd->btkd", d_score, q))
        d_values.append(jnp.einsum("bkgt,btkgd->btkd", weight, d_out))
    return *jax.tree.map(lambda x: x.astype(q.dtype), (d_q, d_keys, d_values)), None


_attention.defvjp(_forward, _backward)


def ttt_attention_reference(q: Queries, keys: Keys, values: Keys, segment_ids: Int[Array, "batch time"]) -> Queries:
    """The same through one explicit mask over all (k+1) T keys. Slow and large; for tests."""
    heads, dim, time = q.shape[2], q.shape[3], q.shape[1]
    all_keys = jnp.concatenate([repeat_kv(k, heads) for k in keys], axis=1)
    all_values = jnp.concatenate([repeat_kv(v, heads) for v in values], axis=1)
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    causal = same & jnp.tril(jnp.ones((time, time), bool))
    diagonal = jnp.broadcast_to(jnp.eye(time, dtype=bool), causal.shape)
    mask = jnp.concatenate([causal] + [diagonal] * (len(keys) - 1), axis=-1)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("btnd,bsnd->bnts", q, all_keys).astype(wide) * dim**-0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(q.dtype)
    return jnp.einsum("bnts,bsnd->btnd", weights, all_values)
