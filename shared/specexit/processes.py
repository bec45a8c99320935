"""Python processes that a command starts beside itself, and where modules are looked for in them."""

from __future__ import annotations

import os
import sys


def python(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of ours.

    ``-m`` alone looks in the working folder first, where a file, perhaps a stranger's, would stand in for a library.

    Example:
      >>> python("specexit", "status", "runs/x")[1:]
      ['-P', '-m', 'specexit', 'status', 'runs/x']
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def look_in_working_folder() -> None:
    """Have a user's own functions found in the working folder, behind everything that is installed."""
    sys.path.append(os.getcwd())
