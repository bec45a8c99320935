"""Locks of files and folders, which end with the process that holds them; and disks that have none."""

from __future__ import annotations

import fcntl
import functools
import os
import socket
import time
from pathlib import Path
from typing import IO

from rich.console import Console


def take(file: IO | int, place: Path, *, wait: bool = False) -> bool:
    """Lock an open file or folder for this process alone, until it is closed or the process ends, be it by ``kill -9``.

    A disk may have no locks, as some network disks: nothing is held there, which is said once of each place.

    Args:
      file: what is locked.
      place: its name, or that of the folder which it stands for.
      wait: until whoever has it lets it go.

    Returns:
      Whether it is held.

    Raises:
      BlockingIOError: another process has it, and nobody is to wait.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:  # ENOLCK, ENOSYS, EOPNOTSUPP; of a folder, which cannot be open for writing, EBADF by NFS
        _say_unlocked(place, error.strerror or str(error))
        return False
    return True


@functools.cache
def _say_unlocked(place: Path, why: str) -> None:
    said = f"{place}: cannot be locked ({why}): see to it that no other process writes there meanwhile"
    Console(stderr=True).print(said, style="yellow", soft_wrap=True, markup=False, highlight=False)


def this_process() -> str:
    """Who this is, for whoever finds a lock taken."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')},"
