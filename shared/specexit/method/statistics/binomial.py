"""Exact statements about an error rate from independent trials, and valid ones about a mean of values in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

LEVEL = 0.95
"""Coverage of every two-sided interval of this package; a bootstrap reaches it only approximately."""

NO_LONGER = 1e-20
"""Terms smaller than this share of the largest one are dropped: all of them together do not change a double."""

AT_A_TIME = 256


def binomial_tail(errors: int, n: int, rate: float) -> float:
    """``P(X <= errors)`` for ``X ~ Binomial(n, rate)``, exact up to rounding (1e-8 of it for a million trials).

    Example:
      >>> round(binomial_tail(1, 3, 0.5), 12)
      0.5
    """
    if rate <= 0 or errors >= n:
        return 1.0
    if rate >= 1 or errors < 0:
        return 0.0
    logs = math.log(rate), math.log1p(-rate)
    if errors < n * rate:
        return min(1.0, _lower_tail(errors, n, *logs))
    return max(0.0, 1 - _lower_tail(n - errors - 1, n, *reversed(logs)))


def _lower_tail(k: int, n: int, log_rate: float, log_other: float) -> float:
    """``P(X <= k)`` for ``k`` below the mean, given the logarithms of the rate and of 1 minus the rate."""
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    terms = _falling_terms(k, n, math.exp(log_other - log_rate))
    return math.exp(log_choose + k * log_rate + (n - k) * log_other) * sum(float(block.sum()) for block in terms)


def _falling_terms(k: int, n: int, odds: float) -> Iterator[np.ndarray]:
    """Yield ``P(X = k)``, ``P(X = k - 1)`` ... in units of the first, a block at a time, until they no longer count.

    Below the mean each falls by a larger factor than the one before, so only the terms of about ten standard deviations
    are computed, however large ``k`` is.
    """
    last = 1.0
    yield np.ones(1)
    while k > 0 and last > NO_LONGER:
        at = np.arange(k, max(k - AT_A_TIME, 0), -1)
        block = last * np.cumprod(at * odds / (n - at + 1))
        yield block
        last, k = float(block[-1]), k - len(at)


def binomial_upper_bound(errors: int, n: int, delta: float) -> float:
    """The one-sided upper confidence bound of Clopper and Pearson (1934) for an error rate, at level ``1 - delta``.

    It is the largest rate at which so few errors still have probability ``delta``, found by bisection; 1 where all
    trials are errors, or there are none.

    Example:
      >>> round(binomial_upper_bound(0, 114, 0.1), 4)
      0.02
    """
    if errors >= n:
        return 1.0
    low, high = 0.0, 1.0  # with delta above one half, the bound is below the observed rate
    for _ in range(60):  # halvings of an interval of 1: exact to the last bit of a double
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(errors, n, middle) > delta else (low, middle)
    return high


def binomial_interval(errors: int, n: int) -> tuple[float, float]:
    """The two-sided confidence interval of Clopper and Pearson (1934) for an error rate; all of [0, 1] without a trial.

    Example:
      >>> [round(end, 4) for end in binomial_interval(1, 40)]
      [0.0006, 0.1316]
    """
    tail = (1 - LEVEL) / 2
    lower = 1 - binomial_upper_bound(n - errors, n, tail) if n else 0.0
    return lower, binomial_upper_bound(errors, n, tail)


def hoeffding_bentkus(total: float, n: int, rate: float) -> float:
    """P-value of "the mean is above ``rate``" for ``n`` independent values in [0, 1] that sum to ``total``.

    The smaller of Hoeffding's (1963) bound in its relative-entropy form and Bentkus' (2004), as in Bates et al. 2021
    (arXiv 2101.02703). Each bounds the probability of so small a sum, so the smaller of the two bounds it as well. For
    0/1 values `binomial_tail` is exact, hence smaller.

    Example:
      >>> hoeffding_bentkus(0, 114, 0.02) <= 0.1 < hoeffding_bentkus(0, 113, 0.02)
      True
    """
    mean = total / n
    if mean >= rate:
        return 1.0
    if rate >= 1:  # to which bisection rounds where one is beside it
        return 0.0
    zero = mean * math.log(mean / rate) if mean > 0 else 0.0
    entropy = zero + (1 - mean) * (math.log1p(-mean) - math.log1p(-rate))
    # Rounding must not lift a sum that is a whole number to the next one.
    bentkus = math.e * binomial_tail(math.ceil(total - 1e-9), n, rate)
    return min(1.0, math.exp(-n * entropy), bentkus)


def mean_upper_bound(total: float, n: int, delta: float) -> float:
    """The upper confidence bound that belongs to `hoeffding_bentkus`, at level ``1 - delta``, found by bisection.

    Example:
      >>> round(mean_upper_bound(0.0, 114, 0.1), 4)
      0.02
    """
    if total >= n:
        return 1.0
    low, high = total / n, 1.0
    for _ in range(60):  # halvings of an interval of at most 1: exact to the last bit of a double
        middle = (low + high) / 2
        low, high = (middle, high) if hoeffding_bentkus(total, n, middle) > delta else (low, middle)
    return high
