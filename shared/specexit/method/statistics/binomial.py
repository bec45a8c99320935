"""Exact statements about an error rate from independent trials, and valid ones about a mean of values in [0, 1]."""

from __future__ import annotations

import math

import numpy as np

LEVEL = 0.95
"""Coverage of every interval here."""


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
    (arXiv 2101.02703). Both fall with the sum alone, so the smaller one is valid. For 0/1 values `binomial_tail` is
    exact, hence smaller.

    Example:
      >>> hoeffding_bentkus(0, 114, 0.02) <= 0.1 < hoeffding_bentkus(0, 113, 0.02)
      True
    """
    mean = total / n
    if mean >= rate:
        return 1.0
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
