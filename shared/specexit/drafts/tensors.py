"""Safetensors files, read and written a piece at a time, and trusted no further than their own headers can be checked.

The library's loaders map or copy whole files. A converter needs one tensor at a time, with what it holds bounded by the
largest one, and it is handed files of strangers: every number of a header is checked against the file before anything
of that size is allocated. The bytes written are those that the library itself would write.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from blake3 import blake3
from jaxtyping import Shaped, UInt8

from specexit.buckets import BucketPath
from specexit.drafts.files import MAX_NAME, NO_POINTER, POINTER, TensorError, inside, odd, parse_json, read_json
from specexit.errors import shown

FLOATS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
"""What weights may be stored in; importing ml_dtypes is also what teaches numpy, and so safetensors, bfloat16."""

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "I64": "int64", "I32": "int32"} | {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
}
"""Type in a header -> numpy's; of these, `specexit.drafts.directory` accepts what a draft may hold."""

_CODES = {np.dtype(name): code for code, name in DTYPES.items()}
_ORDER = ("F64", "I64", "F32", "I32", "BF16", "F16", "U8", "I8", "BOOL")
"""Large types first, so that every tensor is aligned; as the library does."""

MAX_HEADER = MAX_INDEX = 10_000_000
"""Bytes: some 1,000 for each of `MAX_TENSORS`. The library's own limit, ten times that, is 2 GiB once it is read."""
MAX_TENSORS = 10_000
"""Of a draft; a target that is a mixture of experts may have more in a single file."""
BLOCK = 2**20
"""Bytes that are looked at and hashed at a time: what lies in a core's own cache."""

METADATA = "__metadata__"
"""Key of a header that is no tensor's name: what stands under it is text."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    """Byte of the file that it begins at."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Shaped[np.ndarray, "*shape"]:
        """The tensor, read into memory of its own.

        Raises:
          TensorError: the file is truncated.
        """
        return self._values(0, math.prod(self.shape)).reshape(self.shape)

    def rows(self, begin: int, end: int) -> Shaped[np.ndarray, "rows ..."]:
        """The rows from ``begin`` up to ``end`` of a tensor with at least one axis; no other is read.

        Raises:
          TensorError: the file is truncated.
        """
        width = math.prod(self.shape[1:])
        return self._values(begin * width, end * width).reshape(-1, *self.shape[1:])

    def _values(self, begin: int, end: int) -> np.ndarray:
        """The values from ``begin`` up to ``end`` in their order, flat."""
        start, size = self.start + begin * self.dtype.itemsize, (end - begin) * self.dtype.itemsize
        if isinstance(self.file, BucketPath):
            data = bytearray(self.file.read_range(start, start + size)) if size else bytearray()
            flat = np.frombuffer(data, self.dtype, len(data) // self.dtype.itemsize)
        else:
            flat = np.fromfile(self.file, self.dtype, end - begin, offset=start)
        if flat.size != end - begin:
            raise TensorError(f"{self.file}: ends within a tensor, so it is truncated")
        return flat

    def blocks(self, start: int = 0) -> Iterator[UInt8[np.ndarray, " block"]]:
        """The tensor's bytes from byte ``start`` on, in order; each block takes the memory of the one before it.

        Raises:
          TensorError: the file is truncated.
        """
        buffer = np.empty(min(BLOCK, self.nbytes), np.uint8)
        with self.file.open("rb") as file:
            file.seek(self.start + start)
            for begin in range(start, self.nbytes, BLOCK):
                block = buffer[: min(BLOCK, self.nbytes - begin)]
                if file.readinto(block.data) != block.size:
                    raise TensorError(f"{self.file}: ends within a tensor, so it is truncated")
                yield block


def open_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder: of ``model.safetensors``, or of the files that its index names.

    Raises:
      TensorError: neither is there, a file lies outside of the folder, or a header cannot be right.
    """
    index = folder / INDEX
    if not index.exists():
        return read_header(inside(folder, WEIGHTS), MAX_TENSORS)
    files = _indexed(index)
    found: dict[str, Stored] = {}
    for name in sorted(set(files.values())):
        for tensor, stored in read_header(inside(folder, name), MAX_TENSORS).items():
            if files.get(tensor) != name:
                raise TensorError(f"{index}: tensor {tensor} is in {name}, but the index says {files.get(tensor)}")
            found[tensor] = stored
    lost = sorted(files.keys() - found.keys())
    if lost:
        raise TensorError(f"{index}: tensor {lost[0]} is not in {files[lost[0]]}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """``model.safetensors``, or the files that its index names, in their order.

    Raises:
      TensorError: see `open_tensors`.
    """
    if not (folder / INDEX).exists():
        return [inside(folder, WEIGHTS)]
    return [inside(folder, name) for name in sorted(set(_indexed(folder / INDEX).values()))]


def _indexed(path: Path) -> dict[str, str]:
    files = weight_map(read_json(path, MAX_INDEX), path)
    if len(files) > MAX_TENSORS:
        raise TensorError(f"{path}: names {len(files)} tensors, expected at most {MAX_TENSORS}")
    return files


def weight_map(raw: Any, path: Path) -> dict[str, str]:
    """Name of every tensor -> name of its file, by the index that was read from ``path``.

    Raises:
      TensorError: it has none.
    """
    files = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise TensorError(f"{path}: expected a weight_map from names of tensors to names of files")
    return files


def header_of(path: Path, most: int | None = None) -> tuple[dict[str, Any], int, int]:
    """What a file's header says of its tensors, where they begin, and the file's size; nothing of it is checked yet.

    Args:
      path: of the file.
      most: tensors that it may have; None for any number, as a target has.

    Raises:
      TensorError: it is no header of safetensors, or of more tensors.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        begin = file.read(len(POINTER))
        if begin == POINTER:
            raise TensorError(f"{path}: {NO_POINTER}")
        length = int.from_bytes(begin[:8], "little")
        file.seek(8)
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise TensorError(
                f"{path}: cannot be read as safetensors (truncated?): its header has {length} bytes, expected at most "
                f"{min(max(size - 8, 0), MAX_HEADER)}"
            )
        raw = parse_json(file.read(length), path)
    if not isinstance(raw, dict):
        raise TensorError(f"{path}: its header is no table of tensors")
    raw.pop(METADATA, None)
    if most is not None and len(raw) > most:
        raise TensorError(f"{path}: its header is of {len(raw)} tensors, expected at most {most}")
    return raw, 8 + length, size


def read_header(path: Path, most: int | None = None) -> dict[str, Stored]:
    """The tensors of a file by name, in the order in which they lie there; see `header_of`.

    Raises:
      TensorError: the file is truncated, or its header is malformed: types, shapes and offsets must agree with each
        other, and the tensors must fill the file without gap or overlap.
    """
    raw, place, size = header_of(path, most)
    found = {name: entry_of(path, name, fields, place) for name, fields in raw.items()}
    placed = sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes))
    for name, stored in placed:
        if stored.start != place:
            kind = "overlaps the tensor before it" if stored.start < place else "leaves a gap before it"
            raise TensorError(f"{path}: tensor {name} begins at byte {stored.start}, which {kind}: expected {place}")
        place += stored.nbytes
    if place != size:
        raise TensorError(
            f"{path}: cannot be read as safetensors (truncated?): "
            f"its header describes {place} bytes, but the file has {size}"
        )
    return dict(placed)


def entry_of(path: Path, name: str, fields: Any, body: int) -> Stored:
    """Where a tensor lies, by the ``fields`` that a header has for it; the first one lies at byte ``body``.

    Raises:
      TensorError: its type, shape and offsets are none, or contradict each other.
    """
    if odd(name):
        raise TensorError(f"{path}: a tensor is named {shown(name)}, expected up to {MAX_NAME} printable characters")
    try:
        code, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise TensorError(f"{path}: tensor {name} has no dtype, shape and data_offsets") from error
    if not isinstance(code, str) or code not in DTYPES:
        raise TensorError(f"{path}: tensor {name} has dtype {shown(code)}, expected one of {', '.join(DTYPES)}")
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers) or len(shape) > 8:
        raise TensorError(
            f"{path}: tensor {name} has shape {shown(shape)} and data_offsets {shown([begin, end])}, expected sizes"
        )
    stored = Stored(path, np.dtype(DTYPES[code]), tuple(shape), body + begin)
    if end - begin != stored.nbytes:
        raise TensorError(f"{path}: tensor {name} {shape} needs {stored.nbytes} bytes, but has {end - begin}")
    return stored


Shapes = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
Pieces = Callable[[str], Iterable[np.ndarray] | Stored]
"""Name of a tensor -> its values in order, in pieces of any shape; or where they lie, to be copied as they are."""
Look = Callable[[str, np.ndarray], None]
"""Called with name and values of whatever is written; raises an error for what must not be."""


def write_tensors(
    folder: Path,
    shapes: Shapes,
    pieces: Pieces,
    max_bytes: int | None = None,
    look: Look | None = None,
    files: Sequence[Sequence[str]] | None = None,
) -> dict[str, str]:
    """Write tensors into a folder, piece by piece; with an index where they do not fit into one file.

    Args:
      folder: to write into.
      shapes: type and shape of every tensor.
      pieces: where their values come from; asked for one tensor after the other.
      max_bytes: most bytes of tensors in a file, unless a single one is larger; None for one file.
      look: called with all values, to refuse some; None for no check.
      files: names of the tensors of each file, where that is settled; ``max_bytes`` is ignored then.

    Returns:
      Hash of every tensor, see `tensor_hash`; `together` makes one of them.

    Raises:
      TensorError: a tensor has the name that safetensors keeps for text.
    """
    if METADATA in shapes:
        raise TensorError(
            f"{folder}: a tensor is named {METADATA!r}, expected another name: safetensors keeps it for text"
        )
    files = _split(shapes, max_bytes) if files is None else files
    if len(files) == 1:
        return _write_file(folder / WEIGHTS, files[0], shapes, pieces, look)
    hashes, places = {}, {}
    for i, names in enumerate(files):
        file = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        hashes |= _write_file(folder / file, names, shapes, pieces, look)
        places |= dict.fromkeys(names, file)
    total = sum(_nbytes(*shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return hashes


def _split(shapes: Shapes, max_bytes: int | None) -> list[list[str]]:
    """Names of the tensors of each file."""
    files: list[list[str]] = [[]]
    filled = 0
    for name in sorted(shapes, key=lambda name: (_ORDER.index(_CODES[shapes[name][0]]), name)):
        size = _nbytes(*shapes[name])
        if max_bytes is not None and files[-1] and filled + size > max_bytes:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def split_of(stored: Mapping[str, Stored]) -> list[list[str]]:
    """Names of the tensors of each file that a folder's weights lie in, as they lie there; see `write_tensors`."""
    files: dict[str, list[str]] = {}
    for name in sorted(stored, key=lambda name: (stored[name].file.name, stored[name].start)):
        files.setdefault(stored[name].file.name, []).append(name)
    return list(files.values())


def _nbytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def _write_file(path: Path, names: Sequence[str], shapes: Shapes, pieces: Pieces, look: Look | None) -> dict[str, str]:
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    place = 0
    for name in names:
        dtype, shape = shapes[name]
        size = _nbytes(dtype, shape)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    # Looking at the values and hashing them takes as long as copying, so it runs beside that.
    with path.open("wb") as file, ThreadPoolExecutor(2) as beside:
        file.write(len(text).to_bytes(8, "little") + text)
        hashes = {}
        for name in names:
            source = pieces(name)
            if isinstance(source, Stored):
                assert (source.dtype, source.shape) == shapes[name], f"{name}: {source} is not {shapes[name]}"
                hashes[name] = beside.submit(tensor_hash, source, partial(look, name) if look else None)
                _copy(source, file)
            else:
                hashes[name] = _write(file, name, shapes[name], source, look, beside)
        found = {name: future.result() for name, future in hashes.items()}
    path.chmod(0o644)
    return found


def _write(
    file: Any,
    name: str,
    kind: tuple[np.dtype, tuple[int, ...]],
    pieces: Iterable[np.ndarray],
    look: Look | None,
    beside: ThreadPoolExecutor,
) -> Future[str]:
    """Write a tensor's pieces into a file or an object in a bucket.

    Each is looked at, hashed and written while the next one is made: no more than two are held.
    """
    hashed, written = _hash_of(*kind), 0

    def take(piece: np.ndarray, data: memoryview) -> None:
        if look is not None:
            look(name, piece)
        hashed.update(data)
        file.write(data)

    before = beside.submit(str)
    for piece in pieces:
        assert piece.dtype == kind[0], f"{name}: {piece.dtype} where {kind[0]} was announced"
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        before.result()
        before = beside.submit(take, piece, data)
        written += len(data)
    assert written == _nbytes(*kind), f"{name}: {written} bytes for {kind}"
    before.result()
    return beside.submit(hashed.hexdigest)


def _copy(source: Stored, file: Any) -> None:
    """Append a tensor's bytes to a file, within the kernel where it can do that."""
    done = 0
    on_disk = isinstance(file, io.BufferedWriter) and not isinstance(source.file, BucketPath)
    if on_disk and hasattr(os, "copy_file_range"):
        file.flush()
        with source.file.open("rb") as given, suppress(OSError):  # another file system, or one that cannot
            while done < source.nbytes:
                start, left = source.start + done, source.nbytes - done
                copied = os.copy_file_range(given.fileno(), file.fileno(), left, offset_src=start)
                if not copied:  # the file's end; on some mounts, nothing else than that they cannot
                    break
                done += copied
        file.seek(0, os.SEEK_END)
    for block in source.blocks(done):
        file.write(block.data)


def weights_hash(folder: Path) -> str:
    """BLAKE3 of a folder's weights: of names, types, shapes and bytes of its tensors, in whatever files they lie.

    SHA-256 would take most of a conversion's time: it reads about 1 GB/s, and ``cp`` copies more.

    Raises:
      TensorError: see `open_tensors`.
    """
    stored = open_tensors(folder)
    with ThreadPoolExecutor(2) as pool:
        return together(dict(zip(stored, pool.map(tensor_hash, stored.values()), strict=True)))


def together(hashes: Mapping[str, str]) -> str:
    """One hash of several tensors, given the hash of each by its name."""
    return blake3("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()


def tensor_hash(stored: Stored, look: Callable[[np.ndarray], None] | None = None) -> str:
    """BLAKE3 of a tensor's type, shape and bytes, which ``look`` sees as well.

    Raises:
      TensorError: its file is truncated.
    """
    hashed = _hash_of(stored.dtype, stored.shape)
    for block in stored.blocks():
        if look is not None:
            look(block.view(stored.dtype))
        hashed.update(block.data)
    return hashed.hexdigest()


def pieces_hash(dtype: np.dtype, shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> str:
    """`tensor_hash` of a tensor that lies in no file, given its values in order."""
    hashed = _hash_of(dtype, shape)
    for piece in pieces:
        hashed.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def _hash_of(dtype: np.dtype, shape: tuple[int, ...]) -> blake3:
    return blake3(f"{dtype.name} {list(shape)}\n".encode())
