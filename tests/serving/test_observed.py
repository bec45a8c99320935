"""What an operator's tools see: readiness over HTTP, spans of OpenTelemetry, and the log of exits."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from tests.serving.ends import NAMED, Engine, front_end, incoming, processor_of, row, status
from tests.serving.points import operation
from torch_specexit.plugin.compat.frontend_hooks import FRONTEND_HOOKS
from torch_specexit.plugin.frontend import tracing
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.outcome import KEY, UNCUT
from torch_specexit.plugin.worker.rule import OVER

pytestmark = pytest.mark.vllm

HOOKS = {hook.method: hook for hook in FRONTEND_HOOKS}


def end_of(external, front=None):
    """The state of a request that exits, as it was when it ended, and its last report."""
    engine, request = Engine(external=external), incoming(external)
    (state,) = engine.processor.request_states.values()
    if front is not None:
        setattr(engine.processor, KEY, front)
        front.keep(state, request, front.admit(request))
    (told,) = engine.step({0: row(OVER, 50, exited=1)}, finished={0: "stop"})
    return state, told


def test_a_server_that_must_have_certified_exits_answers_503_without_them(caplog):
    front = FrontEnd(operation(required=True), Activity())
    assert status(front) == 200
    front.switch(point="untested")
    assert status(front) == 503
    assert "specexit.required is true, and exits are not served as certified: point untested has no" in caplog.text
    front.switch(point="careful", mode="off")
    assert status(front) == 200
    front.activity.fail("failed", "injected")
    assert status(front) == 503


def test_elsewhere_readiness_is_what_the_engine_says():
    doubted = FrontEnd(operation(reasons=["dtype is float16"]), Activity())
    doubted.activity.fail("failed", "injected")
    assert [status(front) for front in (doubted, None)] == [200, 200]
    for front in (doubted, FrontEnd(operation(required=True), Activity()), None):
        with pytest.raises(RuntimeError, match="of the engine's own"):
            status(front, broken=True)


@pytest.fixture
def spans(monkeypatch):
    """Spans that vLLM's own code makes of requests, hooks installed as in a server: ``trace(state)`` gives one."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from vllm.tracing import otel
    from vllm.v1.engine import output_processor

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel.trace, "get_tracer", provider.get_tracer)
    for owner, method in ((output_processor, "instrument_manual"), (output_processor.OutputProcessor, "do_tracing")):
        original = getattr(owner, method)
        monkeypatch.setattr(owner, method, HOOKS[method].wrap(getattr(original, "__wrapped__", original)))

    def trace(state):
        timed = dict.fromkeys(("arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"), 1.0)
        state.stats = SimpleNamespace(**timed, first_token_latency=0.5, num_generation_tokens=60)
        state.prompt_embeds, state.top_p, state.temperature, state.n = None, 1.0, 0.0, 1
        output, step = SimpleNamespace(trace_headers=None), SimpleNamespace(iteration_timestamp=2.0)
        output_processor.OutputProcessor.do_tracing(processor_of(), output, state, step)
        span = exporter.get_finished_spans()[-1]
        return span.name, dict(span.attributes)

    return trace


def test_vllms_span_of_a_request_says_how_its_thinking_ended(spans):
    name, attributes = spans(end_of("chatcmpl-1", front_end())[0])
    assert name == "llm_request"
    assert attributes["gen_ai.usage.completion_tokens"] == 60  # vLLM's own are there, too
    ours = {key: value for key, value in attributes.items() if key.startswith("specexit.")}
    assert ours == {
        "specexit.outcome": "exit",
        "specexit.thinking_tokens": 50,
        "specexit.point": "default",
        "specexit.certified": False,
        **{f"specexit.signals.{signal}": value for signal, value in NAMED.items()},
    }


def test_a_span_of_a_request_that_a_stop_string_has_ended_says_what_its_client_gets(spans):
    """vLLM makes it before the report is final."""
    engine = Engine(stop=["."])
    (state,) = engine.processor.request_states.values()
    engine.step({0: row(OVER, 50, exited=1)})
    state.detokenizer.output_token_ids = [0] * 49  # two tokens of the step are dropped
    _, attributes = spans(state)
    assert (attributes["specexit.outcome"], attributes["specexit.thinking_tokens"]) == ("natural_end", 49)
    assert f"specexit.{UNCUT}" not in attributes


def test_a_span_of_a_request_without_a_report_says_nothing_of_another(spans):
    spans(end_of("chatcmpl-1")[0])
    (state,) = Engine(external="chatcmpl-2").processor.request_states.values()
    _, attributes = spans(state)
    assert attributes["gen_ai.request.id"] == "chatcmpl-2"
    assert not [key for key in attributes if key.startswith("specexit.")]
    assert tracing.with_ours({"a": 1}) == {"a": 1}  # of whatever is no request


def test_the_exit_log_has_one_line_of_json_for_each_finished_request(caplog):
    with caplog.at_level(logging.INFO, "vllm.specexit"):
        _, told = end_of("chatcmpl-1", front_end(exit_log=True))
        end_of("chatcmpl-2", front_end())  # off by default
    (line,) = [record.getMessage() for record in caplog.records]
    assert json.loads(line) == {"specexit": {"request_id": "chatcmpl-1", **told}}
    assert told["outcome"] == "exit"
