"""From a worker's records to what the client is told, without an engine: reports, chunks, settings, audits."""

from __future__ import annotations

import asyncio
import json
from contextvars import copy_context
from types import SimpleNamespace

import pytest

from specexit.config import ConfigError
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Serving
from tests.serving.test_operation import operation
from torch_specexit.plugin import outcome
from torch_specexit.plugin.compat.frontend_hooks import SERVER_HOOKS
from torch_specexit.plugin.frontend import reports as frontend
from torch_specexit.plugin.frontend import server
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.arguments import RESOLVED, ArgumentError, admit
from torch_specexit.plugin.frontend.callers import caller
from torch_specexit.plugin.frontend.inner import inner
from torch_specexit.plugin.frontend.metrics import OUTCOMES
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.streaming import Reports
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.settings import serving_of
from torch_specexit.plugin.worker.rule import OVER, THINKING

SIGNALS = (0.1, 0.2, 3.0, 0.9)
NAMED = {"confidence": 0.1, "progress": 0.2, "remaining": 3.0, "validity": 0.9}
START, END = 1, 2
ENGINE = SimpleNamespace(speculative_config=None)
REQUEST = {"external_req_id": "chatcmpl-1", "prompt_token_ids": [START], "cache_salt": None, "priority": 0}
"""What is kept of vLLM's ``EngineCoreRequest``."""


def front_end(**serving):
    return server.FrontEnd(Operation(SpecExitBlock(target="t"), PolicyFile(), Serving(**serving)), Activity())


def row(phase, thoughts, *, exited=0, judged=1.0, on=1, signals=SIGNALS, would_exit=0.0):
    """A row of the worker's snapshot."""
    return [phase, thoughts, 0, exited, judged, on, *signals, would_exit, thoughts if exited else 0.0]


def core_output(request, finish_reason=None):
    return SimpleNamespace(request_id=request, finish_reason=finish_reason, kv_transfer_params=None)


class Engine:
    """The two ends of vLLM between which a report travels: the engine core's requests, the front end's states."""

    def __init__(self, n=1, stop=(), external="chatcmpl-1", transfer=None):
        self.requests, self.processor = {}, SimpleNamespace(request_states={}, external_req_ids={})
        parent = SimpleNamespace(n=n) if n > 1 else None
        for i in range(n):
            name = f"{i}_{external}"
            extra = None if transfer is None else {"kv_transfer_params": transfer}
            params = SimpleNamespace(stop=list(stop), extra_args=extra)
            self.requests[name] = SimpleNamespace(num_output_tokens=0, sampling_params=params)
            self.processor.request_states[name] = SimpleNamespace(
                request_id=name,
                external_req_id=external,
                parent_req=parent,
                request_index=i,
                prompt_token_ids=[START],
                detokenizer=SimpleNamespace(output_token_ids=[]),
                max_tokens_param=100,
                lora_request=None,
            )
        self.processor.external_req_ids[external] = list(self.requests)
        self.stats, self.reporter = SimpleNamespace(), outcome.Reporter()

    def step(self, rows, finished=None, stopped=(), n_output=60, inactive=None):
        """One step; returns what the outputs say. ``stopped``: choices in which the front end meets a stop string."""
        finished, outputs, names = finished or {}, [], list(self.requests)
        for i in rows:
            self.requests[names[i]].num_output_tokens = n_output
            outputs.append(core_output(names[i], finished.get(i)))
        records = {names[i]: record for i, record in rows.items()}
        self.reporter.take(records, self.requests)
        self.reporter.report(records, {0: SimpleNamespace(outputs=outputs, finished_requests=None)}, inactive)
        known = frontend.attach(self.processor, outputs)
        for i in (*finished, *stopped):
            state = self.processor.request_states.pop(names[i])
            self.processor.external_req_ids[state.external_req_id].remove(state.request_id)
        frontend.settle(self.processor, known, self.stats)
        return [(output.kv_transfer_params or {}).get(KEY) for output in outputs]


def test_a_running_request_says_how_it_thinks_and_a_finished_one_how_it_ended():
    engine = Engine()
    (first,) = engine.step({0: row(THINKING, 5, judged=0.0)})
    assert first == {"outcome": "thinking", "thinking_tokens": 5, "signals": {}}
    (second,) = engine.step({0: row(THINKING, 20)})
    assert second == {"outcome": "thinking", "thinking_tokens": 20, "signals": NAMED}
    # Nothing new: the output says the same as before, for an output that swallows others must not lose it.
    assert engine.step({0: row(THINKING, 25)}) == [second]
    assert engine.step({0: row(OVER, 30, exited=1)})[0]["outcome"] == "answering"
    (last,) = engine.step({0: row(OVER, 30, exited=1)}, finished={0: "stop"})
    assert last == {"outcome": "exit", "thinking_tokens": 30, "signals": NAMED}
    assert getattr(engine.stats, KEY) == [last]


def test_a_stop_string_ends_a_request_that_the_engine_core_believes_to_run():
    engine = Engine(stop=["."])
    assert engine.step({0: row(OVER, 30, exited=1)}) == [
        {"outcome": "answering", "thinking_tokens": 30, "signals": NAMED}
    ]
    (last,) = engine.step({0: row(OVER, 30, exited=1)}, stopped=[0])
    assert last == {"outcome": "exit", "thinking_tokens": 30, "signals": NAMED}


@pytest.mark.parametrize(
    ("transfer", "expected"),
    [(None, "length"), ({"do_remote_decode": True}, "handed_over"), ({"do_remote_prefill": True}, "length")],
)
def test_what_another_instance_goes_on_with_was_not_cut_off(transfer, expected):
    """An instance that only reads prompts used to count every request that thinks as cut off."""
    engine = Engine(transfer=transfer)
    (last,) = engine.step({0: row(THINKING, 1, judged=0.0)}, finished={0: "length"}, n_output=1)
    assert last == {"outcome": expected, "thinking_tokens": 1, "signals": {}}
    assert expected in OUTCOMES


class Counting(dict):
    """A mapping that counts who looks something up in it."""

    looked_up = 0

    def get(self, *args):
        self.looked_up += 1
        return super().get(*args)


def test_a_request_that_there_is_no_news_of_is_told_as_it_stands_and_not_looked_at():
    """Each output used to cost five look-ups of its request's state, 0.6 ms a step at 1,024 requests."""
    engine = Engine()
    told = engine.step({0: row(THINKING, 20)})
    states = engine.processor.request_states = Counting(engine.processor.request_states)
    outputs = [core_output(name) for name in states]
    assert frontend.attach(engine.processor, outputs) == []
    assert [output.kv_transfer_params[KEY] for output in outputs] == told
    assert states.looked_up == 0


def test_requests_that_were_aborted_are_forgotten():
    engine = Engine()
    engine.step({0: row(THINKING, 20)})
    latest = getattr(engine.processor, frontend.LATEST)
    (gone,) = latest
    engine.processor.request_states.clear()  # no output says so
    latest |= {f"another that is gone {i}": {} for i in range(frontend.MOST_GONE)}
    assert frontend.attach(engine.processor, [core_output(gone)]) == []
    assert latest == {}


def test_choices_are_told_apart():
    engine = Engine(n=2)
    (told,) = engine.step({0: row(THINKING, 20)})
    assert [choice and choice["outcome"] for choice in told["choices"]] == ["thinking", None]
    engine.step({1: row(OVER, 10, exited=1)}, finished={1: "stop"})
    (told,) = engine.step({0: row(THINKING, 60)}, finished={0: "length"})
    assert [choice["outcome"] for choice in told["choices"]] == ["length", "exit"]
    assert [report["outcome"] for report in getattr(engine.stats, KEY)] == ["exit", "length"]


def test_a_would_be_exit_is_told_unless_the_client_never_got_that_far():
    record = outcome.Record.from_row(row(OVER, 50, would_exit=20.0))
    assert record.describe(60, cut_off=False)["would_exit"] == 20
    assert "would_exit" not in record.describe(15, cut_off=True)
    assert outcome.Record.from_row([OVER, 50, 0, 0, 1.0, 1, *SIGNALS]).would_exit == 0


def test_outputs_that_vllm_merges_on_their_way_lose_nothing():
    """With vLLM's own output processor and collector, whose outputs swallow each other when a client is slow."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    params = SamplingParams(detokenize=False, output_kind=RequestOutputKind.DELTA)
    nothing = dict.fromkeys(
        ("mm_features", "pooling_params", "lora_request", "cache_salt", "data_parallel_rank"),
    )
    request = EngineCoreRequest("r", [1], sampling_params=params, arrival_time=0.0, external_req_id="x", **nothing)
    processor, queue = OutputProcessor(None, log_stats=False), RequestOutputCollector(params.output_kind, "r")
    processor.add_request(request, None, None, 0, queue)

    def step(report, finish_reason=None):
        params = None if report is None else {KEY: {"outcome": report, "thinking_tokens": 3, "signals": {}}}
        outputs = [EngineCoreOutput("r", [5], finish_reason=finish_reason, kv_transfer_params=params)]
        known = frontend.attach(processor, outputs)
        processor.process_outputs(outputs)
        frontend.settle(processor, known, None)

    step("thinking")
    step(None)  # merged with the one before, which nobody has fetched
    merged = queue.get_nowait()
    assert len(merged.outputs[0].token_ids) == 2
    assert merged.kv_transfer_params[KEY]["outcome"] == "thinking"
    step("exit", FinishReason.STOP)
    assert queue.get_nowait().kv_transfer_params[KEY]["outcome"] == "exit"


def test_requests_are_found_by_exactly_the_clients_id_while_they_run_and_afterwards():
    engine = Engine(external="cmpl-7-0")
    front = front_end()
    setattr(engine.processor, KEY, front)
    assert front.find(engine.processor, "cmpl-7-0") == {
        "request_id": "cmpl-7-0",
        "finished": False,
        "choices": [None],
    }
    engine.step({0: row(THINKING, 20)})
    running = front.find(engine.processor, "cmpl-7-0")
    assert running["choices"] == [{"outcome": "thinking", "thinking_tokens": 20, "signals": NAMED}]
    engine.step({0: row(OVER, 50, would_exit=20.0)}, finished={0: "stop"})
    engine.processor.external_req_ids.clear()
    found = front.find(engine.processor, "cmpl-7-0")
    assert found["finished"]
    assert found["choices"][0]["outcome"] == "natural_end"
    assert front.summary()["requests"] == {"natural_end": 1}
    assert front.summary()["shadow"] == {"exits": 1, "before": 20, "behind": 30}


def test_a_part_of_an_id_finds_nothing():
    """Where clients number their X-Request-Ids, `chatcmpl` used to find all of them."""
    front = front_end()
    for i in range(3):
        engine = Engine(external=f"chatcmpl-{i}")
        setattr(engine.processor, KEY, front)
        engine.step({0: row(OVER, 50)}, finished={0: "stop"})
    assert front.find(engine.processor, "chatcmpl-1") is not None
    for asked in ("chatcmpl", "chatcmpl-", "chatcmpl-1-0", "chatcmpl-.", ""):
        assert front.find(engine.processor, asked) is None


def test_reports_are_for_the_holder_of_the_same_key():
    engine, front = Engine(), front_end()
    setattr(engine.processor, KEY, front)
    (state,) = engine.processor.request_states.values()
    ours = front.operation.resolve(None, caller="ours")
    front.keep(state, SimpleNamespace(**REQUEST), ours)
    for finished in ({}, {0: "stop"}):
        engine.step({0: row(OVER, 50)}, finished=finished)
        for asking, found in (("ours", True), ("another", False), (None, False)):
            token = caller.set(asking)
            assert (front.find(engine.processor, "chatcmpl-1") is not None) is found
            caller.reset(token)


def incoming(external):
    """What is read of vLLM's ``EngineCoreRequest`` when it comes in."""
    params = SimpleNamespace(extra_args=None)
    return SimpleNamespace(
        request_id=f"{external}-0123abcd",
        lora_request=None,
        sampling_params=params,
        **REQUEST | {"external_req_id": external},
    )


def come_and_go(front, external):
    """A request from its admission to its end; returns its last report."""
    engine, request = Engine(external=external), incoming(external)
    setattr(engine.processor, KEY, front)
    (state,) = engine.processor.request_states.values()
    front.keep(state, request, front.admit(request))
    (told,) = engine.step({0: row(OVER, 50, exited=1)}, finished={0: "stop"})
    return told, getattr(engine.stats, KEY, [])


def test_no_id_that_a_client_chooses_makes_its_request_an_audits_own():
    """Clients of /v1/responses choose theirs; one like an audit's had no exits, and was counted nowhere."""
    front = front_end(requests="none")
    told, counted = come_and_go(front, "specexit-audit-x_0")
    assert counted == [told]
    assert told["point"] == "default"
    assert front.summary()["requests"] == {"exit": 1}
    assert front.summary()["traffic"]["prompt_tokens"]["requests"] == 1


def test_what_no_client_has_sent_runs_without_exits_and_is_counted_nowhere():
    front, token = front_end(), inner.set(True)
    request = incoming("chatcmpl-1-beam-0")
    assert front.admit(request).mode == "off"
    assert come_and_go(front, "chatcmpl-1-beam-0")[1] == []
    inner.reset(token)
    assert front.summary()["requests"] == {}
    assert front.summary()["traffic"]["prompt_tokens"]["requests"] == 0


@pytest.mark.parametrize("hook", [hook for hook in SERVER_HOOKS if "beam" in hook.method], ids=str)
def test_a_beam_searchs_steps_are_no_requests_and_its_arguments_are_checked(hook):
    """Each of its tokens used to be one; and vLLM drops the arguments, so that bad ones were taken."""

    def search(arguments):
        wrapped = hook.wrap(lambda self, *args: (inner.get(), *args))
        return copy_context().run(wrapped, SimpleNamespace(vllm_xargs=arguments), 20, {})

    assert search(None) == search({"specexit": False}) == (True, 20, {})
    for bad in ({"specexit_validity": 99}, {"specexit_foo": 1}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            search(bad)
    assert not inner.get()


def test_two_callers_may_choose_one_id_and_each_finds_its_own():
    """Counters are common as X-Request-Id. One of two used to get a 404 for its own request."""
    front, engines = front_end(), {name: Engine(external="chatcmpl-5") for name in ("ours", "theirs")}
    processor = SimpleNamespace(request_states={}, external_req_ids={"chatcmpl-5": list(engines)}, **{KEY: front})
    for name, engine in engines.items():
        (state,) = engine.processor.request_states.values()
        processor.request_states[name] = state
        front.keep(state, SimpleNamespace(**REQUEST), front.operation.resolve(None, caller=name))
        setattr(state, KEY, {"outcome": "thinking", "of": name})

    def found(name):
        token = caller.set(name)
        answer = front.find(processor, "chatcmpl-5")
        caller.reset(token)
        return answer and (answer["finished"], answer["choices"][0]["of"])

    assert [found(name) for name in ("ours", "theirs", "another")] == [(False, "ours"), (False, "theirs"), None]
    for name in engines:
        state = processor.request_states.pop(name)
        processor.external_req_ids["chatcmpl-5"].remove(name)
        front.finish(state, {"outcome": "exit"})
        assert found(name) == (True, name)
    assert [found(name) for name in ("ours", "theirs", "another")] == [(True, "ours"), (True, "theirs"), None]


@pytest.mark.parametrize(
    ("external", "response"),
    [("chatcmpl-1000", "chatcmpl-1000"), ("cmpl-job-1", "cmpl-job"), ("resp_7_0", "resp_7"), ("mine_0", "mine")],
)
def test_the_workers_are_told_whose_request_it_is_and_of_which_response(external, response):
    """An engine's ids are made of those that clients choose, and what begins alike may be another's."""
    request = incoming(external)
    token = caller.set("ours")
    front_end().admit(request)
    caller.reset(token)
    resolved = request.sampling_params.extra_args[RESOLVED]
    assert (resolved["caller"], resolved["response"]) == ("ours", response)


def test_a_report_says_which_point_it_is_of_and_whether_that_is_certified():
    front = front_end(requests="any")
    for arguments, point in ((None, "default"), ({"specexit_validity": 0.5}, None)):
        engine = Engine()
        (state,) = engine.processor.request_states.values()
        admitted = front.operation.resolve(arguments)
        front.keep(state, SimpleNamespace(**REQUEST), admitted)
        (told,) = engine.step({0: row(THINKING, 20)})
        assert (told["point"], told["certified"]) == (point, False)


@pytest.mark.parametrize("why", ["a grammar binds its thinking", "exits have failed in flight"])
def test_a_report_of_exits_that_were_off_claims_no_point_and_no_certificate(why):
    engine, front = Engine(), front_end()
    (state,) = engine.processor.request_states.values()
    front.keep(state, SimpleNamespace(**REQUEST), front.operation.resolve(None)._replace(certified=True))
    bound = "grammar" in why
    engine.step({0: row(THINKING, 20, on=0 if bound else 1)})
    if not bound:
        engine.reporter = outcome.Reporter()
        engine.reporter.take = lambda *_: None  # nothing more is known
    (told,) = engine.step({0: row(THINKING, 20, on=0)}, finished={0: "stop"})
    assert (told["outcome"], "point" in told, "certified" in told) == ("off", False, False)


def test_a_failure_in_a_worker_is_said_once_counted_and_shown(caplog):
    engine, front = Engine(), server.FrontEnd(operation(required=True), Activity())
    setattr(engine.processor, KEY, front)
    assert front.problem() is None
    for thoughts in (10, 20, 30):
        engine.step({0: row(THINKING, thoughts)}, inactive="could not judge a step")
    assert front.summary()["active"] is False
    assert front.summary()["reason"] == "failed: could not judge a step"
    assert front.problem() == "failed: could not judge a step"
    (line,) = [record.getMessage() for record in caplog.records]
    assert json.loads(line) == {
        "event": "specexit_inactive",
        "reason": "failed",
        "detail": "could not judge a step",
    }


def test_a_server_that_must_have_certified_exits_is_ready_with_a_certified_point_alone():
    """A point without a certificate, switched to or read from the file, used to leave it ready and without a doubt."""
    front = server.FrontEnd(operation(required=True), Activity())
    front.switch(point="untested")
    assert front.problem() == "point untested has no certificate"
    assert front.summary()["uncertified_because"] == ["point untested has no certificate"]
    assert front.summary()["certified"] is False
    for mode in ("shadow", "off"):  # a kill switch for exits is none for the service
        front.switch(mode=mode, point="careful")
        assert (front.problem(), front.summary()["certified"]) == (None, True)
    doubted = server.FrontEnd(operation(required=True, reasons=["dtype is float16"]), Activity())
    doubted.switch(point="untested")
    assert doubted.problem() == "dtype is float16; point untested has no certificate"
    assert server.FrontEnd(operation(reasons=["dtype is float16"]), Activity()).problem() is None  # not required


def test_only_so_many_finished_requests_are_remembered(monkeypatch):
    monkeypatch.setattr(server, "MOST_FINISHED", 3)
    front = front_end()
    for i in range(5):
        engine = Engine(external=f"chatcmpl-{i}x")
        setattr(engine.processor, KEY, front)
        engine.step({0: row(OVER, 50)}, finished={0: "stop"})
    nobody = SimpleNamespace(external_req_ids={})
    assert [front.find(nobody, f"chatcmpl-{i}x") is not None for i in range(5)] == [False, False, True, True, True]


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


def test_settings_of_the_server_override_those_of_the_draft():
    block = SpecExitBlock(target="t", serving=Serving(mode="shadow", audit_rate=0.5))
    assert serving_of(block, {}) == Serving(mode="shadow", audit_rate=0.5)
    assert serving_of(block, {KEY: {"audit_rate": 0.02}, "other": 1}) == Serving(mode="shadow", audit_rate=0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "of"}, "--additional-config: specexit.mode is 'of': Input should be 'exit', 'shadow' or 'off'"),
        ({"audit_rate": 2}, "specexit.audit_rate is 2: .*less than or equal to 1"),
        ({"audit": 0.1}, "unknown key 'specexit.audit', expected one of mode, requests, audit_rate"),
        ("shadow", "specexit is 'shadow', expected an object"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        serving_of(SpecExitBlock(target="t"), {KEY: given})


def test_a_refused_argument_is_of_the_kind_that_vllm_answers_with_400():
    from vllm.exceptions import VLLMClientError

    with pytest.raises(ArgumentError) as error:  # a ValueError, as offline callers know it
        admit({"specexit_patience": 0}, ENGINE)
    assert isinstance(error.value, VLLMClientError)
    assert error.value.parameter == "specexit_patience"


@pytest.mark.parametrize("stream", [hook for hook in SERVER_HOOKS if "stream" in hook.method], ids=str)
def test_a_stream_with_bad_arguments_never_begins(stream):
    """Its generator would only be run behind the 200."""
    wrapped = stream.wrap(lambda *args: pytest.fail("the stream has begun"))
    processor = SimpleNamespace(**{KEY: front_end()})
    serving = SimpleNamespace(engine_client=SimpleNamespace(output_processor=processor))
    with pytest.raises(ArgumentError, match="specexit_patience"):
        wrapped(serving, SimpleNamespace(n=1, vllm_xargs={"specexit_patience": 0}), None, None)
