"""Audits whose own answer does not come to its end: they show nothing, and nothing of them has failed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from tests.serving.stand_ins import filled, stand_in
from tests.serving.test_audits import TOKENS, admitted, engines_with, finished, scheduled_by
from torch_specexit.plugin.frontend.audit import Audit, generator_of
from torch_specexit.plugin.frontend.protocols import AsyncLLM, EngineCoreClient


class Engine:
    """Ends an audit's request as vLLM's `AsyncLLM` does."""

    vllm_config = scheduled_by("fcfs")
    engine_core = engines_with({7})

    def __init__(self, end):
        self.end = end
        if end == "Server shutting down":
            self.engine_core = stand_in(EngineCoreClient, core_engines=[0], _call_utility_async=self.refuse)

    async def refuse(self, *args, **settings):
        raise Exception(self.end)

    async def generate(self, *args, **settings):
        if self.end == "dead":
            raise EngineDeadError
        if self.end != "abort":
            raise EngineGenerateError from RuntimeError(self.end)
        yield SimpleNamespace(outputs=[SimpleNamespace(text="so far", finish_reason="abort")])


@pytest.mark.parametrize(
    ("end", "result"),
    [
        ("abort", "unfinished"),
        ("cannot schedule new futures after shutdown", "unfinished"),
        ("dead", "unfinished"),
        ("Server shutting down", "unfinished"),
        ("let go", "unfinished"),
        ("anything else", "failed"),
    ],
)
def test_an_audit_that_is_cut_off_says_nothing_about_the_risk_and_is_no_failure(end, result, caplog):
    """Aborted by an operator (POST /pause?mode=abort), it was an answer that the exit had changed; and a server that
    was told to end logged a traceback for each one that waited."""
    settled = []

    async def run():
        engine = filled(AsyncLLM, Engine(end))
        generate = generator_of(engine)
        if end == "let go":
            del engine
        audit = Audit(generate, lambda ids: r"\boxed{7}", TOKENS, 200, lambda *told: settled.append(told[1]))
        audit.consider(finished("r"), admitted(), {"outcome": "natural_end", "would_exit": 2})
        while audit.summary()["waiting"]:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert settled == [result]
    assert ("Traceback" in caplog.text) == (result == "failed")
