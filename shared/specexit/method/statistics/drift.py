"""Whether today's values look like an earlier sample, of which only a few quantiles or the shares of kinds are kept."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int


def quantile_distance(values: Float[np.ndarray, " n"], quantiles: Sequence[float], levels: Sequence[float]) -> float:
    """The largest distance between two distribution functions at the quantiles that are known of one of them.

    A Kolmogorov-Smirnov distance, seen at these points only; ties at a quantile are given the benefit of the doubt.

    Args:
      values: today's.
      quantiles: of the sample, rising.
      levels: what share of the sample is at or below each, 0..1.

    Returns:
      0..1; 0 without any values.

    Example:
      >>> quantile_distance(np.arange(101.0), (0, 50, 100), (0, 0.5, 1))
      0.0
      >>> round(quantile_distance(np.arange(50.0, 151.0), (0, 50, 100), (0, 0.5, 1)), 3)
      0.495
    """
    if not len(values):
        return 0.0
    rising = np.sort(values)
    below = np.searchsorted(rising, quantiles, side="left") / len(rising)
    up_to = np.searchsorted(rising, quantiles, side="right") / len(rising)
    wanted = np.asarray(levels)
    return float(np.maximum(np.maximum(below - wanted, wanted - up_to), 0).max())


def chance_distance(n: int, m: int, level: float) -> float:
    r"""A distance that two samples of one population exceed with probability at most ``level``.

    The Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant (1990), half of the level for each sample:
    :math:`\sqrt{\ln(4/\alpha)/2n} + \sqrt{\ln(4/\alpha)/2m}`.

    Args:
      n, m: sizes of the samples.
      level: between 0 and 1.
    """
    tail = np.log(4 / level) / 2
    return float(np.sqrt(tail / n) + np.sqrt(tail / m))


def share_distance(counts: Int[np.ndarray, "n kinds"], shares: Float[np.ndarray, " kinds"]) -> float:
    """Total variation: half of what the mean shares of all kinds differ by, added up.

    Each request counts once, however much it has of all kinds together.

    Args:
      counts: how often each of today's requests has each kind; every request has at least one.
      shares: of each kind in the sample, likewise a mean over its members; they sum to 1.

    Returns:
      0..1; 0 without any requests.

    Example:
      >>> share_distance(np.array([[1, 1], [40, 0]]), np.array([0.5, 0.5]))
      0.25
    """
    return float(np.abs(_shares_of_each(counts).mean(axis=0) - shares).sum() / 2) if len(counts) else 0.0


def chance_share_distance(
    counts: Int[np.ndarray, "n kinds"], shares: Float[np.ndarray, " kinds"], m: int, level: float
) -> float:
    """A `share_distance` that requests like those of the sample exceed with probability of about ``level`` at most.

    The normal bounds on the mean share of each kind (Bonferroni) are added up, which allows more than chance needs.
    Without any requests the distance is 1.

    Args:
      counts: how often each of today's requests has each kind; the variance of the shares is taken from them, and is at
        least what kinds that are drawn one by one would have.
      shares: of the kinds in the sample.
      m: prompts of the sample, which vary as today's requests do.
      level: between 0 and 1.
    """
    if not len(counts):
        return 1.0
    one_by_one = shares * (1 - shares) * (1 / counts.sum(axis=1)).mean()
    variance = np.maximum(_shares_of_each(counts).var(axis=0), one_by_one)
    reach = NormalDist().inv_cdf(1 - level / (2 * len(shares)))
    return float(reach * np.sqrt(variance * (1 / len(counts) + 1 / m)).sum() / 2)


def _shares_of_each(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum(axis=1, keepdims=True)
