"""What outputs say of their requests, from a worker's records on, without an engine."""

from __future__ import annotations

import pytest

from specexit.drafts.policy import PolicyFile
from specexit.method.splits import ThinkTokens
from tests.serving.ends import (
    NAMED,
    SIGNALS,
    START,
    Engine,
    core_output,
    core_outputs,
    front_end,
    kept_request,
    row,
)
from tests.serving.points import POINTS, operation
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin import outcome
from torch_specexit.plugin.frontend import reports as frontend
from torch_specexit.plugin.frontend import server
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.audit import Audit
from torch_specexit.plugin.frontend.metrics import OUTCOMES
from torch_specexit.plugin.frontend.own_end import BY_ITSELF, end_tokens
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import ModelConfig
from torch_specexit.plugin.worker.rule import OVER, THINKING


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


def test_requests_with_stop_strings_cost_a_report_only_where_there_is_news():
    """Each of their outputs used to bring a whole report, 1,024 a step, as a string may turn out to have ended it."""
    engine = Engine(stop=["."])
    (told,) = engine.step({0: row(THINKING, 20)})
    assert told == {"outcome": "thinking", "thinking_tokens": 20, "signals": NAMED}
    (output,) = outputs = [core_output(name) for name in engine.requests]
    engine.reporter.report({}, {0: core_outputs(outputs)}, None)
    assert output.kv_transfer_params is None


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (row(THINKING, 20), {"outcome": "natural_end", "thinking_tokens": 58}),
        (row(OVER, 30, exited=1), {"outcome": "exit", "thinking_tokens": 30}),
        (row(THINKING, 20, on=0), {"outcome": "off", "thinking_tokens": 58}),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_stop_string_long_after_the_last_news_ends_the_report_that_is_on_its_way(thinking, expected, n):
    engine = Engine(n=n, stop=["."])
    setattr(engine.processor, KEY, front_end())
    engine.step({0: thinking}, n_output=40)
    (quiet,) = engine.step({}, running=[0], n_output=50)
    assert quiet is not None
    (last,) = engine.step({}, running=[0], stopped=[0], dropped=2)
    assert (last if n == 1 else last["choices"][0]) == expected | {"signals": NAMED}
    assert getattr(engine.stats, KEY) == [expected | {"signals": NAMED}]


def test_what_a_stop_string_ends_in_a_loop_is_as_uncertified_as_any_end_in_one():
    engine, front = Engine(stop=["."]), front_end()
    labelled(engine, front)
    (told,) = engine.step({0: row(OVER, 30, exited=1 + outcome.ENDED.index("loop"))})
    assert (told["outcome"], told["certified"]) == ("answering", True)
    (last,) = engine.step({}, running=[0], stopped=[0])
    assert (last["outcome"], last["certified"]) == ("loop", False)


@pytest.mark.parametrize(
    ("thinking", "dropped", "finish", "expected"),
    [
        (row(THINKING, 60), 2, None, {"outcome": "natural_end", "thinking_tokens": 58}),
        (row(THINKING, 60), 2, "length", {"outcome": "natural_end", "thinking_tokens": 58}),  # the client reads "stop"
        (row(OVER, 57, exited=1), 2, None, {"outcome": "exit", "thinking_tokens": 57}),
        (row(OVER, 57, exited=1), 3, None, {"outcome": "natural_end", "thinking_tokens": 57}),  # without `</think>`
        (row(OVER, 58), 3, "stop", {"outcome": "natural_end", "thinking_tokens": 57}),
        (row(OVER, 58, on=0), 4, None, {"outcome": "off", "thinking_tokens": 56}),
        (row(OVER, 58, would_exit=57), 2, None, {"outcome": "natural_end", "thinking_tokens": 58, "would_exit": 57}),
        (row(OVER, 58, would_exit=57), 4, None, {"outcome": "natural_end", "thinking_tokens": 56}),
    ],
)
def test_what_vllm_drops_behind_a_stop_string_is_in_no_report(thinking, dropped, finish, expected):
    """A step may bring several tokens, and the string may be in the first of them: a report said 21 tokens of
    thinking, and the usage of the same response 19."""
    engine = Engine(stop=["."])
    setattr(engine.processor, KEY, front_end())
    (state,) = engine.processor.request_states.values()
    ends = {"finished": {0: finish}} if finish else {"stopped": [0]}
    (last,) = engine.step({0: thinking}, **ends, dropped=dropped)
    assert last == expected | {"signals": NAMED}
    assert getattr(engine.stats, KEY) == [last]
    assert not getattr(state, BY_ITSELF, False)


def test_of_a_transition_what_a_stop_string_cuts_is_counted():
    transition = row(OVER, 58, exited=1)
    transition[-1] = 50.0  # kept; eight tokens are the server's
    for dropped, expected in ((1, (50, 8)), (6, (50, 4)), (12, (48, None))):
        engine = Engine(stop=["."])
        (last,) = engine.step({0: transition}, stopped=[0], dropped=dropped)
        assert (last["thinking_tokens"], last.get("transition_tokens")) == expected
        assert last["outcome"] == ("exit" if dropped == 1 else "natural_end")


@pytest.mark.parametrize(
    ("finish", "stop_reason", "expected"),
    [
        ("stop", None, True),
        ("stop", 7, True),  # an end of the model's generation config
        ("stop", 8, False),  # a stop token of the client's
        ("length", None, False),
        ("abort", None, False),
        ("repetition", "repetition_detected", False),
        (None, None, False),  # a stop string, of which the engine core says nothing
    ],
)
def test_a_request_ends_by_itself_where_the_model_has_ended_it(finish, stop_reason, expected):
    engine, front = Engine(), front_end()
    front.end_tokens = end_tokens(stand_in(ModelConfig, try_get_generation_config=lambda: {"eos_token_id": [6, 7]}))
    setattr(engine.processor, KEY, front)
    (state,) = engine.processor.request_states.values()
    engine.step({0: row(OVER, 30)})
    engine.step({0: row(OVER, 30)}, finished={0: finish}, stop_reason=stop_reason)
    assert getattr(state, BY_ITSELF, False) is expected


@pytest.mark.parametrize("eos", [7, [7], None])
def test_ends_of_a_generation_config_in_any_form(eos):
    config = {} if eos is None else {"eos_token_id": eos}
    found = end_tokens(stand_in(ModelConfig, try_get_generation_config=lambda: config))
    assert found == (frozenset() if eos is None else {7})


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


@pytest.mark.parametrize(
    ("n_output", "outcome_then", "kept", "written"),
    [(2, "off", 0, 0), (3, "length", 0, 0), (9, "length", 6, 0), (13, "length", 8, 2), (14, "exit", 8, 2)],
)
def test_a_report_is_of_what_the_client_gets_to_the_token(n_output, outcome_then, kept, written):
    """Thinking of 3 tokens of output on, cut at 8 thinking tokens, 2 written behind them; the worker has seen all."""
    record = outcome.Record(OVER, 10, start=3, exited=1, judged=0, on=1, signals=SIGNALS, kept=8)
    report = record.describe(n_output, cut_off=True)
    assert (report["outcome"], report["thinking_tokens"]) == (outcome_then, kept)
    assert report.get("transition_tokens", 0) == written
    shadow = record._replace(exited=0, would_exit=6)
    assert ("would_exit" in shadow.describe(n_output, cut_off=True)) == (n_output >= 3 + 6)


def test_a_signal_that_is_no_number_is_left_out():
    """JSON has no word for it, and a counter that has taken it in says nothing from then on."""
    signals = (0.1, float("nan"), float("nan"), 0.9)
    told = Engine().step({0: row(OVER, 40, exited=1, signals=signals)}, finished={0: "stop"})[0]
    assert told["signals"] == {"confidence": 0.1, "validity": 0.9}


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


def test_a_report_says_which_point_it_is_of_and_whether_that_is_certified():
    front = front_end(requests="any")
    for arguments, point in ((None, "default"), ({"specexit_validity": 0.5}, None)):
        engine = Engine()
        (state,) = engine.processor.request_states.values()
        admitted = front.operation.resolve(arguments)
        front.keep(state, kept_request(), admitted)
        (told,) = engine.step({0: row(THINKING, 20)})
        assert (told["point"], told["certified"]) == (point, False)


def labelled(engine, front):
    """Every choice of an engine runs under a point that is certified; returns their states."""
    setattr(engine.processor, KEY, front)
    states = list(engine.processor.request_states.values())
    for state in states:
        front.keep(state, kept_request(), front.operation.resolve(None)._replace(certified=True))
    return states


def test_a_report_of_exits_that_were_off_claims_no_point_and_no_certificate():
    """Here a grammar binds its thinking."""
    engine = Engine()
    labelled(engine, front_end())
    engine.step({0: row(THINKING, 20, on=0)})
    (told,) = engine.step({0: row(THINKING, 20, on=0)}, finished={0: "stop"})
    assert (told["outcome"], "point" in told, "certified" in told) == ("off", False, False)


@pytest.mark.parametrize(
    ("why", "thoughts", "certified"),
    [("exit", 30, True), ("cap", 109, True), ("cap", 110, False), ("interrupt", 30, False), ("loop", 30, False)],
)
def test_thinking_that_is_ended_where_no_calibration_ends_it_is_not_certified(why, thoughts, certified):
    """The maximum is 100 and the margin behind it 10: there thinking ends at any token."""
    engine, front = Engine(), front_end(thinking_margin=10)
    (state,) = labelled(engine, front)
    admitted = getattr(state, frontend.ADMITTED)
    policy = admitted.policy.model_copy(update={"max_thinking_tokens": 100})
    setattr(state, frontend.ADMITTED, admitted._replace(policy=policy))
    end = row(OVER, thoughts, exited=1 + outcome.ENDED.index(why))
    (told,) = engine.step({0: end}, finished={0: "stop"}, n_output=200)
    assert (told["outcome"], told["thinking_tokens"], told["certified"]) == (why, thoughts, certified)


def test_a_request_that_thinks_when_exits_fail_ends_as_one_without_and_is_not_audited():
    """Its answer used to be counted as thinking, its end as a certified one by itself, and its audit as `no_exit`."""
    engine, front = Engine(n=2), front_end(audit_rate=1.0)
    front.audit = Audit(lambda *asked: None, lambda ids: "", ThinkTokens(START, START + 1, frozenset()), 200)
    labelled(engine, front)
    engine.step({0: row(THINKING, 20, would_exit=10.0), 1: row(OVER, 30, exited=1)})
    (_, told) = engine.step({}, inactive="injected", running=(0, 1))
    assert [choice["outcome"] for choice in told["choices"]] == ["off", "answering"]
    (_, told) = engine.step({}, inactive="injected", running=(0, 1), finished={0: "stop", 1: "stop"})
    assert told["choices"][0] == {"outcome": "off", "thinking_tokens": 0, "signals": {}}
    over = {"outcome": "exit", "thinking_tokens": 30, "signals": NAMED, "point": "default", "certified": True}
    assert told["choices"][1] == over  # it was over before
    assert front.summary()["requests"] == {"off": 1, "exit": 1}
    assert front.summary()["traffic"]["thinking_tokens"]["requests"] == 0
    assert front.audit.results == {"unfinished": 1}  # the exit, which audited requests do not make


@pytest.mark.parametrize("kind", ["failed", "misfit"])
@pytest.mark.parametrize("ends", [{"finished": {0: "stop"}}, {"stopped": [0]}], ids=str)
def test_requests_of_a_server_that_has_lost_its_exits_are_counted_as_off(kind, ends):
    """No worker tells of them, and they used to be counted nowhere: an alert on requests without exits never came."""
    engine, front = Engine(), front_end()
    labelled(engine, front)
    front.activity.fail(kind, "injected")
    (told,) = engine.step({}, running=[0], **ends)
    assert told == {"outcome": "off", "thinking_tokens": 0, "signals": {}}
    assert getattr(engine.stats, KEY) == [told]
    assert front.summary()["requests"] == {"off": 1}


def test_exits_of_weights_that_were_replaced_are_uncertified_until_a_restart(caplog):
    """Another draft's exits used to be called certified, and a server that requires certified ones to be ready."""
    served = operation(required=True)
    front = server.FrontEnd(served, Activity())

    def come_and_go(replaced):
        engine = Engine()
        engine.reporter.replaced = replaced
        setattr(engine.processor, KEY, front)
        (state,) = engine.processor.request_states.values()
        front.keep(state, kept_request(), served.resolve(None))
        (told,) = engine.step({0: row(OVER, 30, exited=1)}, finished={0: "stop"})
        return told["certified"], front.summary()["certified"], front.problem() is None

    assert come_and_go(False) == (True, True, True)
    assert [come_and_go(True) for _ in range(2)] == [(False, False, False)] * 2
    served.load(PolicyFile.model_validate({"points": POINTS, "default": "careful"}), served.serving)
    assert come_and_go(False) == (False, False, False)
    assert front.summary()["uncertified_because"] == ["the draft's weights are not those that the server started with"]
    assert caplog.text.count("served uncertified") == 1
