"""One run in a folder: a second start, while the first one lives, would remove its checkpoints and mix their lines."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jax_specexit.cluster import is_first
from specexit.buckets import BucketPath
from specexit.config import ConfigError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a network disk answers that has none."""


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Hold the folder of a run for the first process of a job, until that ends, be it by ``kill -9``.

    Nothing is held in a bucket, and on a network disk that has no locks: there, a second run goes unnoticed.

    Raises:
      ConfigError: another run holds it; the message says which process, where and since when.
    """
    if not is_first() or isinstance(run, BucketPath):
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("a+") as file:
        _hold(file, run)
        yield


def _hold(file: IO[str], run: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise ConfigError(
            f"out={run}: {file.read().strip() or 'another process'} trains into this folder: end that first, or choose "
            "another `out`"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')},\n")
    file.flush()
