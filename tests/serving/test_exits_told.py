"""Interrupts on their way to a worker, and what an engine core tells of its requests. No engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.serving.ends import core_output, core_outputs
from tests.serving.simulation import END, START, given_step
from tests.serving.stand_ins import stand_in
from tests.serving.worker import alone, new, ready, scheduled, text_of, worker_with  # noqa: F401, a fixture for all
from torch_specexit.plugin import outcome
from torch_specexit.plugin.frontend.callers import response_of
from torch_specexit.plugin.protocols import SamplingParams, SchedulerRequest
from torch_specexit.plugin.worker import interrupt
from torch_specexit.plugin.worker import requests as module
from torch_specexit.plugin.worker.rule import INTERRUPT, STATE

pytestmark = pytest.mark.vllm


def interruptible(name: str, caller: str | None, response: str = "chat", **params: Any) -> Any:
    told = {"caller": caller, "response": response}
    return new(name, extra_args={"specexit": False, interrupt.RESOLVED: told}, **params)


@pytest.mark.parametrize(("now", "expected"), [(True, [[5], [END], [2], [5]]), (False, [[5], [5], [2], [END]])])
def test_a_client_ends_the_thinking_of_its_own_request_though_exits_are_off(monkeypatch, now, expected):
    monkeypatch.setattr(
        module,
        "request_policy_or_default",
        lambda *_: SimpleNamespace(mode_under=lambda _: "off", splits=None),
    )
    exits = ready()
    exits.track(scheduled(interruptible("chat-0123abcd", "me")))
    steps = [given_step(["chat-0123abcd"], [[token]], at=[at]) for at, token in enumerate([5, 5, 2, 5])]
    text = text_of(exits, steps[0])
    worker = worker_with(exits)
    assert not interrupt.end_thinking(worker, "chat", "somebody else", now)
    assert not interrupt.end_thinking(worker, "cha", "me", now)
    assert interrupt.end_thinking(worker, "chat", "me", now)
    text += text_of(exits, *steps[1:])
    assert text == expected
    assert not interrupt.end_thinking(worker, "chat", "me", now)  # it thinks no more
    row = dict(zip(STATE, exits.slots.tables.state[0].tolist(), strict=True))
    assert (row["exited"], row["on"]) == (INTERRUPT, 1)


@pytest.mark.parametrize(
    ("asked", "ended"),
    [
        ("chatcmpl", []),  # used to end them all, where clients number their requests
        ("chatcmpl-1", ["chatcmpl-1-0123abcd"]),
        ("chatcmpl-10", ["0_chatcmpl-10-0123abcd", "1_chatcmpl-10-0123abcd"]),  # two samples
        ("cmpl-job", ["cmpl-job-0-0123abcd", "cmpl-job-1-0123abcd"]),  # two prompts
        ("cmpl-job-1", ["cmpl-job-1-0-0123abcd"]),  # another request, not the second prompt of that one
        ("cmpl-job-1-0", []),
        ("", []),
    ],
)
def test_an_interrupt_ends_the_requests_of_exactly_one_response(monkeypatch, asked, ended):
    monkeypatch.setattr(
        module,
        "request_policy_or_default",
        lambda *_: SimpleNamespace(mode_under=lambda _: "off", splits=None),
    )
    exits, interrupted = ready(), []
    monkeypatch.setattr(exits.slots, "interrupt", lambda name, now: interrupted.append(name))
    requests = {
        f"{sample}{external}-0123abcd": response_of(external)
        for sample, external in (
            ("", "chatcmpl-1"),
            ("", "chatcmpl-1-0"),
            ("0_", "chatcmpl-10"),
            ("1_", "chatcmpl-10"),
            ("", "cmpl-job-0"),
            ("", "cmpl-job-1"),
            ("", "cmpl-job-1-0"),
        )
    }
    for name, response in requests.items():
        exits.track(scheduled(interruptible(name, "me", response)))
        exits.step(given_step([name], [[5]]))
    assert exits.end_thinking(asked, "me", now=True) == bool(ended)
    assert interrupted == ended


def test_a_request_whose_grammar_binds_its_thinking_cannot_be_interrupted():
    exits = ready(reasoning_parser="")
    exits.track(scheduled(interruptible("a-0123abcd", None, "a", structured_outputs=object())))
    exits.step(given_step(["a-0123abcd"], [[5]]))
    assert not exits.end_thinking("a", None, now=True)


def test_a_request_whose_prompt_is_continued_is_what_it_asks_for_now():
    """vLLM takes other parameters with each piece of a streamed prompt, under the same id."""
    exits = ready(reasoning_parser="")
    exits.track(scheduled(interruptible("a-0123abcd", None, "a", num_logprobs=1)))
    exits.step(given_step(["a-0123abcd"], [[5]]))
    grammar = {"structured_outputs": object(), "prompt": [START, 5, START]}
    exits.track(scheduled(interruptible("a-0123abcd", None, "a", **grammar)))
    exits.step(given_step(["a-0123abcd"], [[5]], at=[2]))
    assert not exits.end_thinking("a", None, now=True)
    assert not exits.requests.logprobs


def request(num_output_tokens: int) -> Any:
    """The scheduler's."""
    params = stand_in(SamplingParams, stop=[], extra_args=None)
    return stand_in(SchedulerRequest, sampling_params=params, num_output_tokens=num_output_tokens)


def test_the_engine_core_looks_at_requests_of_which_there_is_news_and_forgets_those_that_are_gone():
    requests = {f"r{i}": request(num_output_tokens=4) for i in range(200)}
    reporter, row = outcome.Reporter(), [float(value) for value in (1, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0)]
    reporter.take({name: row for name in requests}, requests)
    step = {0: core_outputs([core_output("r0"), core_output("r1", "stop"), core_output("r2")])}
    reporter.report({"r0": row}, step, None)
    reports = [(o.kv_transfer_params or {}).get(outcome.KEY, {}).get("outcome") for o in step[0].outputs]
    assert reports == ["thinking", "natural_end", None]
    assert "r1" not in reporter.requests
    reporter.take({}, {"r0": requests["r0"]})  # all others were aborted
    assert list(reporter.requests) == ["r0"]


def test_what_was_told_of_an_exit_stands_where_nothing_is_known_of_the_request_any_more():
    """Such as while the draft's weights are replaced, and behind that."""
    running = request(num_output_tokens=6)
    reporter, unknown = outcome.Reporter(), [0.0] * 11
    exited = [float(value) for value in (2, 3, 0, 1, 1, 1, 0, 0, 0, 0, 0)]
    reporter.take({"r": exited}, {"r": running})
    reporter.take({"r": unknown}, {"r": running})
    step = {0: core_outputs([core_output("r", "stop")])}
    reporter.report({"r": unknown}, step, None)
    assert step[0].outputs[0].kv_transfer_params[outcome.KEY]["outcome"] == "exit"


def test_why_the_draft_is_not_whole_goes_with_every_output_and_each_client_hears_when_it_is_again():
    reporter = outcome.Reporter()

    def said(clients: list[int], awaiting: str | None) -> dict[int, Any]:
        step = {i: core_outputs([core_output(f"r{i}")]) for i in clients}
        reporter.report({}, step, None, awaiting)
        return {i: client.outputs[0].kv_transfer_params for i, client in step.items()}

    assert said([0, 1], "asleep") == {i: {outcome.AWAITING_KEY: "asleep"} for i in (0, 1)}
    assert said([0], None) == {0: {outcome.AWAITING_KEY: None}}
    assert said([0, 1], None) == {0: None, 1: {outcome.AWAITING_KEY: None}}
    assert said([0, 1], None) == {0: None, 1: None}


def test_why_exits_have_failed_goes_with_every_output():
    step = {0: core_outputs([core_output("r0")])}
    outcome.Reporter().report({}, step, "no such kernel")
    assert step[0].outputs[0].kv_transfer_params == {outcome.INACTIVE_KEY: "no such kernel"}
