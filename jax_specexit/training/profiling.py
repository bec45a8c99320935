"""A profiler trace of some steps, planned (``profile_steps``) or on demand (SIGUSR1), for TensorBoard or Perfetto."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax
from rich.console import Console

from jax_specexit.cluster import is_first
from specexit.buckets import BucketPath, upload
from specexit.config import ConfigError
from specexit.schemas.train import TrainConfig

ON_DEMAND_STEPS = 5
"""Steps in a trace that SIGUSR1 asked for: enough to see a steady state, few enough for a trace that opens."""

_asked = SimpleNamespace(now=False)
"""Whether SIGUSR1 has asked this process for a trace that is not begun yet."""


def check_profile(config: TrainConfig) -> None:
    """Check that a planned trace begins within the run.

    Raises:
      ConfigError: the run ends before.
    """
    if config.profile_steps is not None and config.profile_steps[0] > config.steps:
        raise ConfigError(
            f"profile_steps is {list(config.profile_steps)}, expected to begin within the run, which has "
            f"steps={config.steps}"
        )


@contextmanager
def listening() -> Iterator[None]:
    """Have SIGUSR1 ask for a trace. It is around a whole run, as the signal ends a process that does not listen."""
    _asked.now, before = False, None
    # As with any signal, only the main thread can set a handler.
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGUSR1, _ask)
    try:
        yield
    finally:
        _asked.now = False
        if before is not None:
            signal.signal(signal.SIGUSR1, before)


def _ask(*_: object) -> None:
    _asked.now = True


class Profiler:
    """Traces of this process in ``<run>/profile``; use as a context manager around the steps.

    A planned trace is taken by all processes at the same steps. ``kill -USR1 PID`` asks one process alone, which takes
    the next steps; see `listening`. A trace that cannot be written is reported, and the run goes on.

    Args:
      run: its folder.
      steps: first and last one of a planned trace.
      start: step that the run goes on from.
    """

    def __init__(self, run: Path, steps: tuple[int, int] | None, start: int = 0):
        self.folder, self.steps = run / "profile", steps
        if steps is not None and steps[0] <= start and is_first() and not self.folder.exists():
            self._say(f"profile_steps={list(steps)} begins in front of step {start + 1}, which is next: no trace of it")
        self.until: int | None = None
        """Last step of the trace that is being taken."""
        self.scratch: Path | None = None
        """Folder on the disk that a trace is written to for a run in a bucket: the profiler writes to disk only."""

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        if self.until is not None:
            self._stop()

    def begin(self, step: int) -> None:
        """Start a trace if this step is the first of one."""
        if self.until is not None:
            if self.steps is not None and step == self.steps[0]:
                asked = f"the trace that SIGUSR1 asked for, which ends with step {self.until}"
                self._say(f"profile_steps={list(self.steps)} begins within {asked}: no other trace of it")
            return
        if self.steps is not None and step == self.steps[0]:
            self.until = self.steps[1]
        elif _asked.now:
            _asked.now, self.until = False, step + ON_DEMAND_STEPS - 1
        if self.until is not None:
            self.scratch = Path(tempfile.mkdtemp()) if isinstance(self.folder, BucketPath) else None
            try:
                jax.profiler.start_trace(str(self.scratch or self.folder))
            except RuntimeError as error:  # JAX takes a trace that it could not write for one that goes on
                self.until = None
                self._say(f"no trace of step {step}: {error}")

    def end(self, step: int, result: object) -> None:
        """Stop the trace after its last step, once ``result`` is computed: Python is ahead of the devices."""
        if self.until is not None and step >= self.until:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        self.until = None
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            self._say(f"lacks a trace, which could not be written to {self.scratch or self.folder}: {error}")
            return
        if self.scratch is not None:
            self._send(self.scratch)

    def _send(self, scratch: Path) -> None:
        assert isinstance(self.folder, BucketPath)
        try:
            upload(scratch, self.folder)
        except OSError as error:
            self._say(f"lacks a trace, which stays in {scratch}: {error}")
        else:
            shutil.rmtree(scratch)

    def _say(self, what: str) -> None:
        Console(stderr=True).print(f"{self.folder}: {what}", soft_wrap=True, markup=False)
