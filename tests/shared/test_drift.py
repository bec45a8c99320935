"""Distances from a sample of which quantiles are left."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.drafts.policy import TRAFFIC_LEVELS
from specexit.method.statistics import chance_distance, chance_share_distance, quantile_distance, share_distance

whole_numbers = st.lists(st.integers(0, 20), min_size=20, max_size=200).map(lambda values: np.array(values, float))


@given(whole_numbers, whole_numbers)
def test_it_is_never_more_than_the_kolmogorov_smirnov_distance(sample, today):
    """Quantiles show less than the whole sample does, and a tie counts for neither side."""
    quantiles = np.quantile(sample, TRAFFIC_LEVELS, method="inverted_cdf").tolist()
    points = np.union1d(sample, today)
    whole = max(abs(np.mean(sample <= x) - np.mean(today <= x)) for x in points)
    # Between two members of the sample a level is met but for one of them.
    assert quantile_distance(today, quantiles, TRAFFIC_LEVELS) <= whole + 1 / len(sample) + 1e-12
    assert quantile_distance(sample, quantiles, TRAFFIC_LEVELS) <= 1 / len(sample)


def test_longer_shorter_and_wider_values_are_seen():
    quantiles = np.quantile(np.arange(1000.0), TRAFFIC_LEVELS).tolist()
    for today, expected in (
        (np.arange(1000.0) + 1000, 1.0),
        (np.arange(1000.0) - 1000, 1.0),
        (np.full(50, 500.0), 0.5),  # none is below the median
        (np.arange(1000.0), 0.0),
    ):
        assert quantile_distance(today, quantiles, TRAFFIC_LEVELS) == pytest.approx(expected, abs=0.01)
    assert quantile_distance(np.zeros(0), quantiles, TRAFFIC_LEVELS) == 0.0


def test_chance_exceeds_its_distance_no_more_often_than_it_says():
    """600 pairs of samples of one population; the bound is not sharp, and may not be broken more often than 1 in 10."""
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(600):
        sample, today = rng.lognormal(size=150), rng.lognormal(size=100)
        quantiles = np.quantile(sample, TRAFFIC_LEVELS).tolist()
        broken += quantile_distance(today, quantiles, TRAFFIC_LEVELS) > chance_distance(100, 150, 0.1)
    assert broken <= 60


def test_shares_differ_by_the_total_variation_and_each_request_counts_once():
    counts = np.array([[2, 0, 2], [0, 4000, 0]])
    assert share_distance(counts, np.array([0.25, 0.5, 0.25])) == 0
    assert share_distance(counts, np.array([1.0, 0, 0])) == pytest.approx(0.75)
    assert share_distance(np.zeros((0, 2), np.int64), np.array([0.5, 0.5])) == 0


@pytest.mark.parametrize("alike", [0.5, 50.0])
def test_chance_exceeds_its_distance_of_shares_no_more_often_than_it_says(alike):
    """600 pairs of samples whose requests differ much or little among themselves."""
    rng = np.random.default_rng(0)

    def requests(n):
        shares = rng.dirichlet(alike * np.array([0.6, 0.3, 0.1]), n)
        return rng.multinomial(1 + rng.poisson(20, n), shares)

    broken = 0
    for _ in range(600):
        sample, today = requests(150), requests(100)
        shares = (sample / sample.sum(axis=1, keepdims=True)).mean(axis=0)
        broken += share_distance(today, shares) > chance_share_distance(today, shares, 150, 0.1)
    assert broken <= 60
