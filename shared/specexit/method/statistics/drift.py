"""Whether values of today look like those of a sample of which a few quantiles are left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


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
