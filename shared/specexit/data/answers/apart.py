"""Comparisons in a process of their own, which is ended where one takes too long.

A computer algebra system can be made to compute for years by ten characters (``9^{9^{9^9}}``), inside one operation
that no handler of a signal interrupts. So it runs in one process beside ours, started when it is first needed, that
reads pairs and writes verdicts. Mathematics is limited by the processor's time, as a verdict must not depend on what
else the machine does; the limit of the clock is for comparisons that wait.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TextIO

TIME_LIMIT = 60.0
"""Seconds by the clock that a comparison may take; one that takes longer, or ends the process, has no verdict."""

START_LIMIT = 120.0
"""Seconds that the process may take to start, its imports included, on a busy machine."""

END_LIMIT = 60.0
"""Seconds that the process may take to end once its pipe is closed; on a quiet machine it ends at once."""

MEMORY_LIMIT = 4 << 30
"""Bytes of address space of the process."""

logger = logging.getLogger(__name__)


class NoVerdict(Exception):
    """A comparison took too long, or ended the process that made it; the warning says which."""


class _Process:
    """The process that compares. Each process of ours has its own, as pipes must not be shared after a fork."""

    def __init__(self):
        source_root = str(Path(__file__).resolve().parents[3])
        paths = [source_root, *(path or os.getcwd() for path in sys.path)]
        self.owner, self.functions = os.getpid(), _to_be_called()
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "specexit.data.answers.apart"],  # -P: no folder is put in front of `paths`
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1"},
        )
        self._buffer, self._closed = b"", False
        self._numbers = count()
        if self._line(START_LIMIT) is None:
            raise RuntimeError(
                "the process that compares answers does not start: python -m specexit.data.answers.apart"
            )

    def ask(self, kind: str, a: str, b: str) -> bool | None:
        """The verdict; None where the process died of the question or took too long.

        Raises:
          AnswerError: the kind cannot compare.
          RuntimeError: what comes back belongs to another question.
        """
        assert self.popen.stdin is not None
        number = next(self._numbers)
        try:
            self.popen.stdin.write(json.dumps([number, kind, a, b]).encode() + b"\n")
            self.popen.stdin.flush()
        except OSError:
            self._closed = True
            return None
        line = self._line(TIME_LIMIT)
        return None if line is None else _verdict(line, number)

    def _line(self, seconds: float) -> bytes | None:
        assert self.popen.stdout is not None
        descriptor = self.popen.stdout.fileno()
        waiting = select.poll()  # select() knows no descriptor above 1,023, as a busy server has
        waiting.register(descriptor, select.POLLIN)
        while b"\n" not in self._buffer:
            ready = waiting.poll(1000 * seconds)
            got = os.read(descriptor, 1 << 16) if ready else b""
            if not got:
                self._closed = bool(ready)
                return None
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def why_silent(self) -> str:
        """Why the process gave no answer: it took too long, or it has ended with some code."""
        try:
            code = self.popen.wait(END_LIMIT if self._closed else 0.0)  # its pipe closes before it has ended
        except subprocess.TimeoutExpired:
            return "took too long"
        return "took too long" if code == -signal.SIGPROF else f"ended their process with code {code}"

    def close(self) -> None:
        """End the process, unless it belongs to the one that forked ours, and close our ends of its pipes."""
        if self.owner == os.getpid():
            self.popen.kill()
            self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout):
            assert stream is not None
            try:
                stream.close()
            except OSError:
                continue  # nobody is left to read what was still to be written


def _verdict(line: bytes, number: int) -> bool:
    answered, answer = json.loads(line)
    if answered != number:
        raise RuntimeError(f"the process that compares answers answered question {answered}, expected {number}")
    if isinstance(answer, str):
        from specexit.data.answers.base import AnswerError

        raise AnswerError(answer)
    return answer


def _to_be_called() -> list[str]:
    from specexit.data.answers.function import to_be_called

    return to_be_called()


_lock = threading.Lock()
_process: _Process | None = None


def compare_apart(kind: str, a: str, b: str) -> bool:
    """`AnswerKind.compare` in the process beside us; False where it takes more than the kind's `processor_limit`.

    Raises:
      AnswerError: the kind cannot compare, such as a function that raises an exception.
      NoVerdict: that takes longer than `TIME_LIMIT`, or ends the process: another time it may not.
    """
    global _process
    with _lock:
        if _process is not None and _process.functions != _to_be_called():
            _close()
        if _process is None or _process.owner != os.getpid():
            _process = _Process()
            atexit.register(_close)
        try:
            verdict = _process.ask(kind, a, b)
        except BaseException:
            _close()
            raise
        if verdict is None:
            logger.warning(
                "comparing %s answers %s, so they differ: %.100r and %.100r", kind, _process.why_silent(), a, b
            )
            limited = _process.popen.returncode == -signal.SIGPROF
            _close()
            if not limited:
                raise NoVerdict
        return bool(verdict)


def _close() -> None:
    global _process
    if _process is not None:
        _process.close()
        _process = None


def main() -> None:
    """``python -m specexit.data.answers.apart``: reads [number, kind, a, b], writes [number, are a and b the same].

    What goes wrong is told as a string. The first line says that the process is ready. A line is JSON.
    """
    import resource

    from specexit.data.answers import kind

    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    logging.disable()  # math-verify reports its own time limits
    kind("math").compare("x+x", "2x")  # what this imports is not to count as the first question's time
    questions, verdicts = own_pipes()
    print("ready", file=verdicts, flush=True)
    owner = os.getpid()
    for line in questions:
        number, name, a, b = json.loads(line)
        # Nothing handles the signal of this timer, so it ends the process, within any operation.
        try:
            signal.setitimer(signal.ITIMER_PROF, kind(name).processor_limit)
            verdict: bool | str = kind(name).compare(a, b)
        except MemoryError:
            verdict = False
        except Exception as error:
            verdict = f"answer kind {name}: comparing {a[:100]!r} and {b[:100]!r}: {type(error).__name__}: {error}"
        if os.getpid() != owner:
            os._exit(0)  # a process that the user's function has forked
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([number, verdict]), file=verdicts, flush=True)


def own_pipes() -> tuple[TextIO, TextIO]:
    """Standard input and output, under descriptors that commands do not inherit: a user's function may start some."""
    questions, verdicts = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return questions, verdicts


if __name__ == "__main__":
    main()
