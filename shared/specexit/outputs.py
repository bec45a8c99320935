"""Output folders and files, which are there whole or not at all, also after a power failure.

A folder has to be new or empty to begin with; where a file is to be written, no folder may be.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from specexit.buckets import BucketError, BucketPath
from specexit.errors import InputError


class MoveError(InputError):
    """An output folder that is written and could not be put in its place; the message says where it lies."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a mount answers that has nothing to put on a disk, as that of a bucket may."""


class DiskFull(InputError):
    """A folder for which the disk has no place; the message names it and what to do."""


def require_empty(folder: Path) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
      FileExistsError: it is not empty, it is a file, or no other can be put in its place, as in that of the working
        directory, a link or a mount.
    """
    if not isinstance(folder, BucketPath):
        _require_replaceable(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, expected a new or empty folder")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: output folder is not empty, expected a new or empty one")


def _require_replaceable(folder: Path) -> None:
    if folder.exists() and folder.samefile(Path.cwd()):
        raise FileExistsError(f"{folder}: is the working directory, expected a new folder")
    if folder.is_symlink() and not folder.exists():
        raise FileExistsError(f"{folder}: is a link to nothing, expected a new or empty folder")
    if folder.is_symlink():
        raise FileExistsError(f"{folder}: is a link, expected a new or empty folder: name {folder.resolve()} itself")
    if os.path.ismount(folder):
        raise FileExistsError(f"{folder}: is a mount, expected a new or empty folder: name a new one inside of it")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside its final place; it is moved there when the block ends without an error.

    In a bucket it is moved object by object, and what a reader asks for first comes last (`ENTRIES`): a folder whose
    move was cut short is refused by whatever reads it.

    Raises:
      FileExistsError: ``folder`` is refused by `require_empty`.
      MoveError: it cannot be moved, say because something lies there by now. What was written is kept.
      DiskFull: the block has found the disk full.
    """
    require_empty(folder)
    if isinstance(folder, BucketPath):
        yield from _new_prefix(folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with removed_at_the_end():
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield beside
            for path in (*beside.rglob("*"), beside):
                _sync(path)
        except BaseException as error:
            shutil.rmtree(beside, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in FULL and _names(error, beside):
                raise DiskFull(
                    f"{folder}: cannot be written: {os.strerror(error.errno)}; what had been written is removed again: "
                    "make room, or name another folder, and give the same command"
                ) from error
            raise
        try:
            beside.chmod(0o755)  # mkdtemp's folders are closed to everyone else
            if folder.exists():
                folder.rmdir()
            os.rename(beside, folder)
        except OSError as error:
            raise MoveError(
                f"{folder}: cannot be put in its place: {error.strerror}; what was written lies in {beside}: move it "
                "to where it is to be"
            ) from error
        _sync(folder.parent)


def _names(error: OSError, folder: Path) -> bool:
    """Whether an error is of a file in the folder; so is one that names no file."""
    return not error.filename or Path(str(error.filename)).is_relative_to(folder)


def put(beside: Path, path: Path) -> None:
    """Rename a finished file to its place; its new name is on the disk when this returns.

    Its content is on the disk before the rename: a power failure could leave an empty file of that name.
    """
    _sync(beside)
    beside.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno not in NO_SYNC and not path.is_dir():  # of folders, not every mount has that
            raise


def refuse_no_file(path: Path) -> Path:
    """A path on which a file can be written.

    Raises:
      ValueError: a folder is there, or what is neither that nor a file: one would be put in the place of ``/dev/null``.
    """
    if isinstance(path, BucketPath) or path.is_file() or not path.exists():
        return path
    what = "is a folder" if path.is_dir() else "is a device, a pipe or a socket"
    raise ValueError(f"{what}, expected a file to write")


OutputFile = Annotated[Path, AfterValidator(refuse_no_file)]
"""A key whose value is a file to write."""


class Ended(BaseException):
    """This process has been told to end, by the signal ``number``."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def removed_at_the_end() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise `Ended` in the block, as Ctrl-C raises, so that it removes what it has begun; this
    process then ends by that very signal. Where somebody listens to the signal, or ignores it, nothing changes."""
    main, owner = threading.current_thread() is threading.main_thread(), os.getpid()
    taken = [n for n in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(n) is signal.SIG_DFL]

    def listen(how: Any) -> None:
        for number in taken:
            signal.signal(number, how)

    def end(number: int, _: Any) -> None:
        ours = os.getpid() == owner  # and not a process that was forked from this one
        listen(signal.SIG_IGN if ours else signal.SIG_DFL)
        if ours:
            raise Ended(number)
        signal.raise_signal(number)

    listen(end)
    try:
        yield
    except Ended as ended:
        listen(signal.SIG_DFL)
        if taken:
            signal.raise_signal(ended.number)
        raise
    finally:
        listen(signal.SIG_DFL)


ENTRIES = ("meta.json", "draft.json", "config.json", "traces.parquet")
"""Files without which a folder of packed data, a run, a draft or traces is none."""


def _new_prefix(folder: BucketPath) -> Iterator[Path]:
    folder.check_writable()
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        yield beside
    except BaseException:
        for path in beside.objects():
            path.unlink(missing_ok=True)
        raise
    try:
        found = sorted(beside.objects(), key=lambda path: (path.name in ENTRIES and path.parent == beside, path))
        for path in found:
            path.move(folder / path.relative_to(beside))
    except (BucketError, OSError) as error:
        raise MoveError(
            f"{folder}: cannot be put in its place: {error}; what is not there yet lies in {beside}: move it there"
        ) from error
