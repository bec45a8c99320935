"""How well a score ranks, and how well a probability is calibrated."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

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
