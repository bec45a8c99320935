"""``specexit evaluate``: what a trained draft is worth, on traces of problems that it was not trained on.

Tokens: top-1 of each TTT step, and the acceptance length of greedy decoding replayed over the traces. Signals: each
one's loss; ranking (AUROC) and calibration error of validity ("exit here is valid") over all boundaries *and* over the
hard ones, where a first answer has just been stated: the others are easy, and an average over all hides every
difference. Policy: the thinking that one threshold on validity would cut at no loss of accuracy, and at a loss of one
point.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jax_specexit.evaluation.held_out import TOKENS
from jax_specexit.evaluation.judging import DEFINITIONS, Evaluation, Ranking, judge
from jax_specexit.evaluation.scoring import score
from jax_specexit.model.draft import Draft
from jax_specexit.training.checkpoint import restore_params
from jax_specexit.training.place import check_file
from jax_specexit.training.run import read_start, trained_steps
from jax_specexit.weights import load_target
from specexit.config import ConfigError, write_text
from specexit.data.outlines import Outlines
from specexit.data.overlap import refuse_trained
from specexit.data.traces import (
    WEIGHTS,
    LabelledTrace,
    check_tokenizer,
    read_outlines,
    said_of,
    stream_labelled,
    target_of_file,
)
from specexit.data.written_by import doubt_weights
from specexit.drafts.directory import DraftConfig, check_target
from specexit.errors import InputError
from specexit.schemas.evaluate import EvaluateConfig
from specexit.schemas.target import TargetConfig, find_target, other_boundaries


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate a checkpoint of a run; print a table and write JSON.

    Raises:
      ConfigError, DraftError, TraceError: run, target or traces do not fit or cannot be read, or traces are too long.
      ConfigError, PassingError, BucketError: ``out`` cannot be written, see `check_file`.
      OverlapError: the run was trained on some of the prompts.
      InputError: JAX gets no device.
    """
    check_file(config.out)
    start = read_start(config.run)
    shape = start.shape
    if shape.specexit is None:
        raise ConfigError(
            f"{config.run / 'draft.json'}: config.specexit is null, expected a draft with signals: what a plain "
            "one drafts is judged by `specexit verify`, once it is a draft directory (`specexit convert`)"
        )
    ttt_steps = config.ttt_steps or trained_steps(config.run)
    target_config = find_target(config.target, config.run, name=shape.specexit.target)
    check_target(shape, config.run, target_config.hf_config(), target_config.name)
    known = read_outlines(config.traces, config.n, LabelledTrace)
    check_lengths(config, shape, target_config, known)
    theirs = target_of_file(config.traces, config.target, config.run)
    if (other := other_boundaries(theirs, shape.specexit)) is not None:
        raise ConfigError(
            f"{config.traces}: their target has {other} as {config.run / 'draft.json'} says: expected traces with "
            "boundaries where the draft's are"
        )
    check_tokenizer(config.traces, target_config)
    doubt_weights(config.traces, said_of(config.traces, WEIGHTS), target_config)
    refuse_trained(config.run, known, config.traces)
    backend = started_backend()
    step, params = restore_params(config.run, config.which)
    draft = Draft(shape, rngs=nnx.Rngs(0), aux_rms=start.aux_rms)
    nnx.update(draft, jax.tree.map(jnp.asarray, params))
    dtype = config.dtype or ("float32" if backend == "cpu" else target_config.dtype)
    think_end, target = target_config.think_tokens().end, load_target(target_config.folder, dtype)
    traces = stream_labelled(config.traces, config.n)
    scored = score(draft, target, start.vocab, traces, think_end=think_end, ttt_steps=ttt_steps, dtype=dtype)
    console = Console(stderr=True)
    done = track(scored, "evaluate", total=len(known), console=console, disable=not console.is_terminal)
    result = judge(done, step, shape.specexit.exit_point)
    show(result, config.out)
    return result


def check_lengths(config: EvaluateConfig, shape: DraftConfig, target: TargetConfig, traces: Outlines) -> None:
    """Refuse traces of more tokens than draft or target have positions: nothing is served beyond these.

    Raises:
      ConfigError: a trace is longer, or the target's config cannot be read.
    """
    longest = traces.number(f"max({TOKENS})")
    limits = {config.run / "draft.json": shape.max_position_embeddings, target.config_place: target.positions()}
    for file, most in limits.items():
        if longest > most:
            raise ConfigError(
                f"{config.traces}: the longest trace has {longest} tokens, but by {file} (max_position_embeddings, and "
                f"RoPE's scaling) there are {most:.0f} positions, beyond which nothing is served: expected shorter "
                "traces, or a config that says how long the model is"
            )


def started_backend() -> str:
    """Start JAX and say which platform it is on; this process holds the platform's devices from here on.

    Raises:
      InputError: JAX gets no device, as when another process holds the TPU.
    """
    try:
        return jax.default_backend()
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise InputError(f"{said}; JAX_PLATFORMS=cpu evaluates on the CPU, beside whatever has the chips") from error


def show(result: Evaluation, out: Path) -> None:
    """Print a table, then write JSON to ``out``: so what took hours to compute is seen even if the disk is full."""
    Console(stderr=True).print(table(result))
    write_text(out, json.dumps(result.to_json() | {"definitions": DEFINITIONS}, indent=2) + "\n")


def table(result: Evaluation) -> Table:
    """The evaluation as a table."""
    out = Table(title=f"step {result.step}, {result.n} held-out traces", title_justify="left", show_header=False)
    steps = "  ".join(f"{x:.3f}" for x in result.top1)
    out.add_row("token top-1 per TTT step", f"{steps}   (acceptance length {result.acceptance_length:.2f}, simulated)")
    losses = "   ".join(f"{name} {value:.4f}" for name, value in result.signal_loss.items())
    out.add_row("signal losses", losses)
    for name, ranking in (("all", result.all_boundaries), ("hard", result.hard_boundaries)):
        out.add_row(f"validity at {name} boundaries", ranking_words(ranking))
    for lost, cut in result.cut.items():
        out.add_row(f"simulated thinking cut at {lost} pt loss", f"{cut:.1%}   ({_reached(cut, result)})")
    if result.one_point:
        known = "what lies in front of their first trial is unknown, and an exit there counts as an error"
        out.add_row("traces not tried throughout", f"{result.one_point}: {known}")
    if result.left_out:
        out.add_row(
            "traces left out", f"{result.left_out} of {result.n + result.left_out}: longer than evaluate_length"
        )
    return out


def _reached(cut: float, result: Evaluation) -> str:
    if not result.oracle_cut:
        return "the oracle saves nothing either: no exit before the end of any trace is valid"
    most, least = ("at most ", "at least ") if result.one_point else ("", "")
    return f"{most}{cut / result.oracle_cut:.1%} of the oracle's {least}{result.oracle_cut:.1%}"


def ranking_words(ranking: Ranking) -> str:
    """A line that says how well boundaries are told apart, or why they cannot be: none, or all of one kind."""
    if not ranking.n:
        return "there are none"
    auroc = "undefined, all of one kind" if math.isnan(ranking.auroc) else f"{ranking.auroc:.4f}"
    return (
        f"AUROC {auroc}   calibration error {ranking.calibration_error:.4f}   "
        f"Brier {ranking.brier:.4f}   ({ranking.n:,}, {ranking.valid:.1%} valid)"
    )
