"""`specexit report`: one HTML file about a benchmark, complete in itself: no script, no font, nothing fetched.

The file is `templates/report.html.j2` filled with `Page`; the drawings come from `charts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from specexit.bench.comparison import Request, read_requests
from specexit.bench.results import Results, Triple, read_results
from specexit.config import write_text
from specexit.data.scores import read_scores
from specexit.data.traces import Trace, read_traces
from specexit.drafts.directory import DraftConfig, read_config
from specexit.errors import InputError
from specexit.method.signals import column
from specexit.method.simulate import Simulation
from specexit.report.charts import accuracy_chart, signals_chart, training_charts
from specexit.schemas.report import ReportConfig
from specexit.schemas.target import TargetConfig, find_target

if TYPE_CHECKING:
    from jinja2 import Environment

EMBEDDED_NOTE = (
    "The tiny reasoner's overthinking is installed, not emergent: the generator of its training data writes up to six "
    "checks behind an answer that already stands, and always forgets a carry when it first adds 9, so that some first "
    "answers are wrong. These figures show that the method finds the exit. They do not show how much a real model "
    "overthinks."
)


class ReportError(InputError):
    """A report that cannot be made; the message names the file and what was expected."""


@dataclass(frozen=True)
class Step:
    """One step of the shown trace."""

    text: str
    kept: bool
    validity: float | None
    """Of its split token; None without scores."""
    trial_answer: str | None
    agrees: bool


@dataclass(frozen=True)
class Shown:
    """The trace that is shown."""

    trace: Trace
    request: Request
    steps: tuple[Step, ...]
    chart: str | None
    by_rule: bool
    """Whether it was chosen by `trickiest`, not by the user."""

    @property
    def cut(self) -> float:
        """Share of its thinking that was saved."""
        return 1 - self.request.thinking_tokens / len(self.trace.think_ids)


@dataclass(frozen=True)
class Page:
    """All that the template reads."""

    results: Results
    draft: DraftConfig | None
    accuracy_chart: str
    shown: Shown | None
    training: dict[str, str]
    evaluation: dict[str, str]
    note: str | None

    @property
    def most_tokens(self) -> float:
        """Longest bar of the thinking tokens."""
        return max(method.thinking_tokens for method in self.results.methods.values())

    @property
    def most_seconds(self) -> dict[str, float]:
        """Longest bar of the seconds at each batch size."""
        return {b: max(method.seconds[b] for method in self.results.methods.values()) for b in self.results.n_seconds}


def report(config: ReportConfig) -> None:
    """Write the report.

    Raises:
      ReportError: a file cannot be read, or the trace asked for does not exist or did not exit.
      ResultsError, TraceError, ScoreError, DraftError: see the readers.
    """
    results = read_results(config.bench / "results.json")
    draft = read_config(config.draft) if config.draft else None
    page = Page(
        results=results,
        draft=draft,
        accuracy_chart=accuracy_chart(results, _simulation(config.simulation) if config.simulation else None),
        shown=show_trace(config, results, draft),
        training=training_charts(read_metrics(config.metrics)) if config.metrics else {},
        evaluation=read_evaluation(config.evaluation) if config.evaluation else {},
        note=EMBEDDED_NOTE if results.target == "tiny-reasoner" else None,
    )
    write_text(config.out, render(page))


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
    found.filters |= {"percent": _percent, "points": _points, "interval": _interval}
    return found


def render(page: Page) -> str:
    """The HTML text."""
    return environment().get_template("report.html.j2").render(page=page, results=page.results)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def _points(difference: float) -> str:
    text = f"{100 * difference:+.1f}"
    return "±0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _interval(triple: Triple, percent: bool) -> str:
    low, high = (100 * x if percent else x for x in triple[1:])
    text = f"{low:.1f} to {high:.1f}" if percent else f"{low:.2f} to {high:.2f}"
    return text.replace("-", "\N{MINUS SIGN}")


def show_trace(config: ReportConfig, results: Results, draft: DraftConfig | None) -> Shown | None:
    """The trace to show with its steps; None where the benchmark has no exits.

    Raises:
      ReportError: ``trace_id`` names a trace that is not there, or that did not exit.
    """
    if "specexit" not in results.methods:
        return None
    path = config.bench / "requests.jsonl"
    requests = read_requests(path, "specexit")
    exited = {
        trace.id: trace
        for trace in read_traces(config.traces)
        if trace.id in requests and _is_prefix(requests[trace.id], trace)
    }
    chosen = config.trace_id or trickiest(exited, requests)
    if chosen is None:
        return None
    if chosen not in exited:
        raise ReportError(
            f"{path}: trace {chosen!r} did not exit, expected one of {', '.join(sorted(exited)[:5])}, ..."
        )
    trace, request = exited[chosen], requests[chosen]
    signals = read_scores(config.scores).of([trace])[0] if config.scores else None
    policy = draft.specexit.policy if draft and draft.specexit else None
    chart = None
    if signals is not None:
        chart = signals_chart(signals, trace.boundaries, request.thinking_tokens, policy)
    target = find_target(config.target, config.traces, config.bench, name=results.target)
    return Shown(trace, request, _steps(target, trace, request, signals), chart, config.trace_id is None)


def trickiest(traces: Mapping[str, Trace], requests: Mapping[str, Request]) -> str | None:
    """The trace that was exited rightly although, before the exit, it was surest of a wrong answer; None without any.

    An exit on confidence alone would have fallen for that one.
    """

    def surest_wrong(trace: Trace) -> float:
        kept = requests[trace.id].thinking_tokens
        boundaries = zip(trace.boundaries, trace.boundary_agrees, trace.boundary_confidence, strict=True)
        return max((sure for at, agrees, sure in boundaries if at < kept and not agrees), default=0.0)

    right = [trace for trace in traces.values() if requests[trace.id].correct]
    return max(right, key=surest_wrong).id if right else None


def _is_prefix(request: Request, trace: Trace) -> bool:
    """Whether the request exited on the very path of the trace, as under greedy decoding it does."""
    kept = request.thinking_tokens
    return request.reason == "exit" and request.token_ids[:kept] == trace.think_ids[:kept]


def _steps(target: TargetConfig, trace: Trace, request: Request, signals: Any) -> tuple[Step, ...]:
    tokenizer = target.tokenizer()
    steps, start = [], 0
    trials = zip(trace.boundaries, trace.boundary_answers, trace.boundary_agrees, strict=True)
    for boundary, answer, agrees in trials:
        validity = None if signals is None else float(signals[boundary - 1, column("validity")])
        text = tokenizer.decode(trace.think_ids[start:boundary]).strip()
        steps.append(Step(text, boundary <= request.thinking_tokens, validity, answer, agrees))
        start = boundary
    return tuple(steps)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; of a step that a resumed run has done again, the last one.

    Raises:
      ReportError: not there, not JSON lines, or none has a ``step`` and a ``token_loss``.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        by_step = {line["step"]: line for line in lines if line["token_loss"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: cannot be read as what train writes: {error!r}") from error
    if not by_step:
        raise ReportError(f"{path}: holds no metrics, expected one JSON object per line")
    return [by_step[step] for step in sorted(by_step)]


def read_evaluation(path: Path) -> dict[str, str]:
    """What `evaluate` wrote, as names and texts; nested names joined.

    Raises:
      ReportError: not there or not a JSON object.
    """
    try:
        numbers = json.loads(path.read_text())
        numbers.pop("definitions", None)
        return dict(_flatten("", numbers))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ReportError(f"{path}: cannot be read as what evaluate writes: {error!r}") from error


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        label = f"{prefix} {name}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flatten(label, value)
        elif isinstance(value, list):
            yield label, ", ".join(f"{x:.4g}" for x in value)
        else:
            yield label, f"{value:.4g}" if isinstance(value, float) else str(value)


def _simulation(path: Path) -> Simulation:
    try:
        return Simulation.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        raise ReportError(f"{path}: cannot be read as what simulate writes: {error}") from error
