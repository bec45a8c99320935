"""A run's hold on its folder in a bucket, where nothing can be locked: an object that its owner keeps writing anew."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from specexit.buckets import BucketError, BucketPath
from specexit.config import PassingError

BEAT = 20.0
"""Seconds from one writing to the next."""
SILENCE = 3 * BEAT
"""Seconds without a writing after which an owner is taken for dead."""
SETTLED = 1.0
"""Seconds between writing the object and reading it back: the slower of two that begin at once has written by then."""


@contextmanager
def leased(lock: BucketPath, owner: str) -> Iterator[Callable[[], str]]:
    """Hold a folder by an object in it.

    An owner that ends deletes its object. One that is killed leaves it, and a new start has to watch it for `SILENCE`
    seconds to know. Where somebody else deletes it, its owner writes it again. An owner may lose its folder if its
    writings fail for that long, or to a start at the same moment whose writing takes longer than `SETTLED`; it knows
    `BEAT` seconds later.

    Args:
      lock: the object.
      owner: who holds it and since when, in words.

    Yields:
      A function that returns a sentence on who has taken the folder away; an empty one while nobody has.

    Raises:
      PassingError: another one holds it; the message is in its words.
      BucketError: the bucket cannot be read or written.
    """
    _refuse_living(lock)
    mark = f"{secrets.token_hex(8)} "
    _write(lock, mark, 0, owner)
    time.sleep(SETTLED)
    if not (found := _read(lock)).startswith(mark):
        raise taken(lock.parent, _owner(found))
    ended, lost = threading.Event(), list[str]()
    beating = threading.Thread(target=_beat, args=(lock, mark, owner, ended, lost), daemon=True)
    beating.start()
    try:
        yield lambda: "".join(lost)
    finally:
        ended.set()
        beating.join()
        with suppress(BucketError):  # an error here would hide the one that ended the run
            if _read(lock).startswith(mark):
                lock.unlink(missing_ok=True)


def taken(run: Path, owner: str) -> PassingError:
    """The error for a folder that another process holds; ``owner`` is what it says of itself."""
    return PassingError(
        f"out={run}: {owner or 'another process'} trains into this folder: end that first, or choose another `out`"
    )


def _refuse_living(lock: BucketPath) -> None:
    """Watch the object of another owner, if there is one, until it changes or `SILENCE` is over.

    Raises:
      PassingError: it changes, so that its owner lives.
    """
    before = _read(lock)
    if not before:
        return
    said = f"{lock}: {_owner(before)} has not ended as usual: watching for {SILENCE:.0f} s whether it lives"
    Console(stderr=True).print(said, soft_wrap=True, markup=False)
    deadline = time.monotonic() + SILENCE
    while time.monotonic() < deadline:
        time.sleep(BEAT / 4)
        now = _read(lock)
        if not now:
            return
        if now != before:
            raise taken(lock.parent, _owner(now))


def _beat(lock: BucketPath, mark: str, owner: str, ended: threading.Event, lost: list[str]) -> None:
    """Write the object anew until the run has ended, or until another owner's is there: ``lost`` then says so.

    One that is gone was deleted by hand or by a rule of the bucket, and is written again. But behind a silence in which
    another start may have had the folder, and ended, the folder is lost.
    """
    count, written = 0, time.monotonic()
    while not ended.wait(BEAT):
        count += 1
        try:
            found, now = _read(lock), time.monotonic()
            if found.startswith(mark) or (not found and now - written < SILENCE):
                _write(lock, mark, count, owner)
                written = now
            else:
                by = _owner(found) or "another process"
                lost.append(f"out={lock.parent}: {by} has taken this folder, and this run, which had it, saves no more")
                return
        except BucketError:
            continue  # the next one may get through


def _owner(text: str) -> str:
    return text.partition("\n")[2].strip()


def _write(lock: BucketPath, mark: str, count: int, owner: str) -> None:
    lock.write_text(f"{mark}{count}\n{owner}\n")


def _read(lock: BucketPath) -> str:
    """What the object says; nothing where there is none."""
    try:
        return lock.read_text()
    except FileNotFoundError:
        return ""
