"""Single keys of a terminal, as they are pressed."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def single_keys() -> Iterator[Callable[[], str | None]]:
    """Within, the function that it gives says which key has been pressed; None for none, and without a terminal."""
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
