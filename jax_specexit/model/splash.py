r"""TTT attention on a TPU: the causal block by JAX's splash kernel, the diagonals merged in by log-sum-exp.

The kernel returns its output :math:`o` and the log of its normaliser :math:`\ell` over the causal block. With the
scores :math:`s_j` of the diagonals,

.. math:: L = \log\Bigl(e^{\ell} + \sum_j e^{s_j}\Bigr), \qquad O = e^{\ell - L}\, o + \sum_j e^{s_j - L}\, v_j .

The gradient of ordinary attention depends on the rest of a row through L and O alone, so the kernel's own backward
pass, handed the merged L and O, is exact for the causal block. The public kernel cannot be differentiated through
:math:`\ell` (it refuses), and `jax.nn.dot_product_attention` with ``return_residual`` drops that gradient silently, so
the backward pass is called directly. It is private, hence `CHECKED_WITH`.

Shape legend: batch, time, heads (query), kv (key/value heads), dim.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

CHECKED_WITH = (0, 10)
"""Version of JAX whose private backward pass this file calls."""

LANES = 128
"""A TPU vector register's width: the kernel's tiles are multiples of it."""

TILE = 512
"""Rows and columns of the kernel's tiles, or the largest power of two below that divides the length."""


def fits(q: Float[Array, "batch time heads dim"]) -> bool:
    """Whether the kernel takes these shapes."""
    return q.shape[1] % LANES == 0 and q.shape[3] % LANES == 0


def check_version() -> None:
    """Refuse a JAX whose private backward pass nobody has looked at.

    Raises:
      RuntimeError: says what to do.
    """
    if jax.__version_info__[:2] != CHECKED_WITH:
        checked = ".".join(map(str, CHECKED_WITH))
        raise RuntimeError(
            f"TTT attention on TPU calls a private function of JAX that was checked with {checked}.x, found "
            f"{jax.__version__}: install jax {checked}, or run tests/jax/test_splash.py and raise "
            "jax_specexit.model.splash.CHECKED_WITH"
        )


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def splash_attention(
    q: Float[Array, "batch time heads dim"],
    keys: list[Array],
    values: list[Array],
    starts: Int[Array, "batch time"],
    interpret: bool = False,
) -> Float[Array, "batch time heads dim"]:
    """`jax_specexit.model.attention.ttt_attention` of one device; ``interpret`` runs the kernel on a CPU, for tests."""
    return _forward(q, keys, values, starts, interpret)[0]


def _kernel(heads: int, time: int, interpret: bool) -> kernels.SplashAttentionKernel:
    check_version()
    tile = min(TILE, time & -time)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    mask = masks.MultiHeadMask([masks.CausalMask((time, time))] * heads)
    return kernels.make_splash_mha(
        mask,
        block_sizes=kernels.BlockSizes(**dict.fromkeys(names, tile)),
        save_residuals=True,
        head_shards=1,  # of this device's heads; the mesh is shard_map's business
        q_seq_shards=1,
        interpret=interpret,
    )


def _heads_first(x: Array) -> Array:
    return jnp.swapaxes(x, 1, 2)


def _grouped(q: Float[Array, "batch time heads dim"], kv: int) -> Float[Array, "batch time kv group dim"]:
    return q.reshape(*q.shape[:2], kv, q.shape[2] // kv, q.shape[3])


def _own_scores(q: Array, key: Array) -> Float[Array, "batch time heads"]:
    """Score of every query with the key of its own row, in float32."""
    scores = jnp.einsum("btkgd,btkd->btkg", _grouped(q, key.shape[2]), key, preferred_element_type=jnp.float32)
    return scores.reshape(q.shape[:3])


def _forward(q, keys, values, starts, interpret):
    scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    kernel = _kernel(q.shape[2], q.shape[1], interpret)
    segments = kernels.SegmentIds(starts, starts)
    causal, (log_total,) = jax.vmap(kernel)(*map(_heads_first, (scaled, keys[0], values[0])), segments)
    causal, log_total = _heads_first(causal), _heads_first(log_total)
    own = [_own_scores(scaled, k) for k in keys[1:]]
    merged = jax.nn.logsumexp(jnp.stack([log_total, *own]), axis=0)
    out = causal.astype(jnp.float32) * jnp.exp(log_total - merged)[..., None]
    for score, v in zip(own, values[1:], strict=True):
        weight = _grouped(jnp.exp(score - merged)[..., None], v.shape[2])
        out += (weight * v[:, :, :, None]).reshape(out.shape)
    out = out.astype(q.dtype)
    return out, (scaled, keys, values, starts, out, merged)


def _causal_backward(kernel: Any, scaled, key, value, starts, out, log_total, d_out) -> tuple[Array, Array, Array]:
    """The kernel's gradient of one sequence, [heads, time, dim]: queries, keys, values."""
    settings = {name: value for name, value in kernel.kwargs.items() if name != "save_residuals"}
    residuals = (
        *(scaled, key, value, kernels.SegmentIds(starts, starts), None),
        *(out, log_total, kernel.dq_mask_info, kernel.dkv_mask_info),
    )
    return kernels._splash_attention_bwd(save_residuals=False, **settings, res=residuals, do=d_out)[3:6]


def _backward(interpret, residuals, d_out):
    scaled, keys, values, starts, out, merged = residuals
    kernel = _kernel(scaled.shape[2], scaled.shape[1], interpret)
    per_head = map(_heads_first, (scaled, keys[0], values[0], out, merged, d_out))
    q, k, v, o, log_total, d_o = per_head
    gradients = jax.vmap(partial(_causal_backward, kernel))(q, k, v, starts, o, log_total, d_o)
    d_q, d_k, d_v = (_heads_first(g).astype(jnp.float32) for g in gradients)
    d_keys, d_values = [d_k], [d_v]
    shared = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    for k, v in zip(keys[1:], values[1:], strict=True):
        kv = k.shape[2]
        weight = jnp.exp(_own_scores(scaled, k) - merged)
        d_score = _grouped((weight * (_own_scores(d_out, v) - shared))[..., None], kv)
        d_q += (d_score * k[:, :, :, None]).reshape(d_q.shape)
        d_keys.append(jnp.sum(d_score * _grouped(scaled, kv), axis=3))
        d_values.append(jnp.sum(_grouped(weight[..., None], kv) * _grouped(d_out, kv), axis=3))
    d_q *= scaled.shape[-1] ** -0.5
    return *jax.tree.map(lambda x: x.astype(scaled.dtype), (d_q, d_keys, d_values)), None


splash_attention.defvjp(_forward, _backward)
