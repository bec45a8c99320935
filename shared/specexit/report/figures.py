"""The drawings of the page, each with the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specexit.bench.comparison import read_requests
from specexit.bench.results import Latency, Results
from specexit.method.simulate import Simulation
from specexit.report.charts import accuracy_chart, latency_chart, threshold_chart
from specexit.report.verdict import percent


@dataclass(frozen=True)
class Figure:
    """A drawing and the numbers behind it."""

    title: str
    svg: str
    label: str
    """What a reader who cannot see it is told."""
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def figures(results: Results, simulation: Simulation | None, requests: Path) -> Iterator[Figure]:
    """The drawings of the page with their numbers."""
    rows = [
        (name, f"{method.thinking_tokens:.1f}", percent(method.accuracy)) for name, method in results.methods.items()
    ]
    points = ", ".join(f"{name} {accuracy} with {tokens} tokens" for name, tokens, accuracy in rows)
    yield Figure(
        "Accuracy against thinking",
        accuracy_chart(results, simulation),
        f"Scatter of accuracy against mean thinking tokens: {points}.",
        "Up and to the left is better. Points are served by vLLM; curves are exact offline replays of one family of "
        "policies over its threshold. The oracle ends every trace at its earliest right moment, which can only be "
        "known in hindsight.",
        ("method", "thinking tokens", "accuracy"),
        tuple(rows),
    )
    thresholds = [
        (point.policy.thresholds["validity"], point.thinking_cut, point.accuracy)
        for point in (simulation.curves.get("validity", ()) if simulation else ())
        if point.policy is not None and point.accuracy is not None
    ]
    if thresholds:
        yield Figure(
            "How much hangs on the threshold",
            threshold_chart(thresholds),
            "Accuracy and share of thinking cut over the validity threshold.",
            "Replayed on the same traces: what every threshold would have cut, and what accuracy it would have left.",
            ("validity at least", "thinking cut", "accuracy"),
            tuple(
                (f"{threshold:.3f}", percent(cut), percent(accuracy))
                for threshold, cut, accuracy in thresholds[:: max(1, len(thresholds) // 40)]
            ),
        )
    times = {
        name: [r.seconds for r in read_requests(requests, name, batch=1).values() if r.seconds is not None]
        for name, method in results.methods.items()
        if "1" in method.latency
    }
    if times:
        yield Figure(
            "Seconds to an answer, one request at a time",
            latency_chart(times),
            "Share of requests that were answered within so many seconds, by method.",
            "Share of the requests that were answered within so many seconds; further left is better.",
            ("method", "mean", "median", "95th percentile", "first answer token"),
            tuple(_latency_row(name, results.methods[name].latency["1"]) for name in times),
        )


def _latency_row(name: str, found: Latency) -> tuple[str, ...]:
    first = "–" if found.first_answer is None else f"{found.first_answer:.2f}"
    return (name, f"{found.mean:.2f}", f"{found.p50:.2f}", f"{found.p95:.2f}", first)
