"""Tests behind the words "better" and "no worse": paired, on prompts, and corrected for how many are made."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from specexit.method.statistics.binomial import binomial_tail


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Holm's (1979) adjusted p-values: those at most alpha can be claimed together at level alpha, however dependent.

    Example:
      >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
      [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return adjusted


def cluster_means(
    values: Shaped[np.ndarray, " n"], clusters: Shaped[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, " clusters"]:
    """One number per cluster, in the order of the clusters' names; without clusters, the values themselves.

    Example:
      >>> cluster_means(np.array([1, 0, 1]), np.array(["a", "a", "b"])).tolist()
      [0.5, 1.0]
    """
    if clusters is None:
        return np.asarray(values, np.float64)
    _, which = np.unique(clusters, return_inverse=True)
    return np.bincount(which, weights=values) / np.bincount(which)


def sign_flip_test(
    differences: Shaped[np.ndarray, " n"],
    clusters: Shaped[np.ndarray, " n"] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """One-sided p-value of "ours is better": that the mean paired difference is above what random signs would give.

    Under the hypothesis that the two methods are alike, each prompt's difference is as likely to be its negative
    (Fisher 1935). Monte Carlo with the observed signs counted in (Phipson and Smyth 2010), so it is valid at any number
    of resamples and never 0.

    Args:
      differences: of each row, above 0 where ours is better.
      clusters: prompts that rows belong to; a prompt's rows flip together, and every prompt counts the same.
      resamples: random sign patterns.
      seed: of the patterns.

    Example:
      >>> sign_flip_test(np.ones(20)) < 0.001, sign_flip_test(np.zeros(20))
      (True, 1.0)
    """
    means = cluster_means(differences, clusters)
    rng, observed, reached = np.random.default_rng(seed), means.sum(), 0
    for start in range(0, resamples, 1000):  # a thousand patterns at a time bound the memory
        signs = rng.integers(0, 2, (min(1000, resamples - start), len(means))) * 2 - 1
        # Sums of the same numbers in another order differ in their last bits, and ties must count.
        reached += int((signs @ means >= observed - 1e-9 * np.abs(means).sum()).sum())
    return (1 + reached) / (1 + resamples)


def paired_t_test(differences: Float[np.ndarray, " n"]) -> float:
    """One-sided p-value of "ours is better" for a few differences that are about normal: Student's t test.

    Signs of six differences cannot give less than 1/64, however alike the six are.

    Args:
      differences: at least two, above 0 where ours is better.

    Raises:
      ValueError: there are fewer.

    Example:
      >>> paired_t_test(np.array([0.5, 0.6, 0.55, 0.6, 0.5])) < 0.001, paired_t_test(np.array([0.5, -0.4, 0.1])) > 0.2
      (True, True)
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"t test of {n} differences, expected at least two")
    scale = float(differences.std(ddof=1)) / math.sqrt(n)
    return _t_tail(math.atan2(float(differences.mean()), scale * math.sqrt(n - 1)), n - 1)


def _t_tail(angle: float, freedom: int) -> float:
    """Probability of a Student's t above ``sqrt(freedom) * tan(angle)``, by the finite sums of Abramowitz and Stegun
    1964 (26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (sine * cosine, 0.0) if freedom % 2 else (sine, 0.0)
    for i in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= cosine**2 * i / (i + 1)
    central = 2 / math.pi * (angle + total) if freedom % 2 else total
    return min(1.0, max(0.0, (1 - central) / 2))


class Equivalence(NamedTuple):
    """Outcome of `equivalence`."""

    loss: float
    """Mean over prompts, above 0 where ours is worse."""
    p_worse: float
    """P-value of "the loss is at least the margin": small is proof of "no worse than by the margin"."""
    p_better: float
    """P-value of "the gain is at least the margin"."""

    @property
    def p(self) -> float:
        """Of the two one-sided tests together (Schuirmann 1987): small is proof of "within the margin, either way"."""
        return max(self.p_worse, self.p_better)


def equivalence(
    losses: Shaped[np.ndarray, " n"], margin: float, clusters: Shaped[np.ndarray, " n"] | None = None
) -> Equivalence:
    """Two one-sided tests (TOST) of paired losses against a margin: not the same as overlapping intervals.

    They are score tests in the manner of Tango (1998). Their variance is the one under the hypothesis, where a further
    share of the prompts, as large as the observed loss is short of the margin, loses all. The usual t test takes the
    variance from the sample, and claims far too much where only a handful of prompts differ: with none of 30 different
    it would be certain of everything. Where no prompt gains and each loses either all or nothing, the number of losers
    is binomial, and its exact tail is the P-value: with no loser at all it takes 299 prompts to rule out a loss of one
    point, and the score test would do so with 271. Elsewhere the P-value is at least the chance that none of the
    further share is among the prompts: no fraction of a point that is lost is stronger proof than nothing lost.

    Args:
      losses: theirs minus ours for each row, within [-1, 1]: 1 is a right answer lost.
      margin: the loss that is small enough, above 0.
      clusters: prompts that rows belong to.

    Raises:
      ValueError: no rows, losses out of range, or a margin that is not above 0.

    Example:
      >>> equivalence(np.zeros(30), 0.01).p > 0.2, equivalence(np.zeros(1000), 0.01).p < 0.001
      (True, True)
      >>> [round(equivalence(np.zeros(n), 0.01).p_worse, 5) for n in (271, 298, 299)]
      [0.06564, 0.05004, 0.04954]
    """
    if not len(losses) or np.abs(losses).max() > 1 or margin <= 0:
        raise ValueError(
            f"equivalence of {len(losses)} losses at margin {margin}: expected losses in [-1, 1], margin > 0"
        )
    means = cluster_means(losses, clusters)
    return Equivalence(float(means.mean()), _beyond(means, margin), _beyond(-means, margin))


def _beyond(losses: Float[np.ndarray, " prompts"], margin: float) -> float:
    """P-value of "the mean is at least ``margin``"."""
    short = margin - float(losses.mean())
    if short <= 0:
        return 1.0
    if np.isin(losses, (0, 1)).all():
        return binomial_tail(int(losses.sum()), len(losses), margin)
    variance = float(losses.var()) + short  # a share `short` of the prompts loses a whole point under the hypothesis
    score = 0.5 * math.erfc(short / math.sqrt(2 * variance / len(losses)))
    # Where few prompts differ, the normal tail alone is too thin.
    return max(score, binomial_tail(0, len(losses), short))
