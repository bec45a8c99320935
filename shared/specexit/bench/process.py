"""What is measured runs in a process of its own, which answers jobs: both ends of the pipe.

Jobs go in as JSON lines on stdin, replies come out as JSON lines on stdout. A process each, because vLLM, torch and
JAX set process-wide state, and because nothing that is compared may share its memory or its threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from specexit.errors import InputError
from specexit.processes import python

TO_END = 1.0
"""Seconds in which a process that has nothing to do takes note that its input has ended."""


class BenchError(InputError):
    """A benchmark that cannot be run; the message says what was found and what was expected."""


class BenchProcess:
    """The parent's end. The process starts on construction; `wait_ready` returns when it can be asked.

    Args:
      name: for messages.
      module: what it runs.
      setup: first line of its input.
      log: file that receives what it prints besides replies.
    """

    LAST_LINES = 20

    def __init__(self, name: str, module: str, setup: dict[str, Any], log: Path):
        self.name, self.log = name, log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                python(module), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
            )
        self._send(setup)

    def __enter__(self) -> BenchProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: at the end of its input it stops by itself, and if it hangs it is killed."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def wait_ready(self) -> dict[str, Any]:
        """Wait until the process can be asked; returns what it says about itself.

        Raises:
          BenchError: it did not start.
        """
        return self._receive()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one job.

        Raises:
          BenchError: the process has ended.
        """
        self._send(job)
        return self._receive()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line.endswith("\n"):  # killed in the midst of a reply
            raise self._died()
        return json.loads(line)

    def _died(self) -> BenchError:
        code = self.process.wait()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-self.LAST_LINES :])
        return BenchError(f"the process of {self.name} {_end(code)}; its last lines:\n{tail}")


def _end(code: int) -> str:
    """How a process ended, by its exit code."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    memory = ", as Linux does where memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{memory}"


def claim_stdout() -> TextIO:
    """The process' end: keep the real stdout for replies; whatever libraries print goes to stderr, which is the log."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def jobs() -> Iterator[dict[str, Any]]:
    """The process' end: what it is asked, its set-up first, until the parent closes the pipe. A parent that is gone,
    killed for example, has closed it too: in the midst of a job the process then ends at once."""
    lines: SimpleQueue[str | None] = SimpleQueue()
    ended = threading.Event()

    def read() -> None:
        with os.fdopen(os.dup(0)) as stream:
            for line in stream:
                lines.put(line)
        lines.put(None)
        if not ended.wait(TO_END):
            os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while (line := lines.get()) is not None:
        yield json.loads(line)
    ended.set()


def reply(channel: TextIO, message: dict[str, Any]) -> None:
    """The process' end: answer a job."""
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def measured(action: Callable[[], Any]) -> dict[str, float]:
    """The process' end: what an action takes.

    Returns:
      ``seconds``, ``cpu_seconds`` of all threads, and ``peak_bytes``, the most resident memory of the process during
      the action, libraries included; what compilers have left is given back first. Linux only.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    cpu, start = time.process_time(), time.perf_counter()
    action()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(fields["VmHWM"].split()[0]) * 1024
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak}
