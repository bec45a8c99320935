"""Run a draft over whole traces, teacher-forced: signals of every thinking token, and what it would have drafted.

This is exact for greedy traces: the target would have written the same tokens, so the states are those of serving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from jax_specexit.model.draft import Draft
from jax_specexit.model.target import Target
from jax_specexit.sharding import shift
from jax_specexit.training.losses import first_choices
from jax_specexit.training.step import ttt_outputs
from specexit.data.traces import Trace
from specexit.method.signals import activate

WINDOW = 32
"""Traces that are in memory at once."""


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


def sequence(trace: Trace, think_end: int) -> list[int]:
    """The whole token sequence of a trace."""
    return [*trace.prompt_ids, *trace.think_ids, think_end, *trace.answer_ids]


def score(
    draft: Draft,
    target: Target,
    vocab: np.ndarray,
    traces: Iterable[Trace],
    *,
    think_end: int,
    ttt_steps: int,
    batch_size: int = 16,
    bucket: int = 128,
) -> Iterator[Scored]:
    """Score traces in float32, a few batches of them in memory at once.

    Each window of `WINDOW` traces is batched by length, so they do not come in the order given. The logits exist for
    ``bucket`` rows of a batch at once.

    Args:
      draft, target: models.
      vocab: target id of every draft token.
      traces: what to score.
      think_end: id of the end marker.
      ttt_steps: draft steps to judge.
      batch_size: traces at once.
      bucket: lengths are padded to a multiple of this, to bound the number of compilations.
    """

    run = program(vocab, ttt_steps, bucket)
    behind, traces = 1 if draft.source == "draft" else 0, iter(traces)
    while window := list(islice(traces, WINDOW)):
        order = sorted(window, key=lambda trace: len(sequence(trace, think_end)))
        for begin in range(0, len(order), batch_size):
            chunk = order[begin : begin + batch_size]
            ids = [sequence(trace, think_end) for trace in chunk]
            length = -(-max(map(len, ids)) // bucket) * bucket
            tokens = np.zeros((batch_size, length), np.int32)
            for row, sequence_ids in enumerate(ids):
                tokens[row, : len(sequence_ids)] = sequence_ids
            raw, hits = (np.asarray(x) for x in run(draft, target, jnp.asarray(tokens)))
            for row, trace in enumerate(chunk):
                first = len(trace.prompt_ids) - behind
                yield Scored(trace, raw[row, first : first + len(trace.think_ids)], hits[:, row, : len(ids[row])])


def program(vocab: np.ndarray, ttt_steps: int, chunk: int) -> Callable[[Draft, Target, jax.Array], tuple[Any, Any]]:
    """The jitted program behind `score`: (raw signals [batch, time, signals], hits [step, batch, time]) of tokens."""

    @nnx.jit
    @jax.default_matmul_precision("highest")  # or TPUs would take float32 for one pass in bfloat16
    def run(draft: Draft, target: Target, tokens: jax.Array):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        ones = jnp.ones_like(tokens)
        _, aux = target(tokens, positions, ones, aux_layers=draft.config.eagle_aux_hidden_state_layer_ids)
        assert aux is not None
        batch = {"tokens": tokens, "positions": positions, "segment_ids": ones}
        outputs = ttt_outputs(draft, target.embedding[...], aux, batch, ttt_steps)
        chosen = jnp.asarray(vocab)[first_choices(jnp.stack(outputs), draft.lm_head.kernel[...], chunk)]
        hits = [chosen[k] == shift(tokens, 2 + k) for k in range(ttt_steps)]
        return draft.signals(aux, outputs[0]), jnp.stack(hits)

    return run
