"""Streams: which chunk carries a report, and that none begins with bad arguments."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from tests.serving.ends import front_end, incoming, processor_of
from tests.serving.points import operation
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin.compat import wraps
from torch_specexit.plugin.compat.frontend_hooks import FRONTEND_HOOKS
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.arguments import ArgumentError
from torch_specexit.plugin.frontend.inner import inner
from torch_specexit.plugin.frontend.protocols import AsyncLLM, ChatRequest, RequestOutput, ResponsesServing
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.frontend.streaming import Reports
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import InputProcessor, LoRARequest, SamplingParams, VllmConfig


def output_of(**report):
    return stand_in(RequestOutput, kv_transfer_params={KEY: report} if report else None)


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


def test_a_streamed_beam_searchs_steps_are_no_requests_either():
    """What marks them is set in the task that makes the stream, and another one runs it."""
    (hook,) = (hook for hook in FRONTEND_HOOKS if hook.method == "chat_completion_stream_generator")
    seen = []

    async def steps():
        seen.append(inner.get())
        yield output_of()

    async def chunks(_, __, results):
        async for _ in results:
            yield "data: [DONE]\n\n"

    async def stream(beams):
        request = stand_in(ChatRequest, n=2, use_beam_search=beams)
        assert [text async for text in hook.wrap(chunks)(None, request, steps())] == ["data: [DONE]\n\n"]

    for beams in (True, False):
        asyncio.run(stream(beams))
    assert seen == [True, False]


EARLY = ("generate", "_generate_with_builtin_tools")
"""By which every route of vLLM's servers asks the engine, before it answers."""

GUARDED = {"efforts": {"low": "bold", "high": "careful"}, "loras": {"poet": "bold", "monk": "careful"}}


def ask(route, front, arguments, lora=None):
    """What a route does before its stream begins: its generator would only be run behind the 200."""
    begun = []
    (hook,) = (hook for hook in FRONTEND_HOOKS if hook.method == route)
    wrapped = hook.wrap(lambda *args, **kwargs: begun.append(kwargs))
    engine = stand_in(AsyncLLM, output_processor=processor_of(front))
    asked = {"sampling_params": stand_in(SamplingParams, extra_args=arguments), "request_id": "r"}
    asked["lora_request"] = None if lora is None else stand_in(LoRARequest, lora_name=lora)
    if route == "generate":
        wrapped(engine, "a prompt", **asked)
    else:
        wrapped(stand_in(ResponsesServing, engine_client=engine), **asked)
    assert len(begun) == 1


@pytest.mark.parametrize("route", EARLY)
def test_a_stream_with_bad_arguments_never_begins(route):
    with pytest.raises(ArgumentError, match="specexit_patience"):
        ask(route, front_end(), {"specexit_patience": 0})


@pytest.mark.parametrize("route", EARLY)
def test_a_stream_is_checked_against_the_point_that_it_will_be_served_under(route):
    """Efforts and adapters used to be left out: a stream was refused where the same request was answered otherwise, or
    began with a 200 and ended in an error."""
    front = FrontEnd(operation(**GUARDED), Activity())
    for given, lora in (({"specexit_effort": "low"}, None), ({}, "poet")):
        ask(route, front, given | {"specexit_validity": 0.8}, lora)
    for given, lora in (({"specexit_effort": "high"}, None), ({}, "monk"), ({}, None)):
        with pytest.raises(ArgumentError, match=r"specexit_validity is 0.8, expected at least 0.9"):
            ask(route, front, given | {"specexit_validity": 0.8}, lora)


@pytest.mark.parametrize(
    ("effort", "lora", "refused"), [("low", None, False), (None, "poet", False), (None, None, True)]
)
def test_streamed_or_not_a_request_is_admitted_by_the_same_check(effort, lora, refused):
    """An adapter's point used to be asked for behind a first check that knew nothing of the adapter."""
    front, given = FrontEnd(operation(**GUARDED), Activity()), {"specexit_validity": 0.8}
    arguments = given if effort is None else given | {"specexit_effort": effort}
    adapter = None if lora is None else stand_in(LoRARequest, lora_name=lora)
    request = incoming("chatcmpl-1")
    request.sampling_params.extra_args, request.lora_request = arguments, adapter
    validate = wraps.validate_params(lambda self, params: None)
    plain = stand_in(VllmConfig, speculative_config=None)
    validate(stand_in(InputProcessor, vllm_config=plain, **{KEY: front}), request.sampling_params)
    with pytest.raises(ArgumentError) if refused else nullcontext():
        front.admit(request)


def test_a_stream_is_checked_against_the_file_as_it_is_now():
    front, looked = FrontEnd(operation(), Activity()), []
    front.watch = SimpleNamespace(changed=lambda served, at_once: looked.append(served) or False)
    front.check(None)
    assert looked == [front.operation]
