"""Statistics that the project reports: ranking and calibration of a probability, and intervals.

Small numpy versions, so that the core needs neither scipy nor scikit-learn; the tests check them against scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Shaped

Scores = Float[np.ndarray, " n"]
Hits = Bool[np.ndarray, " n"]


def auroc(scores: Scores, hits: Hits) -> float:
    """Probability that a hit scores above a miss, ties counting one half (Mann-Whitney U); NaN without both kinds.

    Example:
      >>> auroc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
      0.875
    """
    n_hits = int(hits.sum())
    n_misses = len(hits) - n_hits
    if not n_hits or not n_misses:
        return math.nan
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    return float((mean_rank[which][hits].sum() - n_hits * (n_hits + 1) / 2) / (n_hits * n_misses))


def average_precision(scores: Scores, hits: Hits) -> float:
    """Area under the precision-recall curve as a step function, equal scores being one step; NaN without a hit."""
    if not hits.any():
        return math.nan
    _, which = np.unique(-scores, return_inverse=True)
    found = np.cumsum(np.bincount(which, weights=hits))
    taken = np.cumsum(np.bincount(which))
    return float(np.sum(np.diff(found, prepend=0) * found / taken) / hits.sum())


def calibration_error(probabilities: Scores, hits: Hits, *, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al. 2015; 15 equal-width bins as in Guo et al. 2017).

    The mean distance, weighted by bin size, between what a bin predicts and what happens in it.
    """
    which = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    gap = np.bincount(which, weights=probabilities - hits, minlength=bins)
    return float(np.abs(gap).sum() / len(hits))


def brier(probabilities: Scores, hits: Hits) -> float:
    """Mean squared distance between probability and outcome (Brier 1950)."""
    return float(np.mean((probabilities - hits) ** 2))


def binomial_tail(errors: int, n: int, rate: float) -> float:
    """``P(X <= errors)`` for ``X ~ Binomial(n, rate)``, summed exactly in logarithms.

    Example:
      >>> round(binomial_tail(1, 3, 0.5), 12)
      0.5
    """
    if rate <= 0 or errors >= n:
        return 1.0
    if rate >= 1:
        return 0.0
    k = np.arange(errors + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choose = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    return min(1.0, float(np.exp(log_choose + k * math.log(rate) + (n - k) * math.log1p(-rate)).sum()))


def binomial_upper_bound(errors: int, n: int, delta: float) -> float:
    """The one-sided upper confidence bound of Clopper and Pearson (1934) for an error rate, at level ``1 - delta``.

    The largest rate under which so few errors still have probability ``delta``, found by bisection.

    Example:
      >>> round(binomial_upper_bound(0, 114, 0.1), 4)
      0.02
    """
    if errors >= n:
        return 1.0
    low, high = errors / n, 1.0
    for _ in range(60):  # halvings of an interval of at most 1: exact to the last bit of a double
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(errors, n, middle) > delta else (low, middle)
    return high


def binomial_interval(errors: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The two-sided confidence interval of Clopper and Pearson (1934) for an error rate; all of [0, 1] without a trial.

    Example:
      >>> [round(end, 4) for end in binomial_interval(1, 40)]
      [0.0006, 0.1316]
    """
    tail = (1 - level) / 2
    lower = 1 - binomial_upper_bound(n - errors, n, tail) if n else 0.0
    return lower, binomial_upper_bound(errors, n, tail)


def paired_bootstrap(
    statistic: Callable[..., float],
    *columns: Shaped[np.ndarray, " _n"],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Value of a statistic with its percentile bootstrap interval (Efron 1979), rows being resampled together.

    Args:
      statistic: called with resampled columns, e.g. ``lambda ours, theirs: ours.mean() - theirs.mean()``.
      columns: one entry per problem each; a row's entries stay together, which is what "paired" means.
      level: coverage of the interval.
      resamples: number of resamples.
      seed: of the resampling.

    Returns:
      The statistic of the columns as they are, and both ends of the interval.

    Raises:
      ValueError: the columns differ in length or are empty.
    """
    lengths = sorted({len(column) for column in columns})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(f"bootstrap columns have lengths {lengths}, expected one length above 0")
    rng = np.random.default_rng(seed)
    values = np.empty(resamples)
    for i in range(resamples):
        rows = rng.integers(0, lengths[0], lengths[0])
        values[i] = statistic(*(column[rows] for column in columns))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(statistic(*columns)), float(low), float(high)


def relative_cut(base: Shaped[np.ndarray, " n"], ours: Shaped[np.ndarray, " n"]) -> float:
    """Share of all that ``base`` spends which ``ours`` saves: totals are compared, not means of ratios."""
    return float(1 - ours.sum() / base.sum())
