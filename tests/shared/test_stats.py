"""The core's small statistics against scipy's, and what an interval must do."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special as scipy_special
from scipy import stats as scipy_stats

from specexit.data import scratch as scratch_module
from specexit.method.ordered import Ordered
from specexit.method.statistics import (
    binomial,
    binomial_interval,
    binomial_tail,
    binomial_upper_bound,
    cluster_bootstrap,
    counted,
    hoeffding_bentkus,
    mean_upper_bound,
    paired_bootstrap,
    ranking,
    relative_cut,
)


@st.composite
def rankings(draw):
    """(scores with many ties, hits), with at least one hit and one miss."""
    n = draw(st.integers(2, 30))
    scores = np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))) / 5
    hits = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    hits[:2] = [True, False]
    return scores, hits


def of(scores, hits):
    return ranking([counted(np.array(scores, np.float64), np.array(hits, bool))])


@given(rankings())
def test_auroc_is_the_mann_whitney_statistic_ties_counting_half(drawn):
    scores, hits = drawn
    u = scipy_stats.mannwhitneyu(scores[hits], scores[~hits]).statistic
    assert of(scores, hits).auroc == pytest.approx(u / (hits.sum() * (~hits).sum()))


def test_a_ranking_of_one_kind_has_no_auroc():
    assert np.isnan(of([0.1, 0.2], [True, True]).auroc)
    assert np.isnan(of([], []).brier)


def test_calibration_error_of_known_cases():
    hits = [True, False, False, False]
    assert of([0.25] * 4, hits).calibration_error == pytest.approx(0)
    assert of([0.75] * 4, hits).calibration_error == pytest.approx(0.5)
    assert of([1.0, 0.0, 0.0, 0.0], hits).calibration_error == 0  # 1 belongs to the last bin
    # Errors in opposite directions do not cancel across bins.
    assert of([0.5, 0.5, 0.99, 0.01], [True, True, False, True]).calibration_error > 0.5


@given(rankings())
def test_calibration_error_and_brier_by_their_definitions(drawn):
    scores, hits = drawn
    bins = np.minimum((scores * 15).astype(int), 14)
    gaps = [abs((scores[bins == i] - hits[bins == i]).sum()) for i in range(15)]
    assert of(scores, hits).calibration_error == pytest.approx(sum(gaps) / len(hits))
    assert of(scores, hits).brier == pytest.approx(((scores - hits) ** 2).mean())


def test_brier_of_known_cases():
    assert of([1.0, 0.0], [True, False]).brier == 0
    assert of([0.5, 0.5], [True, False]).brier == 0.25


@given(rankings(), st.integers(1, 4))
def test_numbers_on_the_disk_are_ranked_as_those_in_memory(drawn, size):
    """Noted in any order, some at a time, and read back in pieces."""
    scores, hits = drawn
    levels = (0, 0.05, 0.5, 0.95, 1)
    numbers = Ordered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch_module, "AT_ONCE", size)
        for start in range(0, len(scores), size):
            numbers.add(scores[start : start + size], hits[start : start + size])
        assert vars(ranking(numbers.counted())) == pytest.approx(vars(of(scores, hits)))
        assert numbers.quantiles(levels) == pytest.approx(np.quantile(scores, levels))


@given(st.integers(1, 2000), st.data(), st.floats(0.001, 0.999))
def test_binomial_tail_is_exact(n, data, rate):
    errors = data.draw(st.integers(0, n))
    expected = scipy_stats.binom.cdf(errors, n, rate)
    # Logarithms of n! are good to about 1e-12 here. Below 1e-30, where scipy itself is less exact, nothing is decided.
    assert binomial_tail(errors, n, rate) == pytest.approx(expected, rel=1e-8, abs=1e-30)


@given(st.integers(1, 40), st.data(), st.fractions(0, 1, max_denominator=1000))
def test_binomial_tail_is_the_sum_of_fractions(n, data, rate):
    errors = data.draw(st.integers(0, n))
    expected = sum(math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(errors + 1))
    assert binomial_tail(errors, n, float(rate)) == pytest.approx(float(expected), rel=1e-12, abs=1e-30)


@pytest.mark.parametrize("changed", [0, 100, 20_000, 500_000, 999_000])
def test_a_million_audits_take_few_terms(changed, monkeypatch):
    """`GET /v1/specexit` used to add up all of them, 120 times for each interval."""
    taken, falling_terms = [], binomial._falling_terms

    def counted_terms(*args):
        for block in falling_terms(*args):
            taken.append(len(block))
            yield block

    monkeypatch.setattr(binomial, "_falling_terms", counted_terms)
    n = 10**6
    for rate in (changed / n * 0.99, changed / n, min(changed / n * 1.01 + 1e-6, 1 - 1e-7)):
        taken.clear()
        expected = scipy_stats.binom.cdf(changed, n, rate)
        assert binomial_tail(changed, n, rate) == pytest.approx(expected, rel=1e-7, abs=1e-30)
        assert sum(taken) < 12 * np.sqrt(n / 4)
    taken.clear()
    expected = scipy_stats.binomtest(changed, n).proportion_ci(0.95, "exact")
    assert binomial_interval(changed, n) == pytest.approx((expected.low, expected.high), rel=1e-7, abs=1e-12)
    assert sum(taken) < n


@given(st.integers(1, 2000), st.data(), st.sampled_from([0.01, 0.05, 0.1, 0.7, 0.99]))
def test_the_upper_bound_is_clopper_and_pearsons(n, data, delta):
    errors = data.draw(st.integers(0, n))
    expected = 1.0 if errors == n else scipy_stats.beta.ppf(1 - delta, errors + 1, n - errors)
    assert binomial_upper_bound(errors, n, delta) == pytest.approx(expected, rel=1e-7)


@given(n=st.integers(1, 200), data=st.data())
def test_the_interval_is_clopper_and_pearsons(n, data):
    errors = data.draw(st.integers(0, n))
    expected = scipy_stats.binomtest(errors, n).proportion_ci(0.95, "exact")
    assert binomial_interval(errors, n) == pytest.approx((expected.low, expected.high), rel=1e-7, abs=1e-12)


def test_without_a_trial_every_rate_is_possible():
    assert binomial_interval(0, 0) == (0.0, 1.0)


def test_the_upper_bound_covers_as_promised():
    """Exactly: over all outcomes of 200 draws, the bound falls below the true rate with probability at most delta."""
    n, delta = 200, 0.1
    bounds = np.array([binomial_upper_bound(k, n, delta) for k in range(n + 1)])
    for rate in (0.01, 0.02, 0.05, 0.3):
        missed = scipy_stats.binom.pmf(np.flatnonzero(bounds < rate), n, rate).sum()
        assert missed <= delta


def test_the_bootstrap_keeps_pairs_together():
    """Ours is theirs minus 1 everywhere, so the paired difference has no spread, however widely both vary."""
    theirs = np.random.default_rng(0).normal(0, 100, 50)
    mean, low, high = paired_bootstrap(lambda a, b: float(np.mean(a - b)), theirs - 1, theirs, resamples=200)
    np.testing.assert_allclose([mean, low, high], -1)


def test_the_bootstrap_interval_of_a_mean_is_the_normal_ones():
    values = np.random.default_rng(1).normal(5, 2, 400)
    mean, low, high = paired_bootstrap(lambda x: float(x.mean()), values, resamples=4000)
    half = 1.96 * values.std() / 20
    # 4,000 resamples place a 2.5 % quantile to within about 3 % of the half-width (one standard error).
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.12 * half)


def test_the_bootstrap_is_reproducible_and_refuses_unpaired_columns():
    values = np.arange(10.0)
    first, second = (paired_bootstrap(lambda x: float(x.mean()), values, resamples=50, seed=3) for _ in range(2))
    assert first == second
    with pytest.raises(ValueError, match=r"lengths \[3, 10\]"):
        paired_bootstrap(lambda a, b: 0.0, values, values[:3])


def test_a_relative_cut_compares_totals():
    assert relative_cut(np.array([100, 300]), np.array([100, 100])) == 0.5


def test_of_a_base_that_has_nothing_to_save_nothing_is_saved():
    """Some draws are of such problems alone: the ends were NaN, which no reader of results takes."""
    found = cluster_bootstrap(relative_cut, np.arange(3), np.array([100, 0, 0]), np.array([10, 0, 0]), seed=0)
    assert (found[0], np.isfinite(found).all(), found[1]) == (0.9, True, 0.0)


@pytest.mark.parametrize("total", [0.25, 1.25, 3.5, 6.0])
def test_the_p_value_of_losses_that_are_shares_is_the_papers(total):
    """Bates et al. 2021: Bentkus' bound is at the next whole number of errors, never at the one before."""
    n, rate = 90, 0.1
    entropy = scipy_special.rel_entr(total / n, rate) + scipy_special.rel_entr(1 - total / n, 1 - rate)
    bentkus = math.e * scipy_stats.binom.cdf(math.ceil(total), n, rate)
    assert hoeffding_bentkus(total, n, rate) == pytest.approx(min(math.exp(-n * entropy), bentkus, 1), rel=1e-9)


def sum_distribution(values, probabilities, n):
    """Sums of ``n`` independent draws and their probabilities, by convolution; the values are multiples of 1/4."""
    one = np.zeros(5)
    one[(np.array(values) * 4).astype(int)] = probabilities
    total = np.ones(1)
    for _ in range(n):
        total = np.convolve(total, one)
    return np.arange(len(total)) / 4, total


@pytest.mark.parametrize("n", [40, 90])
@pytest.mark.parametrize(
    ("values", "probabilities"),
    [
        ((0, 1), (0.95, 0.05)),
        ((0, 0.25), (0.8, 0.2)),
        ((0, 0.25, 0.5, 0.75, 1), (0.9, 0.05, 0.03, 0.01, 0.01)),
        ((0, 0.5), (0.9, 0.1)),
    ],
)
@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_a_p_value_of_shares_is_small_no_more_often_than_it_says(n, values, probabilities, delta):
    """Exactly, with the mean at the very rate that is tested, and the bound likewise."""
    rate = float(np.dot(values, probabilities))
    sums, chances = sum_distribution(values, probabilities, n)
    small = [chance for total, chance in zip(sums, chances, strict=True) if hoeffding_bentkus(total, n, rate) <= delta]
    assert sum(small) <= delta
    missed = [chance for total, chance in zip(sums, chances, strict=True) if mean_upper_bound(total, n, delta) < rate]
    assert sum(missed) <= delta


def test_the_bound_of_a_mean_near_one_is_one():
    """Its bisection came to a rate of 1, of whose logarithm there is none."""
    assert mean_upper_bound(0.95, 1, 0.1) == 1.0
    assert hoeffding_bentkus(0.5, 1, 1.0) == 0.0


@given(st.integers(1, 500), st.data(), st.floats(0.001, 0.5))
def test_for_whole_errors_it_is_never_below_the_exact_p_value(n, data, rate):
    errors = data.draw(st.integers(0, n))
    assert hoeffding_bentkus(errors, n, rate) >= binomial_tail(errors, n, rate) * (1 - 1e-9)


def test_the_cluster_bootstrap_is_as_wide_as_clusters_are_few():
    """Against the textbook variance of a mean of cluster means (equal sizes)."""
    rng = np.random.default_rng(2)
    per_prompt = rng.normal(0, 1, 300)
    values = np.repeat(per_prompt, 4) + rng.normal(0, 0.1, 1200)
    shuffled = rng.permutation(1200)
    clusters = np.repeat(np.arange(300), 4)[shuffled]
    mean, low, high = cluster_bootstrap(lambda x: float(x.mean()), clusters, values[shuffled], resamples=4000)
    half = 1.96 * values.reshape(300, 4).mean(axis=1).std() / np.sqrt(300)
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.12 * half)  # as for the paired one


@given(st.integers(2, 12), st.integers(0, 5))
def test_clusters_of_one_row_are_the_paired_bootstrap(n, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, n))
    arguments = {"resamples": 20, "seed": seed}
    assert cluster_bootstrap(lambda x, y: float((x - y).mean()), np.arange(n), a, b, **arguments) == paired_bootstrap(
        lambda x, y: float((x - y).mean()), a, b, **arguments
    )


def test_clusters_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        cluster_bootstrap(lambda x: float(x.mean()), np.zeros(0), np.zeros(0))
