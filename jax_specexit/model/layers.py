"""The building blocks that target and draft share: RMSNorm, linear, rotary embedding, SwiGLU.

Parameters are float32; activations follow the dtype of the input, norms and softmax run in float32. A parameter's
sharding is not stated here but once, by name, in `jax_specexit.sharding`.

Shape legend: batch, time, heads (query heads), kv (key/value heads), dim (of one head), hidden.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_specexit.sharding import constrain
from specexit.drafts.rope import RopeScaling as RopeScaling
from specexit.drafts.rope import rotary_factor as rotary_factor
from specexit.drafts.rope import rotary_frequencies as rotary_frequencies


def exact_products(dtype: DTypeLike) -> AbstractContextManager:
    """A context to trace a program of ``dtype`` in: where that is float32, products are exact on TPUs, too.

    TPUs round the factors of a float32 product to bfloat16 unless they are told otherwise.
    """
    wide = jnp.dtype(dtype) == jnp.float32
    return jax.default_matmul_precision("highest") if wide else nullcontext()


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Normalise over the last axis."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...]).astype(x.dtype)


class Linear(nnx.Module):
    """``x @ kernel (+ bias)``; the kernel is stored [in, out], the transpose of PyTorch's layout.

    With a ``scale``, one number per output, the kernel is int8: see `quantize`.
    """

    def __init__(self, size_in: int, size_out: int, *, rngs: nnx.Rngs, bias: bool = False, std: float | None = None):
        scale = size_in**-0.5 if std is None else std
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (size_in, size_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((size_out,), jnp.float32)) if bias else None
        self.scale = nnx.data(None)

    def __call__(self, x: Float[Array, "*batch size_in"]) -> Float[Array, "*batch size_out"]:
        """Apply the layer in the dtype of ``x``."""
        y = x @ self.kernel[...].astype(x.dtype) if self.scale is None else self._int8_product(x)
        return self.biased(y)

    def biased(self, y: Float[Array, "*batch size_out"]) -> Float[Array, "*batch size_out"]:
        """Add the bias, if there is one."""
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def _int8_product(self, x: Array) -> Array:
        """Each row of ``x`` scaled to int8 by its largest value, products added up in int32, scaled back in float32."""
        rows = tuple(range(x.ndim - 1))
        quantized = qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=rows)
        assert self.scale is not None
        kernel = qwix.QArray(self.kernel[...], self.scale[...][None])
        return qwix.dot_general(quantized, kernel, (((x.ndim - 1,), (0,)), ((), ()))).astype(x.dtype)

    def quantize(self) -> None:
        """Make the kernel int8, every column scaled by its largest value (in place); [..., in, out] where stacked.

        It is Qwix's symmetric quantization: of weights per channel, and of activations per row when the layer runs.
        """
        self.kernel, self.scale = quantize(self.kernel[...])


def quantize(kernel: Float[Array, "*stack size_in size_out"]) -> tuple[nnx.Param, nnx.Param]:
    """A kernel as int8, and the scale of every column."""
    columns = tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2)
    found = qwix.quantize(kernel.astype(jnp.float32), jnp.int8, channelwise_axes=columns)
    return nnx.Param(found.qvalue), nnx.Param(jnp.squeeze(found.scale, -2))


class SwiGLU(nnx.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden: int, intermediate: int, *, rngs: nnx.Rngs):
        self.gate = Linear(hidden, intermediate, rngs=rngs)
        self.up = Linear(hidden, intermediate, rngs=rngs)
        self.down = Linear(intermediate, hidden, rngs=rngs, std=0.5 * intermediate**-0.5)

    def __call__(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        """Apply the block."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def rotary(
    x: Float[Array, "batch time heads dim"],
    positions: Int[Array, "batch time"],
    frequency: Float[np.ndarray, " half_dim"],
    factor: float = 1.0,
) -> Float[Array, "batch time heads dim"]:
    """Rotary position embedding in the half-split layout of Llama and Qwen (Su et al. 2021), times ``factor``."""
    angle = positions[..., None].astype(jnp.float32) * frequency
    cos, sin = factor * jnp.cos(angle)[:, :, None], factor * jnp.sin(angle)[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def split_heads(x: Float[Array, "batch time width"], heads: int) -> Float[Array, "batch time heads dim"]:
    """Split a projection's output into heads, sharded over the mesh; the compiler would otherwise gather them."""
    return constrain(x.reshape(*x.shape[:2], heads, -1), "batch", "time", "heads", None)


def repeat_kv(x: Float[Array, "batch time kv dim"], heads: int) -> Float[Array, "batch time heads dim"]:
    """Give every query head its key/value head (grouped-query attention)."""
    return x if x.shape[2] == heads else jnp.repeat(x, heads // x.shape[2], axis=2)


def segment_starts(segment_ids: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """For every place in a row, the place at which its segment begins.

    Example:
      >>> segment_starts(jnp.array([[1, 1, 2, 2, 0]])).tolist()
      [[0, 0, 2, 2, 4]]
    """
    place = jnp.arange(segment_ids.shape[1])
    begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    return jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
