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
"""Most digits of a number: a float holds the product of three such numbers, and no size needs more."""
POINTER = b"version https://git-lfs"
"""Beginning of the file that a ``git clone`` without Git LFS leaves in the place of weights."""
NO_POINTER = "is a pointer of Git LFS, expected the weights: `git lfs pull`, or `hf download NAME --local-dir FOLDER`"
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape in a JSON text that is half a character: two of them in a row make a whole one."""
MAX_DEPTH = 64
"""Deepest nesting of lists and objects: what is read may be written again, which Python cannot do at any depth."""


class TensorError(InputError):
    """A file of a draft that cannot be read; the message names the file and what is wrong with it."""


def inside(folder: Path, name: str) -> Path:
    """The path of a file that lies in the folder itself; in the Hub's cache it may be a link into its ``blobs``.

    Raises:
      TensorError: ``name`` is a path or not printable; or the file is not there, no regular file, or a link out of the
        folder.
    """
    path = folder / name
    if Path(name).name != name or name in ("", ".", "..") or odd(name):
        raise TensorError(
            f"{folder}: {shown(name)} is named as a file of weights, expected the name of a file in that folder"
        )
    home = folder.resolve()
    homes = [home, *(above.parent / "blobs" for above in home.parents if above.name == "snapshots")]
    try:
        if path.resolve(strict=True).parent not in homes:
            raise TensorError(f"{path}: is a link out of its folder, to {path.resolve()}")
    except (OSError, RuntimeError) as error:
        raise TensorError(f"{path}: cannot be read: {error}") from error
    if not path.is_file():
        raise TensorError(f"{path}: is no regular file")
    return path


def odd(name: str) -> bool:
    """Whether a name is empty, too long to be said whole in an error, or would move a terminal's cursor there."""
    return not name.isprintable() or not 0 < len(name) <= MAX_NAME


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes.

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
    """The value in a JSON file of at most ``limit`` bytes.

    Raises:
      TensorError: it is no JSON, has a key twice or a whole number of more than `MAX_DIGITS` digits, goes deeper than
        `MAX_DEPTH`, or holds half a character; or see `read_bytes`.
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
    """The first half characters in a value's texts, which no file can be written with; None where there are none."""
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
      error: class of the error that is raised.

    Raises:
      error: the file cannot be read, or holds something else.
    """
    try:
        found = read_json(path, limit)
    except TensorError as cause:
        raise error(str(cause)) from cause
    if not isinstance(found, dict):
        raise error(f"{path}: holds a {type(found).__name__}, expected an object")
    return found
