"""The numbers of an evaluation, from scored traces that are given one at a time.

Only sums are kept in memory, and the boundaries, which are ranked in the end, lie on the disk; so memory does not grow
with the number of traces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jax_specexit.evaluation.scoring import Scored
from jax_specexit.training.metrics import acceptance_estimate
from specexit.data.rows import BareTrace, LabelledTrace, is_tried_throughout, known_verdicts
from specexit.data.traces import without_text
from specexit.method.decision import Policy
from specexit.method.labels import ExitKind, token_labels
from specexit.method.ordered import Ordered
from specexit.method.policies.validity import VALIDITY_GRID
from specexit.method.replay import AtBoundaries, Replay
from specexit.method.signals import SIGNALS, column
from specexit.method.simulate import best_within, point_of
from specexit.method.statistics import Ranking, ranking
from specexit.method.sums import Sums, sums_of
from specexit.schemas.train import BestBy

BLOCK_BOUNDARIES = 1 << 15
"""Boundaries of the traces that are replayed together."""


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
    "oracle_cut": "share of thinking tokens behind each trace's earliest boundary that is known to have its answer; at "
    "least that where there are traces of one point",
    "one_point": "traces that were not tried throughout (boundaries=stable or bisect): nothing is known in front of "
    "their first trial, and an exit there counts as an error",
    "left_out": "traces of more than evaluate_length tokens (the target's max_model_len by default): in none of these",
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
    one_point: int = 0
    """Traces that were not tried throughout, see `specexit.data.rows.is_tried_throughout`."""
    left_out: int = 0
    """Traces that were too long for an evaluation in the run, and are in none of these numbers."""

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
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


class Judge:
    """Takes scored traces one at a time, and turns them into numbers.

    Args:
      kind: the exit point that the signals were trained towards.
    """

    def __init__(self, kind: ExitKind):
        self.kind: ExitKind = kind
        self._traces: list[BareTrace] = []
        """Traces that are not replayed yet; `_values` has their signals at boundaries."""
        self._values: list[np.ndarray] = []
        self._held = 0
        self._one_point = 0
        self._sums: dict[str, Sums] = {}
        self._everywhere, self._hard = Ordered(), Ordered()
        self._hits, self._rows = np.zeros(0), 0
        self._accepted, self._steps = 0, 0
        self._loss, self._labelled = np.zeros(len(SIGNALS)), np.zeros(len(SIGNALS), np.int64)

    def add(self, one: Scored) -> None:
        """Count a trace."""
        trace = one.trace
        assert isinstance(trace, LabelledTrace)
        signals = one.signals
        generated = _generated(one)
        hits = generated.sum(axis=1)
        self._hits = self._hits + hits if self._rows else hits
        self._rows += generated.shape[1]
        accepted, steps = accepted_of(one)
        self._accepted, self._steps = self._accepted + accepted, self._steps + steps
        losses, labelled = _signal_losses(trace, signals, self.kind)
        self._loss, self._labelled = self._loss + losses, self._labelled + labelled
        values = signals[np.array(trace.boundaries, np.int64) - 1]
        self._rank(trace, values[:, column("validity")])
        self._one_point += not is_tried_throughout(trace)
        self._traces.append(without_text(trace, {None: None}))
        self._values.append(values)
        self._held += 1 + len(values)
        if self._held >= BLOCK_BOUNDARIES:
            self._replay()

    def result(self, step: int) -> Evaluation:
        """The numbers so far; ``step`` is that of the parameters."""
        self._replay()
        top1 = self._hits / self._rows if self._rows else np.full(len(self._hits), np.nan)
        points = {name: point_of(sums, None) for name, sums in self._sums.items()}
        full, oracle = points.pop("full"), points.pop("oracle")
        best = {str(lost): best_within(points.values(), full.accuracy, lost / 100) for lost in (0, 1)}
        return Evaluation(
            step=step,
            n=self._sums["full"].traces,
            top1=[round(float(x), 5) for x in top1],
            acceptance_length=1 + self._accepted / max(self._steps, 1),
            acceptance_estimate=acceptance_estimate(top1),
            signal_loss={
                signal.name: float(loss / n) if n else float("nan")
                for signal, loss, n in zip(SIGNALS, self._loss, self._labelled, strict=True)
            },
            all_boundaries=ranking(self._everywhere.counted()),
            hard_boundaries=ranking(self._hard.counted()),
            oracle_cut=oracle.thinking_cut,
            cut={lost: point.thinking_cut if point else 0.0 for lost, point in best.items()},
            one_point=self._one_point,
        )

    def _rank(self, trace: LabelledTrace, probability: np.ndarray) -> None:
        """Note the validity at all boundaries before the natural end, and at the hard one.

        Boundaries without a trial behind their verdict are left out: the truth is not known there.
        """
        agrees, known = np.array(trace.boundary_agrees, bool), known_verdicts(trace.boundary_state)
        everywhere = known & (np.array(trace.boundaries, np.int64) < trace.n_think)
        self._everywhere.add(probability[everywhere], agrees[everywhere])
        if trace.hard_boundary is not None and known[trace.hard_boundary]:
            hard = slice(trace.hard_boundary, trace.hard_boundary + 1)
            self._hard.add(probability[hard], agrees[hard])

    def _replay(self) -> None:
        """Replay the traces that are held, add them to the sums, and let go of them."""
        if not self._traces:
            return
        replay = Replay(self._traces, AtBoundaries(self._values))
        played = {str(tau): replay.play(Policy(thresholds={"validity": tau})) for tau in VALIDITY_GRID}
        played |= {"full": replay.outcome_at(np.full(len(self._traces), -1)), "oracle": replay.oracle()}
        for name, outcome in played.items():
            sums = sums_of(replay, outcome)
            self._sums[name] = self._sums[name].plus(sums) if name in self._sums else sums
        self._traces, self._values, self._held = [], [], 0


def judge(done: Iterable[Scored], step: int, kind: ExitKind) -> Evaluation:
    """Numbers of scored traces, see `Judge`."""
    found = Judge(kind)
    for one in done:
        found.add(one)
    return found.result(step)


def accepted_of(one: Scored) -> tuple[int, int]:
    """(accepted draft tokens, steps) of greedy decoding replayed over a trace.

    The prompt's own pass gives the first token. From then on a step with row t drafts tokens t + 2 onwards, keeps those
    before the first miss, and gets the token behind them from the target. What lies behind a trace's end is not kept.
    """
    accepted, steps = 0, 0
    misses = np.concatenate([one.hits == 0, np.ones((1, one.hits.shape[1]), bool)])
    run = np.argmax(misses, axis=0)
    row, last = len(one.trace.prompt_ids) - 1, one.hits.shape[1] - 2
    while row < last:
        kept = min(int(run[row]), last - row)
        accepted, steps, row = accepted + kept, steps + 1, row + kept + 1
    return accepted, steps


_LOSSES = {
    "mse": lambda v, y: (v - y) ** 2,
    "msle": lambda v, y: (np.log1p(v) - np.log1p(y)) ** 2,
    "bce": lambda v, y: -(y * np.log(v) + (1 - y) * np.log1p(-v)),
}


def _signal_losses(trace: LabelledTrace, signals: np.ndarray, kind: ExitKind) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each signal's loss over the labelled tokens, each of which counts once here, and their number."""
    exit_at = trace.exit_earliest if kind == "earliest" else trace.exit_stable
    judged = (trace.boundaries, trace.boundary_agrees, trace.boundary_confidence)
    labels, mask = token_labels(*judged, len(trace.think_ids), exit_at, known_verdicts(trace.boundary_state))
    value, label = signals.astype(np.float64), labels.astype(np.float64)
    sums = [
        np.sum(_LOSSES[signal.loss](value[mask[:, i], i], label[mask[:, i], i])) for i, signal in enumerate(SIGNALS)
    ]
    return np.array(sums), mask.sum(axis=0)


def _generated(one: Scored) -> np.ndarray:
    """Hits [step, rows] at the rows of which all TTT steps predict tokens that the target generated."""
    return one.hits[:, len(one.trace.prompt_ids) - 1 : max(0, one.hits.shape[1] - 1 - one.hits.shape[0])]
