"""A mixture of experts: a router picks a few of many SwiGLU blocks for every token, and no token is dropped.

Tokens are sorted by expert, so that every matrix product is one `jax.lax.ragged_dot`. For TPUs XLA compiles that to a
kernel like MegaBlocks' (Gale et al. 2022), which visits only tiles that have rows; elsewhere it is a masked product per
expert, exact and slow.

The mesh axis ``expert`` cuts the experts, and the rows of the batch as well, so that nothing else is computed twice.
The chips along it gather each other's tokens, each applies its own experts to all of them, and the sums are scattered
back. With as many chips as a token has experts, nearly every chip needs every token anyway; and shapes are known
without a limit on how many tokens an expert takes.

Shape legend: tokens, hidden, chosen (experts of a token), pairs (of a token and one of its experts, tokens x chosen).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_specexit.model.layers import Linear, quantize
from jax_specexit.sharding import BATCH, EXPERT, whole_along_fsdp

AT_ONCE = 16384
"""Most tokens, gathered ones included, that are sorted and multiplied together. With 8 experts each in bfloat16 and a
width of 2,048 they are 0.5 GB; of 128 experts, each gets 1,024 of them."""


class ExpertLinear(nnx.Module):
    """``x @ kernel`` with a kernel for every expert: [experts, in, out]."""

    def __init__(self, experts: int, size_in: int, size_out: int, *, rngs: nnx.Rngs, std: float | None = None):
        scale = size_in**-0.5 if std is None else std
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (experts, size_in, size_out), jnp.float32))
        self.scale = nnx.data(None)

    def __call__(
        self, x: Float[Array, "pairs size_in"], expert: Int[Array, " pairs"], sizes: Int[Array, " experts"]
    ) -> Float[Array, "pairs size_out"]:
        """Multiply the rows of every expert with its kernel; rows behind the last expert's are undefined.

        Args:
          x: rows, sorted by expert.
          expert: which expert each row is for.
          sizes: number of rows of each expert.
        """
        kernel = self.kernel[...]
        if self.scale is None:
            return jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes)
        rows = qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=(0,))
        products = jax.lax.ragged_dot(rows.qvalue, kernel, sizes, preferred_element_type=jnp.int32)
        return (products * rows.scale * self.scale[...].at[expert].get(mode="clip")).astype(x.dtype)

    def quantize(self) -> None:
        """See `Linear.quantize`."""
        self.kernel, self.scale = quantize(self.kernel[...])


class Experts(nnx.Module):
    """SwiGLU of every expert."""

    def __init__(self, experts: int, hidden: int, intermediate: int, *, rngs: nnx.Rngs):
        self.gate = ExpertLinear(experts, hidden, intermediate, rngs=rngs)
        self.up = ExpertLinear(experts, hidden, intermediate, rngs=rngs)
        self.down = ExpertLinear(experts, intermediate, hidden, rngs=rngs, std=0.5 * intermediate**-0.5)

    def __call__(
        self, x: Float[Array, "pairs hidden"], expert: Int[Array, " pairs"], sizes: Int[Array, " experts"]
    ) -> Float[Array, "pairs hidden"]:
        """See `ExpertLinear`."""
        return self.down(jax.nn.silu(self.gate(x, expert, sizes)) * self.up(x, expert, sizes), expert, sizes)


class Mixture(nnx.Module):
    """The router and its experts, Qwen3-MoE's in place of a dense SwiGLU.

    Args:
      hidden, intermediate: widths of the model and of one expert.
      experts: how many there are.
      chosen: how many of them each token is given to.
      normalised: whether the probabilities of those sum to 1 (``norm_topk_prob``).
    """

    def __init__(self, hidden: int, intermediate: int, experts: int, chosen: int, *, normalised: bool, rngs: nnx.Rngs):
        self.router = Linear(hidden, experts, rngs=rngs)
        self.experts = Experts(experts, hidden, intermediate, rngs=rngs)
        self.count, self.chosen, self.normalised = experts, chosen, normalised

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        """The sum of the chosen experts' outputs for every token, weighted with their probabilities."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return self._mix(x, {})
        graph, state = nnx.split(self)
        values = nnx.to_pure_dict(state)

        def local(values: dict, x: Array) -> Array:
            return nnx.merge(graph, values)._mix(x, mesh.shape)

        specs = (jax.tree.map_with_path(whole_along_fsdp, values), BATCH)
        return jax.shard_map(local, in_specs=specs, out_specs=BATCH, check_vma=False)(values, x)

    def route(
        self, x: Float[Array, "tokens hidden"]
    ) -> tuple[Float[Array, "tokens chosen"], Int[Array, "tokens chosen"]]:
        """Weights and ids of each token's experts; the softmax is over all experts and in float32."""
        weights, expert = jax.lax.top_k(jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1), self.chosen)
        if self.normalised:
            weights /= jnp.sum(weights, axis=-1, keepdims=True)
        return weights.astype(x.dtype), expert

    def _mix(self, x: Array, axes: Mapping[str, int]) -> Array:
        """Apply the mixture to one device's rows, piece by piece; ``axes`` are the mesh's sizes, empty without one."""
        shards, flat = axes.get(EXPERT, 1), x.reshape(-1, x.shape[-1])
        piece = largest_divisor(len(flat), max(1, AT_ONCE // shards))
        pieces = jax.tree.map(lambda a: a.reshape(-1, piece, a.shape[-1]), (flat, *self.route(flat)))

        def one(piece: tuple[Array, Array, Array]) -> Array:
            if shards == 1:
                mixed = self._own(*piece, 0)
            else:
                x, weights, expert = (jax.lax.all_gather(a, EXPERT, axis=0, tiled=True) for a in piece)
                mixed = self._own(x, weights, expert, jax.lax.axis_index(EXPERT) * (self.count // shards))
                mixed = jax.lax.psum_scatter(mixed, EXPERT, scatter_dimension=0, tiled=True)
            return jax.lax.psum(mixed, "tensor") if axes.get("tensor", 1) > 1 else mixed

        return jax.lax.map(one, pieces).reshape(x.shape)

    def _own(self, x: Array, weights: Array, expert: Array, first: Array | int) -> Array:
        """What the experts on this device, whose first has the id ``first``, add to every token."""
        own = self.experts.gate.kernel.shape[0]
        group = expert.reshape(-1) - first
        mine = (group >= 0) & (group < own)
        group = jnp.where(mine, group, own)  # others' pairs come last, behind all groups
        order, place, sizes = by_group(group, own + 1)
        said = self.experts(x[order // self.chosen], group[order], sizes[:own])
        said = said[place].reshape(*weights.shape, -1)
        said = jnp.where(mine.reshape(*weights.shape, 1), said.astype(jnp.float32), 0)
        return jnp.sum(said * weights[..., None].astype(jnp.float32), axis=1).astype(x.dtype)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most ``most``: how long the fewest equal pieces of it are.

    Example:
      >>> largest_divisor(11 * 2816, 16384), largest_divisor(2816, 16384)
      (15488, 2816)
    """
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)


def by_group(
    group: Int[Array, " pairs"], groups: int
) -> tuple[Int[Array, " pairs"], Int[Array, " pairs"], Int[Array, " groups"]]:
    """Sort pairs by group, stably.

    It counts, because XLA takes 10 to 18 s of CPU time to compile a sort of this size for TPUs, and 3 s for this.

    Returns:
      The pair at each place, the place of each pair, and the number of pairs in each group.

    Example:
      >>> [x.tolist() for x in by_group(jnp.array([2, 0, 2, 1]), 3)]
      [[1, 3, 0, 2], [2, 0, 3, 1], [1, 1, 2]]
    """
    is_in = (group[:, None] == jnp.arange(groups)).astype(jnp.int32)
    seen = jnp.cumsum(is_in, axis=0)
    sizes = seen[-1]
    place = jnp.sum(is_in * (seen - 1 + jnp.cumsum(sizes) - sizes), axis=1)
    numbers = jnp.arange(group.size, dtype=jnp.int32)
    order = jnp.zeros_like(numbers).at[place].set(numbers, unique_indices=True, mode="promise_in_bounds")
    return order, place, sizes
