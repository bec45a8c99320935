"""Trace files as Arrow record batches, checked: whatever their number, only a block of traces is in memory at once.

Every batch has the columns of the newest schema, whichever version its file is of. `blocks` groups traces by size, and
`in_parallel` gives blocks to processes and takes results back in their order.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from specexit.buckets import arrow_source
from specexit.data.checks import TraceError, check_rows
from specexit.data.columns import flat_values, list_lengths
from specexit.data.parts import last_of, missing_part, parts_of
from specexit.data.rows import LACKING, READABLE_VERSIONS, SCHEMA, SCHEMAS, LabelledTrace, Trace
from specexit.errors import InputError
from specexit.hardware import processors

MANIFEST = "manifest.json"
"""File in which `collect` records what it has finished in a folder."""
BATCH_ROWS = 64
TOKEN_BYTES = 4
MOST_WORKERS = 6
"""Most processes unless the config asks for more: they hold 1.2 GiB, interpreters, libraries and blocks included."""

RowsT = TypeVar("RowsT")
ResultT = TypeVar("ResultT")

LABELLED = SCHEMAS[LabelledTrace]


def trace_files(path: Path) -> list[Path]:
    """The file with its parts (see `specexit.data.parts`), or all ``*.parquet`` files of a folder in the order of their
    names.

    Where `collect` has not finished the folder, a warning says how many traces are missing.

    Raises:
      TraceError: there is none, or one is gone that the folder's manifest names or that parts there belong to.
    """
    # Hidden files hold no traces: macOS leaves a ``._NAME`` beside what it copies.
    files = sorted(file for file in path.glob("*.parquet") if file.name[0] != ".") if path.is_dir() else parts_of(path)
    if not files or not files[-1].exists():
        parts = sorted({file.parent for file in path.glob("*/*.parquet")}) if path.is_dir() else ()
        below = f", expected one of the folders in it that have some, such as {parts[0]}" if parts else ""
        raise TraceError(f"{path}: no trace file there{below}")
    there = set(files)
    for file in files if path.is_dir() else ():
        if last_of(file) not in there:
            raise TraceError(f"{last_of(file)}: is gone, though {file.name} is a part of it: take a whole copy")
    if path.is_dir() and (manifest := path / MANIFEST).exists():
        collected = read_collected(manifest)
        gone = sorted(collected.hashes.keys() - {file.name for file in files})
        if gone:
            raise TraceError(
                f"{path / gone[0]}: is gone, though {MANIFEST} names it; the `collect` command that wrote the folder "
                f"makes it again, and without {MANIFEST} the other files are all there is"
            )
        if collected.answered < collected.asked:
            _say_unfinished(path, collected.answered, collected.asked)
    return files


class Collected(NamedTuple):
    """What a folder's manifest says to those who read the traces."""

    hashes: dict[str, str | None]
    """SHA-256 of each file that `collect` has finished; None where the manifest does not say."""
    asked: int
    """Traces that it was asked for; 0 where an older one wrote the manifest."""
    answered: int
    """Those in the files that a server answered; 0 where ``asked`` is."""


def read_collected(manifest: Path) -> Collected:
    """Read a manifest, which is there.

    Raises:
      TraceError: it cannot be read as one.
    """
    try:
        record = json.loads(manifest.read_bytes())
        files, asked = record["files"], record.get("traces") or 0
        counts = [entry["counts"] for entry in files.values()] if asked else []
        answered = sum(one["traces"] - one.get("failed", 0) for one in counts)
        return Collected({name: entry.get("sha256") for name, entry in files.items()}, asked, answered)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{manifest}: cannot be read as what `collect` writes: remove it") from error


@cache  # a command reads a folder several times
def _say_unfinished(path: Path, there: int, asked: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True).print(
        f"[yellow]warning:[/yellow] {escape(str(path))} has {there} of the {asked} traces that were asked for: "
        "`collect` has not finished there; its command, run again, goes on",
        soft_wrap=True,
    )


def read_batches(
    path: Path,
    kind: type[Trace] = Trace,
    columns: Sequence[str] | None = None,
    rows: int = BATCH_ROWS,
    vocab_size: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The traces of a file or folder, a few at a time.

    Args:
      path: file or folder.
      kind: plain or labelled traces.
      columns: those to read; all by default.
      rows: of a batch at most.
      vocab_size: of the target, where it is known: token ids are below it.

    Raises:
      TraceError: nothing there, not Parquet, a column is missing or of another type, or a row contradicts itself.
    """
    wanted = SCHEMAS[kind].names if columns is None else [name for name in SCHEMAS[kind].names if name in columns]
    for file in trace_files(path):
        try:
            # A row group may hold all of a file: it is read in pieces, not ahead.
            with (
                arrow_source(file) as source,
                pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False) as opened,
            ):
                if gone := missing_part(file, opened.schema_arrow):
                    raise TraceError(f"{gone}: is gone, though {file.name} names it: take a whole copy")
                present = _check_schema(file, opened.schema_arrow, kind)
                reading = [name for name in wanted if name in present]
                first = 0
                for batch in opened.iter_batches(rows, columns=reading, use_threads=False):
                    full = _upgraded(batch, wanted)
                    check_rows(file, full, first, vocab_size)
                    first += len(full)
                    yield full
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{file}: cannot be read as Parquet: {error}") from error


def _check_schema(file: Path, found: pa.Schema, kind: type[Trace]) -> list[str]:
    """Names of the columns that the file has to have."""
    version = (found.metadata or {}).get(b"specexit.traces", b"none").decode()
    if version not in READABLE_VERSIONS:
        raise TraceError(f"{file}: trace schema version is {version}, expected {' or '.join(READABLE_VERSIONS)}")
    expected = [field for field in SCHEMAS[kind] if field.name not in LACKING.get(version, ())]
    for field in expected:
        if field.name not in found.names:
            hint = "" if field.name in SCHEMA.names else ", run specexit annotate first"
            raise TraceError(f"{file}: column {field.name!r} ({field.type}) is missing{hint}")
        if (times := found.names.count(field.name)) > 1:
            raise TraceError(f"{file}: column {field.name!r} is there {times} times, expected once")
        if found.field(field.name).type != field.type:
            raise TraceError(
                f"{file}: column {field.name!r} has type {found.field(field.name).type}, expected {field.type}"
            )
    return [field.name for field in expected]


def _upgraded(batch: pa.RecordBatch, wanted: Sequence[str]) -> pa.RecordBatch:
    """A batch with the columns that an older version does not have, at their defaults."""
    arrays = []
    for name in wanted:
        if name in batch.schema.names:
            arrays.append(batch[name])
            continue
        field = LABELLED.field(name)
        if name in ("boundary_state", "boundary_trial_tokens"):
            agrees = batch["boundary_agrees"]
            flat = agrees.flatten().to_numpy(zero_copy_only=False)
            values = np.where(flat, "agrees", "differs") if name == "boundary_state" else np.zeros(len(flat), np.int32)
            starts = np.concatenate([[0], np.cumsum(list_lengths(agrees))])
            arrays.append(pa.ListArray.from_arrays(starts.astype(np.int32), pa.array(values, field.type.value_type)))
        else:
            default = Trace.__dataclass_fields__[name].default
            arrays.append(pa.array([default] * len(batch), field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([LABELLED.field(name) for name in wanted]))


def blocks(batches: Iterable[pa.RecordBatch], tokens: int, row: int = 0) -> Iterator[pa.RecordBatch]:
    """The traces of batches in blocks of at most so many tokens; a trace that is longer is a block of its own.

    A trace counts with all bytes that were read of it, in whatever column: four of them are a token.

    Args:
      batches: of any size.
      tokens: of a block.
      row: tokens of a training row; a trace that fills more than half of one counts as a whole row, as the rest may be
        padding.
    """
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        start = 0
        for i, n in enumerate(_sizes(batch, row)):
            if size and size + n > tokens:
                yield pa.concat_batches([*held, batch.slice(start, i - start)])
                held, size, start = [], 0, i
            size += n
        held.append(batch.slice(start))
    if size:
        yield pa.concat_batches(held)


def _sizes(batch: pa.RecordBatch, row: int) -> Iterator[int]:
    """Tokens that each trace counts as."""
    for i in range(len(batch)):
        n = batch.slice(i, 1).nbytes // TOKEN_BYTES
        yield max(n, row) if 2 * n > row else n


def values_of(column: pa.Array, dtype: type[np.generic]) -> list[np.ndarray]:
    """The lists of a column, one array each, without a Python object for each value."""
    return np.split(flat_values(column, dtype), np.cumsum(list_lengths(column))[:-1]) if len(column) else []


def in_parallel(
    function: Callable[[int, bytes], ResultT], items: Iterable[pa.RecordBatch], workers: int | None = None
) -> Iterator[ResultT]:
    """Results of a function of (number, `serialised` record batch), in their order.

    With one worker, or a single item, the function runs in this process. At most one item more than there are workers
    is under way, so memory grows with the number of workers but not with that of items. Items do not get smaller where
    there are more workers, as what is written would then depend on the machine.

    Args:
      function: importable, as it runs in processes of their own.
      items: read while earlier ones are worked on.
      workers: processes; by default one for each processor, at most `MOST_WORKERS`.

    Raises:
      InputError: a process was killed.
    """
    numbered = enumerate(map(serialised, items))
    first_two = list(itertools.islice(numbered, 2))
    tasks = itertools.chain(first_two, numbered)
    n = workers or min(processors(), MOST_WORKERS)
    if n == 1 or len(first_two) < 2:
        yield from itertools.starmap(function, tasks)
        return
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), _end_quietly) as pool:
        under_way: deque[Future[ResultT]] = deque()
        try:
            for task in tasks:
                with _ctrl_c_held_back():  # from a worker that this starts, until `_end_quietly`
                    under_way.append(pool.submit(function, *task))
                if len(under_way) > n:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {n} worker processes was killed, as a system does where memory runs out: take fewer "
                f"(workers={n // 2}), or a machine with more memory"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_quietly() -> None:
    """Let Ctrl-C, which a terminal sends to workers as well, end this one without a traceback; the command says why.

    A command that was started in the background ignores Ctrl-C, and then its workers do, too.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def shown(items: Iterable[ResultT], title: str, what: str) -> Iterator[ResultT]:
    """The items, their number shown on a terminal as they come."""
    # Not imported above: the code that defines the method reads traces where few packages are installed.
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), SpinnerColumn(), TextColumn(f"{{task.completed}} {what}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=None, description=title)


def serialised(batch: pa.RecordBatch) -> bytes:
    """A batch as an Arrow stream of its own."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def deserialised(data: bytes) -> pa.RecordBatch:
    """The batch of `serialised`."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_next_batch()


def rows_of(batch: pa.RecordBatch, kind: Callable[..., RowsT]) -> Iterator[RowsT]:
    """The rows of a batch as objects, one at a time."""
    for i in range(len(batch)):
        [row] = batch.slice(i, 1).to_pylist()
        yield kind(**row)
