"""Claims that hold at every look: exactly where it can be enumerated, and by simulation where it cannot."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from specexit.method.statistics import Capital
from specexit.method.statistics.sequential import AT_ONCE, BOLDEST_ABOVE, SHARES, kept_back, played


def capital_after(values, mean, side):
    watch = Capital(mean, side)
    for value in values:
        watch.add(value)
    return watch


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("mean", [0.1, 0.3, 0.8])
def test_the_game_is_fair_and_nobody_grows_rich_more_often_than_ville_allows(side, mean):
    """Over all 2^9 sequences: the capital is 1 in expectation, and ever reaches 1/delta in at most delta of them."""
    expected, rich = 0.0, dict.fromkeys((0.5, 0.2, 0.1), 0.0)
    for values in product((0, 1), repeat=9):
        chance = np.prod([mean if value else 1 - mean for value in values])
        watch = capital_after(values, mean, side)
        expected += chance * watch.value
        for delta in rich:
            rich[delta] += chance * watch.rejects(delta)
    assert expected == pytest.approx(1)
    assert all(chance <= delta for delta, chance in rich.items())


def made_of_it(values, mean, side):
    """What a unit has become, by multiplication, one bet at a time."""
    stakes = SHARES * BOLDEST_ABOVE / mean if side == "above" else -SHARES / (1 - mean)
    return np.mean([np.prod([1 + stake * (value - mean) for value in values]) for stake in stakes])


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.01, 0.99), st.sampled_from(["above", "below"]))
def test_the_capital_is_what_its_bets_have_made_of_all_that_was_put_in(values, mean, side):
    """By its definition, a sum over the times at which it was."""
    put_in = AT_ONCE * made_of_it(values, mean, side)
    for j in range(len(values)):
        put_in += (kept_back(j) - kept_back(j + 1)) * made_of_it(values[j:], mean, side)
    expected = put_in + kept_back(len(values))
    assert capital_after(values, mean, side).value == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_no_more_than_the_stake_is_ever_put_in_and_some_of_it_with_each_observation():
    for observations in (0, 1, 1000, 10**6, 10**9):
        assert 0 < kept_back(observations + 1) < kept_back(observations) <= 1 - AT_ONCE
    assert AT_ONCE + kept_back(0) == 1


def test_looking_at_every_audit_alarms_in_at_most_delta_of_the_servers_whose_risk_is_epsilon():
    """1,000 servers at the very risk that is allowed, 3,000 audits each."""
    changed = (np.random.default_rng(0).random((1000, 3000)) < 0.02).astype(float)
    delta, most = 0.1, np.ones(1000)
    bets = np.tile(Capital(0.02).log_capital, (1000, 1))
    for look, audits in enumerate(changed.T):
        bets = played(bets, look, audits, 0.02, "above")
        most = np.maximum(most, np.exp(bets).mean(axis=1) + kept_back(look + 1))
    assert np.mean(most >= 1 / delta) <= delta  # by the theorem; overshoot and the end at 3,000 leave room for chance
    looks = np.arange(50, 3001, 50)
    tails = scipy_stats.binom.sf(changed.cumsum(axis=1)[:, looks - 1] - 1, looks, 0.02)
    assert np.mean((tails <= delta).any(axis=1)) > 2 * delta  # an exact test for one look, looked at 60 times


@pytest.mark.parametrize(("risk", "most"), [(0.1, 150), (0.05, 600)])
def test_a_risk_above_epsilon_is_found_within_a_few_times_what_any_test_needs(risk, most):
    """Median over 100 servers; the least that any test can need on average is ln(1/delta) over the relative entropy."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(100):
        watch, audits = Capital(0.02), 0
        while not watch.rejects(0.1) and audits < 5000:
            watch.add(float(rng.random() < risk))
            audits += 1
        found.append(audits)
    entropy = risk * np.log(risk / 0.02) + (1 - risk) * np.log((1 - risk) / 0.98)
    assert np.median(found) <= most
    assert np.median(found) <= 3 * np.log(10) / entropy


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_observations_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"expected a value in \[0, 1\]"):
        Capital(0.1).add(value)


@pytest.mark.parametrize("mean", [0, 1, -1, 2])
def test_a_mean_that_cannot_be_betted_on_is_refused(mean):
    with pytest.raises(ValueError, match="expected a value between 0 and 1"):
        Capital(mean)
