"""Single keys of a terminal, as they are pressed."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def single_keys() -> Iterator[Callable[[], str | None]]:
    """Read single keys from the terminal.

    Yields:
      A function that returns the next key that was pressed, without waiting; None where none was, or no terminal is.
    """
    if not sys.stdin.isatty():
        yield lambda: None
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def key() -> str | None:
        ready, _, _ = select.select([terminal], [], [], 0)
        return os.read(terminal, 1).decode(errors="ignore") if ready else None

    tty.setcbreak(terminal)
    try:
        yield key
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
