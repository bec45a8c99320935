"""Packed training examples on disk, as `specexit pack` writes them and whoever trains reads them.

A packed folder holds ArrayRecord shards, one example per record (so that the trainer can read any of them, in any
order, on any number of hosts), and ``meta.json``: what is in them, where it came from, and how often each token was
generated, from which the trainer chooses its draft vocabulary. A record is an uncompressed ``.npz``.
"""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
import threading
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from specexit.buckets import BucketPath
from specexit.config import Config, read_made
from specexit.data.sequences import Example
from specexit.data.traces import tokenizer_sha256
from specexit.errors import InputError
from specexit.method.signals import NAMES
from specexit.schemas.target import TargetConfig, copy_beside, other_boundaries_beside

FORMAT_VERSION = 1
FIELDS = ("tokens", "segment_ids", "positions", "loss_mask", "signal_labels", "signal_mask")


class PackError(InputError):
    """Packed data that cannot be made or used; the message names the file, the field and what was expected."""


class PackMeta(Config):
    """``meta.json`` of a packed folder."""

    format_version: int
    n: int = Field(gt=0, description="examples")
    length: int = Field(gt=0, description="tokens in an example")
    shards: dict[str, int] = Field(description="file name -> size in bytes")
    traces: int = Field(gt=0, description="traces in the examples")
    prompts: int | None = Field(
        default=None, gt=0, description="different prompts of these, as prompts.npy lists them; None in older data"
    )
    dropped: int = Field(ge=0, description="traces that are in no example, as their prompt alone fills one")
    cut: int = Field(default=0, ge=0, description="traces of which an example holds the beginning only")
    tokens: int = Field(default=0, ge=0, description="of all traces")
    tokens_cut: int = Field(default=0, ge=0, description="of them, those behind the end of an example")
    tokens_dropped: int = Field(default=0, ge=0, description="of them, those of dropped traces")
    fill: float = Field(gt=0, le=1, description="share of the examples' tokens that is not padding")
    signals: tuple[str, ...]
    exit_point: Literal["earliest", "stable"]
    truncate: bool
    target: str
    tokenizer_sha256: str = Field(description="of the target's tokenizer.json")
    target_sha256: str | None = Field(
        default=None, description="of the weights that wrote the traces: specexit.drafts.fingerprints"
    )
    data_sha256: str = Field(description="of the labelled traces")
    config_sha256: str = Field(
        description="of the pack command's config, input and output paths apart, with the length that was chosen"
    )
    token_counts: tuple[int, ...] = Field(description="how often each token id of the target was generated")

    @property
    def identity(self) -> str:
        """Names the data by what it was made from and how, wherever it lies."""
        return f"{self.data_sha256[:16]}-{self.config_sha256[:16]}"


def write_example(example: Example) -> bytes:
    """An example as the bytes of one record."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **example)
    return buffer.getvalue()


_PARSING = threading.Lock()
"""numpy parses each array's header with `ast`, whose recursion depth CPython 3.11 keeps for all threads together: where
two threads of a loader parse at once, one of them may fail with a SystemError."""


def read_example(record: bytes) -> Example:
    """The arrays of one record, see `specexit.data.sequences.Example`.

    Raises:
      PackError: the record is damaged or holds other fields.
    """
    try:
        with _PARSING, np.load(io.BytesIO(record)) as arrays:
            example = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise PackError(f"packed example of {len(record)} bytes cannot be read: {error}") from error
    if set(example) != set(FIELDS):
        raise PackError(f"packed example has the fields {', '.join(example)}, expected {', '.join(FIELDS)}")
    return example


def room_for(shards: int) -> int:
    """Let this process have so many shards open, each of which is an open file, as far as the system allows it.

    Logins and jobs often allow 1,024 files, and more to a process that asks.

    Returns:
      How many files it may have open now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if shards > soft // 2:  # half is for everything else
        with suppress(OSError, ValueError):  # as on a Mac, whose kernel allows less than the limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if found == resource.RLIM_INFINITY else found


class Records:
    """Random access to the records of shards, counted shard by shard; `read_example` reads one.

    Args:
      folder: of packed data.
      names: of its shards.

    Raises:
      PackError: a shard is damaged, or they are more files than may be open.
    """

    def __init__(self, folder: Path, names: Sequence[str]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._open: Any = ArrayRecordDataSource  # it has no types
        self._folder, self._paths = folder, [folder / name for name in names]
        room_for(len(names))  # one that was read from stays open
        try:
            self._records = self._open([str(path) for path in self._paths])
        except (ValueError, RuntimeError, OSError) as error:
            self._refuse_limit(error)
            raise PackError(f"{folder}: shards cannot be read as ArrayRecord: {error}") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: Any) -> bytes:
        """Record i, counted over all shards.

        Raises:
          PackError: its shard is damaged there, or is gone by now, which the message names; or the shards are more
            files than may be open.
        """
        try:
            return self._records[i]
        except (ValueError, RuntimeError, OSError) as error:
            self._refuse_limit(error)
            path, row = self._place(int(i))
            raise PackError(
                f"{path}: row {row} cannot be read, as the file is damaged ({error}): pack again, or take a copy"
            ) from error

    def _refuse_limit(self, error: Exception) -> None:
        """Tell a file that cannot be opened because too many are open from one that is damaged or gone.

        Raises:
          PackError: it is such a one.
        """
        if os.strerror(errno.EMFILE) in str(error):
            n = len(self._paths)
            raise PackError(
                f"{self._folder}: {n:,} shards are as many open files, and this process may have {room_for(n):,} open "
                "in all: expected a higher limit (ulimit -n), or data that was packed into fewer shards"
            ) from None

    def _place(self, i: int) -> tuple[Path, int]:
        """Shard of a record, and its number there.

        Raises:
          PackError: a shard cannot be opened any more.
        """
        for path in self._paths:
            try:
                n = len(self._open([str(path)]))
            except (ValueError, RuntimeError, OSError) as error:
                raise PackError(f"{path}: cannot be opened any more ({error}): bring it back, or pack again") from error
            if i < n:
                return path, i
            i -= n
        raise IndexError(i)


def open_rows(folder: Path, meta: PackMeta) -> Records:
    """Random access to all records of packed data.

    Raises:
      PackError: a shard is damaged.
    """
    return Records(folder, sorted(meta.shards))


def read_meta(folder: Path) -> PackMeta:
    """Read ``meta.json`` and check that the shards it names are there and whole.

    Raises:
      PackError: it is missing or wrong, of another format version or of other signals, or a shard is not whole.
    """
    path = folder / "meta.json"
    meta = read_made(PackMeta, path, FORMAT_VERSION, "pack", PackError)
    if meta.signals != NAMES:
        raise PackError(f"{path}: signals are {', '.join(meta.signals)}, expected {', '.join(NAMES)}: pack again")
    # Each host of a pod asks before it joins the others: of each of thousands of shards, that would take minutes.
    there = folder.sizes() if isinstance(folder, BucketPath) else _sizes(folder, meta.shards)
    for name, size in meta.shards.items():
        if (found := there.get(name)) != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise PackError(f"{folder / name}: {state}, expected {size} bytes as meta.json says")
    return meta


def _sizes(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """Name and bytes of those files of a folder on disk that are there."""
    return {name: (folder / name).stat().st_size for name in names if (folder / name).exists()}


def check_target(meta: PackMeta, folder: Path, target: TargetConfig) -> None:
    """Check that packed data belongs to a target.

    Raises:
      PackError: it was packed for another target, with another tokenizer, or with labels at other boundaries.
      ConfigError: its copy of the target cannot be read.
    """
    if meta.target != target.name:
        raise PackError(f"{folder / 'meta.json'}: target is {meta.target!r}, expected {target.name!r}")
    ours = tokenizer_sha256(target)
    if meta.tokenizer_sha256 != ours:
        raise PackError(
            f"{folder / 'meta.json'}: tokenizer_sha256 is {meta.tokenizer_sha256[:12]}..., "
            f"expected {ours[:12]}... of {target.folder / 'tokenizer.json'}"
        )
    if (other := other_boundaries_beside(folder, target)) is not None:
        copy = copy_beside(folder)
        raise PackError(f"{copy}: packed with {other} as target {target.name} says now: collect and pack again")
