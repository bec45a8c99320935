r"""One row's time over several chips: who computes which queries of causal attention, and what the chips swap for it.

The mesh axis ``context`` cuts a row into as many equal stretches. Nearly everything in a step is done place by place
and stays where it is. Attention reads what lies before: each chip gathers the keys and values of the whole row, which
with grouped-query attention are small beside its queries. In causal attention the later stretches have most of the
work, so the chips swap queries for it: of twice as many pieces, chip :math:`j` of :math:`C` takes the pieces :math:`j`
and :math:`2C-1-j`, and all chips have the same number of pairs of a query and a key (the "zigzag" of Brandon et al.
2023 and Llama 3's training).

All functions here run inside of `jax.shard_map`; with one shard they do nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from jax_specexit.sharding import CONTEXT


@functools.cache
def order(time: int, shards: int) -> Int[np.ndarray, "shards stretch"]:
    """Places in the row of the queries that each chip computes: its even piece, then its odd one.

    Example:
      >>> order(8, 2).tolist()
      [[0, 1, 6, 7], [4, 5, 2, 3]]
    """
    places = np.arange(time)
    if shards == 1:
        return places[None]
    pieces = places.reshape(2 * shards, -1)
    return np.stack([np.concatenate(pieces[sorted((j, 2 * shards - 1 - j), key=_odd)]) for j in range(shards)])


def _odd(piece: int) -> bool:
    return piece % 2 == 1


def _moves(shards: int, odd: int) -> list[tuple[int, int]]:
    """(from, to) for the even pieces or the ``odd`` ones: chip i sends piece 2 i + odd to the chip that computes it."""
    return [(i, min(2 * i + odd, 2 * shards - 1 - 2 * i - odd)) for i in range(shards)]


def spread(x: Shaped[Array, "batch stretch *rest"], shards: int) -> Shaped[Array, "batch stretch *rest"]:
    """Swap a chip's stretch of a row for the places that the chip computes, in their `order`."""
    if shards == 1:
        return x
    pieces = jnp.split(x, 2, axis=1)
    return jnp.concatenate([jax.lax.ppermute(x, CONTEXT, _moves(shards, i)) for i, x in enumerate(pieces)], axis=1)


def collect(x: Shaped[Array, "batch stretch *rest"], shards: int) -> Shaped[Array, "batch stretch *rest"]:
    """The inverse of `spread`."""
    if shards == 1:
        return x
    back = [[(there, here) for here, there in _moves(shards, i)] for i in range(2)]
    pieces = jnp.split(x, 2, axis=1)
    return jnp.concatenate([jax.lax.ppermute(x, CONTEXT, moves) for x, moves in zip(pieces, back, strict=True)], axis=1)


def gather(x: Shaped[Array, "batch stretch *rest"], shards: int) -> Shaped[Array, "batch time *rest"]:
    """The whole row, gathered from every chip's stretch."""
    return x if shards == 1 else jax.lax.all_gather(x, CONTEXT, axis=1, tiled=True)


def scatter_sum(x: Shaped[Array, "batch time *rest"], shards: int) -> Shaped[Array, "batch stretch *rest"]:
    """The gradient of `gather`: every chip has a whole row; they are added up, and each chip keeps its stretch."""
    return x if shards == 1 else jax.lax.psum_scatter(x, CONTEXT, scatter_dimension=1, tiled=True)


def own(rows: Shaped[Array, "shards ..."], shards: int) -> Shaped[Array, ...]:
    """This chip's entry of something that has one for each chip."""
    return rows[0] if shards == 1 else rows[jax.lax.axis_index(CONTEXT)]
