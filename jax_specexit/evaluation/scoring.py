"""Run a draft over whole traces, teacher-forced: signals of every thinking token, and what it would have drafted.

This is exact for greedy traces: the target would have written the same tokens, so the states are those of serving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from jax_specexit.model.draft import Draft
from jax_specexit.model.target import Target
from jax_specexit.sharding import shift
from jax_specexit.training.step import ttt_outputs
from specexit.data.traces import Trace
from specexit.method.signals import activate


@dataclass(frozen=True)
class Scored:
    """One trace through the draft."""

    trace: Trace
    raw: Float[np.ndarray, "think signals"]
    """Raw signals of each thinking token."""
    hits: Bool[np.ndarray, "step time"]
    """Whether TTT step k, from row t, predicts token t + 2 + k."""

    @property
    def signals(self) -> Float[np.ndarray, "think signals"]:
        """Signal values of each thinking token."""
        return activate(self.raw)


@dataclass(frozen=True)
class ScoredLogits(Scored):
    """The same, with what the draft thought of every token."""

    logits: Float[np.ndarray, "time dvocab"]
    """Draft logits of the first pass; row t predicts token t + 2."""


def sequence(trace: Trace, think_end: int) -> list[int]:
    """The whole token sequence of a trace."""
    return [*trace.prompt_ids, *trace.think_ids, think_end, *trace.answer_ids]


def score(
    draft: Draft,
    target: Target,
    vocab: np.ndarray,
    traces: Sequence[Trace],
    *,
    think_end: int,
    ttt_steps: int,
    batch_size: int = 16,
    bucket: int = 128,
) -> Iterator[ScoredLogits]:
    """Score traces in float32, batched by length (so not in the order given).

    Args:
      draft, target: models.
      vocab: target id of every draft token.
      traces: what to score.
      think_end: id of the end marker.
      ttt_steps: draft steps to judge.
      batch_size: traces at once.
      bucket: lengths are padded to a multiple of this, to bound the number of compilations.
    """

    @nnx.jit
    @jax.default_matmul_precision("highest")  # or TPUs would take float32 for one pass in bfloat16
    def run(draft: Draft, target: Target, tokens: jax.Array):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        ones = jnp.ones_like(tokens)
        _, aux = target(tokens, positions, ones, aux_layers=draft.config.eagle_aux_hidden_state_layer_ids)
        assert aux is not None
        batch = {"tokens": tokens, "positions": positions, "segment_ids": ones}
        outputs = ttt_outputs(draft, target.embedding[...], aux, batch, ttt_steps)
        logits = [y @ draft.lm_head.kernel[...] for y in outputs]
        hits = [jnp.asarray(vocab)[jnp.argmax(z, -1)] == shift(tokens, 2 + k) for k, z in enumerate(logits)]
        return draft.signals(aux, outputs[0]), logits[0], jnp.stack(hits)

    order = sorted(traces, key=lambda trace: len(sequence(trace, think_end)))
    for begin in range(0, len(order), batch_size):
        chunk = order[begin : begin + batch_size]
        ids = [sequence(trace, think_end) for trace in chunk]
        length = -(-max(map(len, ids)) // bucket) * bucket
        tokens = np.zeros((batch_size, length), np.int32)
        for row, sequence_ids in enumerate(ids):
            tokens[row, : len(sequence_ids)] = sequence_ids
        raw, logits, hits = (np.asarray(x) for x in run(draft, target, jnp.asarray(tokens)))
        for row, trace in enumerate(chunk):
            n, n_prompt, n_think = len(ids[row]), len(trace.prompt_ids), len(trace.think_ids)
            first = n_prompt - (1 if draft.source == "draft" else 0)
            yield ScoredLogits(trace, raw[row, first : first + n_think], hits[:, row, :n], logits[row, :n])
