"""``specexit evaluate``: what a trained draft is worth, on traces of problems that it was not trained on.

Tokens: top-1 of each TTT step. Signals: ranking (AUROC) and calibration error of validity over all boundaries *and*
over the hard ones, where a first answer has just been stated: the others are easy, and an average over all hides every
difference. Policy: the thinking that one threshold on validity would cut at no loss and at one point of accuracy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jax_specexit.checkpoint import restore_params
from jax_specexit.draft import Draft
from jax_specexit.metrics import acceptance_estimate
from jax_specexit.run import read_start
from jax_specexit.scoring import Scored, score
from jax_specexit.target import Target
from jax_specexit.weights import load_target
from specexit.config import write_text
from specexit.decision import OFF, Policy
from specexit.draftdir import check_target
from specexit.replay import Replay
from specexit.schemas.evaluate import EvaluateConfig
from specexit.schemas.target import TargetConfig, load_target_config
from specexit.signals import column
from specexit.simulate import VALIDITY_GRID, best_within, mean_known, summarise
from specexit.stats import auroc, brier, calibration_error
from specexit.traces import LabelledTrace, read_labelled


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How well validity tells good boundaries from bad ones."""

    n: int
    valid: float
    """Share that is valid."""
    auroc: float
    calibration_error: float
    brier: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` writes."""

    step: int
    n: int
    top1: list[float]
    """Token top-1 of each TTT step, over generated tokens."""
    acceptance_estimate: float
    """1 + the sum over steps of the product of top-1 so far; an estimate, not a measurement."""
    all_boundaries: Ranking
    hard_boundaries: Ranking
    oracle_cut: float
    cut: dict[str, float]
    """Accuracy loss in points -> thinking cut of the best validity threshold, picked on these very traces."""


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate the newest checkpoint of a run; print a table and write JSON.

    Raises:
      ConfigError, DraftError, TraceError: run, target or traces do not fit or cannot be read.
    """
    start = read_start(config.run)
    shape = start.shape
    assert shape.specexit is not None
    target_config = load_target_config(shape.specexit.target)
    check_target(shape, config.run, target_config.hf_config(), target_config.name)
    step, params = restore_params(config.run)
    draft = Draft(shape, rngs=nnx.Rngs(0), aux_rms=start.aux_rms)
    nnx.update(draft, jax.tree.map(jnp.asarray, params))
    traces = read_labelled(config.traces)[: config.n]
    target = load_target(target_config.folder)
    return evaluate_draft(draft, target, start.vocab, target_config, traces, config.ttt_steps, step, config.out)


def evaluate_draft(
    draft: Draft,
    target: Target,
    vocab: np.ndarray,
    target_config: TargetConfig,
    traces: Sequence[LabelledTrace],
    ttt_steps: int,
    step: int,
    out: Path,
) -> Evaluation:
    """Evaluate a draft on labelled traces; print a table and write JSON to ``out``."""
    ids = target_config.think_tokens()
    scored = score(
        draft,
        target,
        vocab,
        traces,
        think_end=ids.end,
        ttt_steps=ttt_steps,
    )
    console = Console(stderr=True)
    done = list(track(scored, "evaluate", total=len(traces), console=console, disable=not console.is_terminal))
    result = judge(done, step)
    write_text(out, json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    console.print(table(result))
    return result


def judge(done: Sequence[Scored], step: int) -> Evaluation:
    """Turn scored traces into numbers."""
    top1 = np.mean(np.concatenate([_generated(one) for one in done], axis=1), axis=1)
    replay = Replay([one.trace for one in done], [one.signals for one in done])
    full = mean_known(replay.correct)
    points = [summarise(replay, p, replay.play(p)) for p in (Policy(thresholds={"validity": t}) for t in VALIDITY_GRID)]
    best = {str(points_lost): best_within(points, full, points_lost / 100) for points_lost in (0, 1)}
    everywhere, hard = _boundaries(done)
    return Evaluation(
        step=step,
        n=len(done),
        top1=[round(float(x), 5) for x in top1],
        acceptance_estimate=acceptance_estimate(top1),
        all_boundaries=_ranking(*everywhere),
        hard_boundaries=_ranking(*hard),
        oracle_cut=summarise(replay, OFF, replay.oracle()).thinking_cut,
        cut={lost: point.thinking_cut if point else 0.0 for lost, point in best.items()},
    )


def _generated(one: Scored) -> np.ndarray:
    """Hits at the rows whose predicted tokens the target generated, every TTT step on the same rows."""
    return one.hits[:, len(one.trace.prompt_ids) - 1 : one.hits.shape[1] - 1 - one.hits.shape[0]]


def _boundaries(done: Sequence[Scored]) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(probability, truth) at all boundaries before the natural end, and at the hard ones."""
    everywhere, hard = [], []
    for one in done:
        assert isinstance(one.trace, LabelledTrace)
        offsets = np.array(one.trace.boundaries)
        probability = one.signals[offsets - 1, column("validity")]
        pairs = list(zip(probability, one.trace.boundary_agrees, strict=True))
        everywhere += [pair for pair, offset in zip(pairs, offsets, strict=True) if offset < len(one.trace.think_ids)]
        if one.trace.hard_boundary is not None:
            hard.append(pairs[one.trace.hard_boundary])
    return _columns(everywhere), _columns(hard)


def _columns(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in pairs], np.float64), np.array([hit for _, hit in pairs], bool)


def _ranking(probability: np.ndarray, hit: np.ndarray) -> Ranking:
    if not len(hit):
        return Ranking(0, *[float("nan")] * 4)
    error = calibration_error(probability, hit)
    return Ranking(len(hit), float(hit.mean()), auroc(probability, hit), error, brier(probability, hit))


def table(result: Evaluation) -> Table:
    """The evaluation as a table."""
    out = Table(title=f"step {result.step}, {result.n} held-out traces", title_justify="left", show_header=False)
    steps = "  ".join(f"{x:.3f}" for x in result.top1)
    out.add_row("token top-1 per TTT step", f"{steps}   (acceptance length about {result.acceptance_estimate:.2f})")
    for name, ranking in (("all", result.all_boundaries), ("hard", result.hard_boundaries)):
        out.add_row(
            f"validity at {name} boundaries",
            f"AUROC {ranking.auroc:.4f}   calibration error {ranking.calibration_error:.4f}   "
            f"Brier {ranking.brier:.4f}   ({ranking.n:,}, {ranking.valid:.1%} valid)",
        )
    for lost, cut in result.cut.items():
        reached = f"{cut / result.oracle_cut:.1%} of the oracle's {result.oracle_cut:.1%}"
        out.add_row(f"simulated thinking cut at {lost} pt loss", f"{cut:.1%}   ({reached})")
    return out
