"""``specexit evaluate``: what a trained draft is worth, on traces of problems that it was not trained on.

Tokens: top-1 of each TTT step, and the acceptance length of greedy decoding replayed over the traces. Signals: each
one's loss; ranking (AUROC) and calibration error of validity ("exit here is valid") over all boundaries *and* over the
hard ones, where a first answer has just been stated: the others are easy, and an average over all hides every
difference. Policy: the thinking that one threshold on validity would cut at no loss and at one point of accuracy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jax_specexit.evaluation.scoring import Scored, score
from jax_specexit.model.draft import Draft
from jax_specexit.training.checkpoint import restore_params
from jax_specexit.training.metrics import acceptance_estimate
from jax_specexit.training.run import read_start
from jax_specexit.weights import load_target
from specexit.config import write_text
from specexit.data.traces import LabelledTrace, read_labelled, target_of
from specexit.drafts.directory import check_target
from specexit.method.decision import OFF, Policy
from specexit.method.labels import ExitKind, token_labels
from specexit.method.policies.validity import VALIDITY_GRID
from specexit.method.replay import Replay
from specexit.method.signals import SIGNALS, column
from specexit.method.simulate import best_within, mean_known, summarise
from specexit.method.statistics import auroc, brier, calibration_error
from specexit.schemas.evaluate import EvaluateConfig
from specexit.schemas.target import find_target
from specexit.schemas.train import BestBy


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How well validity tells good boundaries from bad ones."""

    n: int
    valid: float
    """Share that is valid."""
    auroc: float
    calibration_error: float
    brier: float


DEFINITIONS = {
    "top1": "share of generated tokens that TTT step k predicts, fed with the target's tokens up to there",
    "acceptance_length": "accepted draft tokens + 1 bonus token, pooled over the steps of greedy decoding that is "
    "replayed over the traces, with as many draft tokens as TTT steps and no stop at step boundaries",
    "acceptance_estimate": "1 + sum over k of the product of the first k top1, as if hits were independent",
    "signal_loss": "mean over labelled thinking tokens: MSE (confidence, progress), MSLE (remaining), "
    "binary cross-entropy (validity)",
    "calibration_error": "expected calibration error of validity, 15 bins of equal width",
    "cut": "share of thinking tokens that the best validity threshold saves at that loss of accuracy in points, "
    "picked on these very traces",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` writes; see `DEFINITIONS`."""

    step: int
    n: int
    top1: list[float]
    acceptance_length: float
    """Simulated: exact for greedy traces, the drafts being judged by what the target wrote."""
    acceptance_estimate: float
    signal_loss: dict[str, float]
    all_boundaries: Ranking
    hard_boundaries: Ranking
    oracle_cut: float
    cut: dict[str, float]
    """Accuracy loss in points -> thinking cut."""

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON has them: null for a number that does not exist, as AUROC where all boundaries are valid."""
        return _without_nan(dataclasses.asdict(self))

    def score(self, best_by: BestBy) -> float:
        """The metric that the best checkpoint is chosen by, turned so that more is better."""
        if best_by == "acceptance_length":
            return self.acceptance_length
        if best_by == "cut":
            return self.cut["0"]
        value = getattr(self.all_boundaries, best_by)
        return value if best_by == "auroc" else -value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate a checkpoint of a run; print a table and write JSON.

    Raises:
      ConfigError, DraftError, TraceError: run, target or traces do not fit or cannot be read.
    """
    start = read_start(config.run)
    shape = start.shape
    assert shape.specexit is not None
    target_config = find_target(config.target, config.run, name=shape.specexit.target)
    check_target(shape, config.run, target_config.hf_config(), target_config.name)
    step, params = restore_params(config.run, config.which)
    draft = Draft(shape, rngs=nnx.Rngs(0), aux_rms=start.aux_rms)
    nnx.update(draft, jax.tree.map(jnp.asarray, params))
    traces = read_labelled(config.traces, config.n)
    target = load_target(target_config.folder)
    target_of(traces, config.target, config.run)
    think_end = target_config.think_tokens().end
    scored = score(draft, target, start.vocab, traces, think_end=think_end, ttt_steps=config.ttt_steps)
    console = Console(stderr=True)
    done = list(track(scored, "evaluate", total=len(traces), console=console, disable=not console.is_terminal))
    result = judge(done, step, shape.specexit.exit_point)
    show(result, config.out)
    return result


def show(result: Evaluation, out: Path) -> None:
    """Print a table and write JSON to ``out``."""
    write_text(out, json.dumps(result.to_json() | {"definitions": DEFINITIONS}, indent=2) + "\n")
    Console(stderr=True).print(table(result))


def judge(done: Sequence[Scored], step: int, kind: ExitKind) -> Evaluation:
    """Turn scored traces into numbers; ``kind`` is the exit point that the signals were trained towards."""
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
        acceptance_length=acceptance_length(done),
        acceptance_estimate=acceptance_estimate(top1),
        signal_loss=_signal_loss(done, kind),
        all_boundaries=_ranking(*everywhere),
        hard_boundaries=_ranking(*hard),
        oracle_cut=summarise(replay, OFF, replay.oracle()).thinking_cut,
        cut={lost: point.thinking_cut if point else 0.0 for lost, point in best.items()},
    )


def acceptance_length(done: Sequence[Scored]) -> float:
    """Accepted draft tokens + 1 bonus token, pooled over the steps of greedy decoding replayed over traces.

    The prompt's own pass gives the first token. From then on a step with row t drafts tokens t + 2 onwards, keeps those
    before the first miss, and gets the token behind them from the target. What lies behind a trace's end is not kept.
    """
    accepted, steps = 0, 0
    for one in done:
        misses = np.concatenate([one.hits == 0, np.ones((1, one.hits.shape[1]), bool)])
        run = np.argmax(misses, axis=0)
        row, last = len(one.trace.prompt_ids) - 1, one.hits.shape[1] - 2
        while row < last:
            kept = min(int(run[row]), last - row)
            accepted, steps, row = accepted + kept, steps + 1, row + kept + 1
    return 1 + accepted / max(steps, 1)


def _signal_loss(done: Sequence[Scored], kind: ExitKind) -> dict[str, float]:
    """Mean loss of each signal over the labelled tokens, each of which counts once here."""
    values, labels, masks = [], [], []
    for one in done:
        trace = one.trace
        assert isinstance(trace, LabelledTrace)
        exit_at = trace.exit_earliest if kind == "earliest" else trace.exit_stable
        judged = (trace.boundaries, trace.boundary_agrees, trace.boundary_confidence)
        label, mask = token_labels(*judged, len(trace.think_ids), exit_at)
        for kept, found in zip((values, labels, masks), (one.signals, label, mask), strict=True):
            kept.append(found)
    value, label, mask = (np.concatenate(x) for x in (values, labels, masks))
    value, label = value.astype(np.float64), label.astype(np.float64)
    losses = {
        "mse": lambda v, y: (v - y) ** 2,
        "msle": lambda v, y: (np.log1p(v) - np.log1p(y)) ** 2,
        "bce": lambda v, y: -(y * np.log(v) + (1 - y) * np.log1p(-v)),
    }
    return {
        signal.name: float(np.mean(losses[signal.loss](value[mask[:, i], i], label[mask[:, i], i])))
        for i, signal in enumerate(SIGNALS)
    }


def _generated(one: Scored) -> np.ndarray:
    """Hits at the rows whose predicted tokens the target generated, every TTT step on the same rows."""
    return one.hits[:, len(one.trace.prompt_ids) - 1 : one.hits.shape[1] - 1 - one.hits.shape[0]]


def _boundaries(done: Sequence[Scored]) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(probability, truth) at all boundaries before the natural end, and at the hard ones."""
    everywhere, hard = [], []
    for one in done:
        assert isinstance(one.trace, LabelledTrace)
        offsets = np.array(one.trace.boundaries)
        probability = one.signals[offsets - 1, column("validity")].tolist()
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
    out.add_row("token top-1 per TTT step", f"{steps}   (acceptance length {result.acceptance_length:.2f}, simulated)")
    losses = "   ".join(f"{name} {value:.4f}" for name, value in result.signal_loss.items())
    out.add_row("signal losses", losses)
    for name, ranking in (("all", result.all_boundaries), ("hard", result.hard_boundaries)):
        out.add_row(
            f"validity at {name} boundaries",
            f"AUROC {ranking.auroc:.4f}   calibration error {ranking.calibration_error:.4f}   "
            f"Brier {ranking.brier:.4f}   ({ranking.n:,}, {ranking.valid:.1%} valid)",
        )
    for lost, cut in result.cut.items():
        share = f"{cut / result.oracle_cut:.1%} of the oracle's {result.oracle_cut:.1%}" if result.oracle_cut else ""
        reached = share or "the oracle saves nothing either: no exit before the end of any trace is valid"
        out.add_row(f"simulated thinking cut at {lost} pt loss", f"{cut:.1%}   ({reached})")
    return out
