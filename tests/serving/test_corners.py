"""Corners that real traffic gets into, each on a real engine: with an exit the request must stay what vLLM promises."""

from __future__ import annotations

import re
from typing import Any

import pytest

from specexit.schemas.target import TargetConfig

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def end(target: TargetConfig) -> int:
    return target.think_tokens().end


def ids(result: dict[str, Any]) -> list[int]:
    return result["ids"][0]


def test_prompt_logprobs_are_those_of_a_request_without_exits(corner):
    exiting, plain = corner["prompt_logprobs"]
    for one, other in zip(exiting, plain, strict=True):
        assert one["outcome"]["outcome"] == "exit"
        # The same prompt, alone or behind a cached prefix: float32 in another order.
        assert one["prompt_logprobs"][1:] == pytest.approx(other["prompt_logprobs"][1:], abs=1e-3)


def test_each_of_several_samples_exits_by_itself(corner, target, end):
    split = target.think_tokens().split
    assert all(len(result["ids"]) == 3 for result in corner["several_samples"])
    samples = [sample for result in corner["several_samples"] for sample in result["ids"]]
    firsts = [next((i for i, token in enumerate(sample) if token in (*split, end)), None) for sample in samples]
    # A sample that closes its thinking before its first boundary, or loses its way, has nothing to exit from.
    exits = [(sample, i) for sample, i in zip(samples, firsts, strict=True) if i is not None and sample[i] != end]
    assert len(exits) >= 2 / 3 * len(samples)
    assert all(sample[i + 1] == end for sample, i in exits)


def test_a_token_limit_around_the_exit(corner):
    at, limits = corner["token_limits"]["boundary"], corner["token_limits"]["limits"]
    whole = ids(corner["exit_now"][0])
    for n, result in limits.items():
        assert ids(result) == whole[: at + int(n)]
        assert result["finish"] == ["length"]
    # Between the split token and the marker the thinking was cut off by the limit; with the marker it was an exit.
    assert [limits[n]["outcome"]["outcome"] for n in ("-1", "0", "1", "2")] == ["length", "length", "exit", "exit"]
    assert [limits[n]["outcome"]["thinking_tokens"] for n in ("-1", "0", "1", "2")] == [at - 1, at, at, at]


@pytest.mark.parametrize("name", ["stop_token", "stop_string"])
def test_stops_behind_an_exit_are_found(corner, name):
    for result, whole in zip(corner[name], corner["exit_now"], strict=False):
        assert result["finish"] == ["stop"]
        assert result["outcome"]["outcome"] == "exit"
        # All of the text before the stop; the token of a stop string may be cut in its middle.
        assert whole["texts"][0].startswith(result["texts"][0])
        assert len(result["texts"][0]) < len(whole["texts"][0])


def test_at_most_one_exit_a_request(corner, target, end):
    split = target.think_tokens().split
    for result in corner["ignore_eos"]:
        assert len(ids(result)) == 120
        assert result["outcome"]["outcome"] == "exit"
        kept = result["outcome"]["thinking_tokens"]
        assert [i for i, token in enumerate(ids(result)) if token == end] == [kept]  # the target writes none of its own
        assert split.intersection(ids(result)[kept + 1 : -1])  # where there could be another


def test_thinking_that_is_over_or_never_began_is_left_alone(corner, end):
    for result in corner["thinking_closed"] + corner["thinking_never_opened"]:
        assert (result["outcome"]["outcome"], result["outcome"]["thinking_tokens"]) == ("off", 0)
        assert end not in ids(result)


def test_a_second_turn_thinks_and_exits_like_a_first(corner, target, end):
    exiting, plain = corner["second_turn"]
    split = target.think_tokens().split
    first = next(i for i, token in enumerate(ids(plain)) if token in split)
    assert exiting["outcome"]["outcome"] == "exit"
    assert ids(exiting)[: first + 2] == [*ids(plain)[: first + 1], end]


def test_a_grammar_binds_the_answer_and_nothing_before_it(corner):
    pattern, exiting, natural = corner["structured_answer"]
    for result, unbound in zip(exiting, corner["exit_now"], strict=False):
        kept = result["outcome"]["thinking_tokens"]
        assert result["outcome"]["outcome"] == "exit"
        assert ids(result)[: kept + 1] == ids(unbound)[: kept + 1]
        assert re.fullmatch(pattern, result["texts"][0].split("</think>")[1])
    for result in natural:
        assert re.fullmatch(pattern, result["texts"][0].split("</think>")[1])


def test_the_engines_own_thinking_budget_goes_on_working(corner, end):
    later, sooner = corner["thinking_budget"]["later"], corner["thinking_budget"]["sooner"]
    assert ids(later) == ids(corner["exit_now"][0])
    assert sooner["outcome"]["outcome"] == "natural_end"
    assert ids(sooner).count(end) == 1
    assert ids(sooner).index(end) < ids(later).index(end)


def test_a_cached_prefix_changes_nothing(corner):
    first, second = corner["prefix_cached"]
    assert {tuple(ids(r)) for r in first + second} == {tuple(ids(corner["second_turn"][0]))}
    assert all(result["cached"] > 0 for result in second)


def test_aborted_requests_leave_no_trace_and_their_ids_can_be_used_again(corner):
    aborted, done, whole = (corner["aborted"][key] for key in ("aborted", "done", "whole"))
    assert len(aborted) >= 3
    for name, result in done.items():
        prompt = (int(name[1:]) + 1) % len(whole) if name in aborted else int(name[1:])
        assert ids(result) == ids(whole[prompt])
        found, expected = result["outcome"], whole[prompt]["outcome"]
        # Another batch: float32 in another order.
        assert found.pop("signals") == pytest.approx(expected["signals"], abs=1e-4)
        assert found == {key: value for key, value in expected.items() if key != "signals"}
    assert len(done) == len(whole)
    assert any(result["outcome"]["outcome"] == "exit" for result in done.values())


def test_no_state_is_left(corner):
    assert corner["slots"] <= 1
