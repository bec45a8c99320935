"""Traces on disk: one Parquet row per generated trace, its schema checked on the way in and out.

Columns are the fields of the rows, `specexit.data.rows`; a labelled file can be read as a plain one. The schema version
sits in the file's metadata, and files of older versions are read as well.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from specexit.buckets import BucketPath, arrow_sink, arrow_source
from specexit.config import ConfigError
from specexit.data.checks import once
from specexit.data.outlines import Outlines, outlines
from specexit.data.parts import last_of
from specexit.data.rows import SCHEMAS, BareTrace, LabelledTrace, Trace, ids_sha256
from specexit.data.stream import (
    MANIFEST,
    TraceError,
    blocks,
    read_batches,
    read_collected,
    rows_of,
    trace_files,
    values_of,
)
from specexit.outputs import put
from specexit.schemas.target import TargetConfig, copy_beside, find_target, other_boundaries_beside

TraceT = TypeVar("TraceT", bound=Trace)
RowT = TypeVar("RowT")

TOKENIZER = b"specexit.tokenizer"
"""Key in a file's metadata: hash of the ``tokenizer.json`` that its ids are of."""
WEIGHTS = b"specexit.target_sha256"
"""Key in a file's metadata: fingerprint of the weights that wrote its text, see `specexit.drafts.fingerprints`; not
there where servers wrote it, and in older files."""


def write_traces(
    path: Path, traces: Sequence[Trace], tokenizer_sha256: str | None = None, said: Mapping[bytes, str | None] = {}
) -> None:
    """Write traces, all plain or all labelled, to one Parquet file, which appears whole or not at all.

    Args:
      path: the file.
      traces: at least one.
      tokenizer_sha256: of the target's tokenizer, where it is known.
      said: what else the file's metadata says by key; None is left out.

    Raises:
      ValueError: there are none.
    """
    if not traces:
        raise ValueError(f"{path}: no traces to write")
    table = pa.Table.from_pylist([vars(trace) for trace in traces], schema=SCHEMAS[type(traces[0])])
    table = table.replace_schema_metadata(metadata_with(table.schema, {TOKENIZER: tokenizer_sha256, **said}))
    if isinstance(path, BucketPath):
        with arrow_sink(path) as sink:
            pq.write_table(table, sink, compression="zstd")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with arrow_sink(beside) as sink:
        pq.write_table(table, sink, compression="zstd")
    put(beside, path)


def metadata_with(schema: pa.Schema, said: Mapping[bytes, str | None]) -> dict[bytes, bytes]:
    """The metadata of a schema, and what else is said; None is left out."""
    return {**(schema.metadata or {}), **{key: value.encode() for key, value in said.items() if value is not None}}


def read_traces(path: Path) -> list[Trace]:
    """Read the traces of a file, or of all ``*.parquet`` files of a folder in their names' order.

    Raises:
      TraceError: nothing there, not Parquet, a column is missing or of another type, or a row contradicts itself.
    """
    return _some(path, _stream(path, Trace, None))


def first_samples(traces: Iterable[Trace]) -> dict[str, Trace]:
    """The first trace of each id, which all samples of a prompt share."""
    first: dict[str, Trace] = {}
    for trace in traces:
        first.setdefault(trace.id, trace)
    return first


def read_labelled(path: Path) -> list[LabelledTrace]:
    """Read traces that `specexit annotate` has labelled; otherwise as `read_traces`.

    Raises:
      TraceError: see `read_traces`.
    """
    return _some(path, _stream(path, LabelledTrace, None))


def stream_labelled(path: Path, n: int | None = None) -> Iterator[LabelledTrace]:
    """As `read_labelled`, the first ``n`` or all, one trace at a time; a few are in memory at once.

    Raises:
      TraceError: see `read_traces`.
    """
    return _stream(path, LabelledTrace, n)


BLOCK_TOKENS = 1 << 20
"""Tokens of a block of traces, one of which is in memory at a time; see `specexit.data.stream.blocks`."""


def stream_bare(path: Path, kind: type[Trace] = Trace) -> Iterator[list[BareTrace]]:
    """Traces without their text, a block of them at a time.

    Args:
      path: as of `read_traces`.
      kind: what the file has to hold.

    Raises:
      TraceError: see `read_traces`; also where a trace is there twice.
    """
    batches = once(read_batches(path, kind, columns=BARE_COLUMNS), path)
    return (list(_bare(block, {None: None})) for block in blocks(batches, BLOCK_TOKENS))


def read_bare(path: Path) -> list[BareTrace]:
    """All traces without their text: what stays in memory are a few dozen bytes a boundary.

    Raises:
      TraceError: see `stream_bare`; also where there are none.
    """
    return _some(path, chain.from_iterable(stream_bare(path)))


def read_outlines(path: Path, n: int | None = None, kind: type[Trace] = Trace) -> Outlines:
    """What is known of the first ``n`` traces, or of all, as wholes.

    Args:
      path: as of `read_traces`.
      n: how many.
      kind: what the file has to hold.

    Raises:
      TraceError: see `read_bare`.
    """
    found = outlines(islice(chain.from_iterable(stream_bare(path, kind)), n))
    if not len(found):
        raise TraceError(f"{path}: holds no traces")
    return found


Same = dict[str | None, str | None]
"""Maps a string to the one object kept for all its equals: states and answers occur again and again."""


def without_text(trace: Trace, same: Same) -> BareTrace:
    """A trace as `stream_bare` gives it."""
    row: dict[str, Any] = {column.name: getattr(trace, column.name) for column in fields(BareTrace)}
    row = _shared(row, same)
    row.update({name: array(code, row[name]) for name, code in _NUMBERS.items()}, split_ids=array("i", trace.split_ids))
    return BareTrace(**row)


_TEXT = ("prompt_ids", "think_ids", "answer_ids")
_PLAIN = [
    *("id", "answer", "reference", "correct", "finish_reason", "target", "sampling", "sample", "task", "answer_kind"),
    *("group", "trial"),
]
_STRINGS = ("boundary_answers", "boundary_state")
_REPEATED = ("target", "sampling", "trial", "finish_reason", "task", "answer_kind", "group")
_NUMBERS = {"boundaries": "i", "boundary_confidence": "f", "boundary_trial_tokens": "i"}
BARE_COLUMNS = (*_PLAIN, *_STRINGS, *_NUMBERS, *_TEXT, "boundary_agrees")


def _shared(row: dict[str, Any], same: Same) -> dict[str, Any]:
    """A row in which equal strings are one object."""
    row = row | {name: same.setdefault(row[name], row[name]) for name in _REPEATED}
    return row | {name: [same.setdefault(value, value) for value in row[name]] for name in _STRINGS}


def _bare(batch: pa.RecordBatch, same: Same) -> Iterator[BareTrace]:
    text = {name: values_of(batch[name], np.int32) for name in _TEXT}
    numbers = {name: values_of(batch[name], np.dtype(code).type) for name, code in _NUMBERS.items()}
    for i, row in enumerate(batch.select([*_PLAIN, *_STRINGS, "boundary_agrees"]).to_pylist()):
        prompt, think, answer = (text[name][i] for name in _TEXT)
        row = _shared(row, same)
        row.update({name: array(code, numbers[name][i].tobytes()) for name, code in _NUMBERS.items()})
        yield BareTrace(
            **row,
            n_prompt=len(prompt),
            n_think=len(think),
            n_answer=len(answer),
            prompt_hash=ids_sha256(prompt.tolist()),
            split_ids=array("i", think[numbers["boundaries"][i] - 1].tobytes()),
        )


def target_of_file(path: Path, given: str | None = None, *places: Path) -> TargetConfig:
    """The target that wrote all traces of a file or folder.

    Args:
      path: of the traces; a copy of their target may lie there.
      given: a target's name or YAML file, which is taken rather than a copy.
      places: where else a copy may lie.

    Raises:
      TraceError: there are none, they cannot be read, or they are of several targets.
      ConfigError: the target is unknown, the one given is not theirs or finds boundaries elsewhere, or their copy of
        it cannot be read.
    """
    target = find_target(given, path, *places, name=target_named_in(path))
    if given is not None and (other := other_boundaries_beside(path, target)) is not None:
        raise ConfigError(
            f"{copy_beside(path)}: the traces have boundaries by {other} as target={given} says: collect again"
        )
    return target


def check_one_target(path: Path, given: str | None = None) -> None:
    """Check that one target wrote all traces of a file or folder, where nothing else of the target is needed.

    Args:
      path: of the traces.
      given: a target's name or YAML file; the traces have to be its own.

    Raises:
      TraceError: there are none, they cannot be read, or they are of several targets.
      ConfigError: the target given is unknown, or not theirs.
    """
    name = target_named_in(path)
    if given is not None:
        find_target(given, path, name=name)


def target_of_both(path: Path, draft: Path, named: str | None, given: str | None = None) -> TargetConfig:
    """The target that wrote all traces of a file or folder and that a draft was made for.

    Unlike `target_of_file`, it does not compare where the target finds boundaries with the copy beside the traces.

    Args:
      path: of the traces.
      draft: its folder.
      named: name of the target that the draft was made for; None where the draft does not say.
      given: a target's name or YAML file, for one whose model lies elsewhere now.

    Raises:
      TraceError: there are no traces, or they are of several targets or of another one than the draft's.
      ConfigError: the target is unknown, or the one given is not theirs.
    """
    names = _target_names(path)
    if named is not None and names != {named}:
        raise TraceError(
            f"{path}: traces of target {', '.join(map(repr, sorted(names)))}, but {draft} was made for {named!r}: "
            f"expected traces that {named!r} wrote"
        )
    return find_target(given, draft, path, name=target_named_in(path))


def target_named_in(path: Path) -> str:
    """Name of the target that the traces are of.

    Raises:
      TraceError: there are none, they cannot be read, or they are of several targets.
    """
    names = _target_names(path)
    if len(names) != 1:
        raise TraceError(f"{path}: traces of several targets ({', '.join(sorted(names))}), expected those of one")
    return names.pop()


def _target_names(path: Path) -> set[str]:
    names: set[str] = set()
    for batch in read_batches(path, columns=["target"], rows=1 << 16):
        names |= set(batch["target"].unique().to_pylist())
    if not names:
        raise TraceError(f"{path}: holds no traces")
    return names


def check_tokenizer(path: Path, target: TargetConfig) -> None:
    """Check that traces were written with the target's tokenizer; files that do not name their tokenizer pass.

    Raises:
      TraceError: they were written with another one, or cannot be read.
    """
    ours = tokenizer_sha256(target)
    for file, theirs in _saying(path, TOKENIZER):
        if theirs != ours:
            raise TraceError(
                f"{file}: written with the tokenizer {theirs[:12]}..., expected {ours[:12]}... of "
                f"{target.folder / 'tokenizer.json'}"
            )


def said_of(path: Path, key: bytes) -> str | None:
    """What the metadata of trace files says under a key; None where none of them has it.

    Raises:
      TraceError: two files say different things, or one cannot be read.
    """
    found: dict[str, Path] = {}
    for file, value in _saying(path, key):
        found.setdefault(value, file)
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise TraceError(
            f"{second}: {key.decode()} is {other:.80}, but {one:.80} in {first.name}: expected traces that one model "
            "wrote"
        )
    return next(iter(found), None)


def _saying(path: Path, key: bytes) -> Iterator[tuple[Path, str]]:
    """The files whose metadata has a key, each with what it says there."""
    for file in trace_files(path):
        try:
            with arrow_source(file) as source:
                value = (pq.read_schema(source).metadata or {}).get(key)
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{file}: cannot be read as Parquet: {error}") from error
        if value is not None:
            yield file, value.decode(errors="replace")


def tokenizer_sha256(target: TargetConfig) -> str:
    """Hash of the target's ``tokenizer.json``.

    Raises:
      ConfigError: the model's folder is not there.
    """
    return hashlib.sha256(target.model_file("tokenizer.json").read_bytes()).hexdigest()


def vocab_size_of(target: TargetConfig) -> int:
    """Number of the target's token ids, those that its tokenizer does not use included.

    Raises:
      ConfigError: its config cannot be read, or does not say.
    """
    return int(target.needed("vocab_size")["vocab_size"])


def check_collected(path: Path) -> None:
    """Check that the files of a folder are what `collect` wrote there; without a manifest there is nothing to check.

    Raises:
      TraceError: a file is gone or has another hash, or the manifest cannot be read.
    """
    manifest = path / MANIFEST
    if not manifest.exists():
        return
    hashes = read_collected(manifest).hashes
    files: dict[str, list[Path]] = {}
    for file in trace_files(path):
        files.setdefault(last_of(file).name, []).append(file)
    for name, expected in hashes.items():
        if _sha256(files[name]) != expected:
            raise TraceError(
                f"{path / name}: its content is not what {MANIFEST} says; where it was changed on purpose, remove "
                f"{MANIFEST}"
            )


def data_sha256(path: Path) -> str:
    """Hash of the trace files at ``path``, so that a result can name the data it stands on.

    Raises:
      TraceError: nothing there.
    """
    return _sha256(trace_files(path))


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while piece := opened.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _stream(path: Path, kind: type[TraceT], n: int | None) -> Iterator[TraceT]:
    return islice((trace for batch in read_batches(path, kind) for trace in rows_of(batch, kind)), n)


def _some(path: Path, read: Iterable[RowT]) -> list[RowT]:
    traces = list(read)
    if not traces:
        raise TraceError(f"{path}: holds no traces")
    return traces
