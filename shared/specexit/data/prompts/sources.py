"""Rows of a file of prompts: JSONL, JSON, CSV, Parquet, or a folder as Hugging Face ``datasets`` lays it out."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from specexit.buckets import arrow_source
from specexit.data.prompts.prompt import PromptError, Row

csv.field_size_limit(2**31 - 1)  # a prompt with its context is longer than the library's 128 KiB

LocatedRow = tuple[str, Row]
"""Where a row stands, for messages, and the row."""


def read_rows(path: Path) -> Iterator[LocatedRow]:
    """The rows of a file or folder.

    Raises:
      PromptError: nothing there, a format that is not known, or content that is not of its format.
    """
    if path.is_dir():
        yield from _folder(path)
    elif path.exists():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise PromptError(f"{path}: cannot be read as prompts, expected a name that ends in {', '.join(_READERS)}")
        yield from reader(path)
    else:
        yield from _split_of(path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PromptError(f"{path}, line {line}: byte {error.start} is not UTF-8, expected a file in UTF-8") from error
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error}") from error


def _object(value: Any, where: str) -> LocatedRow:
    if not isinstance(value, dict):
        raise PromptError(f"{where}: holds a {type(value).__name__}, expected an object with id and prompt")
    return where, value


def _json_lines(path: Path) -> Iterator[LocatedRow]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise PromptError(f"{where}: not JSON: {error}") from error
            yield _object(value, where)


def _lines(path: Path) -> Iterator[str]:
    """Read line by line: only the first ones may be wanted of a file that is larger than the memory."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError:
        _text(path)  # whose error says where
        raise
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error}") from error


def _json(path: Path) -> Iterator[LocatedRow]:
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{path}: not JSON: {error}; lines of JSON are expected in a file that ends in .jsonl"
        ) from error
    if not isinstance(values, list):
        raise PromptError(f"{path}: holds a {type(values).__name__}, expected a list of objects")
    for number, value in enumerate(values, start=1):
        yield _object(value, f"{path}, row {number}")


def _csv(path: Path) -> Iterator[LocatedRow]:
    lines = io.StringIO(_text(path), newline="")  # str.splitlines would also cut at U+2028 and its like
    reader = csv.DictReader(lines, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        for name, times in Counter(reader.fieldnames or ()).items():
            if times > 1:
                raise PromptError(f"{path}, line 1: column {name!r} occurs {times} times, expected different names")
        for number, row in enumerate(reader, start=1):
            where = f"{path}, row {number}"
            if None in row or None in row.values():
                raise PromptError(f"{where}: expected {len(reader.fieldnames or ())} fields, as the first line names")
            yield where, {key: value or None for key, value in row.items()}
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _parquet(path: Path) -> Iterator[LocatedRow]:
    try:
        with arrow_source(path) as source, pq.ParquetFile(source) as file:
            yield from _batches(path, file.iter_batches(batch_size=1024))
    except (pa.ArrowException, OSError) as error:
        raise PromptError(f"{path}: cannot be read as Parquet: {error}") from error


def _arrow(path: Path) -> Iterator[LocatedRow]:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
            yield from _batches(path, batches)
    except (pa.ArrowException, OSError) as error:
        raise PromptError(f"{path}: cannot be read as an Arrow stream: {error}") from error


def _batches(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[LocatedRow]:
    number = 0
    for batch in batches:
        for row in _in_doubles(batch).to_pylist():
            number += 1
            yield f"{path}, row {number}", row


def _in_doubles(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with its float32 columns as float64 of the same digits: 0.1 stays 0.1, and is not 0.10000000149011612."""
    for i, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type):
            batch = batch.set_column(i, field.name, batch.column(i).cast(pa.string()).cast(pa.float64()))
    return batch


_READERS: dict[str, Callable[[Path], Iterator[LocatedRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}


def _folder(folder: Path) -> Iterator[LocatedRow]:
    """A folder that ``save_to_disk`` wrote, or one of files of rows as the hub has them."""
    if (folder / "dataset_dict.json").exists():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path))
        if not splits:
            raise PromptError(f"{folder}: dataset_dict.json is there, but no folder of a split: take a whole copy")
        raise PromptError(f"{folder}: holds the splits {', '.join(splits)}, expected one: {folder / splits[0]}")
    if (state := folder / "state.json").exists():
        try:
            names = [entry["filename"] for entry in json.loads(_text(state))["_data_files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise PromptError(f"{state}: cannot be read, expected the state of a datasets folder: {error}") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise PromptError(f"{state}: filename is {name!r:.200}, expected the name of a file in its folder")
            if not (folder / name).exists():
                raise PromptError(f"{folder / name}: is missing, state.json names it")
            yield from _arrow(folder / name)
        return
    files = _data_files(folder)
    if not files:
        raise PromptError(f"{folder}: is no datasets folder, expected state.json, or files {', '.join(_ROWS)} in it")
    splits = sorted({_split_name(file) for file in files})
    if len(splits) > 1:
        raise PromptError(f"{folder}: holds the splits {', '.join(splits)}, expected one: {folder / splits[0]}")
    yield from _of_one_kind(files)


def _split_of(path: Path) -> Iterator[LocatedRow]:
    """``FOLDER/SPLIT`` of a folder of files of rows."""
    files = [file for file in _data_files(path.parent) if _split_name(file) == path.name]
    if not files:
        raise PromptError(f"{path}: cannot be read: there is no such file or folder")
    yield from _of_one_kind(files)


def _of_one_kind(files: list[Path]) -> Iterator[LocatedRow]:
    """The rows of a split: where it is there in several formats, those of the first of these."""
    for file in files:
        if file.suffix == files[0].suffix:
            yield from _READERS[file.suffix](file)


_ROWS = (".parquet", ".jsonl", ".csv")
"""Files of rows in a folder of the hub."""


def _data_files(folder: Path) -> list[Path]:
    found = (sorted([*folder.glob(f"*{end}"), *folder.glob(f"data/*{end}")]) for end in _ROWS)
    return [file for files in found for file in files if not _is_hidden(file)]


def _is_hidden(path: Path) -> bool:
    """Whether a file or folder is no part of a data set: macOS leaves a ``._NAME`` beside what it copies."""
    return path.name[0] == "."


def _split_name(file: Path) -> str:
    """``test`` of ``test-00000-of-00002.parquet``."""
    return file.stem.split("-0")[0]
