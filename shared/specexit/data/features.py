"""A target's hidden states on packed rows, stored: `specexit features` writes them, `specexit train` reads them.

A folder holds ``features.json`` (what the states are of, and the shards there are) and safetensors shards. Row ``i`` of
the packed data is row ``i % shard_rows`` of shard ``i // shard_rows``. A shard's tensors:

- ``states [row, time, layer, hidden]``: the residual stream behind each of ``layers``. The last of these is the
  target's last layer, before the final norm: what the teacher is made of. Zero where the row is padding. float8 (e4m3)
  is stored as its bytes, since not every reader of safetensors knows it.
- ``scales [row, time, layer]``, float32, for float8 alone: what the stored states are multiplied by.
- ``digests [row, 32]``: SHA-256 of the row's tokens, segments and positions.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field

from specexit.config import Config, read_made, write_text
from specexit.data.sequences import Example
from specexit.differences import differences, file_sha256
from specexit.errors import InputError
from specexit.locks import take
from specexit.outputs import put

FORMAT_VERSION = 1
FILE = "features.json"
StoredType = Literal["float32", "bfloat16", "float8"]
DTYPES: dict[StoredType, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8": np.dtype(ml_dtypes.float8_e4m3fn),
}
LARGEST = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)
"""Largest number of e4m3: 448."""


class FeatureError(InputError):
    """Stored features that cannot be made or used; the message names the file, the field and what was expected."""


class Shard(Config):
    """A finished shard."""

    size: int = Field(gt=0, description="bytes")
    sha256: str


class Manifest(Config):
    """``features.json``. Everything but ``shards`` is settled before the first of them is written."""

    format_version: int = FORMAT_VERSION
    target: str
    target_sha256: str = Field(description="of the target's weights: specexit.drafts.fingerprints")
    target_dtype: str = Field(description="that the target was run in")
    tokenizer_sha256: str = Field(description="of the target's tokenizer.json")
    data: str = Field(description="of the packed data: specexit.data.packed.PackMeta.identity")
    n: int = Field(gt=0, description="packed rows")
    length: int = Field(gt=0, description="tokens in each")
    layers: tuple[int, ...] = Field(min_length=1, description="rising, in vLLM's counting; the last is the last layer")
    hidden_size: int = Field(gt=0)
    dtype: StoredType
    shard_rows: int = Field(gt=0)
    engine: str = Field(description="what ran the target")
    arguments: dict[str, Any] | None = Field(
        default=None, description="of that engine, which the states depend on; None where an older version kept none"
    )
    shards: dict[str, Shard] = Field(default={}, description="file name -> the finished shard in it")

    @property
    def names(self) -> list[str]:
        """File names of all shards, finished or not."""
        n = -(-self.n // self.shard_rows)
        return [f"features-{i:05d}-of-{n:05d}.safetensors" for i in range(n)]

    def rows(self, shard: int) -> range:
        """Which packed rows are in a shard."""
        return range(shard * self.shard_rows, min(self.n, (shard + 1) * self.shard_rows))


def stored_layers(layers: Iterable[int], last: int) -> tuple[int, ...]:
    """The layers to store for a draft that reads ``layers`` of a target with so many layers."""
    return tuple(sorted({*layers, last}))


def bytes_per_token(dtype: StoredType, layers: int, hidden_size: int) -> int:
    """Disk space of a token's states."""
    return layers * (hidden_size * DTYPES[dtype].itemsize + (4 if dtype == "float8" else 0))


def encode(states: Float[np.ndarray, "*token hidden"], dtype: StoredType) -> Example:
    """States as they are stored: ``states``, and for float8 ``scales``, which make a token's largest state 448.

    Raises:
      FeatureError: a state is not finite.
    """
    if not np.isfinite(states).all():
        raise FeatureError("a hidden state is NaN or infinite: expected a target whose weights and dtype go together")
    if dtype != "float8":
        return {"states": states.astype(DTYPES[dtype])}
    largest = np.abs(states).max(axis=-1)
    scales = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return {"states": (states / scales[..., None]).astype(DTYPES[dtype]), "scales": scales}


def decode(stored: Example) -> Float[np.ndarray, "*token hidden"]:
    """The states that `encode` was given, in float32, up to the rounding of the stored type."""
    states = stored["states"].astype(np.float32)
    return states * stored["scales"][..., None] if "scales" in stored else states


def digest(example: Example) -> UInt8[np.ndarray, " 32"]:
    """SHA-256 of a packed row's tokens, segments and positions, which tells it from any other row."""
    found = hashlib.sha256()
    for name in ("tokens", "segment_ids", "positions"):
        found.update(np.ascontiguousarray(example[name], np.int32).data)
    return np.frombuffer(found.digest(), np.uint8)


def read_manifest(folder: Path) -> Manifest:
    """Read ``features.json``.

    Raises:
      FeatureError: it is missing or wrong, or of another format version.
    """
    return read_made(Manifest, folder / FILE, FORMAT_VERSION, "features", FeatureError)


def begin(folder: Path, wanted: Manifest) -> Manifest:
    """Start a folder of features, or go on with one that was started.

    Returns:
      The manifest, with those shards that are finished and have their size.

    Raises:
      FeatureError: the folder is a file, holds other things, or holds features of something else than ``wanted``.
    """
    if folder.exists() and not folder.is_dir():
        raise FeatureError(f"{folder}: is a file, expected a new folder or one of features")
    if not (folder / FILE).exists():
        others = [path.name for path in folder.glob("*") if not path.name.startswith(".")]
        if others:
            raise FeatureError(f"{folder}: holds {min(others)} but no {FILE}, expected a new folder or one of features")
        write_text(folder / FILE, wanted.model_dump_json(indent=2) + "\n")
        return wanted
    found = read_manifest(folder)
    if found.arguments is not None and (told := differences(found.arguments, wanted.arguments or {})):
        raise FeatureError(f"{folder / FILE}: begun with other arguments of the engine: {told}: choose another `out`")
    for field in set(Manifest.model_fields) - {"shards", "arguments"}:
        was, now = getattr(found, field), getattr(wanted, field)
        if was != now:
            raise FeatureError(f"{folder / FILE}: {field} is {was}, but this run says {now}: choose another `out`")
    whole = {name: shard for name, shard in found.shards.items() if _size(folder / name) == shard.size}
    return found.model_copy(update={"shards": whole})


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder that `begin` has started, and remove what a killed process had written of a shard.

    The lock ends with the block, or with the process, even by ``kill -9``. On a disk that has no locks nothing is
    locked, see `take`.

    Raises:
      FeatureError: another process writes there.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            take(lock, folder)
        except BlockingIOError as error:
            raise FeatureError(
                f"{folder}: another process writes features there: wait for it, or choose another `out`"
            ) from error
        shutil.rmtree(folder / _BEGUN, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(folder / _BEGUN, ignore_errors=True)


_BEGUN = ".begun"
"""Folder of the shard that is being written, under whatever name safetensors gives it before it is whole."""


def write_shard(folder: Path, manifest: Manifest, shard: int, rows: list[Example], states: list[Example]) -> Manifest:
    """Write a shard, whole or not at all.

    Args:
      folder, manifest: of the features.
      shard: its number.
      rows: the packed rows in it.
      states: what `encode` makes of each row's states.

    Returns:
      The manifest with this shard in it, as it is on disk now.

    Raises:
      FeatureError: the disk is full, or refuses it for another reason.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = {name: np.stack([state[name] for state in states]) for name in states[0]}
    if manifest.dtype == "float8":
        tensors["states"] = tensors["states"].view(np.uint8)
    tensors["digests"] = np.stack([digest(row) for row in rows])
    name = manifest.names[shard]
    beside = folder / _BEGUN / name
    try:
        beside.parent.mkdir(exist_ok=True)
        save_file(tensors, beside, metadata={"dtype": manifest.dtype, "layers": json.dumps(manifest.layers)})
    except (OSError, SafetensorError) as error:
        raise FeatureError(
            f"{folder / name}: cannot be written: {error}; what is finished stays, and the same command goes on with it"
        ) from error
    beside.chmod(0o644)
    done = Shard(size=beside.stat().st_size, sha256=file_sha256(beside))
    put(beside, folder / name)
    found = manifest.model_copy(update={"shards": manifest.shards | {name: done}})
    write_text(folder / FILE, found.model_dump_json(indent=2) + "\n")
    return found


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def check(folder: Path, expected: dict[str, Any], layers: Iterable[int]) -> Manifest:
    """Check that stored features are whole, and are what a run would compute; reads no states.

    Args:
      folder: of the features.
      expected: fields of the manifest and the values that the run needs.
      layers: that its draft reads.

    Raises:
      FeatureError: they are not: another target, other data, a layer that was not stored, shards that are not whole.
    """
    manifest = read_manifest(folder)
    for field, value in expected.items():
        if getattr(manifest, field) != value:
            raise FeatureError(f"{folder / FILE}: {field} is {getattr(manifest, field)!r}, expected {value!r}")
    check_layers(folder, manifest, layers)
    lacking = [name for name in manifest.names if name not in manifest.shards]
    if lacking:
        raise FeatureError(
            f"{folder / FILE}: {len(lacking)} of {len(manifest.names)} shards are not written, the first of them "
            f"{lacking[0]}: the same `specexit features` again goes on with them"
        )
    for name, shard in manifest.shards.items():
        found = _size(folder / name)
        if found != shard.size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise FeatureError(f"{folder / name}: {state}, expected {shard.size} bytes as {FILE} says")
    return manifest


def check_hashes(folder: Path, manifest: Manifest, rows: Iterable[int]) -> None:
    """Check the shards that hold these packed rows, byte by byte; what `check` leaves out, as it takes long.

    Raises:
      FeatureError: one is not what was written.
    """
    for shard in sorted({row // manifest.shard_rows for row in rows}):
        name = manifest.names[shard]
        found, expected = file_sha256(folder / name), manifest.shards[name].sha256
        if found != expected:
            raise FeatureError(
                f"{folder / name}: is damaged: its SHA-256 is {found[:12]}..., expected {expected[:12]}... as {FILE} "
                "says: bring it back, or remove it, and the same `specexit features` again writes it anew"
            )


def check_layers(folder: Path, manifest: Manifest, layers: Iterable[int]) -> None:
    """Check that the states of all these layers are stored; there may be more.

    Raises:
      FeatureError: some are not.
    """
    missing = sorted(set(layers) - set(manifest.layers))
    if missing:
        raise FeatureError(f"{folder / FILE}: layers is {list(manifest.layers)}, but the draft reads {missing}, too")


class Features:
    """Stored states, row by row.

    Args:
      folder: that `check` has found whole.
      manifest: what is in it.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest

    def read(self, row: int, example: Example) -> Example:
        """``states [time, layer, hidden]``, and for float8 ``scales [time, layer]``, of a packed row.

        Raises:
          FeatureError: the shard cannot be read, or its states are of another row than ``example``.
        """
        from safetensors import SafetensorError, safe_open

        shard, place = divmod(row, self.manifest.shard_rows)
        path = self.folder / self.manifest.names[shard]
        try:
            with safe_open(path, framework="numpy") as file:
                found = {name: file.get_slice(name)[place] for name in file.keys()}  # noqa: SIM118, not a mapping
        except (OSError, SafetensorError) as error:
            raise FeatureError(f"{path}: cannot be read as safetensors (damaged?): {error}") from error
        if lacking := {"digests", "states"} - found.keys():
            raise FeatureError(f"{path}: holds {', '.join(sorted(found))}, but no {' and no '.join(sorted(lacking))}")
        if not np.array_equal(found.pop("digests"), digest(example)):
            raise FeatureError(f"{path}: row {place} is of other tokens than row {row} of the packed data")
        wanted, float8 = DTYPES[self.manifest.dtype], self.manifest.dtype == "float8"
        if found["states"].dtype != (np.uint8 if float8 else wanted) or float8 != ("scales" in found):
            raise FeatureError(
                f"{path}: states are {found['states'].dtype}, expected {self.manifest.dtype} as {FILE} says"
            )
        shape = (self.manifest.length, len(self.manifest.layers), self.manifest.hidden_size)
        for name, expected in (("states", shape), ("scales", shape[:2])):
            if name in found and found[name].shape != expected:
                raise FeatureError(
                    f"{path}: {name} of a row have the shape {list(found[name].shape)}, expected {list(expected)} as "
                    f"{FILE} says"
                )
        return found | {"states": found["states"].view(wanted)}

    def check_finite(self, row: int, example: Example) -> None:
        """Check that the stored states of a packed row are finite, as all are that `encode` lets through.

        Raises:
          FeatureError: they are not; it says whether their shard is damaged.
        """
        if not np.isfinite(decode(self.read(row, example))).all():
            check_hashes(self.folder, self.manifest, [row])
            raise FeatureError(
                f"{self.folder}: the stored states of row {row} are not finite, and its shard is as "
                "`specexit features` wrote it: store the states anew"
            )
