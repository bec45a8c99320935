"""The routes without an engine: who may call them, what they are told, and what reaches the workers."""

from __future__ import annotations

import asyncio
import os
import re
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.handlers.validation import validation_exception_handler
from vllm.v1.engine.core_client import DPLBAsyncMPClient

from specexit.config import REPOSITORY
from specexit.drafts.policy import Serving
from tests.serving.ends import admitted_state, kept_request, processor_of
from tests.serving.points import operation
from tests.serving.stand_ins import filled, stand_in
from torch_specexit.plugin.frontend import server as front_end
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.callers import caller, mark_of
from torch_specexit.plugin.frontend.protocols import AsyncLLM, RequestState
from torch_specexit.plugin.frontend.reports import ADMITTED
from torch_specexit.plugin.frontend.routes import CONTROL, OPERATOR_HEADER, OPERATOR_KEY, PATH, Endpoints, is_operator
from torch_specexit.plugin.frontend.server import MOST_INTERRUPTS, FrontEnd, TooManyError
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import ParallelConfig, VllmConfig
from torch_specexit.plugin.worker.interrupt import END_THINKING

OPERATOR = {OPERATOR_HEADER: "of the operator"}
ALL = ("reports", "interrupt", "switch")


class TwoEngines(DPLBAsyncMPClient):
    """vLLM's own client of data-parallel engines, of two ranks each; the second one runs a request."""

    def __init__(self, called):
        self.core_engines, self.called = [b"first", b"second"], called

    def __del__(self): ...

    async def _call_utility_async(self, method, *args, engine):
        name, _, given, _ = args
        self.called.append((engine, method, name, given))
        return [False, engine == b"second" and given[0] == "chatcmpl-runs"]


class Server:
    """An app with the routes, over an engine of which only the front end is real."""

    def __init__(self, *routes, stages=1):
        self.vllm_config = stand_in(VllmConfig, parallel_config=stand_in(ParallelConfig, pipeline_parallel_size=stages))
        self.front, self.called = FrontEnd(operation(routes=routes), Activity()), []
        runs = self.front.operation.resolve(None, caller=mark_of("ours"))._replace(response="chatcmpl-runs")
        states = {"runs": stand_in(RequestState, **{ADMITTED: runs})}
        self.processor = processor_of(self.front, request_states=states)
        app, endpoints = FastAPI(exception_handlers={RequestValidationError: validation_exception_handler}), Endpoints()
        app.state.args = SimpleNamespace(log_error_stack=False)
        endpoints.attach_router(app)
        asyncio.run(endpoints.init_state(filled(AsyncLLM, self), None, None))
        self.client = TestClient(app)

    @property
    def output_processor(self):
        return self.processor

    @property
    def engine_core(self):
        return TwoEngines(self.called)

    async def collective_rpc(self, method, timeout=None, args=()):
        """As `AsyncLLM` has it."""
        return await self.engine_core.collective_rpc_async(method, timeout, args)

    def finish(self, name, caller):
        state = admitted_state(name)
        setattr(state, KEY, {"outcome": "exit"})
        self.front.keep(state, kept_request(external_req_id=name), self.front.operation.resolve(None, caller=caller))
        self.front.finish(state, {"outcome": "exit"})


@pytest.fixture(autouse=True)
def operator(monkeypatch):
    monkeypatch.setenv(OPERATOR_KEY, OPERATOR[OPERATOR_HEADER])


def test_only_the_state_of_the_server_is_open_unless_the_operator_opens_more():
    client = Server().client
    state = client.get(PATH).json()
    assert (state["mode"], state["active"], state["point"]) == ("exit", True, "usual")
    assert [point["name"] for point in state["points"]] == ["bold", "usual", "careful", "untested"]
    closed = [
        client.get(f"{PATH}/requests/chatcmpl-1"),
        client.post(PATH, json={"mode": "off"}, headers=OPERATOR),
        client.post(CONTROL, json={"id": "chatcmpl-runs", "action": "reasoning_end"}),
    ]
    assert [response.status_code for response in closed] == [404] * 3
    assert all("serving.routes" in response.json()["detail"] for response in closed)


def test_a_route_that_the_file_closes_is_closed_to_the_next_who_asks():
    """On a server that nobody else asked, whoever knew the key gave one order more."""
    for path, body in ((PATH, {"mode": "off"}), (CONTROL, {"id": "chatcmpl-runs", "action": "reasoning_end"})):
        server = Server(*ALL)
        server.front.watch = SimpleNamespace(changed=lambda found, **_: found.load(found.file, Serving()) is None)
        response = server.client.post(path, json=body, headers=OPERATOR)
        assert (response.status_code, server.front.operation.mode) == (404, "exit")
        assert "serving.routes" in response.json()["detail"]


def test_a_report_is_for_the_key_that_asked():
    server = Server(*ALL)
    server.finish("chatcmpl-1", mark_of("ours"))
    path, ours = f"{PATH}/requests/chatcmpl-1", {"Authorization": "Bearer ours"}
    assert server.client.get(path, headers=ours).json()["choices"] == [{"outcome": "exit"}]
    for headers in ({}, {"Authorization": "Bearer theirs"}, {"Authorization": "Basic ours"}):
        assert server.client.get(path, headers=headers).status_code == 404


def test_a_report_that_another_api_server_process_may_have_is_not_called_unknown_alone():
    """Every other 404 of a real server with two of them was of a request that was known, the client's own, and new."""
    server = Server(*ALL)
    assert server.client.get(f"{PATH}/requests/chatcmpl-1").json()["detail"].endswith("or finished long ago")
    server.front.api_servers = 2
    told = server.client.get(f"{PATH}/requests/chatcmpl-1").json()["detail"]
    assert told.endswith("or that of another API server process, of which there are 1 more")


@pytest.mark.parametrize("name", ["team/42", "/", "x" * 1000])
def test_a_request_is_known_by_whatever_its_client_calls_it(name):
    """An `X-Request-Id` with a slash was a 404 here, and one of 300 characters could not be interrupted."""
    server, ours = Server(*ALL), {"Authorization": "Bearer ours"}
    server.finish(f"chatcmpl-{name}", mark_of("ours"))
    path = f"{PATH}/requests/{quote(f'chatcmpl-{name}', safe='')}"
    assert server.client.get(path, headers=ours).json()["choices"] == [{"outcome": "exit"}]
    body = {"id": f"chatcmpl-{name}", "action": "reasoning_end"}
    assert server.client.post(CONTROL, json=body, headers=ours).status_code == 404  # it thinks no more
    assert server.client.get(f"{PATH}/requests/", headers=ours).status_code == 404


@pytest.mark.parametrize("headers", [{}, {OPERATOR_HEADER: "wrong"}, {OPERATOR_HEADER: ""}], ids=str)
def test_nobody_but_the_operator_switches(headers, monkeypatch):
    server = Server(*ALL)
    assert server.client.post(PATH, json={"mode": "off"}, headers=headers).status_code == 403
    monkeypatch.delenv(OPERATOR_KEY)
    assert server.client.post(PATH, json={"mode": "off"}, headers=headers | OPERATOR).status_code == 403
    assert server.front.operation.mode == "exit"


@pytest.mark.parametrize("key", ["ключ".encode(), b"\xff\xfekey"], ids=["of other letters", "of bytes"])
def test_the_key_of_an_operator_may_be_of_any_bytes(key, monkeypatch):
    """Clients send its bytes, which were compared as other letters: no key was right, and some ended in an error."""
    monkeypatch.setenv(OPERATOR_KEY, os.fsdecode(key))
    assert is_operator(key.decode("latin-1"))  # as starlette reads a header
    assert not is_operator((key + b"x").decode("latin-1"))


def test_the_operator_switches_mode_and_point_for_the_next_request():
    server = Server(*ALL)
    state = server.client.post(PATH, json={"mode": "shadow", "point": "careful"}, headers=OPERATOR).json()
    assert (state["mode"], state["point"]) == ("shadow", "careful")
    assert state["reached"] == {"api_servers": 1, "of": 1}
    assert server.front.operation.resolve(None).mode == "shadow"
    refused = server.client.post(PATH, json={"point": "boldest"}, headers=OPERATOR)
    assert (refused.status_code, server.front.operation.name) == (400, "careful")
    assert "expected one of bold, usual" in refused.json()["detail"]
    assert server.client.post(PATH, json={"mode": "maybe"}, headers=OPERATOR).status_code == 400


def test_an_interrupt_reaches_the_workers_of_every_engine_with_its_caller():
    """Of data-parallel engines, vLLM tells what the first one has answered, so an interrupted request was a 404."""
    server = Server(*ALL)
    body = {"id": "chatcmpl-runs", "action": "reasoning_end"}
    answer = server.client.post(CONTROL, json=body, headers={"Authorization": "Bearer ours"})
    assert answer.json() == body | {"success": True}
    given = ("chatcmpl-runs", mark_of("ours"), False)
    assert server.called == [(engine, "collective_rpc", END_THINKING, given) for engine in (b"first", b"second")]
    server.called.clear()
    assert server.client.post(CONTROL, json=body).status_code == 404  # another's
    assert server.client.post(CONTROL, json=body | {"id": "chatcmpl-gone"}).status_code == 404
    for bad in ({"action": "stop"}, {"id": ""}, {"id": "x" * 5000}, {"more": 1}):
        assert server.client.post(CONTROL, json=body | bad).status_code == 400
    assert server.called == []  # no engine is stopped for what this process knows not to run
    server.front.api_servers = 2  # of which another may run it
    assert server.client.post(CONTROL, json=body | {"id": "chatcmpl-gone"}).status_code == 404
    assert len(server.called) == 2


def test_interrupts_take_turns_and_no_caller_has_too_many_of_them(monkeypatch):
    """Any number of them, for ids that nobody has, could ask all workers at once."""
    server, under_way = Server(*ALL), []
    server.front.api_servers = 2

    async def answer(self, method, *args, engine):
        under_way.append(engine)
        await asyncio.sleep(0)
        assert len(under_way) == len(set(under_way))
        under_way.remove(engine)
        return [False]

    async def interrupts(n):
        return await asyncio.gather(*(server.front.interrupt(server, f"chatcmpl-{i}", now=True) for i in range(n)))

    async def run():
        ours = asyncio.create_task(interrupts(MOST_INTERRUPTS))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # all of them have begun
        with pytest.raises(TooManyError, match="16 requests of this caller wait"):
            await interrupts(1)
        token = caller.set("another")
        assert await interrupts(1) == [False]
        caller.reset(token)
        return await ours + await interrupts(1)

    monkeypatch.setattr(TwoEngines, "_call_utility_async", answer)
    assert asyncio.run(run()) == [False] * (MOST_INTERRUPTS + 1)
    monkeypatch.setattr(front_end, "MOST_INTERRUPTS", 0)
    body = {"id": "chatcmpl-runs", "action": "reasoning_end"}
    assert server.client.post(CONTROL, json=body).status_code == 429


def test_under_pipeline_parallel_the_control_route_says_that_it_cannot():
    """Workers of stages without the draft lack the method, so that it answered 500, though the last had done it."""
    server = Server(*ALL, stages=2)
    answer = server.client.post(CONTROL, json={"id": "chatcmpl-runs", "action": "reasoning_end"})
    assert (answer.status_code, server.called) == (501, [])
    assert "pipeline parallel" in answer.json()["detail"]


def test_the_page_says_of_every_key_that_a_server_answers_what_it_is():
    page = (REPOSITORY / "docs" / "serving-watching.md").read_text()
    (told,) = re.findall(r"^## What `GET /v1/specexit` answers\n(?:[^|\n]*\n)+((?:\|.*\n)+)", page, re.M)
    rows = [line.split(" | ") for line in told.splitlines()[2:]]
    named = [key for row in rows for key in re.findall(r"`(\w+)`", row[0])]
    answer = Server(*ALL).client.get(PATH).json()
    assert sorted(named) == sorted(answer)
    within = {key: " | ".join(row[1:]) for row in rows for key in re.findall(r"`(\w+)`", row[0])}
    for key in ("covers", "shadow"):
        assert [name for name in answer[key] if f"`{name}`" not in within[key]] == []
    below = [name for row in rows for name in re.findall(r"`hold\.(\w+)`", row[0])]
    assert sorted(below) == sorted(answer["hold"])
    assert [name for name in answer["points"][0] if f"`{name}`" not in within["points"]] == []
