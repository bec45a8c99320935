"""Where a run is written: all that it will do there is tried before anything is loaded or compiled."""

from __future__ import annotations

import errno
import secrets
import shutil
import tempfile
from pathlib import Path

from specexit.buckets import BucketPath
from specexit.config import ConfigError, PassingError

MOUNTS = Path("/proc/self/mounts")


def check_place(out: Path) -> None:
    """Check that a run can be saved in a folder, on a disk or in a bucket, be it ``gs://`` or mounted through FUSE.

    Raises:
      BucketError: the bucket may not be written, or there is none.
      ConfigError: see `check_name`; a file is in its place, or no folder can be renamed there.
      PassingError: the disk cannot be written to.
    """
    check_name(out)
    if isinstance(out, BucketPath):
        out.check_writable()
        return
    _check_writable(out, out, "a new folder or a run's")
    if kind_of_mount(out).startswith("fuse"):
        _check_renames(out)


def check_name(out: Path) -> None:
    """Check that orbax will find what it has written.

    It looks for the parts of a checkpoint by a pattern behind the whole path, in which brackets list characters. So it
    finds none, merges nothing, and calls the checkpoint finished (0.12.8, with a warning). Seen on a disk; in a bucket,
    where it was not tried, such a path is refused all the same.

    Raises:
      ConfigError: there is a bracket in the path, be it above ``out``.
    """
    if "[" in str(out if isinstance(out, BucketPath) else out.absolute()):
        raise ConfigError(
            f"out={out}: has a '[' in its path ({out.absolute()}), expected none: orbax takes it for the beginning of "
            "a pattern, and no checkpoint in there could be read again"
        )


def check_file(out: Path) -> None:
    """Check that a file can be written, on a disk or in a bucket, before the hours of work that end with it.

    Raises:
      BucketError: the bucket may not be written, or there is none.
      ConfigError: a file is in the place of its folder.
      PassingError: the disk cannot be written to.
    """
    if isinstance(out, BucketPath):
        out.parent.check_writable()
        return
    _check_writable(out, out.parent, "one for the file")


def _check_writable(out: Path, folder: Path, expected: str) -> None:
    """Check ``folder``, or the nearest folder above it. Makes none: a run that is refused later leaves nothing."""
    where = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
    if not where.is_dir():
        raise ConfigError(f"out={out}: {where} is no folder, expected {expected}")
    try:
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        raise PassingError(f"out={out}: {where} cannot be written to: {error.strerror}") from error


def kind_of_mount(path: Path) -> str:
    """Type of the file system that a path is on, such as ``fuse.gcsfuse``, be it through a link; empty where nothing
    says so."""
    if not MOUNTS.exists():
        return ""
    kinds: dict[Path, str] = {}
    for line in MOUNTS.read_text().splitlines():
        _, point, kind, *_ = line.split()
        kinds[Path(point.replace("\\040", " "))] = kind
    where = path.resolve()
    return next((kinds[place] for place in (where, *where.parents) if place in kinds), "")


def _check_renames(out: Path) -> None:
    """orbax finishes a checkpoint by renaming its folder, which gcsfuse refuses in most buckets unless told to."""
    out.mkdir(parents=True, exist_ok=True)
    before, after = (out / f".{name}.{secrets.token_hex(4)}" for name in ("before", "after"))
    try:
        before.mkdir()
        (before / "file").write_bytes(b"renamed with its folder")
        before.rename(after)
    except OSError as error:
        raise ConfigError(
            f"out={out}: a folder cannot be renamed there ({error.strerror}), as a checkpoint's must be: mount the "
            "bucket with gcsfuse's --rename-dir-limit=200000, or give it as gs://"
        ) from (None if error.errno == errno.EMFILE else error)  # gcsfuse's answer: others may pass
    finally:
        for folder in (before, after):
            shutil.rmtree(folder, ignore_errors=True)
