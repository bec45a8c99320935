"""Parquet in parts. Writing or opening a file takes the index of all its row groups into memory, so a file that would
have very many of them is split into several, each with a bounded number."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from specexit.buckets import BucketPath, arrow_sink

GROUPS = 1024
"""Most row groups of a part. Those of traces, with their 28 columns, have an index of 14 MB."""
IN_FRONT = b"specexit.parts"
"""Key in a file's metadata: how many parts lie in front of it; not there where none do."""


class PartsWriter:
    """Writes ``NAME.parquet``. Whenever it is full, it is renamed to ``NAME.00000.parquet`` and so on, and a new one
    begins: in the order of their names the files hold what was written, and ``NAME.parquet`` is always there, the last.

    Args:
      path: the file.
      schema: of all that is written.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        self._path, self._schema = path, schema
        self._parts = self._groups = 0
        self._open()

    def _open(self) -> None:
        self._stack = ExitStack()
        sink = self._stack.enter_context(arrow_sink(self._path))
        more = {IN_FRONT: str(self._parts)} if self._parts else {}
        schema = self._schema.with_metadata({**(self._schema.metadata or {}), **more})
        self._file = self._stack.enter_context(pq.ParquetWriter(sink, schema, compression="zstd"))

    def __enter__(self) -> PartsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)  # pyright: ignore[reportArgumentType]

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch as a row group."""
        if self._groups == GROUPS:
            self._begin_another()
        self._file.write_batch(batch)
        self._groups += 1

    def _begin_another(self) -> None:
        self._stack.close()
        full = _part(self._path, self._parts)
        if isinstance(self._path, BucketPath):
            self._path.move(BucketPath(full))
        else:
            self._path.rename(full)
        self._parts, self._groups = self._parts + 1, 0
        self._open()


def _part(path: Path, number: int) -> Path:
    return path.with_suffix(f".{number:05d}{path.suffix}")


def missing_part(path: Path, schema: pa.Schema) -> Path | None:
    """The first part that is missing although ``path``, the last file of a `PartsWriter`, counts it; else None."""
    n = int((schema.metadata or {}).get(IN_FRONT, b"0"))
    if not n or last_of(path) != path:
        return None
    there = parts_of(path)
    return next((part for i in range(n) if (part := _part(path, i)) not in there), None)


def parts_of(path: Path) -> list[Path]:
    """The files of a `PartsWriter` in their order: the parts that are there, then ``path``, there or not."""
    return [*sorted(path.parent.glob(f"{path.stem}.{'[0-9]' * 5}{path.suffix}")), path]


def last_of(part: Path) -> Path:
    """The last file of the `PartsWriter` that wrote this one.

    Example:
      >>> last_of(Path("a.00003.parquet")).name, last_of(Path("a.parquet")).name
      ('a.parquet', 'a.parquet')
    """
    return part.with_name(re.sub(r"\.\d{5}(?=\.[^.]+\Z)", "", part.name))
