"""Files of a stranger's folder, none of which is read further than it should be.

A draft directory may come from anybody: what it names may be a link to a file that is nobody else's business, a pipe
that never ends, or as large as the disk. Whatever lies in one is opened through `inside`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from specexit.errors import InputError, shown

MAX_NAME = 255
MAX_DIGITS = 100
"""Of a number: more than that no float holds three of, multiplied, and no size needs."""
POINTER = b"version https://git-lfs"
"""How a file of weights begins that a ``git clone`` without Git LFS has left in its place."""
NO_POINTER = "is a pointer of Git LFS, expected the weights: `git lfs pull`, or `hf download NAME --local-dir FOLDER`"
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""Of a JSON text: one of two escapes that are a character together."""
MAX_DEPTH = 64
"""Of lists and objects in one another: what is read may be written again, which Python does not at any depth."""


class TensorError(InputError):
    """A file of a draft that cannot be read; the message names the file and what is wrong with it."""


def inside(folder: Path, name: str) -> Path:
    """The file of that name, which must lie in the folder; the hub's cache links into its own ``blobs``.

    Raises:
      TensorError: it is a path and no name, a link out of the folder, no file, or not there.
    """
    path = folder / name
    if Path(name).name != name or name in ("", ".", "..") or odd(name):
        raise TensorError(
            f"{folder}: {shown(name)} is named as a file of weights, expected the name of a file in that folder"
        )
    home = folder.resolve()
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    try:
        if path.resolve(strict=True).parent not in homes:
            raise TensorError(f"{path}: is a link out of its folder, to {path.resolve()}")
    except (OSError, RuntimeError) as error:
        raise TensorError(f"{path}: cannot be read: {error}") from error
    if not path.is_file():
        raise TensorError(f"{path}: is no regular file")
    return path


def odd(name: str) -> bool:
    """Whether a name would be cut, or move a terminal's cursor, where an error says it."""
    return not name.isprintable() or not 0 < len(name) <= MAX_NAME


def read_bytes(path: Path, limit: int) -> bytes:
    """A file of at most ``limit`` bytes.

    Raises:
      TensorError: it is larger, a link out of its folder, no regular file, or unreadable.
    """
    found = inside(path.parent, path.name)
    try:
        size = found.stat().st_size
        with found.open("rb") as file:
            data = file.read(limit + 1) if size <= limit else b""
    except OSError as error:
        raise TensorError(f"{path}: cannot be read: {error}") from error
    if max(size, len(data)) > limit:
        raise TensorError(f"{path}: holds more than the {limit} bytes that are expected at most")
    return data


def read_json(path: Path, limit: int) -> Any:
    """A JSON file of at most ``limit`` bytes; a key that is there twice is an error.

    Raises:
      TensorError: it is no JSON, goes deeper than `MAX_DEPTH`, holds half a character, or see `read_bytes`.
    """
    try:
        path.stat()
    except FileNotFoundError as error:
        raise TensorError(f"{path}: does not exist") from error
    except OSError as error:
        raise TensorError(f"{path}: cannot be read as JSON: {error}") from error
    return parse_json(read_bytes(path, limit), path)


def parse_json(data: bytes, path: Path) -> Any:
    """`read_json` of bytes that were read from ``path``."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = Counter(name for name, _ in pairs)
            twice = next(name for name, n in names.items() if n > 1)
            raise TensorError(f"{path}: {shown(twice)} is there twice")
        return found

    def number(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise TensorError(
                f"{path}: holds a number of {len(text)} digits, {text[:20]}..., expected {MAX_DIGITS} at most"
            )
        return int(text)

    try:
        found = json.loads(data, object_pairs_hook=unique, parse_int=number)
    except TensorError:
        raise
    except (ValueError, RecursionError) as error:
        raise TensorError(f"{path}: cannot be read as JSON: {error}") from error
    if _is_deep(found):
        raise TensorError(f"{path}: holds a value in more than {MAX_DEPTH} lists and objects, one in another")
    if HALF.search(data) and (half := _half_characters(found)):
        raise TensorError(f"{path}: holds {half}, half a character, expected text")
    return found


def _half_characters(value: Any) -> str | None:
    """What no file can be written with, of the texts in a value; None where there is none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return shown(error.object[error.start : error.end])
    return None


def _is_deep(value: Any) -> bool:
    """Whether something lies in more than `MAX_DEPTH` lists and objects."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = [
            outer.values() if isinstance(outer, dict) else outer for outer in level if isinstance(outer, dict | list)
        ]
        level = [inner for values in inside for inner in values]
    return bool(level)


def read_object(path: Path, limit: int, error: type[InputError]) -> dict[str, Any]:
    """Read a JSON object.

    Args:
      path: of the file.
      limit: see `read_json`.
      error: what is raised.

    Raises:
      error: it cannot be read, or holds something else.
    """
    try:
        found = read_json(path, limit)
    except TensorError as cause:
        raise error(str(cause)) from cause
    if not isinstance(found, dict):
        raise error(f"{path}: holds a {type(found).__name__}, expected an object")
    return found
