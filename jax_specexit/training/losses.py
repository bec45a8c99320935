r"""What a draft is trained on: the target's next-token distribution over K TTT steps, and the signals at step 0.

.. math:: L = \sum_{k<K} \beta^k \, \mathrm{CE}_k \; + \; \sum_s \lambda_s L_s

with :math:`L_s` MSE (confidence, progress), MSLE (remaining) or BCE (validity), and dynamic :math:`\lambda_s`:
see `signal_weights`.

Shape legend: step (TTT), batch, time, hidden (draft), thidden (target), dvocab (draft vocabulary), signals.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jax_specexit.sharding import BATCH, CONTEXT, EXPERT, ROWS
from specexit.method.signals import RAW_LIMIT, SIGNALS


class TokenLoss(NamedTuple):
    """What `linear_cross_entropy` returns; only ``total`` carries a gradient."""

    total: Float[Array, ""]
    per_step: Float[Array, " step"]
    """Weighted mean cross-entropy of each TTT step; NaN where no row counts, here and in ``top1``."""
    top1: Float[Array, " step"]
    """Share of positions where the draft's first choice is the label."""
    state_gradient: Float[Array, ""]
    """Norm of the gradient with respect to the step-0 hidden states."""


class Teacher(NamedTuple):
    """The target's side of the token loss: it gets no gradient."""

    hidden: Float[Array, "batch time thidden"]
    head: Float[Array, "thidden dvocab"]
    """LM head columns of the draft vocabulary."""
    labels: Int[Array, "batch time"]
    """Draft id of the token that followed, -1 where it is not in the draft vocabulary."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def linear_cross_entropy(
    hidden: Float[Array, "step batch time hidden"],
    head: Float[Array, "hidden dvocab"],
    teacher: Teacher,
    weights: Float[Array, "step batch time"],
    chunk: int,
) -> TokenLoss:
    """Soft cross-entropy against the teacher, LM head and loss fused, in chunks of time.

    Row (k, b, t) is scored against teacher row (b, t), so the teacher's softmax is formed once for all K steps, and
    logits exist for one chunk only. Gradients are made in the forward pass (one pass instead of two), so use it for
    training only. Where a mesh is in force, every device has the logits of its own rows and vocabulary shard.

    Logits are float32 whatever the dtype of their factors: in bfloat16 one of 16 to 32 moves in steps of 0.125, and a
    draft that is nearly as good as its teacher would learn from rounding alone.

    Args:
      hidden: normed draft outputs, aligned to the teacher's rows.
      head: the draft's LM head.
      teacher: target hidden states, head and labels.
      weights: factor of each row's loss in ``total``; 0 masks it.
      chunk: rows of time at once; must divide the time of one device.
    """
    return _forward(hidden, head, teacher, weights, chunk)[0]


def _chunks(x: Array, axis: int, chunk: int) -> Array:
    shape = (*x.shape[:axis], x.shape[axis] // chunk, chunk, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _product(pattern: str, a: Array, b: Array) -> Array:
    """A product with the vocabulary on one side, added up and kept in at least float32."""
    return jnp.einsum(pattern, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _forward(hidden, head, teacher, weights, chunk):
    inputs = (
        *(hidden, head.astype(hidden.dtype)),
        *(teacher.hidden, teacher.head.astype(teacher.hidden.dtype), teacher.labels, weights),
    )
    if jax.sharding.get_abstract_mesh().empty:
        sums, gradient, head_gradient = _local(*inputs, chunk=chunk, sharded=False)
    else:
        rows, per_step, columns = BATCH, PartitionSpec(None, *BATCH), PartitionSpec(None, "tensor")
        sums, gradient, head_gradient = jax.shard_map(
            partial(_local, chunk=chunk, sharded=True),
            in_specs=(per_step, columns, rows, columns, rows, per_step),
            out_specs=(PartitionSpec(), per_step, PartitionSpec("fsdp", "tensor")),
            check_vma=False,  # the scan's sums begin as constants, which the check takes for replicated
        )(*inputs)
    loss_sums, hit_sums = sums
    n = jnp.sum(jnp.sign(weights), axis=(1, 2))
    result = TokenLoss(
        total=jnp.sum(loss_sums),
        per_step=jnp.where(n > 0, loss_sums / jnp.maximum(jnp.sum(weights, axis=(1, 2)), 1e-9), jnp.nan),
        top1=jnp.where(n > 0, hit_sums / jnp.maximum(n, 1.0), jnp.nan),
        state_gradient=jnp.linalg.norm(gradient[0].astype(jnp.float32)),
    )
    return result, (gradient, head_gradient, head, teacher, weights)


def _local(hidden, head, teacher_hidden, teacher_head, labels, weights, *, chunk, sharded):
    """One device's rows and columns of the logits: sums, gradient of its rows, gradient of its part of the head.

    Logits are as wide as the columns that this device holds. What a softmax needs from the others are two numbers a
    row; gradients are added up once, behind the scan, not once a chunk.
    """
    vocab, rows = ("tensor", (*ROWS, CONTEXT)) if sharded else ((), ())
    split = sharded and jax.lax.axis_size(vocab) > 1
    first = jax.lax.axis_index(vocab) * head.shape[1] if sharded else 0

    def log_norm(z: Array) -> Array:
        top = jax.lax.pmax(jnp.max(z, axis=-1), vocab)
        return top + jnp.log(jax.lax.psum(jnp.sum(jnp.exp(z - top[..., None]), axis=-1), vocab))

    def body(carry, xs):
        """Adds one chunk to the head's gradient and the sums; yields the gradient of the chunk's rows."""
        head_gradient, sums = carry
        h, th, labels, w = xs
        teacher_z = _product("bth,hv->btv", th, teacher_head)
        p = jnp.exp(teacher_z - log_norm(teacher_z)[..., None])
        z = _product("kbth,hv->kbtv", h, head)
        norm = log_norm(z)
        # A product, or CPUs would compute p again for every TTT step; at the highest precision, or TPUs would round z.
        expected = jnp.einsum("btv,kbtv->kbt", p, z, precision=jax.lax.Precision.HIGHEST)
        losses = norm - jax.lax.psum(expected, vocab)
        hits = _first_choice(z, vocab, first) == labels
        g = ((jnp.exp(z - norm[..., None]) - p) * w[..., None]).astype(h.dtype)
        head_gradient += _product("kbth,kbtv->hv", h, g)
        sums += jnp.stack([jnp.sum(w * losses, axis=(1, 2)), jnp.sum(jnp.sign(w) * hits, axis=(1, 2))])
        gradient = _product("kbtv,hv->kbth", g, head)
        # It stays wide while the gradients of other shards are still to be added.
        return (head_gradient, sums), gradient if split else gradient.astype(h.dtype)

    xs = (
        _chunks(hidden, 2, chunk),
        _chunks(teacher_hidden, 1, chunk),
        _chunks(labels, 1, chunk),
        _chunks(weights, 2, chunk),
    )
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    start = (jnp.zeros(head.shape, wide), jnp.zeros((2, hidden.shape[0]), wide))
    (head_gradient, sums), pieces = jax.lax.scan(body, start, xs)
    gradient = jax.lax.psum(jnp.moveaxis(pieces, 0, 2).reshape(hidden.shape), vocab).astype(hidden.dtype)
    if sharded:
        head_gradient = jax.lax.psum_scatter(head_gradient, "fsdp", scatter_dimension=0, tiled=True)
        head_gradient = jax.lax.psum(head_gradient, ("data", EXPERT, CONTEXT))
    return jax.lax.psum(sums, rows), gradient, head_gradient


def _first_choice(z: Array, vocab: str | tuple[()], first: Array | int) -> Array:
    """Id of the largest logit, the lowest among equals, where this device's columns begin with id ``first``.

    By the largest and a minimum, not by an argmax, which XLA's CPU compiler does not vectorise: of the whole loss it
    took a third.
    """
    highest = jax.lax.pmax(jnp.max(z, axis=-1, keepdims=True), vocab)
    ids = first + jax.lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1)
    return jax.lax.pmin(jnp.min(jnp.where(z == highest, ids, jnp.iinfo(jnp.int32).max), axis=-1), vocab)


def first_choices(
    hidden: Float[Array, "step batch time hidden"], head: Float[Array, "hidden vocab"], chunk: int
) -> Int[Array, "step batch time"]:
    """Id of every row's largest logit, the lowest among equals; sharded and in chunks as `linear_cross_entropy`."""

    def local(hidden: Array, head: Array, *, sharded: bool) -> Array:
        vocab = "tensor" if sharded else ()
        first = jax.lax.axis_index(vocab) * head.shape[1] if sharded else 0
        chosen = jax.lax.map(
            lambda h: _first_choice(_product("kbth,hv->kbtv", h, head), vocab, first), _chunks(hidden, 2, chunk)
        )
        return jnp.moveaxis(chosen, 0, 2).reshape(hidden.shape[:3]).astype(jnp.int32)

    inputs = (hidden, head.astype(hidden.dtype))
    if jax.sharding.get_abstract_mesh().empty:
        return local(*inputs, sharded=False)
    rows, columns = PartitionSpec(None, *BATCH), PartitionSpec(None, "tensor")
    sharded = partial(local, sharded=True)
    return jax.shard_map(sharded, in_specs=(rows, columns), out_specs=rows, check_vma=False)(*inputs)


def _backward(chunk, residuals, cotangent):
    gradient, head_gradient, head, teacher, weights = residuals
    scale = cotangent.total
    nothing = jax.tree.map(_zero_cotangent, teacher)
    return (
        gradient * scale.astype(gradient.dtype),
        (head_gradient * scale).astype(head.dtype),
        nothing,
        jnp.zeros_like(weights),
    )


def _zero_cotangent(x: Array) -> Array | np.ndarray:
    """Zeros in the type that JAX wants for a cotangent: float0, which only numpy has, for integers."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return np.zeros(x.shape, jax.dtypes.float0)
    return jnp.zeros_like(x)


linear_cross_entropy.defvjp(_forward, _backward)


def signal_losses(
    raw: Float[Array, "batch time signals"],
    labels: Float[Array, "batch time signals"],
    weights: Float[Array, "batch time signals"],
) -> Float[Array, " signals"]:
    r"""Mean loss of each signal, weighted; a token without a label has weight 0.

    MSE and BCE on ``sigmoid(z)``; MSLE on ``exp(z)`` is :math:`(\log(1+e^z) - \log(1+y))^2`, which is softplus minus
    log1p and never overflows.
    """
    z = jnp.clip(raw.astype(jnp.float32), -RAW_LIMIT, RAW_LIMIT)
    per_kind = {
        "mse": (jax.nn.sigmoid(z) - labels) ** 2,
        "msle": (jax.nn.softplus(z) - jnp.log1p(labels)) ** 2,
        "bce": jax.nn.softplus(z) - labels * z,
    }
    columns = [per_kind[signal.loss][..., i] for i, signal in enumerate(SIGNALS)]
    stacked = jnp.stack(columns, axis=-1) * weights
    return jnp.sum(stacked, axis=(0, 1)) / jnp.maximum(jnp.sum(weights, axis=(0, 1)), 1.0)


def signal_state_gradients(
    raw: Float[Array, "batch time signals"],
    labels: Float[Array, "batch time signals"],
    weights: Float[Array, "batch time signals"],
    kernel: Float[Array, "width signals"],
) -> Float[Array, " signals"]:
    r"""Norm of each signal loss's gradient with respect to the state that the heads read, in closed form.

    The head is linear, so :math:`\partial L_s / \partial y_t = (\partial L_s / \partial z_{ts})\, w_s`, and the norm
    over all rows is :math:`\lVert \partial L_s / \partial z_s \rVert \cdot \lVert w_s \rVert`: no second backward pass.
    """
    dz = jax.grad(lambda z: jnp.sum(signal_losses(z, labels, weights)))(raw.astype(jnp.float32))
    return jnp.sqrt(jnp.sum(dz**2, axis=(0, 1))) * jnp.linalg.norm(kernel, axis=0)


def constant_losses(
    labels: Float[Array, "batch time signals"], weights: Float[Array, "batch time signals"]
) -> Float[Array, " signals"]:
    """`signal_losses` of the best answer that is the same for all tokens: what a state without information comes to."""
    total = jnp.maximum(jnp.sum(weights, axis=(0, 1)), 1e-12)

    def mean(values: Array) -> Array:
        return jnp.sum(values * weights, axis=(0, 1)) / total

    def variance(values: Array) -> Array:
        return mean((values - mean(values)) ** 2)

    p = mean(labels)
    per_kind = {
        "mse": variance(labels),
        "msle": variance(jnp.log1p(labels)),
        "bce": -(jax.scipy.special.xlogy(p, p) + jax.scipy.special.xlogy(1 - p, 1 - p)),
    }
    return jnp.stack([per_kind[signal.loss][i] for i, signal in enumerate(SIGNALS)])


BEGUN, DONE = 0.1, 0.01
"""Shares of what a constant answer loses: a signal pulls with all of its force once its loss has fallen by `BEGUN` of
that, and until only `DONE` of it is left."""


def fades(losses: Float[Array, " signals"], constants: Float[Array, " signals"]) -> Float[Array, " signals"]:
    r"""Factor of each signal's pull, from 0 to 1: 0 where a state tells nothing of it, and where its loss is down to 0.

    :math:`f = \mathrm{clip}((1 - \ell) / 0.1) \cdot \mathrm{clip}(\ell / 0.01)`, both to [0, 1], where :math:`\ell` is
    the loss as a share of what the best constant answer loses: 1 for labels that the state tells nothing of, 0 for a
    signal that is solved. In both cases the gradient is noise. The rule is ours.
    """
    share = losses / jnp.maximum(constants, 1e-12)
    return jnp.clip((1 - share) / BEGUN, 0, 1) * jnp.clip(share / DONE, 0, 1)


WEIGHT_RANGE = (1e-3, 1e3)
"""Bounds of a dynamic weight. The head learns at the lower one as well: AdamW takes the gradient's scale out."""


def signal_weights(
    token_gradient: Float[Array, ""],
    signal_gradients: Float[Array, " signals"],
    share: float,
    *,
    fade: Float[Array, " signals"] | None = None,
) -> Float[Array, " signals"]:
    r"""Dynamic weights :math:`\lambda_s`: every signal pulls on the shared state with ``share`` of the tokens' force.

    :math:`\lambda_s = f_s \cdot \mathrm{share} \cdot \lVert g_{tokens} \rVert / \lVert g_s \rVert`, on smoothed
    magnitudes, with :math:`f` from `fades`. With ``source: fc`` the token loss and the signal rows share no weight (no
    ``fade``), so the signals are balanced among themselves around their geometric mean instead. The paper says only
    that its weights come from gradient magnitudes; the rule is ours.
    """
    safe = jnp.maximum(signal_gradients, 1e-12)
    reference = jnp.exp(jnp.mean(jnp.log(safe))) if fade is None else fade * share * token_gradient
    return jax.lax.stop_gradient(jnp.clip(reference / safe, *WEIGHT_RANGE))
