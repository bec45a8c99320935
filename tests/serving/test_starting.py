"""A signal while a server starts: it ends at once, and nothing of it is left."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing

import psutil
import pytest

from tests.marks import SLOW
from tests.serving.conftest import Server
from torch_specexit.plugin.frontend.starting import heard_at_once

pytestmark = pytest.mark.vllm


def interrupt(*_: object) -> None:
    """As vLLM's handler of SIGTERM."""
    raise KeyboardInterrupt("terminated")


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """As in a terminal; a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def server_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    assert signal.signal(signal.SIGTERM, before) is interrupt


def told_in_a_handshake(number: int) -> None:
    """As a server waits for its engine; where this returns, the signal has not been heard."""
    import zmq
    from vllm.utils.network_utils import get_open_zmq_ipc_path, zmq_socket_ctx

    with zmq_socket_ctx(get_open_zmq_ipc_path(), zmq.ROUTER, bind=True) as socket, closing(socket):
        signal.raise_signal(number)


@pytest.mark.usefixtures("server_handler")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_is_heard_though_vllm_swallows_it(number):
    def start() -> None:
        with heard_at_once():
            told_in_a_handshake(number)
            pytest.fail("the start goes on")

    told_in_a_handshake(number)
    with pytest.raises(KeyboardInterrupt):
        start()


@pytest.mark.parametrize("before", [False, True])
def test_a_cancelled_start_does_not_wait_for_its_engine(before):
    """Ctrl-C, in the start or before it, cancels asyncio's task, and nothing is awaited while an engine starts."""
    stages = []

    async def start() -> None:
        if before:
            signal.raise_signal(signal.SIGINT)
        with heard_at_once():
            stages.append("begun")
            signal.raise_signal(signal.SIGINT)
            stages.append("waited")

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(start())
    assert stages == ([] if before else ["begun"])


def test_a_handler_of_ones_own_keeps_its_word():
    """A program with vLLM in it may want to finish what it does."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with heard_at_once():
            signal.raise_signal(signal.SIGTERM)
            heard.append("went on")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM, "went on"]


def test_processes_that_were_begun_are_gone_and_others_are_not():
    context = multiprocessing.get_context("spawn")
    mine, begun = (context.Process(target=time.sleep, args=(600,)) for _ in range(2))

    def start() -> None:
        with heard_at_once():
            begun.start()
            signal.raise_signal(signal.SIGINT)

    mine.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert not begun.is_alive()
        assert mine.is_alive()
    finally:
        mine.kill()


def processes_of(session: int) -> list[psutil.Process]:
    """Those that are left of a server."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@SLOW
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("Enabled custom fusions", signal.SIGINT),
        ("Initializing a V1 LLM engine", signal.SIGTERM),
        ("Starting to load model", signal.SIGINT),
    ],
)
def test_a_server_that_is_told_to_end_while_its_engine_starts_ends(stage, number, drafts, tmp_path):
    """As the engine's process begins, as it builds its own, and as that one loads the weights."""
    server = Server(tmp_path / "log", drafts / "draft", environment={"VLLM_LOGGING_LEVEL": "INFO"})
    try:
        for _ in range(20 * Server.START_SECONDS):
            if stage in server.log.read_text():
                break
            assert server.process.poll() is None, server.log.read_text()[-4000:]
            time.sleep(0.05)
        else:
            pytest.fail(f"the log has no {stage!r}: {server.log.read_text()[-4000:]}")
        server.process.send_signal(number)
        server.process.wait(timeout=60)
        _, alive = psutil.wait_procs(processes_of(server.process.pid), timeout=30)
        assert not alive
        assert "Application startup complete" not in server.log.read_text()
    finally:
        server.kill()
