"""One run in a folder at a time: a second one would remove the checkpoints of the first and mix up the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from jax_specexit.cluster import is_first, told_by_first
from jax_specexit.training.lease import leased, taken
from specexit.buckets import BucketPath
from specexit.config import PassingError
from specexit.locks import take, this_process


@contextmanager
def alone_in(run: Path) -> Iterator[Callable[[], None]]:
    """Hold the folder of a run for a job, in its first process, until that ends, be it by ``kill -9``.

    In a bucket an object holds the folder, see `leased`. On a disk that has no locks nothing is held, see `take`: a
    second run goes unnoticed.

    Yields:
      A check, which every process has to call before it saves something in the folder. It raises `PassingError` in all
      of them where another run has taken the folder away, as it can in a bucket.

    Raises:
      PassingError: in every process of this job: another run holds the folder, and the message says which process,
        where and since when; or the folder cannot be written.
    """
    with ExitStack() as held:
        refused, lost = "", _nothing
        if is_first():
            try:
                lost = _hold(held, run)
            except PassingError as error:
                refused = str(error)
            except OSError as error:
                refused = f"out={run}: cannot be written: {error}"
        refused = told_by_first(refused)  # all raise it: the others would wait for the first one
        if refused:
            raise PassingError(refused)

        def check() -> None:
            if isinstance(run, BucketPath) and (taken_away := told_by_first(lost())):
                raise PassingError(taken_away)

        yield check


def _hold(held: ExitStack, run: Path) -> Callable[[], str]:
    """Take the folder; returns a function that says who has taken it away since, or nothing."""
    if isinstance(run, BucketPath):
        return held.enter_context(leased(run / ".lock", this_process()))
    run.mkdir(parents=True, exist_ok=True)
    _lock(held.enter_context((run / ".lock").open("a+")), run)
    return _nothing


def _nothing() -> str:
    return ""


def _lock(file: IO[str], run: Path) -> None:
    try:
        take(file, run)
    except BlockingIOError as error:
        file.seek(0)
        raise taken(run, file.read().strip()) from error
    file.truncate(0)
    file.write(f"{this_process()}\n")
    file.flush()
