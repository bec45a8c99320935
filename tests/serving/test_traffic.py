"""A server sees when its requests are not the calibration's, and does not cry wolf."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import TRAFFIC_LEVELS, PolicyFile, Population, Serving, Traffic
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.own_end import BY_ITSELF
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.frontend.traffic import EVERY, LEAST, TrafficWatch


def lengths(rng, n, mean):
    return rng.lognormal(np.log(mean), 0.7, n).astype(int)


def policies(seed=0):
    """A file that was calibrated on 800 prompts of about 300 tokens, thought about for 2,000."""
    rng = np.random.default_rng(seed)
    quantiles = {
        name: tuple(np.quantile(lengths(rng, 800, mean), TRAFFIC_LEVELS).tolist())
        for name, mean in (("prompt_tokens", 300), ("thinking_tokens", 2000))
    }
    rest = {"boundaries": (0.0,) * 7, "validity": (0.0,) * 7, "split_tokens": {}}
    return PolicyFile(traffic=Traffic(**quantiles, **rest), population=Population(prompts=800, traces=800))


def operation(file):
    return Operation(SpecExitBlock(target="t"), file, Serving())


def test_traffic_like_the_calibrations_is_left_alone(caplog):
    watch, rng = TrafficWatch(operation(policies())), np.random.default_rng(1)
    with caplog.at_level(logging.WARNING, "vllm.specexit"):
        for tokens in lengths(rng, 3000, 300).tolist():
            watch.add("prompt_tokens", tokens)
            assert not watch.moved["prompt_tokens"]
    assert 0 < watch.distance["prompt_tokens"] < 0.1
    assert not caplog.records


def test_longer_prompts_are_seen_once_and_said_once_and_it_ends_when_they_do(caplog):
    watch, rng = TrafficWatch(operation(policies())), np.random.default_rng(1)
    with caplog.at_level(logging.WARNING, "vllm.specexit"):
        for tokens in lengths(rng, 600, 900).tolist():
            watch.add("prompt_tokens", tokens)
    assert watch.moved == {"prompt_tokens": True, "thinking_tokens": False}
    assert watch.distance["prompt_tokens"] > 0.5
    (record,) = caplog.records
    assert "prompt_tokens of the last 100 requests are not those of the calibration" in record.getMessage()
    for tokens in lengths(rng, 1000, 300).tolist():
        watch.add("prompt_tokens", tokens)
    assert not watch.moved["prompt_tokens"]


def test_nothing_is_said_of_a_few_requests_or_without_statistics():
    watch = TrafficWatch(operation(policies()))
    for _ in range(LEAST - 1):
        watch.add("prompt_tokens", 10**6)
    assert watch.distance["prompt_tokens"] == 0
    watch = TrafficWatch(operation(PolicyFile()))
    for _ in range(LEAST + EVERY):
        watch.add("prompt_tokens", 10**6)
    assert watch.summary()["prompt_tokens"] == {"requests": LEAST + EVERY, "distance": 0.0, "moved": False}


def test_a_new_policy_file_begins_anew():
    served = operation(policies())
    watch = TrafficWatch(served)
    for _ in range(LEAST):
        watch.add("prompt_tokens", 10**6)
    assert watch.moved["prompt_tokens"]
    served.load(policies(seed=5), Serving())
    watch.add("prompt_tokens", 10**6)
    assert watch.summary()["prompt_tokens"] == {"requests": 1, "distance": 0.0, "moved": False}


@pytest.mark.parametrize(
    ("mode", "outcome", "by_itself", "counted"),
    [
        ("shadow", "natural_end", True, 1),
        ("shadow", "natural_end", False, 0),  # a stop string, in the midst of it
        ("shadow", "length", False, 0),
        ("exit", "natural_end", True, 0),
        ("exit", "exit", True, 0),
    ],
)
def test_whole_thinking_is_what_nothing_could_have_cut(mode, outcome, by_itself, counted):
    front = FrontEnd(operation(policies()), Activity())
    front.operation.switch(mode)
    admitted = front.operation.resolve(None, "r")
    state = SimpleNamespace(external_req_id="r", parent_req=None, request_index=0, **{BY_ITSELF: by_itself})
    request = SimpleNamespace(external_req_id="r", prompt_token_ids=[1] * 7, cache_salt=None, priority=0)
    front.keep(state, request, admitted)
    front.finish(state, {"outcome": outcome, "thinking_tokens": 50, "signals": {}})
    found = front.summary()["traffic"]
    assert {feature: seen["requests"] for feature, seen in found.items()} == {
        "prompt_tokens": 1,
        "thinking_tokens": counted,
    }


def test_an_audits_own_request_is_none_of_the_traffic():
    front = FrontEnd(operation(policies()), Activity())
    request = SimpleNamespace(external_req_id="r", prompt_token_ids=[1] * 7, cache_salt=None, priority=0)
    front.keep(SimpleNamespace(), request, front.operation.resolve(None, "r")._replace(counted=False))
    embeds = SimpleNamespace(external_req_id="r", prompt_token_ids=None, cache_salt=None, priority=0)
    front.keep(SimpleNamespace(), embeds, front.operation.resolve(None, "r"))
    assert front.summary()["traffic"]["prompt_tokens"]["requests"] == 0
