"""``specexit ablate``: what each choice of the method is worth, by replaying its alternatives on the same traces.

Only what recorded traces and scores can tell: which signals decide, how they are smoothed, how many boundaries in a row
must pass, which split tokens count, where signals are read, what counts as the right moment, and how much hangs on the
threshold. What needs another training run (labels, losses, aux layers, sizes) is trained first where ``trained`` asks
for it: `specexit.bench.trained`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from specexit.bench.trained import train_alternatives
from specexit.config import Config, save_run, write_text
from specexit.data.rows import AnyTrace, BareTrace, can_judge, infer_decided, is_tried_throughout
from specexit.data.scores import open_scores
from specexit.data.traces import TraceError, read_bare, target_of_file
from specexit.method.decision import Policy
from specexit.method.labels import ExitKind, exit_point
from specexit.method.policies import METHODS
from specexit.method.policies.validity import VALIDITY_GRID
from specexit.method.replay import Replay
from specexit.method.simulate import Point, best_within, loss, mean_known, pareto, summarise
from specexit.outputs import new_folder, require_empty
from specexit.report.charts import curves_chart, standalone
from specexit.schemas.ablate import AblateConfig
from specexit.schemas.simulate import SimulateConfig

REMAINING = tuple(float(tokens) for tokens in np.unique(np.geomspace(0.25, 400, 60).round(2)))
MOST_SPLITS = 5
HIGHEST = 10.0
"""Percent of loss that a figure shows: curves run up to all of it, and what matters lies at their foot."""


class Variant(Config):
    """One alternative."""

    name: str
    curve: tuple[Point, ...]
    """Its Pareto front, or single points that are quoted as they are."""
    best: dict[str, Point | None]
    """Loss of accuracy -> the point that cuts most within it."""
    acceptance_length: float | None = None
    """Of a draft that was trained for it: tokens a step."""


class Ablation(Config):
    """One question and its alternatives."""

    question: str
    variants: tuple[Variant, ...]


def ablate(config: AblateConfig) -> dict[str, Ablation]:
    """Replay every alternative; write the numbers and a figure for each question, print a table for each.

    Raises:
      TraceError, ScoreError: a file is unreadable, the scores are of other traces, or no trace can judge.
      FileExistsError: the output folder is not empty.
    """
    require_empty(config.out)
    traces = _judging(config.traces)
    replays = {name: Replay(traces, open_scores(path).of(traces)) for name, path in config.scores.items()}
    first = next(iter(replays.values()))
    decode = target_of_file(config.traces, config.target).tokenizer().decode
    full, console = mean_known(first.correct), Console()
    found: dict[str, Ablation] = {}
    for name, question, variants in (
        ("signals", "Which signals decide?", _signals(first)),
        ("smoothing", "Are the values smoothed, and how?", _smoothings(first)),
        ("patience", "How many boundaries in a row must pass?", _patiences(first)),
        ("splits", "Which split tokens may end the thinking?", _splits(first, decode)),
        ("sources", "Where are the signals read?", _sources(replays)),
        ("exit_point", "What is the right moment, in hindsight?", _exit_points(first)),
        ("threshold", "How much hangs on the threshold?", _thresholds(first)),
    ):
        measured = tuple(_variant(label, points, full, config.tolerances) for label, points in variants)
        if len(measured) > 1:
            found[name] = Ablation(question=question, variants=measured)
    found |= _trained(config)
    with new_folder(config.out) as folder:
        write_text(folder / "ablations.json", json.dumps(_as_json(found, full, len(traces)), indent=1) + "\n")
        for name, ablation in found.items():
            write_text(folder / f"{name}.svg", standalone(_figure(ablation, full)))
        save_run(config, folder)
    for ablation in found.values():
        console.print(_table(ablation, config.tolerances))
    return found


def _judging(path: Path) -> list[BareTrace]:
    traces = [trace for trace in read_bare(path) if can_judge(trace)]
    if not traces:
        raise TraceError(f"{path}: no trace can judge, expected finished ones with an answer and a boundary")
    return traces


def _trained(config: AblateConfig) -> dict[str, Ablation]:
    """The questions for which drafts are trained."""
    found: dict[str, Ablation] = {}
    for name, drafts in train_alternatives(config.trained, config.traces).items() if config.trained else ():
        variants = []
        for label, draft in drafts.items():
            traces = _judging(draft.traces)
            replay = Replay(traces, open_scores(draft.scores).of(traces))
            variant = _variant(label, _validity(replay), mean_known(replay.correct), config.tolerances)
            variants.append(variant.model_copy(update={"acceptance_length": draft.acceptance_length}))
        assert config.trained is not None
        found[name] = Ablation(question=config.trained.questions[name].asks, variants=tuple(variants))
    return found


def _points(replay: Replay, policies: Iterable[Policy]) -> list[Point]:
    return [summarise(replay, policy, replay.play(policy)) for policy in policies]


def _validity(replay: Replay, **changes: object) -> list[Point]:
    policies = [Policy.model_validate({"thresholds": {"validity": tau}} | changes) for tau in VALIDITY_GRID]
    return _points(replay, policies)


Variants = Iterator[tuple[str, list[Point]]]


def _signals(replay: Replay) -> Variants:
    yield "validity", _validity(replay)
    for name in ("confidence", "progress"):
        yield f"{name} alone", _points(replay, [Policy(thresholds={name: tau}) for tau in VALIDITY_GRID])
    yield "remaining alone", _points(replay, [Policy(thresholds={"remaining": tokens}) for tokens in REMAINING])
    trio = METHODS["trio"].play(replay, SimulateConfig.model_construct(smoothing="none", alpha=0.1))
    yield "the paper's three", [summarise(replay, one.policy, one.outcome) for one in trio]
    pairs = product(VALIDITY_GRID[::8], REMAINING[::4])
    both = [Policy(thresholds={"validity": tau, "remaining": tokens}) for tau, tokens in pairs]
    yield "validity and remaining", _points(replay, both)


def _smoothings(replay: Replay) -> Variants:
    yield "none", _validity(replay)
    for alpha in (0.5, 0.3, 0.1):
        yield f"moving average, {alpha:g}", _validity(replay, smoothing="ewma", alpha=alpha)
    yield "by round of 3, 0.1", _validity(replay, smoothing="round", alpha=0.1)


def _patiences(replay: Replay) -> Variants:
    for patience in (1, 2, 3, 5):
        yield str(patience), _validity(replay, patience=patience)


def _splits(replay: Replay, decode: object) -> Variants:
    """The most frequent split tokens, each alone; with one kind there is nothing to compare."""
    counts = Counter(token for trace in replay.traces for token in trace.split_ids)
    yield "all", _validity(replay)
    for token, _ in counts.most_common(MOST_SPLITS) if len(counts) > 1 else ():
        kept = [_only(trace, token) for trace in replay.traces]
        text = decode([token]) if callable(decode) else str(token)
        yield f"only {text!r}", _validity(Replay(kept, replay.signals))


def _only(trace: AnyTrace, token: int) -> AnyTrace:
    """A trace that can end at one split token alone."""
    rows = [i for i, split in enumerate(trace.split_ids) if split == token]
    names = [name for name in vars(trace) if name in ("boundaries", "split_ids") or name.startswith("boundary_")]
    return replace(trace, **{name: [getattr(trace, name)[i] for i in rows] for name in names})


def _sources(replays: dict[str, Replay]) -> Variants:
    for name, replay in replays.items():
        yield name, _validity(replay)


def _exit_points(replay: Replay) -> Variants:
    """Where one point alone was looked for, the earliest is not known, and there is nothing to compare."""
    kinds: tuple[ExitKind, ...] = ("earliest", "stable")
    for kind in kinds if all(map(is_tried_throughout, replay.traces)) else ("stable",):
        states = [(t, infer_decided(t.boundary_state)) for t in replay.traces]
        exits = [exit_point(t.boundaries, t.boundary_agrees, t.n_think, kind, decided) for t, decided in states]
        rows = [
            trace.boundaries.index(at) if at in trace.boundaries else -1
            for trace, at in zip(replay.traces, exits, strict=True)
        ]
        yield kind, [summarise(replay, None, replay.outcome_at(np.array(rows, np.int64)))]


def _thresholds(replay: Replay) -> Variants:
    for tau in (0.99, 0.95, 0.9, 0.7, 0.5, 0.3, 0.1, 0.05):
        yield f"validity >= {tau:g}", _points(replay, [Policy(thresholds={"validity": tau})])


def _variant(name: str, points: Sequence[Point], full: float | None, tolerances: Sequence[float]) -> Variant:
    best = {f"{tolerance:g}": best_within(points, full, tolerance) for tolerance in tolerances}
    return Variant(name=name, curve=pareto(points, full), best=best)


def _figure(ablation: Ablation, full: float | None) -> str:
    curves = {
        variant.name: [(100 * point.net_cut, 100 * loss(point, full)) for point in variant.curve]
        for variant in ablation.variants
    }
    what = "changed answers, %" if full is None else "accuracy lost, points"
    return curves_chart(curves, "thinking cut, %", what, HIGHEST)


def _as_json(found: dict[str, Ablation], full: float | None, n: int) -> dict[str, object]:
    return {
        "n": n,
        "full_accuracy": full,
        "ablations": {name: ablation.model_dump(mode="json") for name, ablation in found.items()},
    }


def _table(ablation: Ablation, tolerances: Sequence[float]) -> Table:
    out = Table(title=f"{ablation.question} Cut at a loss of at most ...", title_justify="left", box=SIMPLE)
    out.add_column("", min_width=max(len(variant.name) for variant in ablation.variants))
    for tolerance in tolerances:
        out.add_column(f"{100 * tolerance:g} %", justify="right")
    if any(variant.acceptance_length for variant in ablation.variants):
        out.add_column("tokens a step", justify="right")
    for variant in ablation.variants:
        points = [variant.best[f"{tolerance:g}"] for tolerance in tolerances]
        cuts = ["none" if point is None else f"{100 * point.net_cut:.1f} %" for point in points]
        out.add_row(variant.name, *cuts, *([f"{variant.acceptance_length:.2f}"] if variant.acceptance_length else []))
    return out
