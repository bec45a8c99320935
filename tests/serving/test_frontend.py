"""What a server's front end decides: which requests count, whether it is ready, and by which settings."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from contextvars import copy_context

import pytest

from specexit.config import ConfigError
from specexit.drafts.policy import PolicyFile, Serving
from specexit.schemas.target import load_target_config
from tests.serving.ends import GREEDY, Engine, admitted_state, front_end, incoming, processor_of, row
from tests.serving.points import POINTS, operation, point
from tests.serving.stand_ins import stand_in
from torch_specexit.chat import load_chat_tokenizer
from torch_specexit.plugin.compat.request_hooks import REQUEST_HOOKS
from torch_specexit.plugin.compat.server_hooks import SERVER_HOOKS
from torch_specexit.plugin.frontend import server
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.arguments import RESOLVED, ArgumentError, admit
from torch_specexit.plugin.frontend.callers import mark_of
from torch_specexit.plugin.frontend.grammars import parser_of
from torch_specexit.plugin.frontend.inner import inner
from torch_specexit.plugin.frontend.protocols import AsyncLLM, CompletionRequest
from torch_specexit.plugin.frontend.reports import ADMITTED
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import LoRARequest, StructuredOutputsConfig, VllmConfig
from torch_specexit.plugin.settings import serving_over
from torch_specexit.plugin.worker.rule import OVER, THINKING
from torch_specexit.plugin.worker.weights import WHY_LOST

ENGINE = stand_in(VllmConfig, speculative_config=None)


def come_and_go(front, external, **sampling):
    """A request from its admission to its end; returns its last report."""
    engine, request = Engine(external=external), incoming(external, **sampling)
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


def test_of_all_choices_for_one_prompt_one_is_audited_and_one_counts_as_traffic():
    """Each was a sample of its own, so that a single request with many choices moved the server, or raised an alarm."""
    engine, front = Engine(n=100), front_end(audit_rate=1.0)
    setattr(engine.processor, KEY, front)
    (hook,) = (hook for hook in REQUEST_HOOKS if hook.method == "add_request")
    add, decided = hook.wrap(lambda *_: None), []
    for index, (name, state) in enumerate(engine.processor.request_states.items()):
        request = incoming("chatcmpl-1")
        request.request_id = name
        add(engine.processor, request, "a prompt", state.parent_req, index)
        decided.append(getattr(state, ADMITTED))
    assert [(admitted.audited, admitted.mode) for admitted in decided] == [(True, "shadow"), *[(False, "exit")] * 99]
    assert {admitted.point for admitted in decided} == {"default"}
    engine.step({i: row(OVER, 50) for i in range(100)}, finished=dict.fromkeys(range(100), "stop"))
    seen = front.summary()["traffic"]
    assert (seen["prompt_tokens"]["requests"], seen["thinking_tokens"]["requests"]) == (1, 1)
    assert front.summary()["requests"] == {"natural_end": 100}


def test_what_cannot_be_kept_of_a_request_costs_it_no_answer(monkeypatch):
    """It had been taken in by then, so that its client got a 500, and vLLM kept it for ever."""
    engine, front = Engine(), front_end()
    setattr(engine.processor, KEY, front)
    monkeypatch.setattr(front.traffic, "add_prompt", lambda tokens: 1 / 0)
    (hook,) = (hook for hook in REQUEST_HOOKS if hook.method == "add_request")
    ((name, state),) = engine.processor.request_states.items()
    request = incoming("chatcmpl-1")
    request.request_id = name
    hook.wrap(lambda *_: None)(engine.processor, request, "a prompt")
    assert getattr(state, ADMITTED).point == "default"


def test_of_requests_without_exits_adapters_and_further_choices_are_no_traffic_nor_are_further_inputs():
    """An adapter that was `off`, as the runbook has it, raised an alarm over prompts that no calibration is about."""
    front = server.FrontEnd(operation(loras={"raw": "off"}, tenants={mark_of("cut off"): "off"}), Activity())
    request, resolve = incoming("chatcmpl-1"), front.operation.resolve

    def prompts():
        return front.summary()["traffic"]["prompt_tokens"]["requests"]

    front.keep(admitted_state(), request, resolve(None, lora="raw"))
    assert prompts() == 0
    for choice in range(3):
        front.keep(admitted_state(), request, resolve(None, caller=mark_of("cut off"), choice=choice))
    assert prompts() == 1
    state = admitted_state()
    for _ in range(3):  # inputs of one request, as vLLM's streaming sessions have them
        front.keep(state, request, resolve(None))
    assert prompts() == 2


BEAM_SEARCHES = [hook for hook in SERVER_HOOKS if "beam" in hook.method]


def test_both_of_vllms_beam_searches_are_hooked():
    assert len(BEAM_SEARCHES) == 2


@pytest.mark.parametrize("hook", BEAM_SEARCHES, ids=str)
def test_a_beam_searchs_steps_are_no_requests_and_its_arguments_are_checked(hook):
    """Each of its tokens used to be one; and vLLM drops the arguments, so that bad ones were taken."""

    def search(arguments):
        wrapped = hook.wrap(lambda self, *args: (inner.get(), *args))
        return copy_context().run(wrapped, stand_in(CompletionRequest, vllm_xargs=arguments), 20, {})

    assert search(None) == search({"specexit": False}) == (True, 20, {})
    for bad in ({"specexit_validity": 99}, {"specexit_foo": 1}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            search(bad)
    assert not inner.get()


def test_a_refused_argument_is_of_the_kind_that_vllm_answers_with_400():
    from vllm.exceptions import VLLMClientError

    with pytest.raises(ArgumentError) as error:  # a ValueError, as offline callers know it
        admit({"specexit_patience": 0}, ENGINE)
    assert isinstance(error.value, VLLMClientError)
    assert error.value.parameter == "specexit_patience"


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


def test_while_the_drafts_weights_are_not_whole_a_server_says_so_and_afterwards_no_more(caplog):
    """Nothing exited, and route, gauge and `required` called exits active."""
    engine, front, told = Engine(), server.FrontEnd(operation(required=True), Activity()), []
    front.activity.tell = lambda active, kind: told.append((active, kind))
    setattr(engine.processor, KEY, front)
    for thoughts in (10, 20):
        engine.step({0: row(THINKING, thoughts)}, awaiting="the draft's weights have not survived a sleep")
        reason = "weights: the draft's weights have not survived a sleep"
        assert (front.summary()["active"], front.summary()["reason"], front.problem()) == (False, reason, reason)
    for thoughts in (30, 40):
        engine.step({0: row(THINKING, thoughts)})
        assert (front.summary()["active"], front.summary()["reason"], front.problem()) == (True, None, None)
    assert told == [(False, "weights"), (True, "weights")]
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [line["event"] for line in lines] == ["specexit_inactive", "specexit_active"]
    front.activity.fail("failed", "for good")
    front.activity.awaits(None)
    assert front.problem() == "failed: for good"


def test_a_server_without_requests_is_ready_again_once_the_drafts_weights_are_whole():
    """It heard of them with the outputs of requests, and one that is not ready gets none: it stayed away."""
    from vllm.v1.engine.exceptions import EngineDeadError

    front, lost = server.FrontEnd(operation(required=True), Activity()), ["a sleep", None]

    class Engines:
        core_engines = (b"first", b"second")

        async def _call_utility_async(self, method, *args, engine):
            assert (method, args[0]) == ("collective_rpc", WHY_LOST)
            return [None, lost[0] if engine == b"second" else None]

    async def checked():
        (hook,) = (hook for hook in REQUEST_HOOKS if hook.method == "check_health")
        engine = stand_in(AsyncLLM, output_processor=processor_of(front), engine_core=Engines())
        with pytest.raises(EngineDeadError) if lost[0] else nullcontext():
            await hook.wrap(lambda self: asyncio.sleep(0))(engine)

    front.activity.awaits("a sleep")
    for reason in ("weights: a sleep", None):
        asyncio.run(checked())
        assert front.summary()["reason"] == reason
        lost.pop(0)


def test_a_server_that_is_not_ready_says_why_once_and_not_at_each_probe(caplog):
    from vllm.v1.engine.exceptions import EngineDeadError

    front = server.FrontEnd(operation(required=True), Activity())
    (hook,) = (hook for hook in REQUEST_HOOKS if hook.method == "check_health")
    check_health = hook.wrap(lambda self: asyncio.sleep(0))
    engine = stand_in(AsyncLLM, output_processor=processor_of(front))
    for name in ("untested", "careful", "untested"):
        front.switch(point=name)
        for _ in range(3):
            with nullcontext() if name == "careful" else pytest.raises(EngineDeadError):
                asyncio.run(check_health(engine))
    said = "specexit.required is true, and exits are not served as certified: point untested has no certificate"
    assert caplog.messages.count(said) == 2


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


def test_audits_of_a_policy_say_nothing_about_another_that_has_taken_its_name():
    """Audits wait while an operator writes a new file; those of the policy that it replaces counted against the new."""
    served = operation(audit_rate=1.0)
    front, before = server.FrontEnd(served, Activity()), served.file.point("usual").policy
    points = [point("usual", 0.95, 0.02), *POINTS[2:]]
    served.load(PolicyFile.model_validate({"points": points, "default": "usual"}), served.serving)
    for result in ("changed", "no_exit") * 50:
        front.audited("usual", result, before)
    assert (front.hold.summary()["points"], served.ceiling) == ({}, None)
    front.audited("usual", "changed", served.file.point("usual").policy)
    assert front.hold.summary()["points"]["usual"]["audits"] == 1


def test_an_adapter_makes_another_target_than_was_calibrated_and_the_server_says_so(caplog):
    """Its requests used to be reported as certified."""
    front = server.FrontEnd(operation(required=True, loras={"raw": "off", "verse": "careful"}), Activity())
    assert front.summary()["uncertified_loras"] == []
    for lora in (None, "poet", "raw", "verse", "poet"):
        request = incoming("chatcmpl-1")
        request.lora_request = None if lora is None else stand_in(LoRARequest, lora_name=lora)
        assert front.admit(request).certified == (lora is None)
    assert front.summary()["uncertified_loras"] == ["poet", "verse"]
    assert [line.getMessage() for line in caplog.records] == [
        f"specexit: requests with adapter {lora!r} exit uncertified: no certificate is of it"
        for lora in ("poet", "verse")
    ]
    assert front.problem() is None  # the target without an adapter is served as it was calibrated


def test_a_grammar_that_binds_though_the_prompt_opens_the_thinking_rules_exits_and_interrupts_out():
    """As with `include_reasoning: false`: vLLM ended the request in an HTTP 500 at the end marker that was forced."""
    front, grammar = front_end(audit_rate=1.0), object()
    for asked, ended, mode in (
        (grammar, True, "off"),
        (grammar, False, "exit"),  # it binds behind the thinking
        (grammar, None, "exit"),
        (None, True, "shadow"),  # for its audit
    ):
        request = incoming("chatcmpl-1", structured_outputs=asked)
        request.reasoning_ended = ended
        admitted = front.admit(request)
        assert (admitted.mode, admitted.audited) == (mode, mode == "shadow")
        told = request.sampling_params.extra_args[RESOLVED]
        assert (told["mode"], told["response"]) == (mode, None if mode == "off" else "chatcmpl-1")


@pytest.mark.parametrize(
    ("parser", "asked", "thinks", "mode"),
    [
        ("deepseek_v3", object(), False, "off"),
        ("deepseek_v3", object(), True, "exit"),
        ("deepseek_v3", None, False, "exit"),
        ("", object(), False, "exit"),  # of which the workers know that it binds
    ],
)
def test_a_grammar_of_which_vllms_parser_alone_knows_that_it_binds_rules_exits_out(parser, asked, thinks, mode):
    """By `/v1/responses` no route says that the reasoning is over: the engine asks a parser that believes the arguments
    of the template, which has opened the thinking all the same."""
    target = load_target_config("tiny-reasoner")
    config = stand_in(VllmConfig, structured_outputs_config=stand_in(StructuredOutputsConfig, reasoning_parser=parser))
    processor = processor_of(tokenizer=load_chat_tokenizer(target))
    engine = stand_in(AsyncLLM, output_processor=processor, vllm_config=config)
    front, request = front_end(), incoming("resp-1", structured_outputs=asked)
    front.taken_for_over = parser_of(engine)
    request.prompt_token_ids = [target.think_tokens().start]
    request.reasoning_parser_kwargs = {"chat_template_kwargs": {"thinking": thinks}}
    assert front.admit(request).mode == mode


def test_what_only_reads_how_likely_tokens_are_is_no_traffic_and_exits_nowhere():
    """One call of `/generative_scoring` filled the window of the last 1,000 prompts, and each of its items counted as a
    request that is sampled otherwise than calibrated."""
    front, read = calibrated_at(CALIBRATED), {"max_tokens": 1, "logprob_token_ids": [5, 6], "temperature": 1.0}
    request = incoming("generative-scoring-1-0", **read)
    request.lora_request = stand_in(LoRARequest, lora_name="poet")
    admitted = front.admit(request)
    assert (admitted.mode, admitted.audited, admitted.counted) == ("off", False, False)
    assert come_and_go(front, "generative-scoring-1-1", **read)[1] == []
    summary = front.summary()
    assert (summary["requests"], summary["uncertified_loras"]) == ({}, [])
    assert (summary["traffic"]["prompt_tokens"]["requests"], summary["covers"]["other_requests"]) == (0, 0)
    come_and_go(front, "chatcmpl-1", **CALIBRATED | {"max_tokens": 1})  # a client's own, however short
    assert front.summary()["traffic"]["prompt_tokens"]["requests"] == 1


CALIBRATED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_tokens": 32768}
OTHERWISE = [
    {"temperature": 0.0},
    CALIBRATED | {"temperature": 0.7},
    CALIBRATED | {"top_p": 1.0},
    CALIBRATED | {"top_k": 1},
    CALIBRATED | {"min_p": 0.05},
    CALIBRATED | {"repetition_penalty": 1.1},
    CALIBRATED | {"presence_penalty": 0.5},
    CALIBRATED | {"frequency_penalty": 0.5},
    CALIBRATED | {"logit_bias": {5: 1.0}},
]


def calibrated_at(sampling, **serving):
    """A front end whose certificates are of text that is sampled so."""
    front = server.FrontEnd(operation(audit_rate=1.0, **serving), Activity())
    front.operation.load(front.operation.file.model_copy(update={"sampling": sampling}), front.operation.serving)
    return front


@pytest.mark.parametrize("sampling", OTHERWISE, ids=str)
def test_a_request_that_is_sampled_otherwise_is_served_the_same_and_called_uncertified(sampling, caplog):
    """A certificate of greedy traces used to be reported with every sampled request, and its audits to count."""
    front = calibrated_at(CALIBRATED, required=True)
    for asked, covers in ((CALIBRATED, True), (sampling, False)):
        admitted = front.admit(incoming("chatcmpl-1", **asked))
        assert (admitted.certified, admitted.audited, admitted.point) == (covers, covers, "usual")
        assert admitted.mode == ("shadow" if covers else "exit")  # which audits are held back for
    told, (counted,) = come_and_go(front, "chatcmpl-1", **sampling)
    assert told == counted
    assert (told["point"], told["certified"], told["outcome"]) == ("usual", False, "exit")
    assert front.problem() is None
    said = front.summary()["covers"]
    assert said["sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert said["other_requests"] == 2
    (line,) = [line.getMessage() for line in caplog.records]
    asked, _, made = line.partition(" exit uncertified: calibrated was ")
    assert (asked.startswith("specexit: requests with {"), made[0]) == (True, "{")
    unlike = {key for key, value in sampling.items() if value != CALIBRATED.get(key)} - {"max_tokens"}
    assert {key for key in unlike if key not in asked} == set()
    assert ("penalty" in asked) == any("penalty" in key for key in unlike)


@pytest.mark.parametrize(
    ("calibrated", "asked"),
    [
        ({"temperature": 0.0, "max_tokens": 768}, {"temperature": 0.0}),
        ({"temperature": 0.0, "top_p": 0.9}, {"temperature": 0.0, "top_k": 20}),
        ({"temperature": 0.005}, {"temperature": 0.01}),  # which vLLM makes of 0.005, and drew the traces at
        ({"temperature": 0.6, "top_k": 1}, {"temperature": 0.0}),
        ({"temperature": 1.0}, {"temperature": 1.0, "top_k": -1, "seed": 7, "n": 3}),
    ],
    ids=str,
)
def test_what_draws_the_same_tokens_is_sampled_alike(calibrated, asked):
    front = calibrated_at(calibrated)
    assert front.admit(incoming("chatcmpl-1", **asked)).certified
    assert front.summary()["covers"]["other_requests"] == 0


@pytest.mark.parametrize(
    "say", [{"min_tokens": 5}, {"ignore_eos": True}, {"logit_bias": {5: 100.0}}, {"bad_words": ["Wait"]}], ids=str
)
def test_a_say_of_the_client_in_the_tokens_is_counted_as_sampled_otherwise(say, caplog):
    """It was called uncertified and not audited, and appeared nowhere: a server without audits did not say why."""
    front = calibrated_at(GREEDY)
    for i, sampling in enumerate((say, {}, say)):
        front.admit(incoming(f"chatcmpl-{i}", **sampling))
    assert front.summary()["covers"]["other_requests"] == 2
    (line,) = [line for line in caplog.messages if "exit uncertified" in line]
    assert f"{next(iter(say))} exit uncertified: calibrated was " in line
    uncovered = calibrated_at(None)
    uncovered.admit(incoming("chatcmpl-1", **say))
    assert uncovered.summary()["covers"] == {"sampling": None, "other_requests": 0}


def test_settings_of_the_server_override_those_of_the_draft():
    below = Serving(mode="shadow", audit_rate=0.5)
    assert serving_over(below, {}) == below
    assert serving_over(below, {KEY: {"audit_rate": 0.02}, "other": 1}) == Serving(mode="shadow", audit_rate=0.02)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "of"}, "--additional-config: specexit.mode is 'of': Input should be 'exit', 'shadow' or 'off'"),
        ({"audit_rate": 2}, "specexit.audit_rate is 2: .*less than or equal to 1"),
        ({"audit": 0.1}, "unknown key 'specexit.audit', expected one of mode, requests, audit_rate"),
        ("shadow", "specexit is 'shadow', expected an object"),
        ({"tenants": {"sk-live-0123": False}}, r"specexit.tenants.sk-l\.\.\. is False: Input should be a valid string"),
        ({"tenants": ["sk-live-0123"]}, r"specexit.tenants is a list: Input should be a valid dict"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ConfigError, match=message) as error:
        serving_over(Serving(), {KEY: given})
    assert "sk-live" not in str(error.value)
