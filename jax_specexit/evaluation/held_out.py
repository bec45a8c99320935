"""Evaluation inside a run: held-out traces in rows of the training length, scored on the run's own mesh.

The target is where the training has put it, so this works at any size that trains. `specexit evaluate` does the same
for a finished run on one device, whole traces at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
from rich.console import Console

from jax_specexit.cluster import is_first
from jax_specexit.evaluation.evaluate import Evaluation, judge
from jax_specexit.evaluation.scoring import Scored
from jax_specexit.model.draft import Draft
from jax_specexit.model.target import Target
from jax_specexit.training.data import place, rows_of_process
from jax_specexit.training.step import Batch, Frozen, Step, shift, ttt_outputs
from specexit.data.overlap import refuse_trained
from specexit.data.packing import PackMeta
from specexit.data.sequences import Example, assemble, best_fit, make_sequence
from specexit.data.traces import LabelledTrace, TraceError, check_tokenizer, read_labelled, target_of
from specexit.method.labels import ExitKind
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig


class Place(NamedTuple):
    """Where a trace lies in the rows."""

    trace: LabelledTrace
    row: int
    start: int
    length: int


class HeldOut:
    """Held-out traces, packed; call it with the parameters of the moment.

    Args:
      config, target_config: the run's.
      meta: of the training data: its length and kind of exit point are used here, too.

    Raises:
      TraceError: the traces cannot be read, were written with another tokenizer, or none fits a row.
      ConfigError: they are another target's.
      OverlapError: some are of prompts that are trained on.
    """

    def __init__(self, config: TrainConfig, target_config: TargetConfig, meta: PackMeta):
        assert config.eval_traces is not None
        traces = read_labelled(config.eval_traces, config.evaluate_n)
        target_of(traces, config.target)
        refuse_trained(config.data, traces, config.eval_traces)
        check_tokenizer(config.eval_traces, target_config)
        end = target_config.think_tokens().end
        sequences = [make_sequence(trace, end, meta.exit_point) for trace in traces]
        fits = [i for i, sequence in enumerate(sequences) if len(sequence) <= meta.length]
        if not fits:
            raise TraceError(f"{config.eval_traces}: no trace fits a row of {meta.length} tokens, as in {config.data}")
        self.left_out = len(traces) - len(fits)
        self.config, self.dtype = config, target_config.dtype
        self.kind: ExitKind = meta.exit_point
        self.rows: list[Example] = []
        self.places: list[Place] = []
        for bin_ in best_fit([len(sequences[i]) for i in fits], meta.length):
            start = 0
            for item in (fits[number] for number in bin_):
                self.places.append(Place(traces[item], len(self.rows), start, len(sequences[item])))
                start += len(sequences[item])
            self.rows.append(assemble([sequences[fits[number]] for number in bin_], meta.length))
        self.rows += [assemble([], meta.length)] * (-len(self.rows) % config.batch_size)

    def compile(self, step: Step, draft: Draft, target: Target) -> None:
        """Build the sharded scoring from the modules of the training step."""
        graph, target_graph = nnx.graphdef(draft), nnx.graphdef(target)
        mesh = cast(Mesh, step.batch_sharding.mesh)

        def run(params: Any, frozen: Frozen, batch: Batch) -> tuple[Array, Array]:
            draft, target = nnx.merge(graph, params), nnx.merge(target_graph, frozen.target)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return score_rows(draft, target, frozen.draft_vocab, batch, self.config, jnp.dtype(self.dtype))

        self.run = jax.jit(
            run,
            in_shardings=(step.state_shardings.params, step.frozen_shardings, step.batch_sharding),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self.sharding = step.batch_sharding
        if self.left_out and is_first():
            Console(stderr=True).print(
                f"{self.config.eval_traces}: {self.left_out} traces are longer than a row and left out of evaluations"
            )

    def __call__(self, params: Any, frozen: Frozen, step: int) -> Evaluation:
        """Evaluate; every process must call it, and gets the same."""
        size, rows = self.config.batch_size, rows_of_process(self.config.batch_size, self.sharding)
        raw, hits = [], []
        for begin in range(0, len(self.rows), size):
            examples = [self.rows[begin + int(row)] for row in rows]
            local = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
            results = self.run(params, frozen, place(local, rows, size, self.sharding))
            for kept, result in zip((raw, hits), results, strict=True):
                kept.append(np.asarray(result))
        return judge(list(self._cut(np.concatenate(raw), np.concatenate(hits, axis=1))), step, self.kind)

    def _cut(self, raw: np.ndarray, hits: np.ndarray) -> Iterator[Scored]:
        """Rows back into traces."""
        behind = 1 if self.config.signals.source == "draft" else 0
        for trace, row, start, length in self.places:
            first = start + len(trace.prompt_ids) - behind
            signals = raw[row, first : first + len(trace.think_ids)]
            yield Scored(trace, signals, hits[:, row, start : start + length])


def score_rows(
    draft: Draft, target: Target, vocab: Array, batch: Batch, config: TrainConfig, dtype: DTypeLike
) -> tuple[Float[Array, "batch time signals"], Bool[Array, "step batch time"]]:
    """Raw signals, and whether TTT step k predicts token t + 2 + k from row t, in one packed segment.

    The logits exist for ``loss_chunk`` time rows at once, as in training.
    """
    layers = draft.config.eagle_aux_hidden_state_layer_ids
    tokens, segments = batch["tokens"], batch["segment_ids"]
    _, aux = target(tokens, batch["positions"], segments, aux_layers=layers, dtype=dtype)
    assert aux is not None
    outputs = ttt_outputs(draft, target.embedding[...], aux, batch, config.ttt_steps)
    states = jnp.stack(outputs)
    chunks = states.reshape(*states.shape[:2], -1, config.loss_chunk, states.shape[-1])
    head = draft.lm_head.kernel[...].astype(states.dtype)
    best = jax.lax.map(lambda chunk: jnp.argmax(chunk @ head, axis=-1), jnp.moveaxis(chunks, 2, 0))
    predicted = vocab[jnp.moveaxis(best, 0, 2).reshape(states.shape[:3])]
    hits = [
        (predicted[k] == shift(tokens, 2 + k)) & (shift(segments, 2 + k) == segments) & (segments > 0)
        for k in range(config.ttt_steps)
    ]
    return draft.signals(aux, outputs[0]), jnp.stack(hits)
