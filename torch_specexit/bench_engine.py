"""The parent's end of `bench_worker`: starts an engine process, asks it, and explains how it died."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from specexit.errors import InputError


class BenchError(InputError):
    """A benchmark that cannot be run; the message says what was found and what was expected."""


class EngineProcess:
    """A vLLM engine in its own process. It starts on construction; `wait_ready` returns when it stands.

    Args:
      name: for messages.
      setup: first line of the protocol (see `bench_worker`).
      log: file that receives what vLLM prints.
    """

    LAST_LINES = 20

    def __init__(self, name: str, setup: dict[str, Any], log: Path):
        self.name, self.log = name, log
        with log.open("w") as stream:
            command = [sys.executable, "-m", "torch_specexit.bench_worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
            )
        self._send(setup)

    def __enter__(self) -> EngineProcess:
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
        """Wait until the engine stands; returns what it says about itself.

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
        if not line:
            raise self._died()
        return json.loads(line)

    def _died(self) -> BenchError:
        code = self.process.wait()
        tail = "\n".join(self.log.read_text().splitlines()[-self.LAST_LINES :])
        return BenchError(f"engine of {self.name} ended with code {code}; its last lines:\n{tail}")
