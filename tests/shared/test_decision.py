"""The exit rule: what it decides, that decoding steps do not matter, and the reference code's rule per round."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.config import ConfigError, load
from specexit.method.decision import EARLY_TOKENS, OFF, PAPER, ExitRule, Policy, exit_position, passes
from specexit.method.signals import activate
from specexit.method.splits import ThinkTokens

PLAIN, SPLIT, END = 0, 1, 2
IDS = ThinkTokens(start=3, end=END, split=frozenset({SPLIT}))


def valid(*validity):
    """Signals of which only validity says something."""
    return np.array([[0.5, 0.5, 100.0, v] for v in validity], np.float32)


@st.composite
def traces(draw, max_size=40):
    """(tokens, signals, sizes of decoding steps). Half of them end their thinking somewhere, and half never."""
    size = draw(st.integers(1, max_size))
    tokens = draw(st.lists(st.sampled_from([PLAIN, SPLIT]), min_size=size, max_size=size))
    end = draw(st.none() | st.integers(0, size - 1))
    if end is not None:
        tokens[end] = END
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    signals = rng.uniform(0, 1, (len(tokens), 4)).astype(np.float32)
    signals[:, 2] *= 400
    sizes = draw(st.lists(st.integers(1, 6), min_size=len(tokens), max_size=len(tokens)))
    return tokens, signals, sizes


def limits(most):
    """Thresholds that about half of all values pass, and now and then none or all."""
    within = {name: st.floats(0, most) for name in ("confidence", "progress", "validity")}
    return st.fixed_dictionaries({}, optional=within | {"remaining": st.floats(400 * (1 - most), 400)})


policies = st.builds(
    Policy,
    thresholds=limits(0.8),
    early=limits(0.5),
    smoothing=st.sampled_from(["none", "ewma"]),
    alpha=st.floats(0.05, 1),
    patience=st.integers(1, 3),
    min_thinking_tokens=st.integers(0, 10),
    max_thinking_tokens=st.none() | st.integers(10, 30),
)


@given(traces(), policies)
def test_verdicts_do_not_depend_on_how_tokens_are_grouped_into_steps(trace, policy):
    tokens, signals, sizes = trace
    assert exit_position(tokens, signals, policy, IDS, sizes) == exit_position(tokens, signals, policy, IDS)


@given(traces(), policies)
def test_an_exit_is_at_a_split_token_inside_the_thinking_and_final(trace, policy):
    tokens, signals, sizes = trace
    rule, start, exits = ExitRule(policy, IDS), 0, []
    for size in sizes:
        hit = rule.push(tokens[start : start + size], signals[start : start + size])
        exits += [] if hit is None else [start + hit]
        start += size
    assert len(exits) <= 1
    for position in exits:
        assert tokens[position] == SPLIT
        assert END not in tokens[:position]
        assert position + 1 >= policy.min_thinking_tokens


@given(traces())
def test_what_comes_later_never_changes_a_verdict(trace):
    tokens, signals, _ = trace
    policy = Policy(thresholds={"validity": 0.6}, patience=2)
    position = exit_position(tokens, signals, policy, IDS)
    if position is not None:
        end = position + 1
        assert exit_position(tokens[:end], signals[:end], policy, IDS) == position


@given(traces())
def test_off_never_exits_whatever_the_draft_says(trace):
    tokens, signals, _ = trace
    certain = activate(np.full_like(signals, 1e9))
    assert exit_position(tokens, certain, OFF, IDS) is None


def test_the_first_split_token_whose_own_signal_passes_ends_the_thinking():
    tokens = [PLAIN, SPLIT, PLAIN, SPLIT, SPLIT]
    policy = Policy(thresholds={"validity": 0.9})
    assert exit_position(tokens, valid(0.99, 0.5, 0.99, 0.9, 0.99), policy, IDS) == 3


def test_a_split_token_behind_the_end_marker_is_not_judged():
    assert exit_position([PLAIN, END, SPLIT], valid(1, 1, 1), Policy(thresholds={"validity": 0.5}), IDS) is None


def test_patience_counts_passing_boundaries_in_a_row():
    tokens = [SPLIT] * 6
    policy = Policy(thresholds={"validity": 0.5}, patience=2)
    assert exit_position(tokens, valid(0.9, 0.1, 0.9, 0.1, 0.9, 0.9), policy, IDS) == 5


def test_a_boundary_counts_only_if_the_signals_were_near_the_thresholds_some_tokens_before():
    near, far, tokens = 0.45, 0.44, [PLAIN] * 3 + [SPLIT] + [PLAIN] * 7 + [SPLIT]
    policy = Policy(thresholds={"validity": 0.9}, early={"validity": 0.45})
    for before, expected in ((near, 11), (far, None)):
        signals = valid(*[0.0] * 3, before, *[0.0] * 7, 0.9)
        assert exit_position(tokens, signals, policy, IDS) == expected
        assert exit_position(tokens, signals, policy.model_copy(update={"early": {}}), IDS) == 11
    # So near to the beginning there is no token before; and one that is passed over breaks a row of passing ones.
    assert exit_position(tokens, valid(*[0.0] * 3, 0.9, *[0.0] * 8), policy, IDS) == 3
    for first, expected in ((EARLY_TOKENS - 1, EARLY_TOKENS - 1), (EARLY_TOKENS, None)):
        signals = valid(*[0.0] * first, 0.9)
        assert exit_position([PLAIN] * first + [SPLIT], signals, policy, IDS) == expected
    twice = policy.model_copy(update={"patience": 2})
    row = [SPLIT] * 11
    signals = valid(0.9, *[0.0] * 7, 0.9, 0.95, 0.95)
    assert exit_position(row, signals, policy, IDS) == 0
    assert exit_position(row[1:], signals[1:], twice, IDS) is None
    assert exit_position(row[1:], signals[1:], twice.model_copy(update={"early": {}}), IDS) == 8


def test_the_most_thinking_tokens_count_where_a_boundary_would_be_passed_over():
    policy = Policy(thresholds={"validity": 0.9}, early={"validity": 0.5}, max_thinking_tokens=10)
    assert exit_position([PLAIN] * 9 + [SPLIT], valid(*[0.0] * 10), policy, IDS) == 9


def test_no_thresholds_and_a_minimum_is_a_fixed_budget_snapped_to_the_next_boundary():
    tokens = [PLAIN, SPLIT, PLAIN, PLAIN, SPLIT, SPLIT]
    for least, expected in ((2, 1), (3, 4), (4, 4), (5, 4), (6, 5), (7, None)):
        policy = Policy(thresholds={}, min_thinking_tokens=least)
        assert exit_position(tokens, valid(*[0.0] * 6), policy, IDS) == expected


def test_at_the_most_thinking_tokens_the_next_boundary_exits_whatever_signals_and_patience_say():
    tokens = [SPLIT, PLAIN, PLAIN, SPLIT, SPLIT]
    policy = Policy(thresholds={"validity": 1.0}, patience=3, max_thinking_tokens=3)
    assert exit_position(tokens, valid(*[0.0] * 5), policy, IDS) == 3
    assert exit_position(tokens[:3], valid(*[0.0] * 3), policy, IDS) is None


def test_ewma_starts_at_the_first_value_and_runs_over_every_thinking_token():
    tokens, signals = [PLAIN, PLAIN, SPLIT], valid(0.0, 1.0, 1.0)
    # 0 -> 0.5 -> 0.75
    at = {
        tau: exit_position(tokens, signals, Policy(thresholds={"validity": tau}, smoothing="ewma", alpha=0.5), IDS)
        for tau in (0.75, 0.76)
    }
    assert at == {0.75: 2, 0.76: None}


def test_thresholds_are_inclusive_and_remaining_is_an_upper_bound():
    values = np.array([0.8, 0.3, 200.0, 0.5])
    assert passes(values, {"confidence": 0.8, "progress": 0.3, "remaining": 200.0})
    assert not passes(values, {"remaining": 199.0})
    assert not passes(values, {"confidence": 0.81})


def test_a_signal_that_is_no_number_passes_no_threshold_and_one_without_does_not_matter():
    values = activate(np.array([np.nan, np.inf, -np.inf, np.nan]))
    assert passes(values, {"progress": 0.99, "remaining": 1e-6})
    assert not any(passes(values, {name: 0.0}) for name in ("confidence", "validity"))
    assert not passes(np.array([0.5, 0.5, np.nan, 0.5]), {"remaining": np.inf})
    tokens, signals = [SPLIT] * 3, valid(np.nan, 0.9, 0.9)
    policy = Policy(thresholds={"validity": 0.5})
    assert exit_position(tokens, signals, policy, IDS) == 1
    assert exit_position(tokens, signals, policy.model_copy(update={"smoothing": "ewma"}), IDS) is None
    assert exit_position(tokens, signals, Policy(thresholds={"confidence": 0.5}), IDS) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("thresholds.doubt=0.5", "signal 'doubt' does not exist"),
        ("thresholds.validity=1.5", "threshold of validity is 1.5, expected a probability between 0 and 1"),
        ("thresholds.remaining=-1", "threshold of remaining is -1.0, expected tokens, 0 or more"),
        ("patience=0", "patience is 0"),
        ("max_thinking_tokens=0", "max_thinking_tokens is 0"),
        ("pateince=2", "unknown key 'pateince', did you mean 'patience'"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load(Policy, overrides=[override])


def test_early_thresholds_with_an_average_over_rounds_are_refused():
    """That rule knows no token eight before: they would be passed over, and exits come where none was asked for."""
    with pytest.raises(ConfigError, match=r"early is {'validity': 0.4}, expected none with smoothing 'round'"):
        load(Policy, overrides=["early.validity=0.4", "smoothing=round"])


def test_a_maximum_below_the_minimum_is_refused_and_an_equal_one_is_a_fixed_budget():
    with pytest.raises(ConfigError, match=r"max_thinking_tokens is 3, expected at least min_.*, which is 4"):
        load(Policy, overrides=["min_thinking_tokens=4", "max_thinking_tokens=3"])
    policy = Policy(thresholds={"validity": 1.0}, min_thinking_tokens=3, max_thinking_tokens=3)
    assert exit_position([SPLIT] * 5, valid(*[0.0] * 5), policy, IDS) == 2


# --- smoothing: round ---------------------------------------------------------------------------------------------


def reference_rounds(tokens, signals, sizes, alpha, thresholds):
    """The released torch code's loop, transcribed step by step from its description: round by round, the smoothed
    score first consulted and then updated, one score per signal, every score tested on its own."""
    score = {"confidence": None, "progress": None, "remaining": None}
    columns = {"confidence": 0, "progress": 1, "remaining": 2}
    thinking, start = True, 0
    for size in sizes:
        new_ids, values = tokens[start : start + size], signals[start : start + size]
        if not new_ids:
            break
        if thinking and END in new_ids:
            thinking = False
        if thinking and SPLIT in new_ids:
            s = new_ids.index(SPLIT)
            ready = all(value is not None for value in score.values())
            if (
                ready
                and score["confidence"] >= thresholds["confidence"]
                and score["progress"] >= thresholds["progress"]
                and score["remaining"] <= thresholds["remaining"]
            ):
                return start + s
        if thinking:
            for name, at in columns.items():
                mean = np.mean(values[:, at])
                score[name] = mean if score[name] is None else alpha * mean + (1 - alpha) * score[name]
        start += size
    return None


@given(traces(max_size=60), st.floats(0, 0.7), st.floats(100, 400))
def test_round_mode_is_the_released_codes_rule(trace, low, remaining):
    tokens, signals, sizes = trace
    thresholds = {"confidence": low, "progress": low, "remaining": remaining}
    policy = Policy(thresholds=thresholds, smoothing="round", alpha=0.1)
    # float64 throughout, so that both sides round alike and a value on the threshold falls on the same side.
    signals = signals.astype(np.float64)
    expected = reference_rounds(tokens, signals, sizes, 0.1, thresholds)
    assert exit_position(tokens, signals, policy, IDS, sizes) == expected


def test_round_mode_judges_one_round_late_and_never_in_the_first_round():
    good, bad = [0.9, 0.9, 10.0, 0.9], [0.1, 0.1, 900.0, 0.1]
    tokens = [PLAIN, SPLIT, PLAIN, SPLIT]
    policy = PAPER.model_copy(update={"alpha": 1.0})
    assert exit_position(tokens, np.array([good, good, bad, bad]), policy, IDS, [2, 2]) == 3
    assert exit_position(tokens, np.array([bad, bad, good, good]), policy, IDS, [2, 2]) is None
    assert exit_position(tokens, np.array([good] * 4), policy, IDS, [4]) is None
    for least, expected in ((4, 3), (5, None)):  # the split token itself counts
        policy = policy.model_copy(update={"min_thinking_tokens": least})
        assert exit_position(tokens, np.array([good] * 4), policy, IDS, [2, 2]) == expected


def test_a_round_of_no_tokens_leaves_the_average_as_it_is():
    """With source fc the signals of the first round are there only with the second."""
    policy = Policy(thresholds={"validity": 0.5}, smoothing="round", alpha=0.1)
    rule = ExitRule(policy, IDS)
    for tokens, values, hit in (
        ([], [], None),
        ([PLAIN], [0.9], None),
        ([], [], None),
        ([PLAIN, SPLIT], [0.9, 0.9], 1),
    ):
        assert rule.push(tokens, valid(*values).reshape(-1, 4)) == hit


def test_round_mode_does_depend_on_the_steps_which_is_why_it_is_not_the_default():
    rng = np.random.default_rng(0)
    tokens = [SPLIT, PLAIN] * 20
    signals = rng.uniform(0, 1, (40, 4))
    policy = Policy(thresholds={"validity": 0.55}, smoothing="round", alpha=0.5)
    exits = {exit_position(tokens, signals, policy, IDS, itertools.repeat(size, 40)) for size in (1, 2, 3, 5)}
    assert len(exits) > 1
