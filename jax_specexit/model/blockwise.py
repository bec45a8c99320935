"""Causal attention within segments in plain JAX, tile by tile, for any length and any device.

Of the causal block only tiles of ``BLOCK x BLOCK`` exist at a time, in a running softmax (Milakov & Gimelshein 2018;
Dao et al. 2022). Tiles that lie wholly before the segments of their rows are skipped.

Shape legend: batch, time (of the queries), all (time of the keys), heads, kv, group, dim, rows (of one tile).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_specexit.model import context

BLOCK = 128
"""Rows and columns of one tile: large enough for matrix units, small enough for a cache."""

NEVER = -1e30
"""Score of a masked pair; finite, so that differences of two of them are not NaN."""

ROWS_BY_KEYS = "btkgd,bskd->bkgts"


@dataclass(frozen=True)
class Blockwise:
    """See `jax_specexit.model.attention.Causal`."""

    shards: int = 1
    window: int | None = None
    """How many keys a query sees at most, its own the last of them; None: all up to its own."""

    def forward(
        self,
        q: Float[Array, "batch time heads dim"],
        k: Float[Array, "batch all kv dim"],
        v: Float[Array, "batch all kv dim"],
        starts: Int[Array, "batch all"],
    ) -> tuple[Float[Array, "batch time heads dim"], Float[Array, "batch time heads"]]:
        """Mixed values and the log of the softmax' normaliser, both in at least float32."""
        tiles = self._tiles(q, k, v, starts)
        mixed, log_total = _forward(tiles)
        return _cut(mixed, q).reshape(q.shape), _cut(log_total, q).reshape(q.shape[:3])

    def backward(
        self,
        q: Float[Array, "batch time heads dim"],
        k: Float[Array, "batch all kv dim"],
        v: Float[Array, "batch all kv dim"],
        starts: Int[Array, "batch all"],
        out: Float[Array, "batch time heads dim"],
        log_total: Float[Array, "batch time heads"],
        d_out: Float[Array, "batch time heads dim"],
    ) -> tuple[
        Float[Array, "batch time heads dim"], Float[Array, "batch all kv dim"], Float[Array, "batch all kv dim"]
    ]:
        """Gradients of q, k and v; ``out`` and ``log_total`` may be those over more keys than these."""
        tiles = self._tiles(q, k, v, starts)
        # The part of d(score) that all scores of a row share.
        shared = jnp.sum(d_out.astype(log_total.dtype) * out.astype(log_total.dtype), axis=-1)
        per_row = (_tiled(_grouped(x, k.shape[2]), tiles.block) for x in (d_out, log_total, shared))
        d_q, d_k, d_v = _backward(tiles, *per_row)
        return _cut(d_q, q).reshape(q.shape), d_k[:, : k.shape[1]], d_v[:, : k.shape[1]]

    def _tiles(self, q: Array, k: Array, v: Array, starts: Array) -> _Tiles:
        time, kv, every = q.shape[1], k.shape[2], k.shape[1]
        block = min(BLOCK, time)
        if self.window is not None:  # as if a segment began there
            starts = jnp.maximum(starts, jnp.arange(every) - self.window + 1)
        if self.shards > 1:  # a tile lies in one of the two pieces of `context.order`
            block = max(n for n in range(1, block + 1) if (time // 2) % n == 0)
        places = context.own(jnp.asarray(context.order(every, self.shards)), self.shards)
        pad = -time % block  # 0 with several shards; with one, queries and keys are as many
        begins = jnp.pad(starts[:, places], [(0, 0), (0, pad)], constant_values=every)  # the padding is its own segment
        numbers = jnp.arange((time + pad) // block) if self.shards == 1 else places[::block] // block
        q, k, v = (_tiled(x, block) for x in (_grouped(q, kv), k, v))
        return _Tiles(numbers, q, k, v, _split(begins, block))


class _Tiles(NamedTuple):
    """Queries, keys, values and where the queries' segments begin, in tiles: [tiles, batch, rows, ...]."""

    numbers: Int[Array, " query_tiles"]
    """Which tile of the row each tile of queries is."""
    q: Float[Array, "query_tiles batch rows kv group dim"]
    k: Float[Array, "tiles batch rows kv dim"]
    v: Float[Array, "tiles batch rows kv dim"]
    starts: Int[Array, "query_tiles batch rows"]

    @property
    def block(self) -> int:
        return self.q.shape[2]


def _grouped(x: Array, kv: int) -> Array:
    """[batch, time, heads, ...] -> [batch, time, kv, group, ...]."""
    return x.reshape(*x.shape[:2], kv, -1, *x.shape[3:])


def _tiled(x: Array, block: int) -> Array:
    """[batch, time, ...] -> [tiles, batch, rows, ...], padded with zeros."""
    return _split(jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2)), block)


def _split(x: Array, block: int) -> Array:
    return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)


def _whole(x: Array) -> Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _cut(tiles: Array, q: Array) -> Array:
    return _whole(tiles)[:, : q.shape[1]]


def _visible(i: Array, j: Array, starts: Int[Array, "batch rows"]) -> Bool[Array, "batch 1 1 rows rows"]:
    """Which keys of tile j the rows of query tile i see."""
    rows = jnp.arange(starts.shape[1])
    key, query = j * rows.size + rows, i * rows.size + rows
    return ((key >= starts[..., None]) & (key <= query[:, None]))[:, None, None]


def _scores(q: Array, k: Array) -> Array:
    """Scaled scores in at least float32."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum(ROWS_BY_KEYS, q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5


def _forward(tiles: _Tiles) -> tuple[Array, Array]:
    wide = jnp.promote_types(tiles.q.dtype, jnp.float32)

    def rows(_, xs):
        """One query tile: its mixed values and the log of its softmax' normaliser."""
        i, q, starts = xs
        shape = (q.shape[0], q.shape[2], q.shape[3], q.shape[1])

        def tile(j, running):
            top, total, mixed = running
            visible = _visible(i, j, starts)
            score = jnp.where(visible, _scores(q, tiles.k[j]), NEVER)
            higher = jnp.maximum(top, jnp.max(score, axis=-1))
            weight = jnp.where(visible, jnp.exp(score - higher[..., None]), 0.0)
            shrink = jnp.exp(top - higher)
            new = jnp.einsum("bkgts,bskd->bkgtd", weight.astype(q.dtype), tiles.v[j], preferred_element_type=wide)
            return higher, total * shrink + jnp.sum(weight, axis=-1), mixed * shrink[..., None] + new

        running = (jnp.full(shape, NEVER, wide), jnp.zeros(shape, wide), jnp.zeros((*shape, q.shape[-1]), wide))
        top, total, mixed = jax.lax.fori_loop(jnp.min(starts) // q.shape[1], i + 1, tile, running)
        return None, (jnp.moveaxis(mixed / total[..., None], 3, 1), jnp.moveaxis(top + jnp.log(total), 3, 1))

    _, found = jax.lax.scan(rows, None, (tiles.numbers, tiles.q, tiles.starts))
    return found


def _backward(tiles: _Tiles, d_out: Array, log_total: Array, shared: Array) -> tuple[Array, Array, Array]:
    """With the log-sum-exp over *all* keys at hand, every part's gradient is that of ordinary attention."""
    wide, scale = log_total.dtype, tiles.q.shape[-1] ** -0.5

    def rows(d_tiles, xs):
        """One query tile: its own gradient, and what it adds to those of the key and value tiles."""
        i, q, starts, d_out, log_total, shared = xs
        log_total, shared = (jnp.moveaxis(x, 1, 3)[..., None] for x in (log_total, shared))

        def tile(j, carry):
            d_q, d_keys, d_values = carry
            score = jnp.where(_visible(i, j, starts), _scores(q, tiles.k[j]), NEVER)
            weight = jnp.exp(score - log_total)
            pull = jnp.einsum("btkgd,bskd->bkgts", d_out, tiles.v[j], preferred_element_type=wide)
            d_score = (weight * (pull - shared) * scale).astype(q.dtype)
            d_v = jnp.einsum("bkgts,btkgd->bskd", weight.astype(q.dtype), d_out, preferred_element_type=wide)
            d_k = jnp.einsum("bkgts,btkgd->bskd", d_score, q, preferred_element_type=wide)
            d_q += jnp.einsum("bkgts,bskd->btkgd", d_score, tiles.k[j], preferred_element_type=wide)
            return d_q, d_keys.at[j].add(d_k), d_values.at[j].add(d_v)

        first = jnp.min(starts) // q.shape[1]
        d_q, *d_tiles = jax.lax.fori_loop(first, i + 1, tile, (jnp.zeros(q.shape, wide), *d_tiles))
        return tuple(d_tiles), d_q

    nothing = jnp.zeros(tiles.k.shape, wide)
    xs = (tiles.numbers, tiles.q, tiles.starts, d_out, log_total, shared)
    (d_k, d_v), d_q = jax.lax.scan(rows, (nothing, nothing), xs)
    return d_q, _whole(d_k), _whole(d_v)
