"""``gs://`` wherever a key is a `Location`: a path in a Google Cloud Storage bucket, read and written as one on disk.

Through fsspec and gcsfs (the extra ``gcs``), with the machine's own credentials; ``STORAGE_EMULATOR_HOST`` names
another server. There are no folders in a bucket and nothing can be renamed, but an object is there whole or not at all,
and only once it is closed. What would need a file on disk is refused by name: see `BucketPath.__fspath__`.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PosixPath
from typing import IO, Annotated, Any

from pydantic import WrapValidator

from specexit.errors import InputError, install

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)
"""What an address begins with; one slash, as `pathlib` makes one of two."""

AT_ONCE = 16
"""Requests that one read of several ranges makes at a time, on each of a job's hosts."""


class BucketError(InputError, OSError):
    """A bucket that cannot be read or written; the message names the object and what was tried."""


class BucketPath(PosixPath):
    """A path in a bucket, ``gs://bucket/folder/object``.

    Methods raise what those of a path on disk do where nothing is there, and `BucketError` where the bucket refuses.
    """

    def __str__(self) -> str:
        return re.sub(r"^gs:/+", "gs://", super().__str__())

    def __fspath__(self) -> str:
        """What Python asks for before it opens a file on disk.

        Raises:
          BucketError: always.
        """
        raise BucketError(f"{self}: is in a bucket, but is needed as a file on disk: copy it there and name the copy")

    def is_absolute(self) -> bool:
        """Always: no working directory is in a bucket."""
        return True

    def absolute(self) -> BucketPath:
        """The path itself."""
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        """The path itself: a bucket holds no links."""
        if strict:
            self.stat()
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and kind; nothing else is known."""
        del follow_symlinks
        with explained(self, "looked at"):
            found = filesystem().info(str(self))
        kind = stat.S_IFDIR | 0o755 if found["type"] == "directory" else stat.S_IFREG | 0o644
        return os.stat_result((kind, 0, 0, 1, 0, 0, found.get("size") or 0, 0, 0, 0))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such an object, or one below."""
        del follow_symlinks
        return self._mode() is not None

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether an object lies below."""
        del follow_symlinks
        return stat.S_ISDIR(self._mode() or 0)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such an object."""
        del follow_symlinks
        return stat.S_ISREG(self._mode() or 0)

    def _mode(self) -> int | None:
        try:
            return self.stat().st_mode
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator[BucketPath]:
        """What lies right below."""
        with explained(self, "listed"):
            found = filesystem().ls(str(self), detail=False)
        yield from (path for path in (BucketPath(f"gs://{name}") for name in found) if path != self)

    def glob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:
        """What lies below and fits the pattern."""
        try:
            with explained(self, "listed"):
                found = filesystem().glob(f"{glob.escape(str(self))}/{pattern}")
        except FileNotFoundError:
            return
        yield from (BucketPath(f"gs://{name}") for name in found)

    def sizes(self) -> dict[str, int]:
        """Name and bytes of each object right below, by one listing."""
        with explained(self, "listed"):
            found = filesystem().ls(str(self), detail=True)
        return {one["name"].rpartition("/")[2]: one["size"] for one in found if one["type"] == "file"}

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: folders are there once something is in them."""

    def chmod(self, *_: Any, **__: Any) -> None:
        """Nothing: an object has no mode."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            with explained(self, "deleted"):
                filesystem().rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def open(self, mode: str = "r", *_: Any, **options: Any) -> Any:
        """The object to read, or a context manager around one to write, which is there when that ends without error.

        Raises:
          FileNotFoundError: it is to be read, and there is none.
          BucketError: the mode is another than ``r``, ``rb`` or ``wb``, or the bucket refuses.
        """
        if mode in ("r", "rb"):
            with explained(self, "read"):
                return filesystem().open(str(self), mode, **options)
        if mode != "wb":
            raise BucketError(f"{self}: cannot be opened as {mode!r} in a bucket, expected 'r', 'rb' or 'wb'")
        return _upload(self)

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.read_range(0, None)

    def read_range(self, start: int, end: int | None) -> bytes:
        """Bytes ``start`` to ``end`` of the object, to its end where that is None; nothing else is transferred."""
        with explained(self, "read"):
            return filesystem().cat_file(str(self), start=start or None, end=end)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """As `read_range` each, some of them at a time: one behind the other, hundreds take minutes."""
        starts, ends = ([pair[i] for pair in ranges] for i in (0, 1))
        with explained(self, "read"):
            found = filesystem().cat_ranges([str(self)] * len(ranges), starts, ends, batch_size=AT_ONCE)
            for one in found:
                if isinstance(one, BaseException):
                    raise one
            return found

    def read_text(self, encoding: str | None = None, *_: Any, **__: Any) -> str:
        """The whole object."""
        return self.read_bytes().decode(encoding or "utf-8")

    def write_bytes(self, data: Any) -> int:
        """Write the object, which is there whole or not at all."""
        with explained(self, "written"):
            filesystem().pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        """Write the object, which is there whole or not at all."""
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def append(self, data: bytes) -> None:
        """Put data behind the object's end, within the bucket: what is there is not sent again."""
        if not self.exists():
            self.write_bytes(data)
            return
        part = self.with_name(f".{self.name}.part")
        part.write_bytes(data)
        with explained(self, "appended to"):
            filesystem().merge(str(self), [str(self), str(part)])
        with suppress(BucketError):  # the data is appended, and an error would deny it; the next part replaces this one
            part.unlink(missing_ok=True)

    def move(self, target: BucketPath) -> None:
        """Copy the object, within the bucket, and delete it here."""
        with explained(target, "written"):
            filesystem().cp_file(str(self), str(target))
        self.unlink()

    def check_writable(self) -> None:
        """Write, list and delete an object, and ask for the bucket itself, as orbax does before it saves.

        Raises:
          BucketError: one of these is not allowed, or there is no such bucket.
        """
        probe = self / f".writable.{secrets.token_hex(4)}"
        try:
            probe.write_bytes(b"")
            list(self.iterdir())
            probe.unlink()
            with explained(BucketPath(*self.parts[:2]), "looked at (storage.buckets.get)"):
                filesystem().call("GET", "b/{}", self.parts[1], json_out=True)
        except FileNotFoundError as error:
            raise BucketError(f"{self}: there is no such bucket, or no permission to see it") from error

    def objects(self) -> list[BucketPath]:
        """All objects below, however deep; none where nothing is there."""
        with explained(self, "listed"):
            return [BucketPath(f"gs://{name}") for name in filesystem().find(str(self))]


@contextmanager
def arrow_source(path: Path) -> Iterator[Any]:
    """What pyarrow reads a file from: on disk an absolute path, as ``run-10:30/a`` would be an address to it."""
    if not isinstance(path, BucketPath):
        yield path.absolute()
        return
    with explained(path, "read"), path.open("rb") as file:
        yield file


@contextmanager
def arrow_sink(path: Path) -> Iterator[Any]:
    """What pyarrow writes a file into, see `arrow_source`; an object is there whole or not at all."""
    if not isinstance(path, BucketPath):
        yield path.absolute()
        return
    with path.open("wb") as file:
        yield file


def upload(folder: Path, target: BucketPath) -> None:
    """Copy the files of a folder on disk into a bucket."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())


@contextmanager
def _upload(path: BucketPath) -> Iterator[IO[bytes]]:
    with explained(path, "written"):
        file = filesystem().open(str(path), "wb")
    try:
        yield file
    except BaseException:
        file.closed = True  # closing would make an object of what has been sent so far
        raise
    with explained(path, "written"):
        file.close()


def filesystem() -> Any:
    """Buckets as fsspec sees them; listings are not cached, as others write there, too.

    Raises:
      BucketError: gcsfs is not installed.
    """
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise BucketError(f"gs:// needs the package gcsfs: {install('gcs')}") from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs is raised as well
    return fsspec.filesystem("gs", use_listings_cache=False)


@contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Turn what the libraries raise into one line that names the path and what was tried, such as "read".

    Raises:
      FileNotFoundError: there is no such object.
      BucketError: the bucket refuses, or cannot be reached.
    """
    filesystem()  # says so where the packages are missing
    from aiohttp import ClientError
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except BucketError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(2, "no such object in the bucket, or no such bucket", str(path)) from error
    except (OSError, HttpError, ClientError, GoogleAuthError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise BucketError(f"{path}: cannot be {what}: {said}") from error


def location(value: str | Path) -> Path:
    """A path on disk, where ``~`` is the home folder, or in a bucket, by what it begins with.

    Raises:
      ValueError: it is an address of anything else, or one in a bucket with a ``#`` or a ``?``: TensorStore and
        ArrayRecord take what is behind these for no part of the name, and write and read elsewhere.

    Example:
      >>> str(location("gs://bucket/run") / "run.yaml"), location("runs/x").name
      ('gs://bucket/run/run.yaml', 'x')
    """
    scheme = _SCHEME.match(str(value))
    if scheme is None:
        return Path(os.path.expanduser(value))
    if scheme[1] != "gs":
        raise ValueError("expected a path on disk, or gs:// for one in a bucket")
    if not BucketPath(value).parts[1:]:
        raise ValueError("expected the name of a bucket behind gs://")
    if odd := [sign for sign in "#?" if sign in str(value)]:
        raise ValueError(f"has a {odd[0]!r}, which ends the name in an address: expected gs:// without '#' and '?'")
    return BucketPath(value)


def refuse_bucket(value: Path) -> Path:
    """A path that must be on disk.

    Raises:
      ValueError: it is an address.
    """
    if _SCHEME.match(str(value)) and not isinstance(value, BucketPath):
        raise ValueError("is an address, expected a path on disk: copy it, or mount the bucket")
    return value


def _located(value: Any, handler: Callable[[Any], Path]) -> Path:
    return location(value) if isinstance(value, (str, Path)) and _SCHEME.match(str(value)) else handler(value)


Location = Annotated[Path, WrapValidator(_located)]
"""A key whose value may be ``gs://...``."""
