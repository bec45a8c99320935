"""The memory that a command takes, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
from specexit.cli import run
run(sys.argv[1], sys.argv[2:])
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def peak(*arguments: str) -> float:
    """Run a command: the MiB that its process held at most (ru_maxrss would count what its parent held before exec)."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])
