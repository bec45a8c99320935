"""Whether values of today look like those of a sample of which a few quantiles, or the shares of kinds, are left."""

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
    """Total variation: half of what the shares of all kinds differ by, added up.

    Args:
      counts: how often today's requests have each kind.
      shares: of the kinds in the sample, 1 together.

    Returns:
      0..1; 0 without any counts.

    Example:
      >>> share_distance(np.array([[2, 1], [4, 1]]), np.array([0.5, 0.5]))
      0.25
    """
    pooled = counts.sum(axis=0)
    return float(np.abs(pooled / pooled.sum() - shares).sum() / 2) if pooled.sum() else 0.0


def chance_share_distance(
    counts: Int[np.ndarray, "n kinds"], shares: Float[np.ndarray, " kinds"], m: int, level: float
) -> float:
    """A `share_distance` that requests like those of the sample exceed with probability of about ``level`` at most.

    What a request has of one kind depends on what else it has, so a share varies as a ratio of two means over requests
    does; normal bounds of all shares at once (Bonferroni) are added up, which is more than chance needs.

    Args:
      counts: how often today's requests have each kind; the variance is taken from them, and is at least what kinds
        that are drawn one by one would have.
      shares: of the kinds in the sample.
      m: prompts of the sample, which vary as today's requests do.
      level: between 0 and 1.
    """
    sizes = counts.sum(axis=1)
    if not sizes.sum():
        return 1.0
    residuals = counts - sizes[:, None] * (counts.sum(axis=0) / sizes.sum())
    variance = np.maximum((residuals**2).mean(axis=0) / sizes.mean() ** 2, shares * (1 - shares) / sizes.mean())
    reach = NormalDist().inv_cdf(1 - level / (2 * len(shares)))
    return float(reach * np.sqrt(variance * (1 / len(counts) + 1 / m)).sum() / 2)
