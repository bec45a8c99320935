"""The drawings of the page, each with the numbers that it draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from specexit.bench.requests import Reason, requests_in
from specexit.bench.results import Results
from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from specexit.method.simulate import Point, Simulation
from specexit.report.charts import (
    LEAST_LEFT,
    SIGNAL_LOSSES,
    Points,
    drawn_tokens,
    latency_chart,
    longest_drawn,
    signals_chart,
    steps_chart,
    threshold_chart,
    training_lines,
)
from specexit.report.verdict import percent


@dataclass(frozen=True)
class Table:
    """Numbers as a person reads them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A drawing and the numbers behind it."""

    title: str
    svg: str
    label: str
    """What a reader who cannot see it is told."""
    caption: str
    numbers: Table
    """All that is drawn."""


def thresholds(simulation: Simulation | None, served: Policy | None) -> Iterator[Figure]:
    """What hangs on the threshold; none without a simulation that knows right answers.

    Args:
      simulation: of `simulate`.
      served: the draft's policy, whose threshold is marked where it is one of those that were played.
    """
    every = simulation.thresholds if simulation else ()
    points = every or (simulation.curves.get("validity", ()) if simulation else ())
    known = [(point.policy, point, point.accuracy) for point in points if point.accuracy is not None]
    found = [(policy.thresholds["validity"], point, right) for policy, point, right in known if policy is not None]
    if not found:
        return
    mark = served.thresholds["validity"] if any(policy == served for policy, *_ in known) and served else None
    yield Figure(
        "How much hangs on the threshold",
        threshold_chart([(tau, point.thinking_cut, accuracy) for tau, point, accuracy in found], mark),
        "Accuracy and share of thinking cut over the validity threshold.",
        _what_thresholds(points, whole=bool(every), mark=mark),
        Table(
            ("validity at least", "8 tokens before", "thinking cut", "accuracy"),
            tuple(
                (f"{tau:.3f}", _early(point), percent(point.thinking_cut), percent(accuracy))
                for tau, point, accuracy in found
            ),
        ),
    )


def _early(point: Point) -> str:
    found = point.policy.early.get("validity") if point.policy else None
    return "–" if found is None else f"{found:g}"


def _what_thresholds(points: Sequence[Point], *, whole: bool, mark: float | None) -> str:
    early = any(point.policy and point.policy.early for point in points)
    text = "Replayed on recorded traces: what "
    text += "every threshold" if whole else "thresholds that no other one beats in both (the rest was not kept)"
    text += " would have cut, and what accuracy it would have left"
    text += ", early threshold included." if early else ", every boundary judged."
    text += " An exit where the trial was cut off counts as wrong."
    return text if mark is None else f"{text} The vertical line is the draft's own, {mark:g}."


def latencies(results: Results, requests: Path) -> Iterator[Figure]:
    """Times of single requests at batch 1; none where nothing was timed."""
    taken: dict[str, dict[str, float | None]] = {
        name: {} for name, method in results.methods.items() if "1" in method.latency
    }
    if taken:
        for name, batch, request in requests_in(requests, taken):
            if batch == 1:
                taken[name][request.id] = request.seconds
        times = {name: sorted(s for s in seconds.values() if s is not None) for name, seconds in taken.items()}
        ordered = enumerate(zip_longest(*times.values()), start=1)
        yield Figure(
            "Seconds to an answer, one request at a time",
            latency_chart(times),
            "Share of requests that were answered within so many seconds, by method.",
            "Share of the requests that were answered within so many seconds; further left is better."
            + what_is_beyond(times),
            Table(
                ("requests answered", *times),
                tuple((str(i), *("–" if s is None else f"{s:.3f}" for s in seconds)) for i, seconds in ordered),
            ),
        )


def what_is_beyond(times: Mapping[str, Sequence[float]]) -> str:
    """A sentence on the requests that `latency_chart` has no room for; empty where it has."""
    end = longest_drawn(times)
    if end is None:
        return ""
    longer = {name: [s for s in seconds if s > end] for name, seconds in times.items()}
    said = ", ".join(f"{len(of)} of {name} (up to {max(of):.1f} s)" for name, of in longer.items() if of)
    return f" Beyond its right edge are {said}."


def signals(
    values: Float[np.ndarray, "think signals"],
    boundaries: Sequence[int],
    kept: int,
    policy: Policy | None,
    reason: Reason,
) -> Figure:
    """The signals of a trace, whose thinking ended for a reason, see `signals_chart`."""
    at, judged = drawn_tokens(len(values), boundaries), set(boundaries)
    label = f"Signals over the thinking tokens of this trace, with step boundaries; {kept} of {len(values)} were kept."
    rows = ((str(t), "yes" if t in judged else "", *(f"{value:.4g}" for value in values[t - 1])) for t in at.tolist())
    return Figure(
        "Signals",
        signals_chart(values, boundaries, kept, policy, reason.replace("_", " ")),
        label,
        "Signals over the thinking tokens; marks are the step boundaries, where alone they are judged. Dashed: the "
        f"threshold. Shaded: what was kept. Fewer than {LEAST_LEFT:g} tokens left are not drawn. Below, ✓ and ✗ tell "
        "whether ending there gives the whole trace's answer.",
        Table(("thinking token", "boundary", *NAMES), tuple(rows)),
    )


def training(rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, ...]:
    """The curves of a training run, from the lines of ``metrics.jsonl``."""
    found = training_lines(rows)
    return tuple(
        over_steps(title, lines, steps_chart(lines, log=title == SIGNAL_LOSSES)) for title, lines in found.items()
    )


def over_steps(title: str, lines: Mapping[str, Points], svg: str) -> Figure:
    """A drawing of lines over optimizer steps, with a row of numbers for each step at which there is one."""
    by_step = {name: dict(points) for name, points in lines.items()}
    numbers = tuple(
        (str(step), *(f"{points[step]:.4g}" if step in points else "–" for points in by_step.values()))
        for step in sorted({step for points in by_step.values() for step in points})
    )
    return Figure(title, svg, f"{title} over optimizer steps", "", Table(("optimizer step", *lines), numbers))
