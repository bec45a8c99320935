"""Evaluation inside a run: held-out traces in rows of the training length, scored on the run's own mesh.

The target stays where the training has put it, so this works at any size that trains. The traces stay on the disk and
are read block by block in every evaluation. `specexit evaluate` does the same for a finished run on one device, one
trace to a row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from rich.console import Console

from jax_specexit.cluster import is_first
from jax_specexit.evaluation.judging import Evaluation, Judge
from jax_specexit.evaluation.rows import longest_evaluated, rows_for
from jax_specexit.evaluation.scoring import Scored
from jax_specexit.model.draft import Draft
from jax_specexit.model.layers import exact_products
from jax_specexit.model.target import Target
from jax_specexit.planning.hbm import fitting
from jax_specexit.sharding import ROWS, shift
from jax_specexit.training.data import place, rows_of_process, trained_on
from jax_specexit.training.losses import first_choices
from jax_specexit.training.step import Batch, Frozen, Step, ttt_outputs
from specexit.config import ConfigError
from specexit.data.outlines import Outlines
from specexit.data.overlap import refuse_trained
from specexit.data.packed import PackMeta
from specexit.data.sequences import TrainingSequence, assemble, best_fit, make_sequence
from specexit.data.traces import (
    WEIGHTS,
    LabelledTrace,
    check_tokenizer,
    data_sha256,
    read_outlines,
    said_of,
    stream_labelled,
    target_of_file,
)
from specexit.drafts.policy import MOST_PROMPTS, Selection
from specexit.method.labels import ExitKind
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig

BLOCK_TOKENS = 500_000
"""Thinking tokens of the traces that are packed together, about."""

TOKENS = "(n_prompt + n_think + 1 + n_answer)"
"""`tokens_of` a trace, as an expression of SQLite."""


def tokens_of(trace: LabelledTrace) -> int:
    """Tokens of a trace, the end marker included."""
    return trace.n_prompt + trace.n_think + 1 + trace.n_answer


class Row(NamedTuple):
    """Traces that lie one behind the other in a row of a batch, and the sequence that was made of each."""

    traces: list[LabelledTrace]
    sequences: list[TrainingSequence]


class HeldOut:
    """Held-out traces, packed; call it with the current parameters to evaluate them.

    Rows are as long as those of the training data, or the smallest multiple that holds the longest trace whole: the end
    of a long trace is what an evaluation is for. Traces longer than `longest_evaluated` says are left out, so that no
    row is longer than those that ``plan`` has compiled.

    Args:
      config, target_config: the run's.
      meta: of the training data: its length and kind of exit point are used here, too.

    Raises:
      TraceError: the traces cannot be read, or were written with another tokenizer, or by several models.
      ConfigError: they are another target's, of more than `MOST_PROMPTS` prompts, or all too long.
      OverlapError: some are of prompts that are trained on, or that the draft in ``init_from`` was trained on.
    """

    def __init__(self, config: TrainConfig, target_config: TargetConfig, meta: PackMeta):
        assert config.eval_traces is not None
        traces = read_outlines(config.eval_traces, config.evaluate_n, LabelledTrace)
        target_of_file(config.eval_traces, config.target)
        for folder in trained_on(config):
            refuse_trained(folder, traces, config.eval_traces)
        check_tokenizer(config.eval_traces, target_config)
        self.wrote = said_of(config.eval_traces, WEIGHTS)
        """Fingerprint of the weights that wrote them; None where they do not say."""
        self.end = target_config.think_tokens().end
        self.config, self.dtype = config, target_config.dtype
        self.most, self.row = longest_evaluated(config, target_config), meta.length
        self.longest, self.left_out = self._kept(traces)
        self.kind: ExitKind = meta.exit_point
        if traces.n_prompts() > MOST_PROMPTS:
            raise ConfigError(
                f"eval_traces: {config.eval_traces} holds {traces.n_prompts():,} prompts, expected at most "
                f"{MOST_PROMPTS:,}: choose fewer by evaluate_n"
            )
        self.prompts = [f"{prompt:016x}" for prompt in traces.prompts()]
        short = f" up to {self.most} tokens" if self.left_out else ""
        which = f"{data_sha256(config.eval_traces)[:16]}, {len(traces)} of them{short}"
        self.measure = {"by": config.best_by, "traces": which}
        """What the score of an evaluation measures: scores of two measures cannot be compared."""

    def chooses(self, earlier: Selection | None, before: Selection | None) -> Selection:
        """Which prompts choose the best checkpoint: these, and those of other traces that the run had earlier.

        Args:
          earlier: what the run has said so far.
          before: which prompts chose the draft that it begins with; what becomes of the run names them, too.

        Raises:
          ConfigError: together they are more than `MOST_PROMPTS`.
        """
        prompts = {*self.prompts, *(earlier.prompts if earlier else ())}
        named = len(prompts | {*(before.prompts if before else ())})
        if named > MOST_PROMPTS:
            raise ConfigError(
                f"eval_traces: with those that chose a checkpoint earlier, the prompts of {self.config.eval_traces} "
                f"are {named:,}, expected at most {MOST_PROMPTS:,}: choose fewer by evaluate_n"
            )
        return Selection(by=self.config.best_by, prompts=tuple(sorted(prompts)))

    def _kept(self, traces: Outlines) -> tuple[int, int]:
        """Tokens of the longest trace that is kept, and the number of traces that are too long.

        Raises:
          ConfigError: all traces are too long.
        """
        longest = traces.number(f"max(iif({TOKENS} <= {self.most}, {TOKENS}, 0))")
        if not longest:
            raise ConfigError(
                f"eval_traces: the shortest trace in {self.config.eval_traces} has {traces.number(f'min({TOKENS})')} "
                f"tokens, expected some of at most {self.most}: that is evaluate_length, or the target's max_model_len"
            )
        return longest, traces.number(f"sum({TOKENS} > {self.most})")

    def compile(self, step: Step, draft: Draft, target: Target) -> None:
        """Build the sharded scoring from the modules of the training step."""
        self.run = scoring(self.config, step, nnx.graphdef(draft), nnx.graphdef(target), self.dtype)
        mesh = cast(Mesh, step.batch_sharding.mesh)
        self.sharding = step.batch_sharding
        shards = math.prod(mesh.shape[axis] for axis in ROWS)
        self.size, self.length = rows_for(self.longest, self.row, self.config.batch_size, shards)
        if is_first():
            for line in self._said():
                Console(stderr=True).print(f"{self.config.eval_traces}: {line}", soft_wrap=True, markup=False)

    def _said(self) -> Iterator[str]:
        """Lines for whoever starts the run: rows that are longer than the training's, and traces that are left out."""
        if self.length > self.row:
            times = f"{self.length // self.row} times the training's"
            yield f"rows of {self.length:,} tokens in evaluations, {times}, {self.size} at once: traces are kept whole"
        if self.left_out:
            yield f"{self.left_out:,} traces of more than {self.most:,} tokens are left out of evaluations"

    def __call__(self, params: Any, frozen: Frozen, step: int, stopped: Callable[[], bool]) -> Evaluation | None:
        """Evaluate; every process must call it, and gets the same result.

        ``stopped`` is asked before each batch in every process, and must say the same in all. Where it says yes, the
        evaluation is given up, and the result is None.

        Raises:
          ConfigError: see `Scored.refuse_nan`; in every process.
        """
        found = Judge(self.kind)
        if not self._add_all(found, params, frozen, stopped):
            return None
        return dataclasses.replace(found.result(step), left_out=self.left_out)

    def _add_all(self, found: Judge, params: Any, frozen: Frozen, stopped: Callable[[], bool]) -> bool:
        """Score all traces and have ``found`` count them; False if ``stopped`` has ended it before the last batch."""
        mine, rows = rows_of_process(self.size, self.sharding), self._rows()
        while batch := list(islice(rows, self.size)):
            if stopped():
                return False
            batch += [Row([], [])] * (self.size - len(batch))
            examples = [assemble(batch[int(i)].sequences, self.length) for i in mine]
            local = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
            with fitting("evaluate"):
                scored = self.run(params, frozen, place(local, mine, self.size, self.sharding))
            raw, hits = map(np.asarray, scored)
            for i, row in enumerate(batch):
                for one in self._cut(row, raw[i], hits[:, i]):
                    one.refuse_nan(self.dtype)
                    found.add(one)
        return True

    def _rows(self) -> Iterator[Row]:
        """All traces that are kept, packed into rows block by block; the rows are the same in every process."""
        assert self.config.eval_traces is not None
        found = stream_labelled(self.config.eval_traces, self.config.evaluate_n)
        for traces in _blocks(trace for trace in found if tokens_of(trace) <= self.most):
            sequences = [make_sequence(trace, self.end, self.kind) for trace in traces]
            for items in best_fit([len(sequence) for sequence in sequences], self.length):
                yield Row([traces[i] for i in items], [sequences[i] for i in items])

    def _cut(self, row: Row, raw: np.ndarray, hits: np.ndarray) -> Iterator[Scored]:
        """The traces of a row, with what was found at their tokens."""
        start, behind = 0, 1 if self.config.signals.source == "draft" else 0
        for trace, sequence in zip(row.traces, row.sequences, strict=True):
            first = start + len(trace.prompt_ids) - behind
            signals = raw[first : first + len(trace.think_ids)]
            yield Scored(trace, signals, hits[:, start : start + len(sequence)])
            start += len(sequence)


def _blocks(traces: Iterable[LabelledTrace]) -> Iterator[list[LabelledTrace]]:
    """Traces of about `BLOCK_TOKENS` thinking tokens at a time."""
    block: list[LabelledTrace] = []
    size = 0
    for trace in traces:
        block.append(trace)
        size += trace.n_think
        if size >= BLOCK_TOKENS:
            yield block
            block, size = [], 0
    if block:
        yield block


def scoring(
    config: TrainConfig, step: Step, graph: nnx.GraphDef, target_graph: nnx.GraphDef, dtype: DTypeLike
) -> Callable[[Any, Frozen, Batch], tuple[Array, Array]]:
    """The jitted program behind `HeldOut`: `score_rows` on the mesh of the training step."""
    mesh = cast(Mesh, step.batch_sharding.mesh)

    def run(params: Any, frozen: Frozen, batch: Batch) -> tuple[Array, Array]:
        draft, target = nnx.merge(graph, params), nnx.merge(target_graph, frozen.target)
        with exact_products(dtype), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return score_rows(draft, target, frozen.draft_vocab, batch, config, jnp.dtype(dtype))

    return jax.jit(
        run,
        in_shardings=(step.state_shardings.params, step.frozen_shardings, step.batch_sharding),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def score_rows(
    draft: Draft, target: Target, vocab: Int[Array, " dvocab"], batch: Batch, config: TrainConfig, dtype: DTypeLike
) -> tuple[Float[Array, "batch time signals"], Bool[Array, "step batch time"]]:
    """Raw signals, and whether TTT step k predicts token t + 2 + k from row t, where both are of one segment.

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
