"""``specexit simulate``: what any exit policy would save and cost, from traces alone, and the curves between the two.

Curves are families of policies: one threshold on validity, the paper's three together, a fixed thinking budget (first
boundary at or after N tokens) and the k-th boundary. All four are plain `specexit.method.decision.Policy` values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specexit.config import Config, write_text
from specexit.data.scores import read_scores
from specexit.data.traces import read_traces
from specexit.method.decision import OFF, PAPER, Policy
from specexit.method.replay import Outcome, Replay
from specexit.method.statistics import relative_cut
from specexit.schemas.simulate import SimulateConfig

JSON_SCHEMA = 1

VALIDITY_GRID = tuple(round(0.99 - 0.005 * i, 3) for i in range(189))
"""0.99, 0.985, ... 0.05: from cautious to bold."""

CONFIDENCE_GRID = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
PROGRESS_GRID = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
REMAINING_GRID = (200.0, 100.0, 50.0, 30.0, 20.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5)


class Point(Config):
    """A policy and what it does. Shares are 0..1; cuts compare totals over all traces."""

    policy: Policy
    thinking_cut: float
    total_cut: float
    """Thinking, marker and answer together; the answer behind an exit is taken to be as long as the original's."""
    agreement: float
    """Share of traces whose answer stays the same."""
    accuracy: float | None
    """None where right answers are not known."""
    exits: float
    """Share of traces that exit early."""


class Simulation(Config):
    """What ``simulate`` writes."""

    schema_version: int = JSON_SCHEMA
    n: int
    full_accuracy: float | None
    oracle: Point
    named: dict[str, Point]
    curves: dict[str, tuple[Point, ...]]


def summarise(replay: Replay, policy: Policy, outcome: Outcome) -> Point:
    """Totals of an outcome."""
    rest = replay.n_answer + 1
    return Point(
        policy=policy,
        thinking_cut=relative_cut(replay.n_think, outcome.kept),
        total_cut=relative_cut(replay.n_think + rest, outcome.kept + rest),
        agreement=1 - float(outcome.changed.mean()),
        accuracy=mean_known(outcome.correct),
        exits=float(outcome.exited.mean()),
    )


def mean_known(correct: np.ndarray) -> float | None:
    """Mean over the traces whose right answer is known, None without any."""
    known = correct[~np.isnan(correct)]
    return float(known.mean()) if known.size else None


def budget_policy(tokens: int) -> Policy:
    """A fixed thinking budget: exit at the first boundary at or after so many tokens, whatever the signals say."""
    return Policy(thresholds={}, min_thinking_tokens=tokens)


def families(config: SimulateConfig, longest: int, most_boundaries: int) -> dict[str, list[Policy]]:
    """The policies of each curve.

    Args:
      config: smoothing of the signal policies.
      longest: thinking tokens of the longest trace.
      most_boundaries: the most that a trace has.
    """
    smoothing = {"smoothing": config.smoothing, "alpha": config.alpha}
    trio = product(CONFIDENCE_GRID, PROGRESS_GRID, REMAINING_GRID)
    return {
        "validity": [Policy(thresholds={"validity": tau}, **smoothing) for tau in VALIDITY_GRID],
        "trio": [Policy(thresholds={"confidence": c, "progress": p, "remaining": r}, **smoothing) for c, p, r in trio],
        "budget": [budget_policy(tokens) for tokens in range(0, longest + 1, max(1, longest // 200))],
        "boundary": [Policy(thresholds={}, patience=k) for k in range(1, most_boundaries + 1)],
    }


def loss(point: Point, full_accuracy: float | None) -> float:
    """Accuracy lost against full traces; where right answers are not known, the share of changed ones bounds it."""
    if point.accuracy is None or full_accuracy is None:
        return 1 - point.agreement
    return full_accuracy - point.accuracy


def best_within(points: Iterable[Point], full_accuracy: float | None, tolerance: float) -> Point | None:
    """The point that cuts most at a loss of at most ``tolerance``; None where there is none."""
    fit = [point for point in points if loss(point, full_accuracy) <= tolerance + 1e-9]
    return max(fit, key=lambda point: point.thinking_cut, default=None)


def pareto(points: Sequence[Point], full_accuracy: float | None) -> tuple[Point, ...]:
    """Points that no other one beats in both cut and loss, by rising cut."""
    front: list[Point] = []
    lowest = np.inf
    for point in sorted(points, key=lambda p: (-p.thinking_cut, loss(p, full_accuracy))):
        if loss(point, full_accuracy) < lowest:
            lowest = loss(point, full_accuracy)
            front.append(point)
    return tuple(reversed(front))


def run(replay: Replay, config: SimulateConfig, console: Console) -> Simulation:
    """Sweep every family; a curve keeps its Pareto front."""
    longest = int(replay.n_think.max(initial=0))
    sweeps = families(config, longest, max((len(trace.boundaries) for trace in replay.traces), default=0))
    full = mean_known(replay.correct)
    curves = {}
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("policies", total=sum(map(len, sweeps.values())))
        for name, policies in sweeps.items():
            points = []
            for policy in policies:
                points.append(summarise(replay, policy, replay.play(policy)))
                progress.advance(task)
            curves[name] = pareto(points, full)
    return Simulation(
        n=len(replay.traces),
        full_accuracy=full,
        oracle=summarise(replay, OFF, replay.oracle()),
        named={"paper": summarise(replay, PAPER, replay.play(PAPER))},
        curves=curves,
    )


def table(simulation: Simulation, tolerances: Sequence[float]) -> Table:
    """Each curve's largest cut at a few losses, with the share of the oracle's cut that it reaches."""
    what = "changed answers" if simulation.full_accuracy is None else "accuracy loss"
    out = Table(title=f"{simulation.n} traces; thresholds picked on these very traces", title_justify="left")
    for heading in ("policy", f"{what} ≤", "thinking cut", "of oracle", "total cut", "agree", "accuracy"):
        out.add_column(heading, justify="left" if heading == "policy" else "right")
    rows = [("oracle", None, simulation.oracle)]
    rows += [
        (name, tolerance, best_within(points, simulation.full_accuracy, tolerance))
        for name, points in simulation.curves.items()
        for tolerance in tolerances
    ]
    rows += [(name, None, point) for name, point in simulation.named.items()]
    for name, tolerance, point in rows:
        limit = "" if tolerance is None else f"{100 * tolerance:g} %"
        out.add_row(name, limit, *_cells(point, simulation.oracle.thinking_cut))
    return out


def _cells(point: Point | None, oracle_cut: float) -> list[str]:
    if point is None:
        return ["none", "", "", "", ""]
    reached = point.thinking_cut / oracle_cut if oracle_cut else np.nan
    shares = (point.thinking_cut, reached, point.total_cut, point.agreement, point.accuracy)
    return ["" if share is None else f"{100 * share:.1f} %" for share in shares]


def simulate(config: SimulateConfig) -> Simulation:
    """Replay the standard families of policies, print the table and write the curves.

    Raises:
      TraceError, ScoreError: a file is unreadable, or the scores are of other traces.
    """
    traces = read_traces(config.traces)
    replay = Replay(traces, read_scores(config.scores).of(traces), round_tokens=config.round_tokens)
    console = Console()
    simulation = run(replay, config, console)
    write_text(config.out, json.dumps(simulation.model_dump(mode="json"), indent=1) + "\n")
    console.print(table(simulation, config.tolerances))
    return simulation
