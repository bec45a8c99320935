"""How well a score ranks, and how well a probability is calibrated."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

PIECE = 1 << 20
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
    # Sorted apart, so that what this takes beside the scores is a copy of them, of which there may be very many.
    misses, found, twice = np.sort(scores[~hits]), np.sort(scores[hits]), 0
    for start in range(0, n_hits, PIECE):
        piece = found[start : start + PIECE]
        twice += sum(int(np.searchsorted(misses, piece, side).sum()) for side in ("left", "right"))
    return twice / (2 * n_hits * n_misses)


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
    gap = np.zeros(bins)
    for probability, hit in _pieces(probabilities, hits):
        which = np.minimum((probability * bins).astype(np.int64), bins - 1)
        gap += np.bincount(which, weights=probability - hit, minlength=bins)
    return float(np.abs(gap).sum() / len(hits))


def brier(probabilities: Scores, hits: Hits) -> float:
    """Mean squared distance between probability and outcome (Brier 1950)."""
    total = sum(float(((probability - hit) ** 2).sum()) for probability, hit in _pieces(probabilities, hits))
    return total / len(hits)


def _pieces(probabilities: Scores, hits: Hits) -> Iterator[tuple[Float[np.ndarray, " n"], Hits]]:
    """A million at a time, in double precision."""
    for start in range(0, len(hits), PIECE):
        yield probabilities[start : start + PIECE].astype(np.float64), hits[start : start + PIECE]
