"""`specexit report`: one HTML file about a benchmark, complete in itself: no script, no font, nothing fetched.

The file is `templates/report.html.j2` filled with `Page`, or `templates/run.html.j2` of a training run alone; the
drawings come from `charts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from specexit.bench.ablate import Ablations
from specexit.bench.inputs import read_scores_of
from specexit.bench.replay import ReplayCheck
from specexit.bench.requests import read_responses
from specexit.bench.results import ALL_ALIKE, NO_INTERVAL, Results, Triple, is_interval, read_results
from specexit.config import write_text
from specexit.data.scores import Scores, read_scores
from specexit.data.traces import first_samples, read_traces
from specexit.drafts.certified import doubts_of
from specexit.drafts.directory import DraftConfig, read_config
from specexit.drafts.policy import read_policy
from specexit.errors import first_problem
from specexit.method.simulate import Simulation, remarks
from specexit.report import pareto
from specexit.report.ablations import Ablated, ablated
from specexit.report.belongs import Measured, other_run
from specexit.report.checks import checks, tests
from specexit.report.figures import Figure, Table, latencies, thresholds
from specexit.report.readme import write_images, write_table
from specexit.report.run import Run, read_run
from specexit.report.shown import TITLES, ReportError, Response, Shown, choose, exited, follows, saved, show
from specexit.report.verdict import percent, verdict
from specexit.schemas.report import ReportConfig
from specexit.schemas.target import TargetConfig, find_target

if TYPE_CHECKING:
    from jinja2 import Environment

EMBEDDED_NOTE = (
    "This target's overthinking is installed, not emergent: the generator of its training data writes up to six "
    "checks behind an answer that already stands, and always forgets a carry when it first adds 9, so that some first "
    "answers are wrong. These figures show that the method finds the exit. They do not show how much a real model "
    "overthinks."
)


def note_on(target: str) -> str | None:
    """What a reader has to know of a target's numbers; None where there is nothing."""
    return EMBEDDED_NOTE if target in ("tiny-reasoner", "tiny-mixed") else None


LONGEST_ANSWER = 200
"""Characters of an answer that are shown: one may be a program."""


@dataclass(frozen=True)
class Page:
    """All that the template reads."""

    results: Results
    draft: DraftConfig | None
    verdict: tuple[str, ...]
    tasks: tuple[Figure, ...]
    figures: tuple[Figure, ...]
    curves: tuple[str, ...]
    """What is to be said of replayed curves; nothing without any."""
    ablations: tuple[Ablated, ...]
    ablated: tuple[str, ...]
    """What is to be said of all of them."""
    shown: tuple[Shown, ...]
    trained: Run | None
    elsewhere: str | None
    """What is to be said where the draft names another run folder."""
    tests: Table | None
    checks: tuple[tuple[str, str], ...]
    note: str | None

    @property
    def most_tokens(self) -> float:
        """Thinking tokens of the method with the longest bar; 1 where nothing was thought."""
        return max(method.thinking_tokens for method in self.results.methods.values()) or 1.0

    @property
    def not_shown(self) -> list[str]:
        """Titles of the kinds of traces of which there is none to show; empty where one was asked for."""
        found = {shown.title for shown in self.shown}
        asked = TITLES["asked"][0] in found or "specexit" not in self.results.methods
        return [] if asked else [title for kind, (title, _) in TITLES.items() if kind != "asked" and title not in found]

    @property
    def probes(self) -> bool:
        """Whether a method decodes trial answers."""
        return any(method.probe_tokens for method in self.results.methods.values())

    @property
    def most_seconds(self) -> dict[str, float]:
        """Seconds of the method with the longest bar, by batch size."""
        return {b: max(method.seconds[b] for method in self.results.methods.values()) for b in self.results.n_seconds}


def report(config: ReportConfig) -> None:
    """Write the report.

    Raises:
      ReportError: a file cannot be read, or is of another draft or benchmark; the trace asked for does not exist, did
        not exit, or took another path.
      ResultsError, TraceError, ScoreError, DraftError, TensorError, ConfigError: see the readers.
    """
    bench, traces = config.bench, config.traces
    trained = read_run(config.run) if config.run else None
    if bench is None or traces is None:
        assert trained, "the schema says so"
        page = environment().get_template("run.html.j2").render(trained=trained, note=note_on(trained.target))
        write_text(config.out, page)
        return
    page = _page(config, bench, traces, trained)
    write_text(config.out, render(page))
    if config.readme:
        write_table(config.readme, page.results)
    if config.images:
        write_images(config.images, page.figures, page.shown)


def _page(config: ReportConfig, bench: Path, traces: Path, trained: Run | None) -> Page:
    results = read_results(bench / "results.json")
    measured = Measured.of(bench, results, config.draft, traces)
    if trained and trained.target != results.target:
        raise ReportError(
            f"{trained.folder}: trained a draft for {trained.target!r}, but {bench / 'results.json'} is of "
            f"{results.target!r}: expected the run that made the measured draft"
        )
    draft = read_config(config.draft) if config.draft else None
    stored = read_policy(config.draft) if config.draft and draft and draft.specexit else None
    simulation = _read(config.simulation, Simulation, "simulate", measured)
    found = _read(config.ablations, Ablations, "ablate", measured)
    replay = _read(config.replay, ReplayCheck, "bench-replay", measured)
    policy = draft.specexit.policy if draft and draft.specexit else None
    # A check of another method is of another draft, which `measured` knows by its hashes.
    if replay and replay.method == "specexit" and policy and replay.policy != policy:
        raise ReportError(f"{config.replay}: policy is not that of {config.draft}, expected a check of this benchmark")
    doubted: list[str] = []
    if config.draft and stored and "specexit" in results.methods:  # without exits nothing is said of a certificate
        doubted = doubts_of(config.draft, stored, _target(config, bench, traces, results).folder)
    drawn = (
        pareto.of_all(results, simulation),
        *thresholds(simulation, policy),
        *latencies(results, bench / "requests.jsonl"),
    )
    replayed = (*remarks(simulation), *measured.remark("The curves", simulation.inputs)) if simulation else ()
    return Page(
        results=results,
        draft=draft,
        verdict=verdict(results, stored, doubted),
        tasks=tuple(pareto.by_task(results, simulation)),
        figures=drawn,
        curves=replayed,
        ablations=tuple(ablated(found)) if found else (),
        ablated=(*measured.remark("They", found.inputs), *(f"{one}." for one in found.remarks())) if found else (),
        shown=show_traces(config, bench, traces, results, draft, measured),
        trained=trained,
        elsewhere=other_run(config.draft, trained.folder) if config.draft and trained else None,
        tests=tests(results),
        checks=tuple(checks(results, replay, _full_size(config.full_size, measured))),
        note=note_on(results.target),
    )


def environment() -> Environment:
    """The templates, with the filters that they share."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("specexit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "points": _points, "interval": _interval, "shortened": _shortened}
    found.filters |= {"change": _change, "share": _share, "change_interval": _change_interval}
    return found


def render(page: Page) -> str:
    """The HTML text."""
    return environment().get_template("report.html.j2").render(page=page, results=page.results)


def _shortened(answer: str | None) -> str | None:
    if answer is None or len(answer) <= LONGEST_ANSWER:
        return answer
    return f"{answer[:LONGEST_ANSWER]} \N{HORIZONTAL ELLIPSIS}"


def _points(difference: float) -> str:
    text = f"{100 * difference:+.1f}"
    return "±0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _share(share: float | None) -> str:
    return "–" if share is None else percent(share)


def _change(cut: float) -> str:
    """A cut as the change that it is, signed."""
    return f"{_points(-cut)}\N{NARROW NO-BREAK SPACE}%"


def _change_interval(cut: Triple) -> str:
    """Its interval: the ends change sign, and places, with the value."""
    value, low, high = cut
    return _interval((-value, -high, -low), percent=True)


def _interval(triple: Triple, percent: bool) -> str:
    if not is_interval(triple):
        return ALL_ALIKE if percent else NO_INTERVAL
    low, high = (100 * x if percent else x for x in triple[1:])
    text = f"{low:z.1f} to {high:z.1f}" if percent else f"{low:.2f} to {high:.2f}"
    return text.replace("-", "\N{MINUS SIGN}")


def show_traces(
    config: ReportConfig,
    bench: Path,
    benched: Path,
    results: Results,
    draft: DraftConfig | None,
    measured: Measured,
) -> tuple[Shown, ...]:
    """The traces to show; none where the benchmark has no exits.

    Raises:
      ReportError: the traces are of other problems, or ``trace_id`` names one that is not there, that did not exit at
        a boundary, or whose response took another path; or the scores are of another draft than was measured.
      ScoreError: the scores cannot be read, or are of another draft than the one given.
    """
    if "specexit" not in results.methods:
        return ()
    path = bench / "requests.jsonl"
    traces = first_samples(read_traces(benched))
    responses = [(traces[one.id], one) for one in read_responses(path, "specexit") if one.id in traces]
    if not responses:
        raise ReportError(f"{benched}: holds none of the problems of {path}, expected the traces that it ran on")
    chosen = choose(responses)
    if config.trace_id:
        chosen = {"asked": _asked(config.trace_id, responses, path)}
    scores = _scores(config.scores, config.draft, measured) if config.scores else None
    policy = draft.specexit.policy if draft and draft.specexit else None
    tokenizer = _target(config, bench, benched, results).tokenizer()
    return tuple(
        show(kind, trace, request, tokenizer, scores.of([trace])[0] if scores else None, policy)
        for kind, (trace, request) in chosen.items()
    )


def _asked(id: str, responses: Sequence[Response], path: Path) -> Response:
    """The response to one problem that is to be shown; of samples, the one that saved the most."""
    ended = [(trace, request) for trace, request in responses if exited(trace, request)]
    could = [(trace, request) for trace, request in ended if follows(trace, request)]
    asked = [(trace, request) for trace, request in could if trace.id == id]
    if asked:
        return max(asked, key=lambda one: saved(*one))
    exits = any(trace.id == id for trace, _ in ended)
    did = "took another path up to its exit" if exits else "did not exit at a boundary"
    some = ", ".join(sorted({trace.id for trace, _ in could})[:5])
    others = f"expected one of {some}, ..." if could else "and no other one can be shown"
    raise ReportError(f"{path}: trace {id!r} {did}, {others}")


def _target(config: ReportConfig, bench: Path, traces: Path, results: Results) -> TargetConfig:
    return find_target(config.target, traces, bench, name=results.target)


def _scores(path: Path, draft: Path | None, measured: Measured) -> Scores:
    scores = read_scores_of(path, draft) if draft else read_scores(path)
    measured.refuse(path, scores.draft_inputs)
    return scores


def _full_size(path: Path | None, measured: Measured) -> Results | None:
    if path is None:
        return None
    found = read_results(path)
    if found.shape is None:
        raise ReportError(f"{path}: has no shape, expected what bench-full-size writes")
    measured.refuse(path, found.shape.get("of", {}))
    return found


Written = TypeVar("Written", Simulation, Ablations, ReplayCheck)


def _read(path: Path | None, kind: type[Written], command: str, measured: Measured) -> Written | None:
    if path is None:
        return None
    try:
        found = kind.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read as what {command} writes: {error}") from error
    except ValidationError as error:
        raise ReportError(
            f"{path}: cannot be read as what {command} writes: {first_problem(error)}; run `specexit {command}` anew"
        ) from error
    measured.refuse(path, found.inputs)
    return found
