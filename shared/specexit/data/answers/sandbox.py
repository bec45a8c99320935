"""Running a program that a model wrote: no network, no file written, no process started, bounded time and memory.

On Linux a process can give up system calls for good, without any privilege (seccomp): what runs in the child cannot
open a socket, open a file for writing, rename or delete one, start a process, send a signal or trace. Limits on time,
address space and file size come on top (setrlimit), and the parent ends what outlives them. Files can be read. It keeps
a careless program from doing harm. It does not stop an attacker, for whom the whole command belongs in a container, nor
does it stop one that cheats: tests run in the program's own process, so one written to deceive them can pass. Elsewhere
there is no sandbox, and no program is run.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from specexit.data.answers.base import AnswerError

SECONDS = 10.0
"""Processor time of a program, and its wall time up to `PATIENCE`."""

PATIENCE = 3.0
"""Times `SECONDS` that a program may take by the clock, as other work may share its processor."""

MEMORY = 2 << 30
"""Bytes of address space."""


def run(source: str, *, seconds: float = SECONDS) -> bool:
    """Whether a Python source runs to its end without an exception, in the sandbox.

    Raises:
      AnswerError: there is no sandbox on this platform.
    """
    require_sandbox()
    return _run(source, seconds)


def _run(source: str, seconds: float) -> bool:
    child = Path(__file__).with_name("sandbox_child.py")
    passed = secrets.token_hex(16)
    task = json.dumps({"source": source, "passed": passed, "seconds": seconds, "memory": MEMORY})
    # What a program writes to a pipe nothing limits, and it would all come to lie in our memory; a disk may be full.
    with tempfile.TemporaryDirectory() as empty, os.fdopen(os.memfd_create("said"), "w+b") as said:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-B", str(child)],
                input=task.encode("utf-8", "surrogatepass"),
                stdout=said,
                stderr=subprocess.DEVNULL,
                timeout=PATIENCE * seconds,
                cwd=empty,
                env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # without our terminal
            )
        except subprocess.TimeoutExpired:
            return False
        said.seek(0)
        return done.returncode == 0 and said.read() == passed.encode()


_ESCAPES = """
import os, socket, sys
def allowed(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True
assert not allowed(lambda: socket.socket())
assert not allowed(lambda: open("written", "w"))
assert not allowed(lambda: os.fork())
assert not allowed(lambda: os.kill(os.getppid(), 0))
"""


@cache
def _missing() -> str | None:
    """Why there is no sandbox here; None where there is one."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"this is {sys.platform} on {platform.machine()}"
    if not _run(_ESCAPES, SECONDS):
        return "a child process cannot give up its system calls (seccomp) here"
    return None


def require_sandbox() -> None:
    """Check once that programs can be run in a sandbox.

    Raises:
      AnswerError: they cannot, and why.
    """
    if why := _missing():
        raise AnswerError(f"answer kind code: programs are run in a sandbox only, which takes Linux on x86_64: {why}")
