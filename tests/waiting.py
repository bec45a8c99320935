"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable


def wait_for(happened: Callable[[], object]) -> None:
    """Until it has; minutes are for a busy machine."""
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)
