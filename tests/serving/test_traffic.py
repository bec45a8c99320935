"""A server sees when its requests are not the calibration's, and does not cry wolf."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest

from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import TRAFFIC_LEVELS, PolicyFile, Population, Serving, Traffic
from specexit.method.splits import ThinkTokens
from tests.serving.ends import admitted_state, kept_request
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.own_end import BY_ITSELF
from torch_specexit.plugin.frontend.protocols import Detokenizer
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.frontend.traffic import EVERY, LEAST, TrafficWatch


def lengths(rng, n, mean):
    return rng.lognormal(np.log(mean), 0.7, n).astype(int)


def policies(seed=0):
    """A file that was calibrated on 800 prompts of about 300 tokens, thought about for 2,000."""
    rng = np.random.default_rng(seed)
    quantiles = {
        name: tuple(np.quantile(lengths(rng, 800, mean), TRAFFIC_LEVELS).tolist())
        for name, mean in (("prompt_tokens", 300), ("thinking_tokens", 2000), ("boundaries", 40))
    }
    splits = [Counter(thinking) for thinking in thoughts(rng, 800)]
    means = {token: np.mean([n[token] / n.total() for n in splits]) for token in (BREAK, WAIT, BUT)}
    shares = {str(token): round(float(share), 6) for token, share in means.items()}
    return PolicyFile(traffic=Traffic(**quantiles, split_shares=shares), population=Population(prompts=800, traces=800))


BREAK, WAIT, BUT, NEW = 271, 14190, 3983, 99


def thoughts(rng, n, wait=0.3):
    """Split tokens of thinking: how much of it is ``Wait`` differs from request to request, as it does in earnest."""
    for size in lengths(rng, n, 40) + 1:
        share = rng.beta(4 * wait, 4 * (1 - wait - 0.1))
        yield rng.choice([BREAK, WAIT, BUT], size, p=[0.9 * (1 - share), share, 0.1 * (1 - share)]).tolist()


def operation(file):
    return Operation(SpecExitBlock(target="t"), file, Serving())


def test_traffic_like_the_calibrations_is_left_alone(caplog):
    watch, rng = TrafficWatch(operation(policies())), np.random.default_rng(1)
    with caplog.at_level(logging.WARNING, "vllm.specexit"):
        for tokens in lengths(rng, 3000, 300).tolist():
            watch.add_prompt(tokens)
            assert not watch.moved["prompt_tokens"]
    assert 0 < watch.distance["prompt_tokens"] < 0.1
    assert not caplog.records


def test_longer_prompts_are_seen_once_and_said_once_and_it_ends_when_they_do(caplog):
    watch, rng = TrafficWatch(operation(policies())), np.random.default_rng(1)
    with caplog.at_level(logging.WARNING, "vllm.specexit"):
        for tokens in lengths(rng, 600, 900).tolist():
            watch.add_prompt(tokens)
    assert [feature for feature, moved in watch.moved.items() if moved] == ["prompt_tokens"]
    assert watch.distance["prompt_tokens"] > 0.5
    (record,) = caplog.records
    assert "prompt_tokens of the last 100 requests are not those of the calibration" in record.getMessage()
    for tokens in lengths(rng, 1000, 300).tolist():
        watch.add_prompt(tokens)
    assert not watch.moved["prompt_tokens"]


def test_the_same_way_of_thinking_is_left_alone_however_requests_differ():
    """Boundaries of one request are alike, so that they are fewer than they seem: of 15 servers, none cries wolf."""
    for seed in range(15):
        watch, rng = TrafficWatch(operation(policies(seed))), np.random.default_rng(1000 + seed)
        for thinking in thoughts(rng, 300):
            watch.add_thinking(2000, thinking)
            assert not watch.moved["split_tokens"]
            assert not watch.moved["boundaries"]
    assert 0 < watch.distance["split_tokens"] < 0.1


@pytest.mark.parametrize(
    ("thinking", "moved", "said"),
    [
        (lambda rng: thoughts(rng, 300, wait=0.6), ["split_tokens"], f"token {WAIT} at "),
        (lambda rng: (t * 4 for t in thoughts(rng, 300)), ["boundaries"], "boundaries of the last "),
        (
            lambda rng: ([*t, *[NEW] * len(t)] for t in thoughts(rng, 300)),
            ["boundaries", "split_tokens"],
            "tokens that no ",
        ),
    ],
    ids=["other words", "more steps", "words of no trace"],
)
def test_another_way_of_thinking_is_seen_whatever_its_length(thinking, moved, said, caplog):
    """Traffic that hedges at every step, or in steps of another size, used to look like the calibration's."""
    watch = TrafficWatch(operation(policies()))
    with caplog.at_level(logging.WARNING, "vllm.specexit"):
        for splits, tokens in zip(
            thinking(np.random.default_rng(1)), lengths(np.random.default_rng(2), 300, 2000), strict=True
        ):
            watch.add_thinking(int(tokens), splits)
    assert [feature for feature, is_moved in watch.moved.items() if is_moved] == moved
    assert any(said in record.getMessage() for record in caplog.records)


def test_a_long_request_counts_as_any_other():
    """One with forty thousand boundaries used to be taken for another way of thinking of all, or to hide one."""
    for wait, moved in ((0.3, False), (0.6, True)):
        watch, rng = TrafficWatch(operation(policies())), np.random.default_rng(1)
        for splits in [*thoughts(rng, 150, wait), [NEW] * 40_000, *thoughts(rng, 149, wait)]:
            watch.add_thinking(2000, splits)
            assert moved or not watch.moved["split_tokens"]
        assert watch.moved["split_tokens"] == moved


def test_thinking_without_a_boundary_is_left_out_as_a_calibration_does():
    watch = TrafficWatch(operation(policies()))
    watch.add_thinking(50, [])
    watch.add_thinking(50, None)  # without a tokenizer its length is all that is known
    assert [seen["requests"] for seen in watch.summary().values()] == [0, 1, 0, 0]


def test_an_older_file_with_quantiles_of_a_signal_is_read():
    stored = policies().model_dump(mode="json")
    stored["traffic"]["validity"] = [0.1] * 7
    assert PolicyFile.model_validate(stored) == policies()


def test_nothing_is_said_against_an_older_files_shares_of_all_boundaries_together():
    stored = policies().model_dump(mode="json")
    stored["traffic"]["split_tokens"] = stored["traffic"].pop("split_shares")
    watch = TrafficWatch(operation(PolicyFile.model_validate(stored)))
    for splits in thoughts(np.random.default_rng(1), LEAST, wait=0.6):
        watch.add_thinking(2000, splits)
    assert watch.summary()["split_tokens"] == {"requests": LEAST, "distance": 0.0, "moved": False}


def test_nothing_is_said_of_a_few_requests_or_without_statistics():
    watch = TrafficWatch(operation(policies()))
    for _ in range(LEAST - 1):
        watch.add_prompt(10**6)
    assert watch.distance["prompt_tokens"] == 0
    watch = TrafficWatch(operation(PolicyFile()))
    for _ in range(LEAST + EVERY):
        watch.add_prompt(10**6)
    assert watch.summary()["prompt_tokens"] == {"requests": LEAST + EVERY, "distance": 0.0, "moved": False}


def test_a_new_policy_file_begins_anew():
    served = operation(policies())
    watch = TrafficWatch(served)
    for _ in range(LEAST):
        watch.add_prompt(10**6)
    assert watch.moved["prompt_tokens"]
    served.load(policies(seed=5), Serving())
    watch.add_prompt(10**6)
    assert watch.summary()["prompt_tokens"] == {"requests": 1, "distance": 0.0, "moved": False}


def test_an_edit_that_is_no_new_calibration_empties_no_window():
    """Of a tenant, say, or an order by the route of one of several processes: an alert had ended with each."""
    served = operation(policies())
    watch = TrafficWatch(served)
    for _ in range(LEAST):
        watch.add_prompt(10**6)
    served.load(policies().model_copy(update={"serving": Serving(share=0.5)}), Serving(share=0.5))
    watch.add_prompt(10**6)
    assert watch.summary()["prompt_tokens"]["requests"] == LEAST + 1
    assert watch.moved["prompt_tokens"]
    served.load(policies(seed=5), Serving(share=0.5))
    watch.add_prompt(10**6)
    assert not watch.moved["prompt_tokens"]


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
    front = FrontEnd(operation(policies()), Activity(), tokens=ThinkTokens(1, 2, frozenset({BREAK})))
    front.operation.switch(mode)
    admitted = front.operation.resolve(None, "r")
    state = admitted_state("r")
    setattr(state, BY_ITSELF, by_itself)
    state.prompt_token_ids = [1] * 7
    state.detokenizer = stand_in(Detokenizer, output_token_ids=[7] * 40 + [BREAK] * 10 + [2, 1, BREAK])
    front.keep(state, kept_request(external_req_id="r", prompt_token_ids=[1] * 7), admitted)
    front.finish(state, {"outcome": outcome, "thinking_tokens": 50, "signals": {}})
    found = front.summary()["traffic"]
    assert {feature: seen["requests"] for feature, seen in found.items()} == {
        "prompt_tokens": 1,
        "thinking_tokens": counted,
        "boundaries": counted,
        "split_tokens": counted,
    }
    if counted:
        assert front.traffic._seen["split_tokens"][0] == {BREAK: 10}  # none of the answer, which opens one


def test_an_audits_own_request_is_none_of_the_traffic():
    front = FrontEnd(operation(policies()), Activity())
    request = kept_request(external_req_id="r", prompt_token_ids=[1] * 7)
    front.keep(admitted_state(), request, front.operation.resolve(None, "r")._replace(counted=False))
    embeds = kept_request(external_req_id="r", prompt_token_ids=None)
    front.keep(admitted_state(), embeds, front.operation.resolve(None, "r"))
    assert front.summary()["traffic"]["prompt_tokens"]["requests"] == 0
