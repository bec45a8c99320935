"""The JAX side of ``specexit bench-training``: a process that trains on one row, one step for each job on stdin.

The losses and their gradients are those of `jax_specexit.training.step`, on features that are given, not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jax_specexit.export import params_from_draft
from jax_specexit.model.attention import ttt_attention, ttt_attention_reference
from jax_specexit.model.draft import Draft
from jax_specexit.sharding import shift
from jax_specexit.training.losses import (
    Teacher,
    linear_cross_entropy,
    signal_losses,
    signal_state_gradients,
    signal_weights,
)
from jax_specexit.training.step import smooth, token_weights, ttt_outputs
from specexit.bench.process import claim_stdout, jobs, measured, reply
from specexit.drafts.directory import SpecExitBlock, read_draft
from specexit.method.signals import SIGNALS
from specexit.schemas.bench_training import BenchTrainingConfig

NAIVE_LENGTH = 1024
"""The one length at which the naive attention is measured: its explicit mask still fits everywhere."""


def main() -> None:
    """Answer the jobs on stdin until it ends: each asks for a step's time, attention's memory, or the weights' cost."""
    replies, asked = claim_stdout(), jobs()
    setup = next(asked)
    folder = Path(setup.pop("folder"))
    setup.pop("threads")  # XLA takes all cores
    config = BenchTrainingConfig.model_validate(setup)
    step = make_step(config, folder)
    first = step()
    step()  # the first call compiles, and only the second is given buffers that a step has donated
    reply(replies, {"loss": first})
    for job in asked:
        if "attention_memory" in job:
            reply(replies, attention_memory(config, job["attention_memory"]))
        elif "weights" in job:
            reply(replies, {source: dynamic_weights(config, folder, source) for source in job["weights"]})
        else:
            reply(replies, measured(step))


def make_step(
    config: BenchTrainingConfig, folder: Path, signals: Literal["draft", "fc"] | None = None, *, dynamic: bool = False
) -> Callable[[], float]:
    """A function that does one step and returns its loss.

    Args:
      config: sizes.
      folder: with the draft directory and the row.
      signals: source of the signals that are trained as well; None trains on the tokens alone.
      dynamic: whether the signals' weights follow the gradients, or are 1.
    """
    shape, tensors = read_draft(folder / "draft")
    block = SpecExitBlock(target="random", source=signals or "draft")
    draft = Draft(shape.model_copy(update={"specexit": block}), rngs=nnx.Rngs(0))
    nnx.update(draft, jax.tree.map(jnp.asarray, params_from_draft(shape, tensors)))
    graph, params = nnx.split(draft)
    params = nnx.to_pure_dict(params)
    row = {name: jnp.asarray(value) for name, value in np.load(folder / "row.npz").items()}
    tokens = row["tokens"][:, : config.length]
    ones = jnp.ones((1, config.length), jnp.int32)
    batch = {"tokens": tokens, "positions": jnp.arange(config.length)[None], "segment_ids": ones, "loss_mask": ones}
    given = {name: row[name][:, : config.length].astype(config.dtype) for name in ("aux", "state")}
    given |= {"embedding": row["embedding"], "head": row["embedding"][: shape.draft_vocab_size].T}
    labels = jnp.where(shift(tokens, 1) < shape.draft_vocab_size, shift(tokens, 1), -1)
    weights = token_weights(batch, config.ttt_steps, 1.0)
    half, counts = jnp.full((1, config.length, len(SIGNALS)), 0.5), jnp.ones((1, config.length, len(SIGNALS)))

    def loss_fn(params: Any, magnitudes: jax.Array, given: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Loss, and the smoothed gradient magnitudes behind the dynamic weights."""
        draft = nnx.merge(graph, params)
        outputs = ttt_outputs(draft, given["embedding"], given["aux"], batch, config.ttt_steps)
        aligned = jnp.stack([shift(y, -1 - k) for k, y in enumerate(outputs)])
        teacher = Teacher(given["state"], given["head"], labels)
        token: Any = linear_cross_entropy(aligned, draft.lm_head.kernel[...], teacher, weights, config.loss_chunk)
        if signals is None:
            return token.total, magnitudes
        raw, lambdas = draft.signals(given["aux"], outputs[0]), jnp.ones(len(SIGNALS))
        if dynamic:
            assert draft.signal_head is not None
            pulls = signal_state_gradients(raw, half, counts, draft.signal_head.kernel[...])
            magnitudes = smooth(magnitudes, jnp.concatenate([token.state_gradient[None], pulls]), 0.95)
            fade = jnp.ones(len(SIGNALS)) if signals == "draft" else None
            lambdas = signal_weights(magnitudes[0], magnitudes[1:], 0.3, fade=fade)
        return token.total + jnp.sum(lambdas * signal_losses(raw, half, counts)), magnitudes

    optimizer = optax.adamw(1e-3)

    def update(params: Any, state: Any, magnitudes: jax.Array, given: Any) -> tuple[Any, Any, jax.Array, jax.Array]:
        (loss, magnitudes), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, magnitudes, given)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, magnitudes, loss

    compiled = jax.jit(update, donate_argnums=(0, 1))
    now = [params, optimizer.init(params), jnp.zeros(1 + len(SIGNALS))]

    def step() -> float:
        *now[:], loss = compiled(*now, given)
        return float(loss)

    return step


def dynamic_weights(config: BenchTrainingConfig, folder: Path, source: Literal["draft", "fc"]) -> list[list[float]]:
    """Seconds of each round's step with weights of 1, and with weights that follow the gradients, taking turns."""
    steps = [make_step(config, folder, source, dynamic=dynamic) for dynamic in (False, True)]
    for step in (*steps, *steps):
        step()
    turns = [[measured(step)["seconds"] for step in steps[:: 1 if i % 2 else -1]] for i in range(config.rounds)]
    return [[turn[j if i % 2 else 1 - j] for i, turn in enumerate(turns)] for j in range(2)]


def attention_memory(config: BenchTrainingConfig, lengths: list[int]) -> dict[str, dict[str, float]]:
    """Temporary memory, in MiB, of the attention of all TTT steps and its gradient, as XLA plans it."""
    kinds = {"blockwise": (ttt_attention, lengths), "naive": (ttt_attention_reference, [NAIVE_LENGTH])}
    return {kind: {str(n): _temp_mib(config, attend, n) for n in of} for kind, (attend, of) in kinds.items()}


def _temp_mib(config: BenchTrainingConfig, attend: Callable, length: int) -> float:
    c, steps = config.draft, config.ttt_steps
    q = jax.ShapeDtypeStruct((steps, 1, length, c.num_attention_heads, c.head_dim), jnp.float32)
    kv = jax.ShapeDtypeStruct((steps, 1, length, c.num_key_value_heads, c.head_dim), jnp.float32)
    segments = jnp.ones((1, length), jnp.int32)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Every TTT step sees the keys of those before it."""
        mixed = [attend(q[i], list(k[: i + 1]), list(v[: i + 1]), segments) for i in range(steps)]
        return sum((jnp.sum(x**2) for x in mixed), jnp.zeros(()))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, kv, kv).compile()
    found: Any = compiled.memory_analysis()
    return found.temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
