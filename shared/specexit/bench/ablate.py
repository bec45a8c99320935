"""``specexit ablate``: what each choice of the method is worth, by replaying its alternatives on the same traces.

Only what recorded traces and scores can tell: which signals decide, how they are smoothed, how many boundaries in a row
must pass, which split tokens count, where signals are read, what counts as the right moment, and how much hangs on the
threshold. What needs another training run (labels, losses, aux layers, sizes) is trained first where ``trained`` asks
for it: `specexit.bench.trained`.

Validity is played as `calibrate` certifies it by default, early threshold included; where it has another, or none, the
name says so. Other signals are judged at every boundary.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from specexit.bench.inputs import refuse_other_run
from specexit.bench.process import BenchError
from specexit.bench.trained import train_alternatives
from specexit.config import Config, save_run, versions, write_text
from specexit.data.rows import AnyTrace, BareTrace, infer_decided, is_tried_throughout, why_not
from specexit.data.scores import StoredScores, open_scores
from specexit.data.traces import TraceError, data_sha256, read_bare, target_of_file
from specexit.errors import first_problem, listed
from specexit.method.decision import Policy
from specexit.method.labels import ExitKind, exit_point
from specexit.method.policies import METHODS
from specexit.method.policies.validity import VALIDITY_GRID, early_of, policy_at
from specexit.method.replay import Replay
from specexit.method.simulate import Point, best_within, loss, mean_known, of_others, pareto, summarise
from specexit.outputs import new_folder, require_empty
from specexit.report.charts import curves_chart, standalone
from specexit.schemas.ablate import AblateConfig
from specexit.schemas.early import EARLY
from specexit.schemas.simulate import SimulateConfig

REMAINING = tuple(float(tokens) for tokens in np.unique(np.geomspace(0.25, 400, 60).round(2)))
MOST_SPLITS = 5
HIGHEST = 10.0
"""The largest loss that a figure shows, in percent: curves run up to 100, but what matters lies at their foot."""


class Variant(Config):
    """One alternative."""

    name: str
    curve: tuple[Point, ...]
    """Its Pareto front, or single points that are quoted as they are."""
    best: dict[str, Point | None]
    """Loss of accuracy -> the point that cuts most within it."""
    full_accuracy: float | None
    """Of the traces that it is replayed on, thought to the end: losses are against it. None where it is not known."""
    acceptance_length: float | None = None
    """Of a draft that was trained for it: tokens a step."""
    left_out: dict[str, int] = Field(default={})
    """Of traces of its own, those that cannot judge, by why."""


class Ablation(Config):
    """One question and its alternatives."""

    question: str
    variants: tuple[Variant, ...]

    @property
    def knows_right(self) -> bool:
        """Whether accuracy is known of all alternatives; else the share of changed answers stands for its loss."""
        return all(variant.full_accuracy is not None for variant in self.variants)

    def loss(self, variant: Variant, point: Point) -> float:
        """What a point of one alternative loses against the traces of that alternative."""
        return loss(point, variant.full_accuracy if self.knows_right else None)


class Ablations(Config):
    """What ``ablations.json`` holds."""

    n: int
    """Traces."""
    full_accuracy: float | None
    unreferenced: int = 0
    """Of these traces, those whose right answer is not known: losses are of the others."""
    left_out: dict[str, int] = Field(default={})
    """Traces beside these that cannot judge, by why."""
    ablations: dict[str, Ablation]
    inputs: dict[str, str] = Field(default={})
    """Hashes of ``traces``, of each ``scores.NAME``, and of the draft of the first of them (``draft.weights``,
    ``draft.computation``)."""

    def remarks(self) -> list[str]:
        """What its numbers do not say."""
        said = [f"left out, as they cannot judge: {listed(self.left_out)}"] if self.left_out else []
        said += [
            f"{question}, {variant.name}: left out, as they cannot judge: {listed(variant.left_out)}"
            for question, ablation in self.ablations.items()
            for variant in ablation.variants
            if variant.left_out
        ]
        return said + ([of_others(self.unreferenced, self.n)] if 0 < self.unreferenced < self.n else [])


def ablate(config: AblateConfig) -> dict[str, Ablation]:
    """Replay every alternative; write the numbers and a figure for each question, print a table for each. Where no
    draft is trained and ``out`` holds what the same config found of the same files, that is read instead.

    Raises:
      TraceError, ScoreError: a file is unreadable, the scores are of other traces, or no trace can judge.
      BenchError: the output folder holds the ablations of another config, or of other files.
      FileExistsError: the output folder is not empty.
    """
    inputs, console = _inputs(config), Console(markup=False)  # split tokens may look like markup
    found = _found_before(config, inputs)
    if found is None:
        require_empty(config.out)
        found = _replay(config, inputs)
        with new_folder(config.out) as folder:
            write_text(folder / "ablations.json", json.dumps(found.model_dump(mode="json"), indent=1) + "\n")
            for name, ablation in found.ablations.items():
                write_text(folder / f"{name}.svg", standalone(figure_of(ablation)))
            save_run(config, folder)
    else:
        console.print(
            f"{config.out}: replayed already, of the same config, versions and inputs", markup=False, soft_wrap=True
        )
    for ablation in found.ablations.values():
        console.print(_table(ablation, config.tolerances))
    for remark in found.remarks():
        console.print(remark, soft_wrap=True)
    return found.ablations


def _inputs(config: AblateConfig) -> dict[str, str]:
    hashes = {f"scores.{name}": data_sha256(path) for name, path in config.scores.items()}
    first = open_scores(next(iter(config.scores.values())))
    return {"traces": data_sha256(config.traces)} | first.draft_inputs | hashes


def _found_before(config: AblateConfig, inputs: dict[str, str]) -> Ablations | None:
    """The same ablations in the output folder; None without any.

    Raises:
      BenchError: they are of other files, or may be, as drafts were trained for them; or they cannot be read.
    """
    path = config.out / "ablations.json"
    if not path.exists():
        return None
    if config.trained is not None:
        raise BenchError(
            f"{config.out}: holds ablations already, and the drafts of `trained` may be others by now: delete the "
            f"folder to replay anew, or give another out; what lies in {config.trained.out} is kept"
        )
    try:
        found = Ablations.model_validate_json(path.read_text())
    except ValidationError as error:
        raise BenchError(
            f"{path}: cannot be read as what ablate writes: {first_problem(error)}; delete the folder to replay anew, "
            "or give another out"
        ) from error
    asked = {"config": config.model_dump(mode="json"), "versions": versions(), "inputs": inputs}
    refuse_other_run(config.out, found.inputs, asked, "ablations", "replay anew")
    return found


def _replay(config: AblateConfig, inputs: dict[str, str]) -> Ablations:
    traces, left_out = _judging(config.traces)
    sources = {name: _scored(traces, open_scores(path)) for name, path in config.scores.items()}
    first = next(iter(sources.values()))
    decode = target_of_file(config.traces, config.target).tokenizer().decode
    full = mean_known(first.replay.correct)
    found: dict[str, Ablation] = {}
    for name, question, variants in (
        ("signals", "Which signals decide?", _signals(first)),
        ("early", "How much of the threshold has to be there 8 tokens before?", _earlies(first)),
        ("smoothing", "Are the values smoothed, and how?", _smoothings(first)),
        ("patience", "How many boundaries in a row must pass?", _patiences(first)),
        ("splits", "Which split tokens may end the thinking?", _splits(first, decode)),
        ("sources", "Where are the signals read?", _sources(sources)),
        ("exit_point", "What is the right moment, in hindsight?", _exit_points(first.replay)),
        ("threshold", "How much hangs on the threshold?", _thresholds(first)),
    ):
        measured = tuple(_variant(label, points, full, config.tolerances) for label, points in variants)
        if len(measured) > 1:
            found[name] = Ablation(question=question, variants=measured)
    return Ablations(
        n=len(traces),
        full_accuracy=full,
        unreferenced=int(np.isnan(first.replay.correct).sum()),
        left_out=left_out,
        ablations=found | _trained(config),
        inputs=inputs,
    )


def _judging(path: Path) -> tuple[list[BareTrace], dict[str, int]]:
    """The traces that can judge, and how many others there are, by why they cannot."""
    traces, others = [], Counter[str]()
    for trace in read_bare(path):
        if (why := why_not(trace)) is None:
            traces.append(trace)
        else:
            others[why] += 1
    if not traces:
        raise TraceError(f"{path}: none of {others.total()} traces can judge ({listed(others)})")
    return traces, dict(others)


def _trained(config: AblateConfig) -> dict[str, Ablation]:
    """The questions for which drafts are trained."""
    found: dict[str, Ablation] = {}
    for name, drafts in train_alternatives(config.trained, config.traces).items() if config.trained else ():
        variants = []
        for label, draft in drafts.items():
            traces, left_out = _judging(draft.traces)
            scored = _scored(traces, open_scores(draft.scores))
            full = mean_known(scored.replay.correct)
            variant = _variant(label, _validity(scored), full, config.tolerances)
            own = left_out if draft.traces != config.traces else {}  # the table's are said once
            more = {"acceptance_length": draft.acceptance_length, "left_out": own}
            variants.append(variant.model_copy(update=more))
        assert config.trained is not None
        found[name] = Ablation(question=config.trained.questions[name].asks, variants=tuple(variants))
    return found


@dataclass(frozen=True)
class Scored:
    """Traces with the signals of one source."""

    replay: Replay
    early: float
    """See `specexit.method.policies.validity.policy_at`."""


def _scored(traces: Sequence[AnyTrace], scores: StoredScores) -> Scored:
    return Scored(Replay(traces, scores.of(traces)), early_of(scores.source, EARLY))


def _points(replay: Replay, policies: Iterable[Policy]) -> list[Point]:
    return [summarise(replay, policy, replay.play(policy)) for policy in policies]


def _validity(scored: Scored, **changes: object) -> list[Point]:
    return _points(scored.replay, [policy_at(tau, scored.early, **changes) for tau in VALIDITY_GRID])


Variants = Iterator[tuple[str, list[Point]]]


def _signals(scored: Scored) -> Variants:
    replay = scored.replay
    yield "validity", _validity(scored)
    for name in ("confidence", "progress"):
        yield f"{name} alone", _points(replay, [Policy(thresholds={name: tau}) for tau in VALIDITY_GRID])
    yield "remaining alone", _points(replay, [Policy(thresholds={"remaining": tokens}) for tokens in REMAINING])
    trio = METHODS["trio"].play(replay, SimulateConfig.model_construct(smoothing="none", alpha=0.1))
    yield "the paper's three", [summarise(replay, one.policy, one.outcome) for one in trio]
    pairs = product(VALIDITY_GRID[::8], REMAINING[::4])
    tried = [(policy_at(tau, scored.early), tokens) for tau, tokens in pairs]
    both = [one.model_copy(update={"thresholds": one.thresholds | {"remaining": most}}) for one, most in tried]
    yield "validity and remaining", _points(replay, both)


def _earlies(scored: Scored) -> Variants:
    """Nothing for source fc, which has no early threshold."""
    for share in dict.fromkeys((scored.early, 0.0, 0.25, 0.75, 1.0)) if scored.early else ():
        yield f"{share:g} of it" if share else "every boundary judged", _validity(replace(scored, early=share))


def _smoothings(scored: Scored) -> Variants:
    yield "none", _validity(scored)
    for alpha in (0.5, 0.3, 0.1):
        yield f"moving average, {alpha:g}", _validity(scored, smoothing="ewma", alpha=alpha)
    yield "by round of 3, 0.1, no early one", _validity(scored, smoothing="round", alpha=0.1)


def _patiences(scored: Scored) -> Variants:
    for patience in (1, 2, 3, 5):
        yield str(patience), _validity(scored, patience=patience)


def _splits(scored: Scored, decode: Callable[[list[int]], str]) -> Variants:
    """The most frequent split tokens, each alone; with one kind there is nothing to compare."""
    replay = scored.replay
    counts = Counter(token for trace in replay.traces for token in trace.split_ids)
    yield "all", _validity(scored)
    for token, _ in counts.most_common(MOST_SPLITS) if len(counts) > 1 else ():
        yield f"only {decode([token])!r}", _validity(replace(scored, replay=_alone(replay, token)))


def _alone(replay: Replay, token: int) -> Replay:
    """Traces that can end at one split token alone. Which answers are right is taken from the whole traces: an untried
    boundary is judged by its neighbours, which may be missing here."""
    rows = [[i for i, split in enumerate(trace.split_ids) if split == token] for trace in replay.traces]
    kept = [_only(trace, at) for trace, at in zip(replay.traces, rows, strict=True)]
    right = [right[at] for right, at in zip(replay.right, rows, strict=True)]
    return Replay(kept, replay.signals, right=right)


def _only(trace: AnyTrace, rows: Sequence[int]) -> AnyTrace:
    """A trace with some of its boundaries."""
    names = [name for name in vars(trace) if name in ("boundaries", "split_ids") or name.startswith("boundary_")]
    return replace(trace, **{name: [getattr(trace, name)[i] for i in rows] for name in names})


def _sources(sources: dict[str, Scored]) -> Variants:
    for name, scored in sources.items():
        yield name, _validity(scored)


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


def _thresholds(scored: Scored) -> Variants:
    for tau in (0.99, 0.95, 0.9, 0.7, 0.5, 0.3, 0.1, 0.05):
        yield f"validity >= {tau:g}", _points(scored.replay, [policy_at(tau, scored.early)])


def _variant(name: str, points: Sequence[Point], full: float | None, tolerances: Sequence[float]) -> Variant:
    best = {f"{tolerance:g}": best_within(points, full, tolerance) for tolerance in tolerances}
    return Variant(name=name, curve=pareto(points, full), best=best, full_accuracy=full)


def figure_of(ablation: Ablation) -> str:
    """Loss over cut, a curve for each alternative, as SVG."""
    curves = {
        variant.name: [(100 * point.net_cut, 100 * ablation.loss(variant, point)) for point in variant.curve]
        for variant in ablation.variants
    }
    what = "accuracy lost, points" if ablation.knows_right else "changed answers, %"
    return curves_chart(curves, "thinking cut, %", what, HIGHEST)


def _table(ablation: Ablation, tolerances: Sequence[float]) -> Table:
    lost = "a loss" if ablation.knows_right else "changed answers"
    out = Table(title=f"{ablation.question} Cut at {lost} of at most ...", title_justify="left", box=SIMPLE)
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
