"""``specexit simulate``: what any exit method would save and cost, from traces alone, and the curves between the two.

The methods are those of `specexit.method.policies`, one file each; each is swept over its settings, and its curve is
the Pareto front of what they cut and lose. Methods that ask for trial answers pay for them. Traces that cannot judge
(see `specexit.data.rows.can_judge`) are left out and counted. Where traces were tried about one exit point alone, a
method that asks for answers has no curve: it would ask just where that search has found the exit. Sampled traces are
replayed as greedy ones are: what an exit does to the answer is known, and what thinking on would have given is the
trace itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specexit.config import Config, write_text
from specexit.data.outlines import Outlines
from specexit.data.rows import NO_TASK, is_tried_throughout
from specexit.data.scores import StoredScores, open_scores
from specexit.data.traces import TraceError, check_one_target, data_sha256, read_outlines
from specexit.errors import listed
from specexit.method.decision import OFF, Policy
from specexit.method.policies import (
    FULL,
    METHODS,
    NOT_REPLAYED,
    ORACLE,
    PROBE,
    Method,
    Played,
    load_methods,
    play_checked,
)
from specexit.method.policies.validity import early_of
from specexit.method.replay import Largest, Outcome, Replay
from specexit.method.stored import replays
from specexit.method.sums import Sums, sums_of
from specexit.method.tally import Tally
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
    """Method -> its Pareto front, by rising net cut; where traces are of one point, not of methods that ask."""
    one_point: int = 0
    """Traces that were not tried throughout, see `specexit.data.rows.is_tried_throughout`. With any of them the oracle
    cuts at least what is said, as nothing is known in front of their first trial."""
    unreferenced: int = 0
    """Traces whose right answer is not known: accuracy, and so every loss, is of the others."""


class Simulation(Part):
    """What ``simulate`` writes."""

    schema_version: int = JSON_SCHEMA
    named: dict[str, Point]
    """Settings that are quoted as they are."""
    tasks: dict[str, Part] = Field(default={})
    """The same by task, where there are several."""
    methods: dict[str, str] = Field(default={})
    """Method -> what it does, in a line."""
    thresholds: tuple[Point, ...] = ()
    """Method ``validity`` at every threshold of its grid, the cautious ones first; its curve holds the front alone."""
    untried: int = 0
    """Traces that were tried throughout, and not at every boundary: methods that ask for answers ask, and pay, at the
    tried ones alone."""
    unknown: tuple[str, ...] = ()
    """Methods that ask for answers, where there are traces of one point: what they would hear is not known."""
    not_replayed: dict[str, str] = Field(default=NOT_REPLAYED)
    """Method that `bench` measures -> why no trace can tell what it would do."""
    left_out: dict[str, int] = Field(default={})
    """Reason -> traces that cannot judge."""
    inputs: dict[str, str] = Field(default={})
    """``traces``, ``draft.weights`` and ``draft.computation`` -> hash of what was replayed; empty in files of older
    versions, which may lack the last one."""


def point_of(sums: Sums, policy: Policy | None, setting: str = "") -> Point:
    """The shares that sums over traces make."""
    return Point(
        policy=policy,
        setting=setting,
        thinking_cut=1 - sums.kept / sums.full,
        total_cut=1 - (sums.kept + sums.rest) / (sums.full + sums.rest),
        probe_share=sums.probes / sums.full,
        agreement=1 - sums.changed / sums.traces,
        accuracy=sums.right / sums.known if sums.known else None,
        exits=sums.exited / sums.traces,
    )


def summarise(replay: Replay, policy: Policy | None, outcome: Outcome) -> Point:
    """What an outcome saves and costs.

    Args:
      replay: the traces.
      policy: the one with this outcome; None where no policy has it.
      outcome: what happened to each trace.
    """
    return point_of(sums_of(replay, outcome), policy)


def mean_known(correct: np.ndarray) -> float | None:
    """Mean over the traces whose right answer is known, None without any."""
    known = correct[~np.isnan(correct)]
    return float(known.mean()) if known.size else None


def loss(point: Point, full_accuracy: float | None) -> float:
    """Accuracy lost against full traces; where right answers are not known, the share of changed ones bounds it."""
    if point.accuracy is None or full_accuracy is None:
        return 1 - point.agreement
    return full_accuracy - point.accuracy


def within(point: Point, full_accuracy: float | None, tolerance: float) -> bool:
    """Whether a point loses at most ``tolerance``: by two shares, whose difference is rounded (0.9 - 0.89 > 0.01)."""
    return loss(point, full_accuracy) <= tolerance + 1e-9


def best_within(points: Iterable[Point], full_accuracy: float | None, tolerance: float) -> Point | None:
    """The point that cuts most, probes paid, at a loss of at most ``tolerance``; None where there is none."""
    fit = [point for point in points if within(point, full_accuracy, tolerance)]
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


MOST_TABLES = 20
"""Tasks that have a table of their own: a terminal shows no hundreds."""

Block = tuple[Replay, Replay | None]
"""Replays of the same traces: with the draft's signals, and with another source's."""


def run(
    blocks: Iterable[Block],
    traces: Outlines,
    config: SimulateConfig,
    console: Console,
    *,
    methods: dict[str, Method] = METHODS,
    probe_early: float | None = None,
) -> Simulation:
    """Sweep every method.

    Args:
      blocks: of the traces; those of another source are played as method ``probe``.
      traces: all of them, in the same order.
      config: smoothing of the signal policies, and the early share of validity's.
      console: for the progress bar.
      methods: by name.
      probe_early: the early share of the other source's validity; None where there is no other.

    Raises:
      MethodError: see `Tally.add` and `play_checked`.
    """
    known = _known(traces)
    number = {name: i for i, name in enumerate(known)}
    about = {name: method.about for name, method in methods.items()}
    beside = config.model_copy(update={"early": probe_early})
    if probe_early is not None:
        about[PROBE] = METHODS["validity"].about
    tallies, untried = {name: Tally(name, len(known)) for name in [*about, FULL, ORACLE]}, 0
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("traces", total=len(traces))
        for replay, probe in blocks:
            tasks = np.array([number[trace.task or NO_TASK] for trace in replay.traces])
            for name, method in methods.items():
                ours = METHODS.get(name) is method
                played = method.play(replay, config) if ours else play_checked(method, replay, config)
                tallies[name].add(replay, played, tasks)
            if probe is not None:
                tallies[PROBE].add(replay, METHODS["validity"].play(probe, beside), tasks)
            never = replay.outcome_at(np.full(len(replay.traces), -1))
            tallies[FULL].add(replay, [Played("", never)], tasks)
            tallies[ORACLE].add(replay, [Played("", replay.oracle(), policy=OFF)], tasks)
            untried += sum("untried" in t.boundary_state and is_tried_throughout(t) for t in replay.traces)
            progress.advance(bar, len(replay.traces))
    asking = {label for label, tally in tallies.items() if tally.asks}
    quoted = [name for name, method in methods.items() if not method.tuned]
    tuned = set(about) - set(quoted)
    points = {label: _points(tally, None) for label, tally in tallies.items()}
    everything = [sum(numbers) for numbers in zip(*known.values(), strict=True)]
    found = _part(Known(*everything)._replace(prompts=traces.n_prompts()), points, tuned, asking)
    unknown = [label for label in about if label in asking and found.one_point]

    def of_task(name: str) -> Part:
        return _part(
            known[name], {label: _points(tally, number[name]) for label, tally in tallies.items()}, tuned, asking
        )

    return Simulation(
        **vars(found),
        named=_by_setting({label: points[label] for label in quoted if label not in unknown}),
        tasks={name: of_task(name) for name in known} if len(known) > 1 else {},
        methods=about,
        thresholds=tuple(points.get("validity", ())),
        untried=untried,
        unknown=tuple(unknown),
    )


class Known(NamedTuple):
    """What is known of traces before any method is played."""

    n: int
    prompts: int
    one_point: int
    unreferenced: int


def _known(traces: Outlines) -> dict[str, Known]:
    """What is known of each task, by name, in one query: there may be thousands of tasks."""
    names = list(traces.texts["task"])
    asked = "task, count(*), count(distinct prompt), sum(not throughout), sum(not is_known)"
    found: dict[str, Known] = {}
    for name, *numbers in sorted(
        (names[task] or "", *numbers) for task, *numbers in traces.ask(asked, "group by task")
    ):
        before = found.get(name or NO_TASK, Known(0, 0, 0, 0))  # a task may be called so
        found[name or NO_TASK] = Known(*map(sum, zip(before, numbers, strict=True)))
    return found


def _points(tally: Tally, part: int | None) -> list[Point]:
    return [point_of(*one) for one in tally.of(part)]


def _by_setting(points: Mapping[str, Sequence[Point]]) -> dict[str, Point]:
    """Points by their setting, with the method's name in front where two methods call one the same."""
    often = Counter(point.setting for each in points.values() for point in each)
    return {
        point.setting if often[point.setting] == 1 else f"{label}: {point.setting}": point
        for label, each in points.items()
        for point in each
    }


def _part(known: Known, points: dict[str, list[Point]], tuned: Container[str], asking: Container[str]) -> Part:
    [full], [oracle] = points[FULL], points[ORACLE]
    unknown = asking if known.one_point else ()
    return Part(
        n=known.n,
        prompts=known.prompts,
        full_accuracy=full.accuracy,
        oracle=oracle,
        curves={
            label: pareto(curve, full.accuracy)
            for label, curve in points.items()
            if label in tuned and label not in unknown
        },
        one_point=known.one_point,
        unreferenced=known.unreferenced,
    )


def table(part: Part, tolerances: Sequence[float], named: dict[str, Point], title: str) -> Table:
    """Each curve's largest net cut at a few losses, with the share of the oracle's cut that it reaches."""
    known = part.full_accuracy is not None
    oracle, reached = ("oracle, at least", "of oracle,\nat most") if part.one_point else ("oracle", "of oracle")
    out = Table(title=f"{title}; settings picked on these very traces", title_justify="left", box=SIMPLE)
    out.add_column("method", min_width=max(map(len, (oracle, *part.curves, *named))))
    out.add_column("loss ≤" if known else "changed ≤", justify="right")
    out.add_column("setting", overflow="fold")
    for heading in ("net cut", "probes", reached, "accuracy" if known else "agreement"):
        out.add_column(heading, justify="right", min_width=7)
    rows = [(oracle, None, part.oracle)]
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
      TraceError, ScoreError, MethodError, ConfigError: see `write_curves`.
    """
    console = Console(markup=False)
    simulation = write_curves(config, console)
    title = f"{simulation.n} traces of {simulation.prompts} prompts"
    console.print(table(simulation, config.tolerances, simulation.named, title))
    for name, part in largest(simulation.tasks).items():
        console.print(table(part, config.tolerances, {}, f"{name}: {part.n} traces of {part.prompts} prompts"))
    if (more := len(simulation.tasks) - MOST_TABLES) > 0:
        console.print(f"tasks not shown, of as many traces or fewer: {more}, see {config.out}", soft_wrap=True)
    for remark in remarks(simulation):
        console.print(remark, soft_wrap=True)
    return simulation


def largest(tasks: dict[str, Part]) -> dict[str, Part]:
    """The tasks that have tables of their own: all, or those of most traces where there are many."""
    if len(tasks) <= MOST_TABLES:
        return tasks
    return dict(sorted(tasks.items(), key=lambda item: -item[1].n)[:MOST_TABLES])


def remarks(simulation: Simulation) -> list[str]:
    """What the numbers leave out, in sentences: methods without any, and traces that are not in them."""
    said = [f"{name} cannot be replayed: {why}" for name, why in simulation.not_replayed.items()]
    if simulation.one_point:
        said.append(_what_is_unknown(simulation))
    if simulation.untried:
        said.append(
            f"{simulation.untried} of {simulation.n} traces have boundaries that were not tried (boundaries=refine): "
            "an exit there counts by the trials on both sides, and methods that ask for answers ask and pay at the "
            "tried ones alone, so less than they would; collect with boundaries=all to know"
        )
    if 0 < simulation.unreferenced < simulation.n:
        said.append(of_others(simulation.unreferenced, simulation.n))
    if simulation.left_out:
        said.append(f"left out, as they cannot judge: {listed(simulation.left_out)}")
    return said


def of_others(unreferenced: int, n: int) -> str:
    """What is to be said of losses where some right answers are not known, and the others may be few."""
    return f"{unreferenced} of {n} traces have no reference: accuracy and losses are of the other {n - unreferenced}"


def write_curves(config: SimulateConfig, console: Console) -> Simulation:
    """Replay all methods and write the curves.

    Args:
      config: what is replayed, and the file.
      console: for the progress bar.

    Raises:
      TraceError, ScoreError: a file is unreadable, a trace is there twice, they are of several targets, the scores are
        of other traces, or no trace can judge.
      MethodError: a file of ``methods`` holds none, or see `Tally.add`.
      ConfigError: the traces are of another target than the one given.
    """
    methods = load_methods(config.methods)
    check_one_target(config.traces, config.target)
    everything = read_outlines(config.traces)
    left_out = {why: n for why, n in everything.counted("barred").items() if why is not None}
    traces = everything.only(barred=None)
    if not len(traces):
        raise TraceError(f"{config.traces}: none of {len(everything)} traces can judge ({listed(left_out)})")
    scores = open_scores(config.scores)
    probe = None if config.probe_scores is None else open_scores(config.probe_scores)
    probe_early = None if probe is None else early_of(probe.source, config.early)
    config = config.model_copy(update={"early": early_of(scores.source, config.early)})
    blocks = _blocks(config, scores, probe, traces)
    simulation = run(blocks, traces, config, console, methods=methods, probe_early=probe_early)
    inputs = {"traces": data_sha256(config.traces)} | scores.draft_inputs
    simulation = simulation.model_copy(update={"left_out": left_out, "inputs": inputs})
    write_text(config.out, json.dumps(simulation.model_dump(mode="json"), indent=1) + "\n")
    return simulation


def _what_is_unknown(simulation: Simulation) -> str:
    asking = (
        f"; {', '.join(simulation.unknown)} not known: they ask all over the thinking" if simulation.unknown else ""
    )
    return (
        f"{simulation.one_point} of {simulation.n} traces were not tried throughout (boundaries=stable or bisect): "
        "what lies in front of their first trial is unknown, and an exit there counts as an error; the oracle cuts at "
        f"least what is said{asking}; collect with boundaries=refine to know"
    )


def _blocks(
    config: SimulateConfig, scores: StoredScores, other: StoredScores | None, traces: Outlines
) -> Iterator[Block]:
    for file in (scores, other):
        if file is not None:
            file.check(traces)
    largest = Largest(traces.number("max(n_think)"), traces.number("max(n_boundaries)"))
    for replay in replays(config.traces, scores, round_tokens=config.round_tokens, largest=largest):
        beside = None
        if other is not None:
            signals = other.of(replay.traces)
            beside = Replay(replay.traces, signals, round_tokens=config.round_tokens, largest=largest)
        yield replay, beside
