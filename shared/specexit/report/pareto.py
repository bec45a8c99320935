"""Accuracy against thinking, on all problems and task by task: what is drawn, and the same numbers in a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from specexit.bench.results import BASELINE, MethodResult, Results, TaskResult
from specexit.method.simulate import Part, Point, Simulation
from specexit.report.charts import Spot, accuracy_chart
from specexit.report.figures import Figure, Table
from specexit.report.verdict import percent

Measured = MethodResult | TaskResult

REPLAYED = (
    "Points are served by vLLM; curves are replays of recorded traces, of each method its Pareto front: what its "
    "settings cut and lose, none of them picked. An exit where the trial was cut off counts there as wrong, whatever "
    "is served, so that a curve may lie below its point. Tokens of trial answers are not on the axis, but in the "
    "numbers below."
)


def of_all(results: Results, simulation: Simulation | None) -> Figure:
    """The figure over all problems."""
    full = results.methods[BASELINE]
    served = _served(results.methods)
    hindsight = _spot("oracle", "", results.oracle.thinking_cut, 0.0, full.accuracy, full.thinking_tokens)
    curves = _curves(simulation, full.thinking_tokens) if simulation else {}
    points = ", ".join(f"{spot.name} {percent(spot.accuracy)} with {spot.tokens:.1f} tokens" for spot in served)
    caption = "Up and to the left is better. The oracle ends every trace at its earliest right moment, which can only "
    caption += "be known in hindsight. "
    if results.oracle.one_point:
        caption += "It cuts at least what is drawn, as not all of the thinking was tried. "
    return Figure(
        "Accuracy against thinking",
        accuracy_chart(served, hindsight, curves),
        f"Scatter of accuracy against mean thinking tokens: {points}.",
        caption + (REPLAYED + _of_which(results, simulation) if simulation else ""),
        _numbers(served, hindsight, curves),
    )


def by_task(results: Results, simulation: Simulation | None) -> Iterator[Figure]:
    """A small figure for each task, of the same marks and lines."""
    for task, found in results.tasks.items():
        part = simulation.tasks.get(task) if simulation else None
        full, served = found[BASELINE], _served(found)
        curves = _curves(part, full.thinking_tokens) if part else {}
        hindsight = None
        if part:
            oracle, right = part.oracle, part.oracle.accuracy
            right = full.accuracy if right is None else right
            hindsight = _spot("oracle", "", oracle.thinking_cut, 0.0, right, full.thinking_tokens)
        yield Figure(
            task,
            accuracy_chart(served, hindsight, curves, small=True),
            f"Scatter of accuracy against mean thinking tokens on the problems of task {task}.",
            "",
            _numbers(served, hindsight, curves),
        )


def _of_which(results: Results, simulation: Simulation) -> str:
    same = simulation.n == results.n and results.oracle_name == "oracle"
    decoded = results.oracle_name.removesuffix("oracle")
    return "" if same else f" They are of {simulation.n} {decoded}traces of {simulation.prompts} prompts."


def _served(methods: Mapping[str, Measured]) -> list[Spot]:
    return [
        Spot(name, "served", method.thinking_tokens, getattr(method, "probe_tokens", None), method.accuracy)
        for name, method in methods.items()
    ]


def _curves(part: Part, full_tokens: float) -> dict[str, list[Spot]]:
    """Of points whose right answers are known."""
    found = {
        name: [_replayed(name, point, full_tokens) for point in points if point.accuracy is not None]
        for name, points in part.curves.items()
    }
    return {name: spots for name, spots in found.items() if spots}


def _replayed(name: str, point: Point, full_tokens: float) -> Spot:
    assert point.accuracy is not None
    return _spot(name, point.setting, point.thinking_cut, point.probe_share, point.accuracy, full_tokens)


def _spot(name: str, setting: str, cut: float, probes: float, accuracy: float, full_tokens: float) -> Spot:
    return Spot(name, setting, (1 - cut) * full_tokens, probes * full_tokens, accuracy)


def _numbers(served: list[Spot], oracle: Spot | None, curves: Mapping[str, list[Spot]]) -> Table:
    spots = [*served, *([oracle] if oracle else []), *(spot for curve in curves.values() for spot in curve)]
    rows = [
        (
            spot.name,
            spot.setting or "in hindsight",
            f"{spot.tokens:.1f}",
            "–" if spot.probes is None else f"{spot.probes:.1f}",
            percent(spot.accuracy),
        )
        for spot in spots
    ]
    return Table(("method", "setting", "thinking tokens", "tokens of trial answers", "accuracy"), tuple(rows))
