"""Evaluation inside a run: held-out traces in rows of the training length, scored on the run's own mesh.

The target is where the training has put it, so this works at any size that trains. `specexit evaluate` does the same
for a finished run on one device, whole traces at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
from jax_specexit.sharding import ROWS, shift
from jax_specexit.training.data import place, rows_of_process
from jax_specexit.training.losses import first_choices
from jax_specexit.training.step import Batch, Frozen, Step, ttt_outputs
from specexit.data.overlap import refuse_trained
from specexit.data.packing import PackMeta
from specexit.data.rows import prompt_sha256
from specexit.data.sequences import Example, assemble, best_fit, make_sequence
from specexit.data.traces import LabelledTrace, check_tokenizer, read_labelled, target_of
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

    Rows are as long as those of the training data, or the smallest multiple that holds the longest trace whole: what
    happens at the end of a long one is what an evaluation is for.

    Args:
      config, target_config: the run's.
      meta: of the training data: its length and kind of exit point are used here, too.

    Raises:
      TraceError: the traces cannot be read, or were written with another tokenizer.
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
        lengths = [len(sequence) for sequence in sequences]
        self.times = -(-max(lengths) // meta.length)
        self.length = self.times * meta.length
        self.config, self.dtype = config, target_config.dtype
        self.kind: ExitKind = meta.exit_point
        self.prompts = sorted({prompt_sha256(trace)[:16] for trace in traces})
        self.rows: list[Example] = []
        self.places: list[Place] = []
        for bin_ in best_fit(lengths, self.length):
            start = 0
            for item in bin_:
                self.places.append(Place(traces[item], len(self.rows), start, lengths[item]))
                start += lengths[item]
            self.rows.append(assemble([sequences[item] for item in bin_], self.length))

    def compile(self, step: Step, draft: Draft, target: Target) -> None:
        """Build the sharded scoring from the modules of the training step."""
        self.run = scoring(self.config, step, nnx.graphdef(draft), nnx.graphdef(target), self.dtype)
        mesh = cast(Mesh, step.batch_sharding.mesh)
        self.sharding = step.batch_sharding
        # About as many tokens at once as in training: fewer rows where they are longer, but one for every shard.
        shards = math.prod(mesh.shape[axis] for axis in ROWS)
        self.size = max(shards, self.config.batch_size // self.times // shards * shards)
        self.rows += [assemble([], self.length)] * (-len(self.rows) % self.size)
        if self.times > 1 and is_first():
            found = (
                f"rows of {self.length:,} tokens in evaluations, {self.times} times the training's, {self.size} at once"
            )
            Console(stderr=True).print(f"{self.config.eval_traces}: {found}: its longest trace is kept whole")

    def __call__(self, params: Any, frozen: Frozen, step: int) -> Evaluation:
        """Evaluate; every process must call it, and gets the same."""
        size, rows = self.size, rows_of_process(self.size, self.sharding)
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


def scoring(
    config: TrainConfig, step: Step, graph: nnx.GraphDef, target_graph: nnx.GraphDef, dtype: DTypeLike
) -> Callable[[Any, Frozen, Batch], tuple[Array, Array]]:
    """The jitted program behind `HeldOut`: `score_rows` on the mesh of the training step."""
    mesh = cast(Mesh, step.batch_sharding.mesh)

    def run(params: Any, frozen: Frozen, batch: Batch) -> tuple[Array, Array]:
        draft, target = nnx.merge(graph, params), nnx.merge(target_graph, frozen.target)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return score_rows(draft, target, frozen.draft_vocab, batch, config, jnp.dtype(dtype))

    return jax.jit(
        run,
        in_shardings=(step.state_shardings.params, step.frozen_shardings, step.batch_sharding),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


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
    predicted = vocab[first_choices(states, draft.lm_head.kernel[...], config.loss_chunk)]
    hits = [
        (predicted[k] == shift(tokens, 2 + k)) & (shift(segments, 2 + k) == segments) & (segments > 0)
        for k in range(config.ttt_steps)
    ]
    return draft.signals(aux, outputs[0]), jnp.stack(hits)
