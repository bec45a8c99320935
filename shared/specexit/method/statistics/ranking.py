"""How well a probability tells hits from misses and how well it is calibrated, from any number of values read once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 15


class Counted(NamedTuple):
    """Different probabilities, rising."""

    value: Float[np.ndarray, " different"]
    n: Int[np.ndarray, " different"]
    """How often each is there."""
    hits: Int[np.ndarray, " different"]
    """How often it is a hit."""


def counted(values: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"]) -> Counted:
    """Count the distinct values among probabilities in memory.

    Example:
      >>> counted(np.array([0.5, 0.25, 0.5]), np.array([True, True, False]))
      Counted(value=array([0.25, 0.5 ]), n=array([1, 2]), hits=array([1, 1]))
    """
    value, which = np.unique(values, return_inverse=True)
    return Counted(value, np.bincount(which), np.bincount(which[hits], minlength=len(value)))


@dataclass(frozen=True)
class Ranking:
    """How well a probability tells hits from misses. Without any, all but ``n`` is NaN."""

    n: int
    valid: float
    """Share of hits."""
    auroc: float
    """Probability that a hit scores above a miss, ties counting one half (Mann-Whitney U); NaN without both kinds."""
    calibration_error: float
    """Expected calibration error (Naeini et al. 2015; 15 bins of equal width as in Guo et al. 2017): the mean distance,
    weighted by bin size, between what a bin predicts and what happens in it."""
    brier: float
    """Mean squared distance between probability and outcome (Brier 1950)."""


def ranking(pieces: Iterable[Counted]) -> Ranking:
    """The `Ranking` of probabilities that come in pieces, those of each piece above all of the pieces before.

    Example:
      >>> ranking([counted(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))]).auroc
      0.875
    """
    hits = misses = twice = 0
    gap, squared = np.zeros(BINS), 0.0
    for value, n, hit in pieces:
        miss = n - hit
        below = misses + np.cumsum(miss) - miss
        twice += int((hit * (2 * below + miss)).sum())
        hits, misses = hits + int(hit.sum()), misses + int(miss.sum())
        bins = np.minimum((value * BINS).astype(np.int64), BINS - 1)
        gap += np.bincount(bins, weights=n * value - hit, minlength=BINS)
        squared += float((hit * (value - 1) ** 2 + miss * value**2).sum())
    total = hits + misses
    if not total:
        return Ranking(0, *[math.nan] * 4)
    auroc = twice / (2 * hits * misses) if hits and misses else math.nan
    return Ranking(total, hits / total, auroc, float(np.abs(gap).sum() / total), squared / total)
