"""Python processes that a command starts beside itself, and where modules are looked for in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "500000000",
}
"""glibc gives every large buffer back to the kernel and faults it in again at the next step: 100,000 page faults a
second and a quarter of the time of a training step on a CPU. This keeps them."""


def python(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of ours.

    ``-m`` alone looks in the working folder first, where a file, perhaps a stranger's, would stand in for a library.

    Example:
      >>> python("specexit", "status", "runs/x")[1:]
      ['-P', '-m', 'specexit', 'status', 'runs/x']
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def run_command(arguments: Sequence[str], **defaults: str) -> int:
    """Run a command of ours in a process of its own, which prints where this one does.

    Args:
      arguments: the command's name, and what follows it.
      defaults: variables of its environment, unless the user's says them.

    Returns:
      Its exit code.
    """
    return subprocess.run(python("specexit", *arguments), env=os.environ | unsaid(defaults) | ALLOCATOR).returncode


def unsaid(defaults: Mapping[str, str]) -> dict[str, str]:
    """Those of some variables that the environment does not say. One that is empty says nothing, as in a shell.

    Args:
      defaults: values by name.
    """
    return {name: value for name, value in defaults.items() if not os.environ.get(name)}


def look_in_working_folder() -> None:
    """Have a user's own functions found in the working folder, behind everything that is installed."""
    sys.path.append(os.getcwd())
