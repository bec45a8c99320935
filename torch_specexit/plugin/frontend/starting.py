"""A signal while the engine of a server starts ends the start at once, and the processes that it has begun.

vLLM means that as well, but does not hear it. SIGTERM raises KeyboardInterrupt, which the context of its handshake
socket (`zmq_socket_ctx`) swallows: the server starts as if nothing had been said, or waits for minutes for an engine
that waits for it. SIGINT asks asyncio to cancel the task that starts the server, which is heard when the engine stands.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil


class _Told(BaseException):
    """A KeyboardInterrupt of a signal's handler, as a class that nothing on its way swallows."""


@contextmanager
def heard_at_once() -> Iterator[None]:
    """In this block, a signal whose handler interrupts or cancels is heard at once; other handlers run as they would.

    Raises:
      KeyboardInterrupt, CancelledError: as the handler has it. Processes that were begun in the block are gone then.
    """
    children = set(multiprocessing.active_children())
    try:
        with _listening():
            _raise_if_cancelled()  # by a signal before
            yield
    except (_Told, asyncio.CancelledError) as told:
        _kill(set(multiprocessing.active_children()) - children)
        if isinstance(told, _Told):
            raise KeyboardInterrupt(*told.args) from None
        raise


@contextmanager
def _listening() -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()  # which alone hears of signals
    known = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if main}
    handlers = {number: handler for number, handler in known.items() if callable(handler)}

    def hear(number: int, frame: Any) -> None:
        try:
            handlers[signal.Signals(number)](number, frame)
        except KeyboardInterrupt as error:
            raise _Told(*error.args) from None
        _raise_if_cancelled()

    try:
        for number in handlers:
            signal.signal(number, hear)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _raise_if_cancelled() -> None:
    """Raise now what the running task would be told at its next `await`."""
    with suppress(RuntimeError):  # no event loop runs
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError


def _kill(children: Iterable[Any]) -> None:
    """Kill processes, and those below them."""
    for child in children:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(child.pid)
            for each in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        child.join()
