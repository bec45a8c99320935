"""Streams: which chunk carries a report, and that none begins with bad arguments."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from tests.serving.ends import front_end
from torch_specexit.plugin.compat.server_hooks import SERVER_HOOKS
from torch_specexit.plugin.frontend.arguments import ArgumentError
from torch_specexit.plugin.frontend.streaming import Reports
from torch_specexit.plugin.outcome import KEY


def output_of(**report):
    return SimpleNamespace(kv_transfer_params={KEY: report} if report else None)


def chunk(index, **rest):
    return f"data: {json.dumps({'id': 'x', 'choices': [{'index': index, 'text': 'ä'} | rest]})}\n\n"


def test_a_chunk_carries_what_its_choice_has_to_say_for_the_first_time():
    async def results():
        yield 0, output_of()
        yield 1, output_of(choices=[None, {"outcome": "thinking"}])
        yield 1, output_of(choices=[None, {"outcome": "thinking"}])
        yield 1, output_of(choices=[{"outcome": "length"}, {"outcome": "thinking"}])

    async def chunks(reports):
        indices = iter((0, 3, 3, 2))
        async for _ in reports.watch(results()):
            yield chunk(next(indices))
        yield "data: [DONE]\n\n"

    async def collect():
        reports = Reports(n=2)
        return [text async for text in reports.through(chunks(reports))]

    first, second, third, fourth, done = asyncio.run(collect())
    assert (first, third, done) == (chunk(0), chunk(3), "data: [DONE]\n\n")
    assert json.loads(second.removeprefix("data: ")) == {
        "id": "x",
        "choices": [{"index": 3, "text": "ä"}],
        "kv_transfer_params": {KEY: {"outcome": "thinking"}},
    }
    assert json.loads(fourth.removeprefix("data: "))["kv_transfer_params"] == {KEY: {"outcome": "length"}}


@pytest.mark.parametrize("stream", [hook for hook in SERVER_HOOKS if "stream" in hook.method], ids=str)
def test_a_stream_with_bad_arguments_never_begins(stream):
    """Its generator would only be run behind the 200."""
    wrapped = stream.wrap(lambda *args: pytest.fail("the stream has begun"))
    processor = SimpleNamespace(**{KEY: front_end()})
    serving = SimpleNamespace(engine_client=SimpleNamespace(output_processor=processor))
    with pytest.raises(ArgumentError, match="specexit_patience"):
        wrapped(serving, SimpleNamespace(n=1, vllm_xargs={"specexit_patience": 0}), None, None)
