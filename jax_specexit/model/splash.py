"""Causal attention on a TPU by JAX's splash kernel, forward and backward.

The public kernel cannot be differentiated through the log of its normaliser (it refuses), and
`jax.nn.dot_product_attention` with ``return_residual`` drops that gradient silently, so the backward pass is called
directly. It is private, hence `CHECKED_WITH`.

Shape legend: batch, time (of the queries), all (time of the keys), heads (query), kv (key/value heads), dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from jax_specexit.model import context
from specexit.chips import DEVICE_KINDS
from specexit.errors import InputError, install

CHECKED_WITH = (0, 10)
"""Version of JAX whose private backward pass this file calls; the extra ``tpu`` brings it."""

LANES = 128
"""A TPU vector register's width: the kernel's tiles are multiples of it."""

TILE = 512
"""Rows and columns of the kernel's tiles, or the largest power of two below that divides the length."""

FORWARD = {"v6e": 1024, "tpu7x": 2048}
"""`TILE` of the forward pass, for chips for which another is published: axlearn's block sizes. On v6e axlearn found the
kernel a third faster with 1,024 (`axlearn pull request 958 <https://github.com/apple/axlearn/pull/958>`_),
which MaxText's benchmark of rows of 32k on v6e takes, too (gemma3-12b-32768-v6e256 in
benchmarks/maxtext_trillium_model_configs.py). For shorter rows MaxText has 2,048 on every chip, which computes more
masked pairs."""

WIDE = 4
"""Tiles of keys in a block of the backward pass, on every chip: 512 x 2,048 is what that benchmark of MaxText's takes
on v6e, and 2,048 keys its benchmark of a Llama 3.1 8B on v5e (benchmarks/maxtext_v5e_model_configs.py). None is
published that is better on one chip and worse on another."""


def fits(q: Float[Array, "batch time heads dim"], shards: int = 1) -> bool:
    """Whether the kernel takes queries of this shape, which are whole rows; each lies on ``shards`` chips."""
    return tile_of(q.shape[1], shards) >= LANES and q.shape[3] % LANES == 0


def check_version() -> None:
    """Refuse a JAX whose private backward pass nobody has looked at.

    Raises:
      InputError: JAX is another version than `CHECKED_WITH`; the message says what to do.
    """
    if jax.__version_info__[:2] != CHECKED_WITH:
        checked = ".".join(map(str, CHECKED_WITH))
        raise InputError(
            f"TTT attention on TPU calls a private function of JAX that was checked with {checked}.x, found "
            f"{jax.__version__}: {install('tpu')} brings jax {checked}; or run tests/jax/test_splash.py and raise "
            "jax_specexit.model.splash.CHECKED_WITH"
        )


@dataclass(frozen=True)
class Splash:
    """See `jax_specexit.model.attention.Causal`; ``interpret`` runs the kernel on a CPU, for tests."""

    shards: int = 1
    kind: str = ""
    """What JAX calls the chip."""
    interpret: bool = False
    window: int | None = None
    """How many keys a query sees at most, its own the last of them; None: all up to its own."""

    def forward(
        self,
        q: Float[Array, "batch time heads dim"],
        k: Float[Array, "batch all kv dim"],
        v: Float[Array, "batch all kv dim"],
        starts: Int[Array, "batch all"],
    ) -> tuple[Float[Array, "batch time heads dim"], Float[Array, "batch time heads"]]:
        """Output in the dtype of ``q``, log of the normaliser in float32."""
        kernel = self._kernel(q.shape[2], k.shape[1])
        out, (log_total,) = jax.vmap(kernel)(*map(_heads_first, (_scaled(q), k, v)), self._segments(starts))
        return _heads_first(out), _heads_first(log_total)

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
        kernel = self._kernel(q.shape[2], k.shape[1])
        q, k, v, out, log_total, d_out = map(_heads_first, (_scaled(q), k, v, out, log_total, d_out))
        one = jax.vmap(partial(_backward, kernel))
        d_q, d_k, d_v = map(_heads_first, one(q, k, v, self._segments(starts), out, log_total, d_out))
        return d_q.astype(jnp.float32) * q.shape[-1] ** -0.5, d_k, d_v

    def _segments(self, starts: Array) -> kernels.SegmentIds:
        places = context.own(jnp.asarray(context.order(starts.shape[1], self.shards)), self.shards)
        return kernels.SegmentIds(starts[:, places], starts)

    def _kernel(self, heads: int, time: int) -> kernels.SplashAttentionKernel:
        """The kernel with this chip's part of the mask: which tiles it computes, and where its queries are."""
        check_version()
        causal = masks.CausalMask((time, time))
        if self.window is not None:
            causal = masks.LocalMask((time, time), window_size=(self.window - 1, 0), offset=0)
        causal.q_sequence = context.order(time, self.shards).reshape(-1).astype(np.int32)
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([causal] * heads),
            block_sizes=_blocks(time, forward_tile(time, self.shards, self.kind), tile_of(time, self.shards)),
            save_residuals=True,
            head_shards=1,  # of this device's heads; the mesh is shard_map's business
            q_seq_shards=self.shards,
            interpret=self.interpret,
        )
        if self.shards == 1:
            return kernel
        forward, backward = self._part(kernel.fwd_mask_info), self._part(kernel.dkv_mask_info)
        return kernels.SplashAttentionKernel(forward, None, backward, **kernel.kwargs)

    def _part(self, info: Any) -> Any:
        """This chip's part of what is in the order of the queries: [heads, tiles, ...] and [queries]."""

        def cut(x: Array | None, axis: int) -> Array | None:
            return x if x is None else context.own(jnp.stack(jnp.split(x, self.shards, axis)), self.shards)

        sliced = {name: cut(getattr(info, name), 1) for name in ("data_next", "mask_next", "block_mask")}
        return info._replace(**sliced, q_sequence=cut(info.q_sequence, 0))


def _blocks(time: int, forward: int, tile: int) -> kernels.BlockSizes:
    """Sizes for one kernel for the whole backward pass, which takes five products a tile; two kernels take seven.

    Every block of keys writes out its part of the queries' gradient, and these are added up afterwards. So blocks of
    keys are wide, and the kernel goes through them in tiles.
    """
    return kernels.BlockSizes(
        block_q=forward,
        block_kv=forward,
        block_q_dkv=tile,
        block_kv_dkv=wide_of(time, tile),
        block_kv_dkv_compute=tile,
        use_fused_bwd_kernel=True,
    )


def wide_of(time: int, tile: int) -> int:
    """Keys of a block in the backward pass."""
    return math.gcd(time, WIDE * tile)


def tile_of(time: int, shards: int = 1, most: int | None = None) -> int:
    """Rows of a tile, which lies in one of the two pieces of `context.order`; `TILE` of them at most, or ``most``."""
    piece = time if shards == 1 else time // (2 * shards)
    return min(most or TILE, piece & -piece)


def forward_tile(time: int, shards: int = 1, kind: str = "") -> int:
    """Rows of a tile of the forward pass, on what JAX calls ``kind``."""
    return tile_of(time, shards, FORWARD.get(DEVICE_KINDS.get(kind, "")))


def _heads_first(x: Array) -> Array:
    return jnp.swapaxes(x, 1, 2)


def _scaled(q: Array) -> Array:
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _backward(kernel: Any, scaled, key, value, segments, out, log_total, d_out) -> tuple[Array, Array, Array]:
    """The kernel's gradient of one sequence, [heads, time, dim]: queries, keys, values."""
    settings = {name: value for name, value in kernel.kwargs.items() if name != "save_residuals"}
    residuals = (
        *(scaled, key, value, segments, None),
        *(out, log_total, None, kernel.dkv_mask_info),
    )
    return kernels._splash_attention_bwd(save_residuals=False, **settings, res=residuals, do=d_out)[3:6]
