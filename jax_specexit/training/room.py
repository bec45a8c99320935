"""A disk that fills up while a run is saved: orbax meets the error in a thread, and raises it at the next call."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from specexit.errors import InputError

TOO_LARGE = os.strerror(errno.EFBIG)
"""What the system says of a file that is larger than ``ulimit -f`` or the file system allows."""

FULL = (*(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)), TOO_LARGE)
"""What the system says where there is no room. TensorStore has these words, and no number, in a `ValueError`."""


class DiskFullError(InputError):
    """No space is left for a checkpoint; those that are whole stay."""

    passes = True


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk, or somebody's share of it, is full, or takes no file of that size.

    Example:
      >>> is_full(ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device"))
      True
    """
    return isinstance(error, (OSError, ValueError)) and any(words in str(error) for words in FULL)


@contextmanager
def room(folder: Path, newest: Callable[[], int | None]) -> Iterator[None]:
    """Turn the errors of a full disk into one line, around whatever saves in a folder or waits for a save.

    Args:
      folder: of the checkpoints.
      newest: returns the last step that is complete; called where there is no room.

    Raises:
      DiskFullError: there is no space.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, DiskFullError) or not is_full(error):
            raise
        free, step = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB free", newest()
        what, mend = f"no space is left there ({free})", "make room"
        if TOO_LARGE in str(error):
            what, mend = "a file there may not be as large as one of it", "raise what limits that (ulimit -f)"
        raise DiskFullError(
            f"{folder}: a checkpoint cannot be saved, {what}: {mend} and start again, it goes on from "
            f"{'the beginning' if step is None else f'step {step}'}"
        ) from error


def say_it_once() -> None:
    """Silence orbax's log of a full disk, a traceback for each of its threads: the error itself is raised."""
    logging.getLogger("absl").addFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not is_full(record.exc_info[1])
