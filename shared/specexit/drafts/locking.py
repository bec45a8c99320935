"""One process at a time changes a file that several of them write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specexit.locks import take

SECONDS = 5.0
"""How long to wait: writing takes milliseconds, and a process that hangs must not keep a server from answering."""


@contextmanager
def locked(folder: Path, wait: float | None = None) -> Iterator[None]:
    """Keep other processes from changing the files of a folder between a read and a write.

    On a disk without locks nothing is held: a kill switch must work there, too.

    Args:
      folder: that of the files.
      wait: seconds to wait for another process, by default `SECONDS`.

    Raises:
      OSError: the folder cannot be opened.
      TimeoutError: another process has kept it locked for so long.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _take(handle, folder, SECONDS if wait is None else wait)
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            take(handle, folder)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError(f"{folder}: another process has locked it") from None
            time.sleep(0.01)
