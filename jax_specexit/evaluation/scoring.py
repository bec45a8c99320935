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
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jax_specexit.model.draft import Draft
from jax_specexit.model.target import Target
from jax_specexit.sharding import shift
from jax_specexit.training.losses import first_choices
from jax_specexit.training.step import ttt_outputs
from specexit.config import ConfigError
from specexit.data.traces import Trace
from specexit.errors import cut
from specexit.method.signals import activate

WINDOW = 32
"""Traces that are in memory at once."""
BATCH_TOKENS = 32_768
"""Most tokens that are scored at once, padding included; a single trace may be longer."""
BATCH_ROWS = 16
"""Most traces that are scored at once."""
BUCKET = 128
"""Lengths are padded to multiples of this."""


@dataclass(frozen=True)
class Scored:
    """One trace through the draft."""

    trace: Trace
    raw: Float[np.ndarray, "think signals"]
    """Raw signals of each thinking token."""
    hits: Bool[np.ndarray, "step time"]
    """Whether TTT step k, from row t, predicts token t + 2 + k."""

    def refuse_nan(self, dtype: DTypeLike) -> None:
        """Refuse signals that are no numbers: they can be neither ranked nor compared with a threshold.

        Args:
          dtype: that target and draft were run in.

        Raises:
          ConfigError: one is NaN; says in which trace.
        """
        bad = np.flatnonzero(np.isnan(self.raw).any(axis=1))
        if bad.size:
            why = "the checkpoint or the target's weights hold NaN, or numbers that are too large"
            if jnp.dtype(dtype) == jnp.float16:
                why = "float16 overflows above 65,504, which states may pass: take bfloat16 or float32"
            raise ConfigError(
                f"trace {cut(self.trace.id)}: the signals of {bad.size} of its {len(self.raw)} thinking tokens, the "
                f"first at {bad[0]}, are NaN in dtype={jnp.dtype(dtype).name}, expected numbers: {why}"
            )

    @property
    def signals(self) -> Float[np.ndarray, "think signals"]:
        """Signal values of each thinking token."""
        return activate(self.raw)


def sequence(trace: Trace, think_end: int) -> list[int]:
    """The whole token sequence of a trace: prompt, thinking, end marker, answer."""
    return [*trace.prompt_ids, *trace.think_ids, think_end, *trace.answer_ids]


def score(
    draft: Draft,
    target: Target,
    vocab: Int[np.ndarray, " dvocab"],
    traces: Iterable[Trace],
    *,
    think_end: int,
    ttt_steps: int,
    dtype: DTypeLike = jnp.float32,
) -> Iterator[Scored]:
    """Score traces, a few batches of them in memory at once.

    Each window of `WINDOW` traces is batched by length, so they do not come in the order given. The logits exist for
    `BUCKET` places of every row at once.

    Args:
      draft, target: models.
      vocab: target id of every draft token.
      traces: what to score.
      think_end: id of the end marker.
      ttt_steps: draft steps to judge.
      dtype: of the matrix products; those of the signal rows are in float32.

    Raises:
      ConfigError: see `Scored.refuse_nan`.
    """
    run = program(vocab, ttt_steps, BUCKET, dtype)
    behind, traces = 1 if draft.source == "draft" else 0, iter(traces)
    while window := list(islice(traces, WINDOW)):
        for batch, rows, length in batches(window, think_end, BUCKET):
            tokens = np.zeros((rows, length), np.int32)
            for row, trace in enumerate(batch):
                ids = sequence(trace, think_end)
                tokens[row, : len(ids)] = ids
            raw, hits = (np.asarray(x) for x in run(draft, target, jnp.asarray(tokens)))
            for row, trace in enumerate(batch):
                first, end = len(trace.prompt_ids) - behind, len(sequence(trace, think_end))
                one = Scored(trace, raw[row, first : first + len(trace.think_ids)], hits[:, row, :end])
                one.refuse_nan(dtype)
                yield one


def batches(traces: Iterable[Trace], think_end: int, bucket: int) -> Iterator[tuple[list[Trace], int, int]]:
    """Traces by length, in batches of `BATCH_ROWS` or `BATCH_TOKENS`, with the rows and the length of the array.

    Rows follow from the length alone and lengths from `padded`, which bounds the number of compilations.
    """
    batch: list[Trace] = []
    length = 0
    for trace in sorted(traces, key=lambda trace: len(sequence(trace, think_end))):
        wanted = padded(len(sequence(trace, think_end)), bucket)
        if batch and len(batch) >= rows_at(wanted):
            yield batch, rows_at(length), length
            batch = []
        batch.append(trace)
        length = wanted
    if batch:
        yield batch, rows_at(length), length


def rows_at(length: int) -> int:
    """Rows of a batch of that length."""
    return max(1, min(BATCH_ROWS, BATCH_TOKENS // length))


def padded(length: int, bucket: int) -> int:
    """A length that is compiled: a multiple of ``bucket``, and from 16 of them on of eight lengths an octave.

    Example:
      >>> [padded(length, 128) for length in (1, 300, 2000, 2100, 16_500)]
      [128, 384, 2048, 2304, 18432]
    """
    step = bucket << max(0, (length // bucket).bit_length() - 4)
    return -(-length // step) * step


def program(
    vocab: Int[np.ndarray, " dvocab"], ttt_steps: int, chunk: int, dtype: DTypeLike
) -> Callable[[Draft, Target, jax.Array], tuple[Any, Any]]:
    """The jitted program behind `score`: (raw signals [batch, time, signals], hits [step, batch, time]) of tokens."""

    @nnx.jit
    @jax.default_matmul_precision("highest")  # or TPUs would take float32 for one pass in bfloat16
    def run(draft: Draft, target: Target, tokens: jax.Array):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        ones, layers = jnp.ones_like(tokens), draft.config.eagle_aux_hidden_state_layer_ids
        _, aux = target(tokens, positions, ones, aux_layers=layers, dtype=dtype)
        assert aux is not None
        batch = {"tokens": tokens, "positions": positions, "segment_ids": ones}
        outputs = ttt_outputs(draft, target.embedding[...], aux, batch, ttt_steps)
        chosen = jnp.asarray(vocab)[first_choices(jnp.stack(outputs), draft.lm_head.kernel[...], chunk)]
        hits = [chosen[k] == shift(tokens, 2 + k) for k in range(ttt_steps)]
        return draft.signals(aux, outputs[0]), jnp.stack(hits)

    return run
