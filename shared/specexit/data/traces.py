"""Traces on disk: one Parquet row per generated trace, its schema checked on the way in and out.

Columns are the fields of the rows, `specexit.data.rows`; a labelled file can be read as a plain one. The schema version
sits in the file's metadata, and files of the version before are read as well.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from specexit.config import ConfigError
from specexit.data.rows import ADDED, READABLE_VERSIONS, SCHEMA, SCHEMAS, STATES, LabelledTrace, Trace
from specexit.errors import InputError
from specexit.schemas.target import TargetConfig, find_target


class TraceError(InputError):
    """A trace file that cannot be used; the message names the file, the column and what was expected."""


TraceT = TypeVar("TraceT", bound=Trace)

TOKENIZER = b"specexit.tokenizer"
"""Key in a file's metadata: hash of the ``tokenizer.json`` that its ids are of."""


def write_traces(path: Path, traces: Sequence[Trace], tokenizer_sha256: str | None = None) -> None:
    """Write traces, all plain or all labelled, to one Parquet file, which appears whole or not at all.

    Args:
      path: the file.
      traces: at least one.
      tokenizer_sha256: of the target's tokenizer, where it is known.

    Raises:
      ValueError: there are none.
    """
    if not traces:
        raise ValueError(f"{path}: no traces to write")
    table = pa.Table.from_pylist([vars(trace) for trace in traces], schema=SCHEMAS[type(traces[0])])
    if tokenizer_sha256 is not None:
        table = table.replace_schema_metadata({**table.schema.metadata, TOKENIZER: tokenizer_sha256.encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, beside, compression="zstd")
    beside.replace(path)


def read_traces(path: Path) -> list[Trace]:
    """Read traces from a file, or from all ``*.parquet`` files of a folder in the order of their names.

    Raises:
      TraceError: nothing there, not Parquet, a column is missing or of another type, or a row contradicts itself.
    """
    return _read(path, Trace)


def read_labelled(path: Path) -> list[LabelledTrace]:
    """Read traces that `specexit annotate` has labelled; otherwise as `read_traces`.

    Raises:
      TraceError: see `read_traces`.
    """
    return _read(path, LabelledTrace)


def target_of(traces: Sequence[Trace], given: str | None, *places: Path) -> TargetConfig:
    """The target that wrote the traces.

    Args:
      traces: at least one.
      given: a target's name or YAML file, which wins.
      places: where the traces and what belongs to them lie: a copy of their target may lie there too.

    Raises:
      TraceError: they are of several targets.
      ConfigError: the target is unknown, or the one given is not theirs.
    """
    names = sorted({trace.target for trace in traces})
    if len(names) != 1:
        raise TraceError(f"traces of several targets ({', '.join(names)}) are mixed, expected those of one")
    target = find_target(given, *places, name=names[0])
    if target.name != names[0]:
        raise ConfigError(f"target is {target.name!r}, but the traces were written by {names[0]!r}")
    return target


def target_named_in(path: Path) -> str:
    """Name of the target that the first trace is of.

    Raises:
      TraceError: nothing there, or it cannot be read.
    """
    file = _files(path)[0]
    try:
        names = pq.read_table(file, columns=["target"])["target"]
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{file}: cannot be read as Parquet: {error}") from error
    if not len(names):
        raise TraceError(f"{file}: holds no traces")
    return names[0].as_py()


def check_tokenizer(path: Path, target: TargetConfig) -> None:
    """Check that traces were written with the target's tokenizer; files that do not say so are taken at their word.

    Raises:
      TraceError: they were written with another one, or cannot be read.
    """
    ours = tokenizer_sha256(target)
    for file in _files(path):
        try:
            theirs = (pq.read_schema(file).metadata or {}).get(TOKENIZER, ours.encode()).decode()
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{file}: cannot be read as Parquet: {error}") from error
        if theirs != ours:
            raise TraceError(
                f"{file}: written with the tokenizer {theirs[:12]}..., expected {ours[:12]}... of "
                f"{target.folder / 'tokenizer.json'}"
            )


def tokenizer_sha256(target: TargetConfig) -> str:
    """Hash of the target's ``tokenizer.json``."""
    return hashlib.sha256((target.folder / "tokenizer.json").read_bytes()).hexdigest()


def data_sha256(path: Path) -> str:
    """Hash of the trace files at ``path``, so that a result can name the data it stands on.

    Raises:
      TraceError: nothing there.
    """
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise TraceError(f"{path}: no trace file there")
    return files


def _read(path: Path, kind: type[TraceT]) -> list[TraceT]:
    traces = [trace for file in _files(path) for trace in _read_file(file, kind)]
    if not traces:
        raise TraceError(f"{path}: holds no traces")
    return traces


def _read_file(file: Path, kind: type[TraceT]) -> Iterator[TraceT]:
    schema = SCHEMAS[kind]
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{file}: cannot be read as Parquet: {error}") from error
    version = (table.schema.metadata or {}).get(b"specexit.traces", b"none").decode()
    if version not in READABLE_VERSIONS:
        raise TraceError(f"{file}: trace schema version is {version}, expected {' or '.join(READABLE_VERSIONS)}")
    expected = [field for field in schema if version != "1" or field.name not in ADDED]
    for field in expected:
        if field.name not in table.column_names:
            hint = "" if field.name in SCHEMA.names else ", run specexit annotate first"
            raise TraceError(f"{file}: column {field.name!r} ({field.type}) is missing{hint}")
        found = table.schema.field(field.name).type
        if found != field.type:
            raise TraceError(f"{file}: column {field.name!r} has type {found}, expected {field.type}")
    for row in table.select([field.name for field in expected]).to_pylist():
        trace = kind(**row)
        _check_boundaries(file, trace)
        yield trace


def _check_boundaries(file: Path, trace: Trace) -> None:
    verdicts = ("answers", "agrees", "confidence", "state", "trial_tokens")
    for name in (f"boundary_{verdict}" for verdict in verdicts):
        if len(getattr(trace, name)) != len(trace.boundaries):
            raise TraceError(
                f"{file}: trace {trace.id!r} has {len(getattr(trace, name))} {name}, "
                f"expected {len(trace.boundaries)} as it has boundaries"
            )
    edges = [0, *trace.boundaries]
    if any(a >= b for a, b in pairwise(edges)) or edges[-1] > len(trace.think_ids):
        raise TraceError(
            f"{file}: trace {trace.id!r} has boundaries {trace.boundaries}, "
            f"expected rising offsets within its {len(trace.think_ids)} thinking tokens"
        )
    for state in trace.boundary_state:
        if state not in STATES:
            raise TraceError(
                f"{file}: trace {trace.id!r} has boundary_state {state!r}, expected one of {', '.join(STATES)}"
            )
