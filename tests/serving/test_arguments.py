"""What a request may ask for, and what it gets back."""

from __future__ import annotations

import logging

import pytest

from specexit.decision import Policy
from specexit.signals import NAMES
from torch_specexit.plugin.arguments import ArgumentError, policy_or_default, request_policy
from torch_specexit.plugin.outcome import Record
from torch_specexit.plugin.rule import BEFORE, OVER, THINKING

DEFAULT = Policy(thresholds={"validity": 0.9, "confidence": 0.2}, patience=2)


def test_any_threshold_replaces_all_of_the_servers_and_nothing_else():
    policy = request_policy({"specexit_remaining": 50, "specexit_min_thinking_tokens": 7, "other": {}}, DEFAULT)
    assert policy == Policy(thresholds={"remaining": 50.0}, patience=2, min_thinking_tokens=7)
    assert request_policy(None, DEFAULT) == DEFAULT
    assert request_policy({"specexit": 0}, DEFAULT) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"specexit_validity": 2}, "specexit_validity is 2"),
        ({"specexit_remaining": "few"}, "specexit_remaining is 'few'"),
        ({"specexit": "perhaps"}, "specexit is 'perhaps'"),
        ({"specexit_validiti": 0.5}, "unknown key 'specexit_validiti', expected one of specexit"),
    ],
)
def test_a_bad_argument_is_named_and_the_worker_goes_on_with_the_default(arguments, message, caplog):
    with pytest.raises(ArgumentError, match="extra_args: " + message):
        request_policy(arguments, DEFAULT)
    with caplog.at_level(logging.WARNING, logger="vllm.specexit"):
        assert policy_or_default(arguments, DEFAULT, "r7") == DEFAULT
    assert "r7" in caplog.text


def record(phase, thoughts, *, start=0, exited=0, on=1):
    return Record(phase, thoughts, start, exited, 1.0, on, (0.1, 0.2, 3.0, 0.9))


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
