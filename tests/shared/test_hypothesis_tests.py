"""Tests behind "better" and "no worse": against brute force, and how often they err where they could."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from specexit.method.statistics import cluster_means, equivalence, holm, paired_t_test, sign_flip_test


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values):
    """A hypothesis falls if every intersection that it is part of falls; Holm is a short cut to that."""
    n = len(p_values)
    subsets = [set(s) for size in range(1, n + 1) for s in combinations(range(n), size)]
    closed = [max(min(1, len(s) * min(p_values[i] for i in s)) for s in subsets if one in s) for one in range(n)]
    np.testing.assert_allclose(holm(np.array(p_values)), closed)


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_are_the_exact_test_up_to_sampling(seed):
    values = np.random.default_rng(seed).normal(0.4, 1, 10)
    sums = [np.dot(signs, values) for signs in product((-1, 1), repeat=10)]
    exact = np.mean(np.array(sums) >= values.sum() - 1e-9)
    # Four standard errors of 10,000 patterns.
    assert sign_flip_test(values, seed=seed) == pytest.approx(exact, abs=4 * np.sqrt(0.25 / 10_000))


def test_samples_of_one_prompt_flip_together():
    """Two prompts can never prove anything, however often each is sampled."""
    assert sign_flip_test(np.ones(200), np.repeat([0, 1], 100)) > 0.2
    assert sign_flip_test(np.ones(200)) < 0.001


def test_sign_flips_count_ties_and_never_give_a_p_value_of_0():
    assert sign_flip_test(np.array([1.0, -1.0])) == pytest.approx(0.75, abs=0.02)
    assert sign_flip_test(np.ones(200)) == 1 / 10_001


@pytest.mark.parametrize("unit", [0.3, 0.7])
def test_sign_flips_give_the_same_in_any_unit(unit):
    """Sums of 0.7 differ in their last bits with the order, those of 1 do not: both have the same ties."""
    differences = np.repeat([1.0, -1.0], [15, 5])
    assert sign_flip_test(unit * differences) == sign_flip_test(differences)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7, 40])
@pytest.mark.parametrize("mean", [-1.0, 0.0, 0.5, 3.0])
def test_the_t_test_is_students(n, mean):
    differences = np.random.default_rng(n).normal(mean, 1, n)
    expected = scipy_stats.ttest_1samp(differences, 0, alternative="greater").pvalue
    assert paired_t_test(differences) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_one_difference_has_no_t_test():
    assert paired_t_test(np.zeros(3)) == 0.5
    with pytest.raises(ValueError, match="t test of 1 differences, expected at least two"):
        paired_t_test(np.ones(1))


def test_each_prompt_counts_the_same():
    np.testing.assert_array_equal(cluster_means(np.array([1.0, 0, 0, 1]), np.array([5, 5, 5, 2])), [1, 1 / 3])


@pytest.mark.parametrize("n", [100, 271, 299, 300, 1000, 3000])
@pytest.mark.parametrize("margin", [0.005, 0.01, 0.02])
def test_a_loss_at_the_margin_is_called_small_in_one_case_of_twenty_at_most(n, margin):
    """Exactly, where nothing is won and right answers are lost at exactly the margin's rate: the number lost is
    binomial. A normal approximation would reach 6.6 % (n = 271, margin 1 %), the t test 37 % (n = 100)."""
    lost = [k for k in range(n + 1) if k / n < margin and equivalence((np.arange(n) < k) * 1.0, margin).p_worse <= 0.05]
    size = sum(scipy_stats.binom.pmf(lost, n, margin))
    assert size <= 0.05 + 1e-12  # rounding of a sum
    assert lost == list(range(len(lost)))
    # Of no use would be a test that says so never: one loss more would be beyond 5 %.
    assert size + scipy_stats.binom.pmf(len(lost), n, margin) > 0.05


def test_it_errs_no_more_often_with_gains_and_with_several_samples_a_prompt():
    rng = np.random.default_rng(0)
    n, margin, draws, wrong = 400, 0.02, 2000, {"gains": 0, "samples": 0}
    clusters = np.repeat(np.arange(n), 4)
    for _ in range(draws):
        single = rng.choice([1.0, -1.0, 0.0], n, p=[0.05, 0.03, 0.92])
        wrong["gains"] += equivalence(single, margin).p_worse <= 0.05
        rate = rng.choice([0.0, 0.5], n, p=[0.92, 0.08])  # one prompt in 12.5 is hard: 4 % lost, 2 % won
        many = (rng.random((n, 4)) < rate[:, None]) * rng.choice([1.0, -1.0], (n, 4), p=[0.75, 0.25])
        wrong["samples"] += equivalence(many.ravel(), margin, clusters).p_worse <= 0.05
    # Three standard errors of 2,000 draws at 5 % are 0.015.
    assert max(wrong.values()) / draws <= 0.05 + 0.015


@pytest.mark.parametrize("n", [100, 271, 280, 299, 350])
def test_a_loss_in_one_sample_of_many_is_no_stronger_proof_than_none(n):
    """Without any loss the tail is exact, and the score test below it: of 280 prompts one that lost a sixteenth gave
    0.049, in place of 0.060."""
    one = np.zeros((3, n))
    one[1, 0], one[2, :2] = 1 / 16, (1 / 16, -1 / 16)
    none, lost, both = (equivalence(losses, 0.01).p_worse for losses in one)
    assert none == pytest.approx(0.99**n)
    assert lost > none
    assert both >= none * (1 - 1e-9)


def test_many_gains_are_proof_with_few_prompts():
    """A hundred prompts without a difference are none."""
    assert equivalence(-1.0 * (np.arange(100) < 20), 0.01).p_worse < 0.001


def test_no_loss_is_proven_with_enough_prompts_and_a_real_one_is_not():
    lost = np.zeros(1000)
    lost[:3], lost[3:6] = 1, -1
    assert equivalence(lost, 0.01).p < 0.05
    lost[:40] = 1
    assert equivalence(lost, 0.01).p_worse == 1
    gained = -lost
    assert equivalence(gained, 0.01).p_worse < 0.05  # no worse, and not "the same": it is better
    assert equivalence(gained, 0.01).p == 1


@pytest.mark.parametrize(("losses", "margin"), [(np.zeros(0), 0.1), (np.full(3, 2.0), 0.1), (np.zeros(3), 0.0)])
def test_what_cannot_be_tested_is_refused(losses, margin):
    with pytest.raises(ValueError, match="expected losses in"):
        equivalence(losses, margin)
