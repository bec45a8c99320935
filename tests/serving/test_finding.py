"""Who finds the report on a request by its id, and whose a request is: callers choose ids, maybe the same ones."""

from __future__ import annotations

import asyncio

import pytest

from tests.serving.ends import (
    NAMED,
    Engine,
    admitted_state,
    front_end,
    incoming,
    kept_request,
    processor_of,
    row,
)
from torch_specexit.plugin.frontend import finished as remembered
from torch_specexit.plugin.frontend.arguments import RESOLVED
from torch_specexit.plugin.frontend.callers import BATCH, MOST_ID, MarkCallers, caller
from torch_specexit.plugin.frontend.inner import inner
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.worker.rule import OVER, THINKING


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


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        ("cmpl-c1", ["cmpl-c1-0"]),
        ("cmpl-c1", [f"cmpl-c1-{i}" for i in range(11)]),
        ("resp_7", ["resp_7_0"]),
        ("resp_7", ["resp_7_0", "resp_7_1"]),  # two turns
    ],
)
def test_a_response_is_found_by_its_id_with_all_its_parts_in_their_order(response, parts):
    """Its client knows no other; a completion, or an answer to /v1/responses, used to be found by its parts' alone."""
    front, engines = front_end(), {name: Engine(external=name) for name in parts}
    processor = processor_of(front)
    for engine in reversed(engines.values()):
        processor.request_states |= engine.processor.request_states
        processor.external_req_ids |= engine.processor.external_req_ids
        front.keep(*engine.processor.request_states.values(), kept_request(), front.operation.resolve(None))
    assert front.find(processor, response) == {
        "request_id": response,
        "finished": False,
        "choices": [None] * len(parts),
    }
    for i, (name, engine) in enumerate(engines.items()):
        assert not front.find(processor, response)["finished"]
        setattr(engine.processor, KEY, front)
        engine.step({0: row(OVER, 10 + i)}, finished={0: "stop"})
        del processor.external_req_ids[name]
    found = front.find(processor, response)
    assert (found["request_id"], found["finished"]) == (response, True)
    assert [choice["thinking_tokens"] for choice in found["choices"]] == [10 + i for i in range(len(parts))]
    assert front.find(processor, parts[-1])["choices"] == found["choices"][-1:]


def test_who_asks_for_one_request_goes_through_no_others():
    front, engine = front_end(), Engine(external="cmpl-1-0")
    processor, looked_up = engine.processor, []
    front.keep(*processor.request_states.values(), kept_request(), front.operation.resolve(None))

    class Ids(dict):
        def get(self, key, default=None):
            looked_up.append(key)
            return super().get(key, default)

        def __iter__(self):
            raise AssertionError("all requests were looked at")

        items = keys = values = __iter__

    processor.external_req_ids = Ids({f"cmpl-{i}-0": [] for i in range(500)} | dict(processor.external_req_ids))
    assert front.find(processor, "cmpl-1")["choices"] == [None]
    assert 0 < len(looked_up) <= 3


class Completion:
    """A completion of several prompts, each of which vLLM makes a request of."""

    def __init__(self, n, choices=1):
        self.front, self.choices, self.engines = front_end(), choices, {}
        self.processor = processor_of(self.front)
        for i in range(n):
            self.begin(i)

    def begin(self, i):
        engine = self.engines[i] = Engine(n=self.choices, external=f"cmpl-c-{i}")
        setattr(engine.processor, KEY, self.front)
        for choice, state in enumerate(engine.processor.request_states.values()):
            self.front.keep(state, kept_request(), self.front.operation.resolve(None, choice=choice))
        self.processor.request_states |= engine.processor.request_states
        self.processor.external_req_ids |= engine.processor.external_req_ids

    def end(self, i, thoughts):
        choices = range(len(self.engines[i].requests))
        names = list(self.engines[i].processor.request_states)
        self.engines[i].step(
            {choice: row(OVER, thoughts) for choice in choices}, finished=dict.fromkeys(choices, "stop")
        )
        for name in names:
            del self.processor.request_states[name]
        del self.processor.external_req_ids[f"cmpl-c-{i}"]

    def found(self):
        found = self.front.find(self.processor, "cmpl-c")
        return found and (found["finished"], [choice and choice["thinking_tokens"] for choice in found["choices"]])


def test_all_parts_are_found_in_whatever_order_they_end():
    """Where the second of four prompts was the first to end, the last two were missing, and then it was `finished`."""
    completion = Completion(4)
    told = [None] * 4
    for i in (1, 3, 2):
        completion.end(i, i)
        told[i] = i
        assert completion.found() == (False, told)
    completion.end(0, 9)
    assert completion.found() == (True, [9, 1, 2, 3])


@pytest.mark.parametrize("choices", [1, 2])
def test_a_response_that_runs_is_found_however_many_others_have_ended(choices, monkeypatch):
    """Its own parts that had ended were forgotten, and by their number its running one was looked for: it was called
    finished, then unknown."""
    monkeypatch.setattr(remembered, "MOST_FINISHED", 2)
    completion = Completion(3, choices)
    for i in (0, 1):
        completion.end(i, 5)
    for i in range(2):
        completion.front.finish(admitted_state(f"chatcmpl-{i}"), {"outcome": "exit"})
        reports = [5 if i == 0 and part == 1 else None for part in range(3) for _ in range(choices)]
        assert completion.found() == (False, reports)
    completion.end(2, 7)
    assert completion.found() == (True, [7] * choices)


@pytest.mark.parametrize("choices", [1, 2])
def test_a_response_under_an_id_that_was_given_before_has_no_part_of_the_earlier_one(choices):
    """Counters are common as X-Request-Id, and begin anew: a completion of one prompt showed what had become of the
    second and third prompt of another."""
    completion = Completion(3, choices)
    for i in range(3):
        completion.end(i, 5 + i)
    completion.begin(0)
    assert completion.found() == (False, [None] * choices)
    completion.end(0, 9)
    assert completion.found() == (True, [9] * choices)


def test_a_response_has_no_part_of_an_earlier_one_of_its_id_of_which_a_part_was_dropped():
    """Its client had gone, so its first prompt had no last output; asked once more with that prompt alone, the id
    showed the earlier second one as well."""
    completion = Completion(2)
    completion.end(1, 6)
    del completion.engines[0]
    completion.processor.request_states.clear()
    completion.processor.external_req_ids.clear()
    assert completion.found() == (True, [6])
    completion.begin(0)
    assert completion.found() == (False, [None])


def test_a_second_turn_forgets_no_first_one():
    front = front_end()
    for external in ("resp_7_0", "resp_7_1"):
        engine = Engine(external=external)
        setattr(engine.processor, KEY, front)
        front.keep(*engine.processor.request_states.values(), kept_request(), front.operation.resolve(None))
        engine.step({0: row(OVER, 10)}, finished={0: "stop"})
    assert len(front.find(engine.processor, "resp_7")["choices"]) == 2


def test_nothing_is_kept_of_a_response_that_vllm_has_dropped():
    """Of an aborted request there is no last output."""
    completion = Completion(2)
    completion.engines.clear()
    completion.processor.request_states.clear()
    completion.processor.external_req_ids.clear()
    assert completion.found() is None
    assert not completion.front._running._of


def test_an_id_is_first_of_all_that_of_a_response():
    front = front_end()
    for external, thoughts in (("cmpl-a-0", 10), ("cmpl-a-0-0", 20)):
        engine = Engine(external=external)
        setattr(engine.processor, KEY, front)
        engine.step({0: row(OVER, thoughts)}, finished={0: "stop"})
    found = {asked: front.find(engine.processor, asked)["choices"] for asked in ("cmpl-a", "cmpl-a-0", "cmpl-a-0-0")}
    assert [choices[0]["thinking_tokens"] for choices in found.values()] == [10, 20, 20]


@pytest.mark.parametrize(
    ("path", "response"), [(BATCH, "chatcmpl-B1"), ("/root" + BATCH, "chatcmpl-B1"), (BATCH[:-6], "chatcmpl-B1_0")]
)
def test_conversations_of_a_batch_are_parts_of_its_response(path, response):
    """Only the path says that they are; another chat may have such an id as its own."""
    front, engine, request = front_end(), Engine(external="chatcmpl-B1_0"), incoming("chatcmpl-B1_0")
    (state,) = engine.processor.request_states.values()
    token = caller.set(None)  # the middleware's own go with its context

    async def app(scope, receive, send):
        front.keep(state, request, front.admit(request))
        assert front.find(engine.processor, response) is not None

    asyncio.run(MarkCallers(app)({"type": "http", "path": path}, None, None))
    caller.reset(token)
    assert request.sampling_params.extra_args[RESOLVED]["response"] == response
    front.finish(state, {"outcome": "exit"})
    assert front.find(processor_of(), response)["finished"]


def test_a_request_behind_another_on_one_connection_is_not_taken_for_an_audit():
    """As that other one may have begun one, in the context that both share."""
    seen = []

    async def app(scope, receive, send):
        seen.append(inner.get())

    async def answer():
        inner.set(True)
        await MarkCallers(app)({"type": "http", "path": BATCH}, None, None)

    asyncio.run(answer())
    assert seen == [False]


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
    front.keep(state, kept_request(), ours)
    for finished in ({}, {0: "stop"}):
        engine.step({0: row(OVER, 50)}, finished=finished)
        for asking, found in (("ours", True), ("another", False), (None, False)):
            token = caller.set(asking)
            assert (front.find(engine.processor, "chatcmpl-1") is not None) is found
            caller.reset(token)


def test_two_callers_may_choose_one_id_and_each_finds_its_own():
    """Counters are common as X-Request-Id. One of two used to get a 404 for its own request."""
    front, engines = front_end(), {name: Engine(external="chatcmpl-5") for name in ("ours", "theirs")}
    processor = processor_of(front, external_req_ids={"chatcmpl-5": list(engines)})
    for name, engine in engines.items():
        (state,) = engine.processor.request_states.values()
        processor.request_states[name] = state
        front.keep(state, kept_request(), front.operation.resolve(None, caller=name))
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


def test_only_so_many_finished_requests_are_remembered(monkeypatch):
    monkeypatch.setattr(remembered, "MOST_FINISHED", 3)
    front = front_end()
    for i in range(5):
        engine = Engine(external=f"chatcmpl-{i}x")
        setattr(engine.processor, KEY, front)
        engine.step({0: row(OVER, 50)}, finished={0: "stop"})
    nobody = processor_of()
    assert [front.find(nobody, f"chatcmpl-{i}x") is not None for i in range(5)] == [False, False, True, True, True]


def test_nothing_is_remembered_of_a_request_whose_id_is_too_long_to_be_asked_for():
    """Ids of megabytes, which clients may send, were kept with 1,024 requests: gigabytes of the server's memory."""
    latest, longest = remembered.Finished(), "chatcmpl-" + "x" * (MOST_ID - 9)
    for response in (longest, longest + "x"):
        latest.add("ours", response, response, [None])
    assert latest.one("ours", longest) == {longest: [None]}
    assert latest.of("ours", longest + "x") == {}


def test_a_caller_who_asks_for_much_pushes_out_no_report_of_anothers(monkeypatch):
    """The latest 1,024 used to be remembered, whoever had sent them."""
    monkeypatch.setattr(remembered, "MOST_FINISHED", 3)
    latest = remembered.Finished()
    latest.add("quiet", "chatcmpl-1", "chatcmpl-1", [None])
    for i in range(20):
        latest.add("loud", f"chatcmpl-{i}", f"chatcmpl-{i}", [None])
    assert latest.of("quiet", "chatcmpl-1") == latest.one("quiet", "chatcmpl-1") == {"chatcmpl-1": [None]}
    assert [i for i in range(20) if latest.of("loud", f"chatcmpl-{i}")] == [18, 19]
