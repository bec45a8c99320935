"""``specexit annotate``: exit points of collected traces, and how much thinking an ideal exit would save."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from specexit.config import save_run, write_text
from specexit.data.answers import same_answer
from specexit.data.traces import (
    LabelledTrace,
    Trace,
    TraceError,
    check_tokenizer,
    read_traces,
    target_of,
    tokenizer_sha256,
    write_traces,
)
from specexit.method.labels import exit_point
from specexit.method.splits import Tokenizer
from specexit.outputs import new_folder
from specexit.schemas.annotate import AnnotateConfig
from specexit.schemas.target import save_target

FRACTIONS = tuple(tenth / 10 for tenth in range(1, 11))
"""Shares of a trace's thinking at which the oracle curve is read."""


@dataclass(frozen=True)
class Ending:
    """What thinking ends with when it is ended in one particular way, over all traces."""

    thinking_cut: float
    """Share of all thinking tokens that is saved, pooled."""
    thinking_tokens: float
    """Mean tokens kept."""
    agreement: float
    """Share of traces with the full trace's answer."""
    accuracy: float | None
    """Share of traces with the right answer; None where no references are known."""


@dataclass(frozen=True)
class CurvePoint:
    """The state of all traces after a share of their thinking."""

    fraction: float
    settled: float
    """Share of traces whose earliest exit point has been passed."""
    ending: Ending
    """Ending at the last boundary by then, and at the first where none has come."""


@dataclass(frozen=True)
class Statistics:
    """What `annotate` says about a set of traces."""

    n: int
    """Labelled traces."""
    dropped: dict[str, int]
    """Traces that were left out, by reason."""
    boundaries_per_trace: float
    valid_boundaries: float | None
    """Share that agrees, of the boundaries before the natural end."""
    hard_boundaries: int
    """Traces with a hard boundary, see `hard_boundary`."""
    hard_valid: float | None
    """Share of hard boundaries that agrees."""
    full: Ending
    """Thinking to the natural end."""
    oracle_earliest: Ending
    oracle_stable: Ending
    first_boundary: Ending
    hard_boundary: Ending
    """Ending at the hard boundary; at the natural end where there is none."""
    curve: list[CurvePoint]


def annotate(config: AnnotateConfig) -> Statistics:
    """Label the traces of ``config.traces`` and write them, with statistics, into the new folder ``config.out``.

    Raises:
      TraceError: the traces cannot be used, or none of them can be labelled.
      ConfigError: their target is unknown or not the one given.
      FileExistsError: the output folder is not empty.
    """
    traces = read_traces(config.traces)
    target = target_of(traces, config.target, config.traces)
    check_tokenizer(config.traces, target)
    tokenizer = target.tokenizer()
    with new_folder(config.out) as folder:
        reasons = Counter(drop_reason(trace) for trace in traces)
        kept = [trace for trace in traces if drop_reason(trace) is None]
        if not kept:
            raise TraceError(f"{config.traces}: none of {len(traces)} traces can be labelled: {_listed(reasons)}")
        labelled = [label(trace, tokenizer, config.answer_word) for trace in _progress(kept, "label")]
        dropped = {reason: reasons[reason] for reason in DROP_REASONS}
        statistics = summarise(labelled, dropped)
        write_traces(folder / "traces.parquet", labelled, tokenizer_sha256(target))
        write_text(folder / "statistics.json", json.dumps(asdict(statistics), indent=2) + "\n")
        save_target(folder, target)
        save_run(config, folder)
    Console(stderr=True).print(_table(statistics))
    return statistics


DROP_REASONS = ("unfinished", "no answer", "no boundary")


def drop_reason(trace: Trace) -> str | None:
    """Why a trace cannot be labelled: it was cut off, it states no answer, or its thinking has no boundary."""
    if trace.finish_reason != "stop":
        return "unfinished"
    if trace.answer is None:
        return "no answer"
    return None if trace.boundaries else "no boundary"


def label(trace: Trace, tokenizer: Tokenizer, answer_word: str) -> LabelledTrace:
    """Find a trace's exit points and its hard boundary."""
    n = len(trace.think_ids)
    earliest, stable = (exit_point(trace.boundaries, trace.boundary_agrees, n, kind) for kind in ("earliest", "stable"))
    hard = hard_boundary(trace, tokenizer, answer_word)
    return LabelledTrace(**vars(trace), exit_earliest=earliest, exit_stable=stable, hard_boundary=hard)


def hard_boundary(trace: Trace, tokenizer: Tokenizer, answer_word: str) -> int | None:
    """Index of the boundary behind the first stated answer: the first whose step contains both the word "answer" and
    the very answer that the target gives when its thinking is ended there.

    Boundaries before it rarely have an answer to be right, those behind it rarely a wrong one; this one decides
    whether an exit policy is any good. It is told from the text alone, without the right answer and without the rest
    of the trace. None where no step states an answer, or only the last one, behind which there is nothing to decide.
    """
    start = 0
    for i, (boundary, answer) in enumerate(zip(trace.boundaries, trace.boundary_answers, strict=True)):
        if boundary == len(trace.think_ids):
            return None
        step = tokenizer.decode(trace.think_ids[start:boundary])
        if answer is not None and answer_word.lower() in step.lower() and _contains(step, answer):
            return i
        start = boundary
    return None


def _contains(text: str, answer: str) -> bool:
    """Whether a text contains an answer, and not only as a part of a longer word or number."""
    return re.search(rf"(?<!\w)(?<!\d\.){re.escape(answer)}(?!\w)(?!\.\d)", text) is not None


def summarise(traces: Sequence[LabelledTrace], dropped: dict[str, int]) -> Statistics:
    """Statistics of labelled traces."""
    same = cache(same_answer)

    def ending(offset_of: Callable[[LabelledTrace], int]) -> Ending:
        offsets = [offset_of(trace) for trace in traces]
        answers = [_answer_at(trace, offset) for trace, offset in zip(traces, offsets, strict=True)]
        right = [same(a, t.reference) for a, t in zip(answers, traces, strict=True) if t.reference is not None]
        return Ending(
            thinking_cut=1 - sum(offsets) / sum(len(trace.think_ids) for trace in traces),
            thinking_tokens=sum(offsets) / len(traces),
            agreement=sum(same(a, t.answer) for a, t in zip(answers, traces, strict=True)) / len(traces),
            accuracy=_mean(right),
        )

    early = [
        agrees
        for trace in traces
        for boundary, agrees in zip(trace.boundaries, trace.boundary_agrees, strict=True)
        if boundary < len(trace.think_ids)
    ]
    hard = [trace.boundary_agrees[trace.hard_boundary] for trace in traces if trace.hard_boundary is not None]
    curve = [
        CurvePoint(
            fraction,
            settled=sum(t.exit_earliest <= fraction * len(t.think_ids) for t in traces) / len(traces),
            ending=ending(lambda trace, fraction=fraction: _last_boundary(trace, fraction)),
        )
        for fraction in _progress(FRACTIONS, "oracle curve")
    ]
    return Statistics(
        n=len(traces),
        dropped=dropped,
        boundaries_per_trace=sum(len(trace.boundaries) for trace in traces) / len(traces),
        valid_boundaries=_mean(early),
        hard_boundaries=len(hard),
        hard_valid=_mean(hard),
        full=ending(lambda trace: len(trace.think_ids)),
        oracle_earliest=ending(lambda trace: trace.exit_earliest),
        oracle_stable=ending(lambda trace: trace.exit_stable),
        first_boundary=ending(lambda trace: trace.boundaries[0]),
        hard_boundary=ending(_hard_offset),
        curve=curve,
    )


def _hard_offset(trace: LabelledTrace) -> int:
    return len(trace.think_ids) if trace.hard_boundary is None else trace.boundaries[trace.hard_boundary]


def _last_boundary(trace: LabelledTrace, fraction: float) -> int:
    by_then = [boundary for boundary in trace.boundaries if boundary <= fraction * len(trace.think_ids)]
    return by_then[-1] if by_then else trace.boundaries[0]


def _answer_at(trace: LabelledTrace, offset: int) -> str | None:
    if offset == len(trace.think_ids):
        return trace.answer
    return trace.boundary_answers[trace.boundaries.index(offset)]


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _progress(items: Sequence[Any], title: str) -> Any:
    console = Console(stderr=True)
    return track(items, title, console=console, disable=not console.is_terminal)


def _listed(reasons: Counter) -> str:
    return ", ".join(f"{reasons[reason]} {reason}" for reason in DROP_REASONS)


def _table(statistics: Statistics) -> Table:
    table = Table(title=f"{statistics.n} traces, left out: {_listed(Counter(statistics.dropped))}")
    table.add_column("thinking ends at")
    for column in ("thinking cut", "thinking tokens", "agreement", "accuracy"):
        table.add_column(column, justify="right")
    for name, ending in (
        ("its natural end", statistics.full),
        ("oracle, earliest", statistics.oracle_earliest),
        ("oracle, stable", statistics.oracle_stable),
        ("first stated answer", statistics.hard_boundary),
        ("first boundary", statistics.first_boundary),
    ):
        accuracy = "" if ending.accuracy is None else f"{ending.accuracy:.1%}"
        row = f"{ending.thinking_cut:.1%}", f"{ending.thinking_tokens:.1f}", f"{ending.agreement:.1%}", accuracy
        table.add_row(name, *row)
    return table
