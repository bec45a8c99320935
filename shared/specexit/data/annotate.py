"""``specexit annotate``: exit points of collected traces, and how much thinking an ideal exit would save."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from specexit.config import save_run, write_text
from specexit.data.boundaries import stating
from specexit.data.checks import once
from specexit.data.engine import TYPES, save_engine_types, types_written_with
from specexit.data.parts import PartsWriter
from specexit.data.rows import FAILED, LABELLED_SCHEMA, LabelledTrace, Trace, infer_decided, is_tried_throughout
from specexit.data.seen import Seen
from specexit.data.stream import TraceError, blocks, deserialised, in_parallel, read_batches, rows_of, serialised, shown
from specexit.data.summary import Statistics, Tally
from specexit.data.traces import (
    TOKENIZER,
    WEIGHTS,
    check_collected,
    check_tokenizer,
    metadata_with,
    said_of,
    target_of_file,
    tokenizer_sha256,
    vocab_size_of,
)
from specexit.errors import listed
from specexit.method.labels import exit_point
from specexit.method.splits import FastTokenizer, Tokenizer, load_tokenizer
from specexit.outputs import new_folder, require_empty
from specexit.report.traces import Example, example_of, traces_page
from specexit.schemas.annotate import AnnotateConfig
from specexit.schemas.target import TargetConfig, save_target

BLOCK_TOKENS = 250_000
"""Tokens in a block, the unit that one process labels."""


@dataclass
class _Labelled:
    """A labelled block."""

    rows: bytes
    """The rows as an Arrow stream."""
    tally: Tally
    reasons: Counter[str]
    examples: list[Example]


def annotate(config: AnnotateConfig) -> Statistics:
    """Label the traces of ``config.traces``; write them, their statistics and a page of these into a new folder.

    Returns:
      The statistics.

    Raises:
      TraceError: the traces cannot be used, several models wrote them, none of them can be labelled, or an ideal exit
        would save too little.
      ConfigError: their target is unknown or not the one given.
      FileExistsError: the output folder is not empty.
    """
    require_empty(config.out)
    target = target_of_file(config.traces, config.target)
    check_tokenizer(config.traces, target)
    check_collected(config.traces)
    said = {key: said_of(config.traces, key) for key in (WEIGHTS, TYPES)}
    schema = LABELLED_SCHEMA.with_metadata(
        metadata_with(LABELLED_SCHEMA, {TOKENIZER: tokenizer_sha256(target), **said})
    )
    types = types_written_with(config.traces, target)
    tally, reasons, examples = Tally(prompts=Seen()), Counter(), []
    with new_folder(config.out) as folder:
        with PartsWriter(folder / "traces.parquet", schema) as writer:
            for block in _label_blocks(config, target):
                writer.write(_with_schema(block.rows, schema))
                tally.add(block.tally)
                reasons.update(block.reasons)
                examples += [e for e in block.examples if e.kind not in {known.kind for known in examples}]
        if not tally.n:
            raise TraceError(f"{config.traces}: {_nothing_to_label(reasons)}")
        statistics = tally.statistics(_dropped(reasons))
        _check_cut(config, statistics)
        write_text(folder / "statistics.json", json.dumps(asdict(statistics), indent=2) + "\n")
        write_text(folder / "statistics.html", traces_page(target.name, statistics, examples))
        save_target(folder, target)
        said_by_target = {"dtype": None} if types.dtype == target.dtype else {}
        save_engine_types(folder, types.model_dump() | said_by_target)
        save_run(config, folder)
    console = Console(stderr=True)
    console.print(_table(statistics, config.answer_word))
    if statistics.boundaries_in_front > statistics.differing_boundaries:
        console.print(
            f"[yellow]warning:[/yellow] {statistics.boundaries_in_front} boundaries lie in front of their trace's "
            f"first trial, with no validity to learn, and {statistics.differing_boundaries} are known to differ: a "
            "draft hardly learns where an exit is wrong; for a policy on validity collect with boundaries=refine",
            soft_wrap=True,
        )
    return statistics


def _with_schema(rows: bytes, schema: pa.Schema) -> pa.RecordBatch:
    batch = deserialised(rows)
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _label_blocks(config: AnnotateConfig, target: TargetConfig) -> Iterator[_Labelled]:
    found = blocks(once(read_batches(config.traces, vocab_size=vocab_size_of(target)), config.traces), BLOCK_TOKENS)
    work = partial(_label_block, target.folder, config.answer_word)
    return shown(in_parallel(work, found, config.workers), "label", "blocks")


@cache
def _tokenizer(model: Path) -> FastTokenizer:
    return load_tokenizer(model)


def _label_block(model: Path, answer_word: str, number: int, block: bytes) -> _Labelled:
    """Label the traces of one block; their columns stay as they are, and labels are further ones beside them."""
    del number
    batch, tokenizer = deserialised(block), _tokenizer(model)
    tally, reasons = Tally(), Counter()
    kept, labelled, examples = [], [], {}
    for i, trace in enumerate(rows_of(batch, Trace)):
        reason = drop_reason(trace)
        if reason is not None:
            reasons[reason] += 1
            continue
        one = label(trace, tokenizer, answer_word)
        tally.count(one)
        kept.append(i)
        labelled.append((one.exit_earliest, one.exit_stable, one.hard_boundary))
        example = example_of(one, tokenizer, examples)
        if example is not None:
            examples[example.kind] = example
    columns = list(zip(*labelled, strict=True)) or [(), (), ()]
    arrays = batch.take(pa.array(kept, pa.int64())).columns
    arrays += [pa.array(column, pa.int32()) for column in columns]
    return _Labelled(
        serialised(pa.RecordBatch.from_arrays(arrays, schema=LABELLED_SCHEMA)), tally, reasons, [*examples.values()]
    )


def _check_cut(config: AnnotateConfig, statistics: Statistics) -> None:
    """Refuse labels from which nothing can be learnt.

    Raises:
      TraceError: an ideal exit would save less than ``least_cut``.
    """
    cut = max(ending.thinking_cut or 0.0 for ending in (statistics.oracle_earliest, statistics.oracle_stable))
    if cut >= config.least_cut:
        return
    raise TraceError(
        f"{config.traces}: an ideal exit would cut {cut:.2%} of the thinking, expected at least least_cut="
        f"{config.least_cut:g}: of {statistics.trials} trials {statistics.undecided} were cut off and "
        f"{_agreeing(statistics)}. Trial answers that are never finished "
        "(trial.*.max_tokens, trial.*.text of the target) or never found (answer_kind) look like this"
    )


def _agreeing(statistics: Statistics) -> str:
    share = statistics.valid_boundaries
    if share is None:
        return "no boundary in front of the natural end has a verdict"
    return f"{share:.1%} of the boundaries agree"


DROP_REASONS = (FAILED, "unfinished", "no answer", "no boundary")


def _dropped(reasons: Counter[str]) -> dict[str, int]:
    """Number of dropped traces by reason; ``failed``, which only servers leave, is listed only where it occurs."""
    return {reason: reasons[reason] for reason in DROP_REASONS if reason != FAILED or reasons[FAILED]}


def _nothing_to_label(reasons: Counter[str]) -> str:
    found = f"none of {reasons.total()} traces can be labelled: {listed(_dropped(reasons))}"
    if not reasons["no boundary"]:
        return found
    return f"{found}; do split_endings and split_connectors of the target occur in its thinking?"


def drop_reason(trace: Trace) -> str | None:
    """Why a trace cannot be labelled: no server answered its prompt, it was cut off, it states no answer, or its
    thinking has no boundary."""
    if trace.finish_reason == FAILED:
        return FAILED
    if trace.finish_reason != "stop":
        return "unfinished"
    if trace.answer is None:
        return "no answer"
    return None if trace.boundaries else "no boundary"


def label(trace: Trace, tokenizer: Tokenizer, answer_word: str) -> LabelledTrace:
    """Find a trace's exit points and its hard boundary."""
    n = len(trace.think_ids)
    judged = trace.boundaries, trace.boundary_agrees, n
    decided = infer_decided(trace.boundary_state)
    earliest, stable = (exit_point(*judged, kind, decided) for kind in ("earliest", "stable"))
    hard = hard_boundary(trace, tokenizer, answer_word)
    return LabelledTrace(**vars(trace), exit_earliest=earliest, exit_stable=stable, hard_boundary=hard)


def hard_boundary(trace: Trace, tokenizer: Tokenizer, answer_word: str) -> int | None:
    """Index of the boundary behind the first stated answer: the first whose step contains both the word "answer" and
    the very answer that the target gives when its thinking is ended there.

    Boundaries in front of it rarely have an answer that could be right, and those behind it rarely a wrong one, so
    this one decides whether an exit policy is any good. It is found from the text alone, without the right answer and
    without the rest of the trace. None where no step states an answer, or only the last one does, behind which there is
    nothing to decide; also where trials were not spread over the trace, so that early answers are not known.
    """
    if not is_tried_throughout(trace):
        return None
    start = 0
    for i, (boundary, answer) in enumerate(zip(trace.boundaries, trace.boundary_answers, strict=True)):
        if boundary == len(trace.think_ids):
            return None
        step = tokenizer.decode(trace.think_ids[start:boundary])
        if answer is not None and answer in step and answer_word.lower() in step.lower() and stating([step], answer):
            return i
        start = boundary
    return None


def _table(statistics: Statistics, answer_word: str) -> Table:
    table = Table(title=f"{statistics.n} traces, left out: {listed(statistics.dropped)}")
    table.add_column("thinking ends at")
    for column in ("thinking cut", "thinking tokens", "agreement", "accuracy"):
        table.add_column(column, justify="right")
    throughout = statistics.throughout
    captions = []
    if throughout and not statistics.hard_boundaries:
        captions.append(f"no step states an answer: none has answer_word={answer_word} beside its trial's answer")
    if 0 < throughout < statistics.n:
        captions.append(f"early ends are those of {throughout} of the traces: the others were not tried throughout")
    if 0 < statistics.referenced < statistics.n:
        captions.append(f"accuracy is that of {statistics.referenced} of the traces: the others have no reference")
    table.caption = "\n".join(captions)
    for name, ending in (
        ("its natural end", statistics.full),
        *([("oracle, earliest", statistics.oracle_earliest)] if throughout else []),
        ("oracle, stable", statistics.oracle_stable),
        *([("first stated answer", statistics.hard_boundary)] if statistics.hard_boundaries else []),
        ("first boundary", statistics.first_boundary),
    ):
        tokens = "unknown" if ending.thinking_tokens is None else f"{ending.thinking_tokens:.1f}"
        accuracy = "" if ending.accuracy is None else f"{ending.accuracy:.1%}"
        table.add_row(name, _known(ending.thinking_cut), tokens, _known(ending.agreement), accuracy)
    return table


def _known(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
