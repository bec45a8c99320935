"""``specexit simulate``: what any exit method would save and cost, from traces alone, and the curves between the two.

The methods are those of `specexit.method.policies`, one file each; each is swept over its settings, and its curve is
the Pareto front of what they cut and lose. Methods that ask for trial answers pay for them. Traces that cannot judge
(see `specexit.data.rows.can_judge`) are left out and counted. Sampled traces are replayed as greedy ones are: what an
exit does to the answer is known, and what thinking on would have given is the trace itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool
from pydantic import Field
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specexit.config import Config, write_text
from specexit.data.rows import can_judge, prompt_sha256
from specexit.data.scores import open_scores
from specexit.data.traces import TraceError, read_bare
from specexit.method.decision import OFF, Policy
from specexit.method.policies import METHODS, Method, Played, load_methods
from specexit.method.replay import Outcome, Replay
from specexit.method.sample import why_not
from specexit.method.statistics import relative_cut
from specexit.schemas.simulate import SimulateConfig

JSON_SCHEMA = 2


class Point(Config):
    """A setting and what it does. Shares are 0..1; cuts compare totals over all traces."""

    policy: Policy | None = None
    """The setting as a policy that a server can be given, where it is one."""
    setting: str = ""
    thinking_cut: float
    total_cut: float
    """Thinking, marker and answer together; the answer behind an exit is taken to be as long as the original's."""
    probe_share: float = 0.0
    """Tokens generated only in order to decide, as a share of the full thinking."""
    agreement: float
    """Share of traces whose answer stays the same."""
    accuracy: float | None
    """None where right answers are not known."""
    exits: float
    """Share of traces that exit early."""

    @property
    def net_cut(self) -> float:
        """What is left of the thinking cut when the probes are paid; below 0 where they cost more than they save."""
        return self.thinking_cut - self.probe_share


class Part(Config):
    """What was found on some of the traces."""

    n: int
    prompts: int
    full_accuracy: float | None
    oracle: Point
    curves: dict[str, tuple[Point, ...]]
    """Method -> its Pareto front, by rising net cut."""


class Simulation(Part):
    """What ``simulate`` writes."""

    schema_version: int = JSON_SCHEMA
    named: dict[str, Point]
    """Settings that are quoted as they are."""
    tasks: dict[str, Part] = Field(default={})
    """The same by task, where there are several."""
    methods: dict[str, str] = Field(default={})
    """Method -> what it does, in a line."""
    left_out: dict[str, int] = Field(default={})
    """Reason -> traces that cannot judge."""


def summarise(
    replay: Replay,
    policy: Policy | None,
    outcome: Outcome,
    *,
    played: Played | None = None,
    rows: Bool[np.ndarray, " traces"] | None = None,
) -> Point:
    """Totals of an outcome.

    Args:
      replay: the traces.
      policy: that had this outcome, if it is one.
      outcome: what happened to each trace.
      played: the setting that the outcome is of, for its name and its probes.
      rows: traces to count; all by default.
    """
    rows = np.ones(len(replay.traces), bool) if rows is None else rows
    full, kept, rest = replay.n_think[rows], outcome.kept[rows], replay.n_answer[rows] + 1
    probes = 0 if played is None or played.probe_tokens is None else int(played.probe_tokens[rows].sum())
    return Point(
        policy=policy,
        setting="" if played is None else played.setting,
        thinking_cut=relative_cut(full, kept),
        total_cut=relative_cut(full + rest, kept + rest),
        probe_share=probes / int(full.sum()),
        agreement=1 - float(outcome.changed[rows].mean()),
        accuracy=mean_known(outcome.correct[rows]),
        exits=float(outcome.exited[rows].mean()),
    )


def mean_known(correct: np.ndarray) -> float | None:
    """Mean over the traces whose right answer is known, None without any."""
    known = correct[~np.isnan(correct)]
    return float(known.mean()) if known.size else None


def loss(point: Point, full_accuracy: float | None) -> float:
    """Accuracy lost against full traces; where right answers are not known, the share of changed ones bounds it."""
    if point.accuracy is None or full_accuracy is None:
        return 1 - point.agreement
    return full_accuracy - point.accuracy


def best_within(points: Iterable[Point], full_accuracy: float | None, tolerance: float) -> Point | None:
    """The point that cuts most, probes paid, at a loss of at most ``tolerance``; None where there is none."""
    fit = [point for point in points if loss(point, full_accuracy) <= tolerance + 1e-9]
    return max(fit, key=lambda point: point.net_cut, default=None)


def pareto(points: Sequence[Point], full_accuracy: float | None) -> tuple[Point, ...]:
    """Points that no other one beats in both net cut and loss, by rising net cut."""
    front: list[Point] = []
    lowest = np.inf
    for point in sorted(points, key=lambda p: (-p.net_cut, loss(p, full_accuracy))):
        if loss(point, full_accuracy) < lowest:
            lowest = loss(point, full_accuracy)
            front.append(point)
    return tuple(reversed(front))


def run(
    replay: Replay,
    config: SimulateConfig,
    console: Console,
    *,
    methods: dict[str, Method] = METHODS,
    probe: Replay | None = None,
) -> Simulation:
    """Sweep every method.

    Args:
      replay: traces that can judge, with the draft's signals.
      config: smoothing of the signal policies.
      console: for the progress bar.
      methods: by name.
      probe: the same traces with another source's signals, played as method ``probe``.
    """
    of_task = np.array([trace.task or "" for trace in replay.traces])
    parts = {"": np.ones(len(replay.traces), bool)}
    if len(set(of_task)) > 1:
        parts |= {str(task) or "no task": of_task == task for task in sorted(set(of_task))}
    todo = [(method.name, method, replay) for method in methods.values()]
    if probe is not None:
        todo.append(("probe", METHODS["validity"], probe))
    full = {name: mean_known(replay.correct[rows]) for name, rows in parts.items()}
    named: dict[str, Point] = {}
    curves: dict[str, dict[str, tuple[Point, ...]]] = {name: {} for name in parts}
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for label, method, source in progress.track(todo, description="methods"):
            points: dict[str, list[Point]] = {name: [] for name in parts}
            for played in method.play(source, config):
                for name, rows in parts.items():
                    points[name].append(summarise(replay, played.policy, played.outcome, played=played, rows=rows))
            if not method.tuned:
                named |= {point.setting: point for point in points[""]}
                continue
            for name in parts:
                curves[name][label] = pareto(points[name], full[name])
    oracle = replay.oracle()
    found = {
        name: Part(
            n=int(rows.sum()),
            prompts=len({prompt_sha256(trace) for trace, one in zip(replay.traces, rows, strict=True) if one}),
            full_accuracy=full[name],
            oracle=summarise(replay, OFF, oracle, rows=rows),
            curves=curves[name],
        )
        for name, rows in parts.items()
    }
    return Simulation(
        **vars(found[""]),
        named=named,
        tasks={name: part for name, part in found.items() if name},
        methods={label: method.about for label, method, _ in todo},
    )


def table(part: Part, tolerances: Sequence[float], named: dict[str, Point], title: str) -> Table:
    """Each curve's largest net cut at a few losses, with the share of the oracle's cut that it reaches."""
    known = part.full_accuracy is not None
    out = Table(title=f"{title}; settings picked on these very traces", title_justify="left", box=SIMPLE)
    out.add_column("method", min_width=max(map(len, (*part.curves, *named)), default=0))
    out.add_column("loss ≤" if known else "changed ≤", justify="right")
    out.add_column("setting", overflow="fold")
    for heading in ("net cut", "probes", "of oracle", "accuracy" if known else "agreement"):
        out.add_column(heading, justify="right", min_width=7)
    rows = [("oracle", None, part.oracle)]
    rows += [
        (name, tolerance, best_within(points, part.full_accuracy, tolerance))
        for name, points in part.curves.items()
        for tolerance in tolerances
    ]
    rows += [(name, None, point.model_copy(update={"setting": ""})) for name, point in named.items()]
    for name, tolerance, point in rows:
        limit = "" if tolerance is None else f"{100 * tolerance:g} %"
        out.add_row(name, limit, *_cells(point, part.oracle.thinking_cut))
    return out


def _cells(point: Point | None, oracle_cut: float) -> list[str]:
    if point is None:
        return ["none", "", "", "", ""]
    reached = point.net_cut / oracle_cut if oracle_cut else None  # of nothing there is no share
    kept = point.agreement if point.accuracy is None else point.accuracy
    shares = (point.net_cut, point.probe_share, reached, kept)
    return [point.setting, *("" if share is None else f"{100 * share:.1f} %" for share in shares)]


def simulate(config: SimulateConfig) -> Simulation:
    """Replay all methods, print the tables and write the curves.

    Raises:
      TraceError, ScoreError: a file is unreadable, a trace is there twice, the scores are of other traces, or no trace
        can judge.
      MethodError: a file of ``methods`` holds none.
    """
    methods = load_methods(config.methods)
    everything = read_bare(config.traces)
    left_out = Counter(why_not(trace) for trace in everything if not can_judge(trace))
    traces = [trace for trace in everything if can_judge(trace)]
    if not traces:
        raise TraceError(f"{config.traces}: none of {len(everything)} traces can judge ({dict(left_out)})")
    replay = Replay(traces, open_scores(config.scores).of(traces), round_tokens=config.round_tokens)
    probe = None if config.probe_scores is None else Replay(traces, open_scores(config.probe_scores).of(traces))
    console = Console()
    simulation = run(replay, config, console, methods=methods, probe=probe)
    simulation = simulation.model_copy(update={"left_out": dict(left_out)})
    write_text(config.out, json.dumps(simulation.model_dump(mode="json"), indent=1) + "\n")
    title = f"{simulation.n} traces of {simulation.prompts} prompts"
    console.print(table(simulation, config.tolerances, simulation.named, title))
    for name, part in simulation.tasks.items():
        console.print(table(part, config.tolerances, {}, f"{name}: {part.n} traces of {part.prompts} prompts"))
    if left_out:
        console.print(f"left out, as they cannot judge: {', '.join(f'{n} {why}' for why, n in left_out.items())}")
    return simulation
