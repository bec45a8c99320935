"""What `ablate` found, as figures with their numbers, and the cut of each alternative at a few losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from specexit.bench.ablate import Ablation, Ablations, Variant, figure_of
from specexit.method.simulate import Point
from specexit.report.figures import Figure, Table
from specexit.report.verdict import percent


@dataclass(frozen=True)
class Ablated:
    """One question."""

    figure: Figure
    best: Table
    """Largest cut of each alternative at a loss of at most so much."""


def ablated(found: Ablations) -> Iterator[Ablated]:
    """The questions in order."""
    for ablation in found.ablations.values():
        lost = "accuracy lost" if ablation.knows_right else "answers changed"
        rows = [
            (variant.name, point.setting or _setting(point), percent(point.net_cut), _lost(ablation, variant, point))
            for variant in ablation.variants
            for point in variant.curve
        ]
        yield Ablated(
            Figure(
                ablation.question,
                figure_of(ablation),
                f"{ablation.question} Thinking cut against {lost}, a curve for each alternative.",
                f"Down and to the right is better: {lost} over the thinking cut, probes paid.",
                Table(("alternative", "setting", "thinking cut", lost), tuple(rows)),
            ),
            _best(ablation, lost),
        )


def _lost(ablation: Ablation, variant: Variant, point: Point) -> str:
    return percent(ablation.loss(variant, point))


def _setting(point: Point) -> str:
    return ", ".join(f"{name} {tau:g}" for name, tau in point.policy.thresholds.items()) if point.policy else "–"


def _best(ablation: Ablation, lost: str) -> Table:
    tolerances = list(ablation.variants[0].best)
    rows = [
        (variant.name, *("none" if point is None else percent(point.net_cut) for point in variant.best.values()))
        for variant in ablation.variants
    ]
    return Table(("alternative", *(f"{lost} ≤ {percent(float(tolerance))}" for tolerance in tolerances)), tuple(rows))
