"""What a request may ask for, and what it gets back."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from specexit.bench.methods import Marks, Problem, Trial, find_method
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Serving
from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin.frontend.arguments import (
    MOST_TOKENS,
    RESOLVED,
    ArgumentError,
    RequestPolicy,
    check,
    request_policy,
)
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.outcome import Record
from torch_specexit.plugin.protocols import DraftModelConfig, LoadConfig, SpeculativeConfig, VllmConfig
from torch_specexit.plugin.worker import asked
from torch_specexit.plugin.worker.asked import request_policy_or_default
from torch_specexit.plugin.worker.rule import BEFORE, OVER, THINKING, Admission

DEFAULT = Policy(thresholds={"validity": 0.9, "confidence": 0.2}, patience=2, max_thinking_tokens=900)
BLOCK = SpecExitBlock(target="some", policy=DEFAULT, split_endings=("\n\n", ".\n\n"), split_connectors=("Wait",))
ANY = Serving(requests="any")


def test_any_threshold_replaces_all_of_the_drafts_and_nothing_else():
    given = {"specexit_remaining": 50, "specexit_min_thinking_tokens": 7, "other": {}}
    expected = Policy(thresholds={"remaining": 50.0}, patience=2, min_thinking_tokens=7, max_thinking_tokens=900)
    assert request_policy(given, BLOCK).policy == expected
    assert request_policy(None, BLOCK) == RequestPolicy(DEFAULT)


def test_the_budget_of_a_benchmark_may_be_above_a_maximum_of_the_drafts():
    """The request was refused, which ended the engine, and all that was measured with it."""
    marks = Marks(start=1, end=2, split=frozenset({3}), max_new_tokens=9999, max_model_len=9999, decode=str)
    (asked,) = find_method("budget")(6000).respond(Problem("a", [1], Trial((), 9)), marks)
    expected = Policy(thresholds={"validity": 0.0}, min_thinking_tokens=6000, max_thinking_tokens=MOST_TOKENS)
    assert request_policy(asked.extra_args, BLOCK).policy == expected


def test_early_thresholds_are_the_drafts_own_and_never_ask_for_more_than_a_request_does():
    early = {"validity": 0.4, "remaining": 300.0}
    block = BLOCK.model_copy(update={"policy": DEFAULT.model_copy(update={"early": early})})
    for given, expected in (
        ({"specexit_patience": 1}, early),
        ({"specexit_validity": 0.95}, {"validity": 0.4}),
        ({"specexit_validity": 0.1, "specexit_remaining": 500.0}, {"validity": 0.1, "remaining": 500.0}),
        ({"specexit_confidence": 0.5}, {}),
    ):
        assert request_policy(given, block).policy.early == expected


def test_maximum_split_strings_and_shadow_mode_can_be_asked_for():
    given = {"specexit_max_thinking_tokens": 80, "specexit_splits": ["Wait", "\n\n"], "specexit_mode": "shadow"}
    policy = DEFAULT.model_copy(update={"max_thinking_tokens": 80})
    assert request_policy(given, BLOCK) == RequestPolicy(policy, ("Wait", "\n\n"), mode="shadow")


@pytest.mark.parametrize(
    ("given", "on_servers"),
    [
        ({}, {"exit": "exit", "shadow": "shadow", "off": "off"}),
        ({"specexit": True}, {"exit": "exit", "shadow": "shadow", "off": "off"}),
        ({"specexit": 0}, {"exit": "off", "shadow": "off", "off": "off"}),
        ({"specexit_mode": "exit"}, {"exit": "exit", "shadow": "exit", "off": "off"}),
        ({"specexit_mode": "shadow"}, {"exit": "shadow", "shadow": "shadow", "off": "off"}),
        ({"specexit": False, "specexit_mode": "exit"}, {"exit": "off", "shadow": "off", "off": "off"}),
    ],
    ids=str,
)
def test_what_a_request_says_goes_before_the_servers_mode_unless_that_is_off(given, on_servers):
    assert {server: request_policy(given, BLOCK).mode_under(server) for server in on_servers} == on_servers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"specexit_validity": 2}, "specexit_validity is 2"),
        ({"specexit_remaining": "few"}, "specexit_remaining is 'few'"),
        ({"specexit": "perhaps"}, "specexit is 'perhaps'"),
        ({"specexit_validiti": 0.5}, "unknown key 'specexit_validiti', expected one of specexit"),
        # A client that wrote one of these had its word passed over without a word.
        ({"specexit-validity": 0.99}, "unknown key 'specexit-validity', expected one of specexit"),
        ({"SpecExit_validity": 0.99}, "unknown key 'SpecExit_validity'"),
        ({"specexitvalidity": 0.99}, "unknown key 'specexitvalidity'"),
        ({"specexit_mode": "dark"}, "specexit_mode is 'dark'"),
        ({"specexit_splits": []}, "specexit_splits is \\[\\]"),
        ({"specexit_splits": ["Wait", "So"]}, "specexit_splits has 'So', expected some of the draft's: .*'Wait'"),
        ({"specexit_max_thinking_tokens": 0}, "specexit_max_thinking_tokens is 0"),
        ({"specexit_resolved": {"mode": "exit"}}, "unknown key 'specexit_resolved'"),
        (
            {"specexit_min_thinking_tokens": 20, "specexit_max_thinking_tokens": 10},
            "specexit_max_thinking_tokens is 10, expected at least specexit_min_thinking_tokens, which is 20",
        ),
        (
            {"specexit_min_thinking_tokens": 1000},
            "specexit_max_thinking_tokens is 900 \\(the draft's\\), expected at least .*, which is 1000",
        ),
    ],
)
def test_a_bad_argument_is_named_and_the_worker_goes_on_with_the_default(arguments, message, caplog, monkeypatch):
    monkeypatch.setattr(asked, "_misunderstood", set())
    with pytest.raises(ArgumentError, match="extra_args: " + message):
        request_policy(arguments, BLOCK)
    with caplog.at_level(logging.WARNING, logger="vllm.specexit"):
        assert request_policy_or_default(arguments, BLOCK, ANY, "r7") == RequestPolicy(DEFAULT)
    assert "r7" in caplog.text


def test_a_worker_logs_what_it_cannot_understand_once_for_each_argument(caplog, monkeypatch):
    """Behind a front end without plug-ins each request wrote a line, with an id as long as its client liked."""
    monkeypatch.setattr(asked, "_misunderstood", set())
    for i in range(10):
        for arguments in ({"specexit_patience": -i - 1}, {f"specexit_{i}": 1}):
            assert request_policy_or_default(arguments, BLOCK, ANY, f"r{i}\n" * 1000) == RequestPolicy(DEFAULT)
    assert ["specexit_patience is -1" in line or "unknown key 'specexit_0'" in line for line in caplog.messages] == [
        True,
        True,
    ]
    assert all(len(line) < 1000 and "\n" not in line for line in caplog.messages)


HUGE = 1 << 31


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("specexit_patience", (HUGE, 10**40, -1, 0, 1.5, "many")),
        ("specexit_min_thinking_tokens", (HUGE, -1, "1e99")),
        ("specexit_max_thinking_tokens", (HUGE, 0, -HUGE)),
        ("specexit_remaining", (1e39, float("inf"), float("nan"), -1)),
        ("specexit_validity", (float("nan"), -1e-9, 1 + 1e-9, [0.5])),
        ("specexit_alpha", (0, float("nan"), 2)),
        ("specexit_risk", (0, 1, float("nan"))),
        ("specexit_effort", ("extreme", 5)),
        ("specexit_splits", (["\n\n"] * 200_000, ["x" * 100_000], "\n\n", [5])),
    ],
)
def test_every_value_is_bounded_and_an_error_repeats_little_of_it(key, values):
    """One request with a patience of 2^31 used to switch exits off for everybody until a restart."""
    for value in values:
        with pytest.raises(ArgumentError, match=key) as error:
            request_policy({key: value}, BLOCK)
        assert error.value.parameter.startswith(key)
        assert len(str(error.value)) < 400


def test_what_is_admitted_fits_the_devices_tables():
    numbers = ("patience", "min_thinking_tokens", "max_thinking_tokens", "remaining")
    asked = request_policy({f"specexit_{name}": MOST_TOKENS for name in numbers}, BLOCK)
    row = Admission(True, asked.policy)
    torch.tensor(row.knobs(), dtype=torch.int32)
    assert torch.tensor(row.weights()).abs().nan_to_num(posinf=0).max() <= MOST_TOKENS


def test_a_worker_takes_what_a_front_end_has_resolved_as_it_is():
    server = Operation(BLOCK, PolicyFile(points=({"name": "default", "policy": DEFAULT},)), Serving(requests="any"))
    given = {"specexit_splits": ["Wait"], "specexit_mode": "shadow", "specexit_patience": 7, "other": 1}
    sent = server.resolve(given, "r").extra_args(given)
    assert sent.keys() == {"other", RESOLVED}
    found = request_policy_or_default(sent, BLOCK, server.serving, "r")
    assert found.policy == DEFAULT.model_copy(update={"patience": 7})
    assert (found.splits, found.mode_under("off")) == (("Wait",), "shadow")


def test_the_front_end_checks_against_the_draft_where_there_is_one(write_random_draft, tmp_path):
    named = SimpleNamespace(architectures=["SpecExitLlamaForCausalLMEagle3"])
    draft = stand_in(
        DraftModelConfig, model=str(write_random_draft(tmp_path / "d", "draft")), revision=None, hf_config=named
    )
    ours = stand_in(
        VllmConfig,
        speculative_config=stand_in(SpeculativeConfig, draft_model_config=draft),
        load_config=stand_in(LoadConfig, download_dir=None),
    )
    check({"specexit_splits": ["\n\n"]}, ours)
    # A server has no front end of ours where this vLLM does not fit; its clients' requests failed with these.
    check({"specexit_risk": 0.01, "specexit_effort": "high"}, ours)
    with pytest.raises(ArgumentError, match="specexit_splits has 'Wait'"):
        check({"specexit_splits": ["Wait"]}, ours)
    for speculative in (None, stand_in(SpeculativeConfig, draft_model_config=None)):
        other = stand_in(VllmConfig, speculative_config=speculative)
        check({"specexit_splits": ["Wait"]}, other)
        with pytest.raises(ArgumentError, match="specexit_validity is 2"):
            check({"specexit_validity": 2}, other)


def record(phase, thoughts, *, start=0, exited=0, on=1, transition=0):
    kept = thoughts - transition if exited else 0
    return Record(phase, thoughts, start, exited, 1.0, on, (0.1, 0.2, 3.0, 0.9), kept=kept)


@pytest.mark.parametrize(
    ("row", "n_output", "cut_off", "expected"),
    [
        (record(OVER, 10, exited=1), 30, False, ("exit", 10)),
        (record(OVER, 10), 30, True, ("natural_end", 10)),
        (record(THINKING, 30), 30, True, ("length", 30)),
        # The worker's last step went beyond the token limit: the client never saw the end marker, or all tokens.
        (record(OVER, 30, exited=1), 30, True, ("length", 30)),
        (record(THINKING, 33), 30, True, ("length", 30)),
        # Thinking begun by the model itself, behind two tokens.
        (record(OVER, 10, start=2, exited=1), 12, True, ("length", 10)),
        (record(OVER, 10, start=2, exited=1), 13, True, ("exit", 10)),
        (record(THINKING, 5), 5, False, ("natural_end", 5)),
        (record(OVER, 10, on=0), 30, False, ("off", 10)),
        (record(BEFORE, 0, start=-1), 30, False, ("off", 0)),
    ],
)
def test_outcome(row, n_output, cut_off, expected):
    outcome = row.describe(n_output, cut_off=cut_off)
    assert (outcome["outcome"], outcome["thinking_tokens"]) == expected
    assert outcome["signals"] == dict(zip(NAMES, (0.1, 0.2, 3.0, 0.9), strict=True))
    assert "transition_tokens" not in outcome


@pytest.mark.parametrize(
    ("row", "n_output", "expected"),
    [
        (record(OVER, 10, exited=1, transition=4), 30, ("exit", 6, 4)),
        (record(OVER, 10, start=2, exited=4, transition=4), 30, ("loop", 6, 4)),
        (record(THINKING, 8, exited=1, transition=2), 8, ("length", 6, 2)),
        # The client never saw all of the transition, or nothing of it.
        (record(OVER, 10, start=2, exited=1, transition=4), 11, ("length", 6, 3)),
        (record(THINKING, 8, exited=1, transition=2), 7, ("length", 6, 1)),
        (record(OVER, 10, exited=1, transition=4), 6, ("length", 6, None)),
        (record(OVER, 10, exited=1, transition=4), 5, ("length", 5, None)),
        # The exit before there was any thinking.
        (record(OVER, 4, exited=3, transition=4), 30, ("interrupt", 0, 4)),
    ],
)
def test_a_transition_text_is_no_thinking_of_the_model(row, n_output, expected):
    outcome = row.describe(n_output, cut_off=n_output < 30)
    assert (outcome["outcome"], outcome["thinking_tokens"], outcome.get("transition_tokens")) == expected


def test_a_request_in_the_midst_of_its_transition_text_reports_the_thinking_in_front_of_it():
    report = record(THINKING, 8, exited=1, transition=2).progress()
    assert (report["outcome"], report["thinking_tokens"], report["transition_tokens"]) == ("thinking", 6, 2)
