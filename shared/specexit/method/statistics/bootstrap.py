"""Bootstrap intervals: of problems, and of problems with several samples each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, Shaped

from specexit.method.statistics.binomial import LEVEL


def paired_bootstrap(
    statistic: Callable[..., float],
    *columns: Shaped[np.ndarray, " _n"],
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Value of a statistic with its percentile bootstrap interval (Efron 1979), rows being resampled together.

    Args:
      statistic: called with resampled columns, e.g. ``lambda ours, theirs: ours.mean() - theirs.mean()``.
      columns: one entry per problem each; a row's entries stay together, which is what "paired" means.
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
    return _interval(statistic, columns, lambda: rng.integers(0, lengths[0], lengths[0]), resamples)


def cluster_bootstrap(
    statistic: Callable[..., float],
    clusters: Shaped[np.ndarray, " n"],
    *columns: Shaped[np.ndarray, " n"],
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """`paired_bootstrap` for rows that come in clusters: whole clusters are drawn, all their rows with them.

    Several samples of one prompt are not so many prompts; drawing rows would make the interval too narrow.

    Args:
      statistic: called with resampled columns.
      clusters: which rows belong together, e.g. the prompt's id.
      columns: one entry per row each.
      resamples: number of resamples.
      seed: of the resampling.

    Returns:
      The statistic of the columns as they are, and both ends of the interval.

    Raises:
      ValueError: there are no rows.

    Example:
      >>> clusters = np.repeat(np.arange(50), 4)
      >>> value = np.repeat(np.arange(50) % 2, 4)  # each prompt's four samples are alike
      >>> _, low, high = cluster_bootstrap(lambda x: float(x.mean()), clusters, value, resamples=500)
      >>> _, narrow, _ = paired_bootstrap(lambda x: float(x.mean()), value, resamples=500)
      >>> low < narrow < 0.5
      True
    """
    if not len(clusters):
        raise ValueError("cluster bootstrap of no rows, expected at least one")
    _, which, counts = np.unique(clusters, return_inverse=True, return_counts=True)
    rows = np.argsort(which, kind="stable")
    starts = np.cumsum(counts) - counts
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        chosen = rng.integers(0, len(counts), len(counts))
        return rows[_ranges(starts[chosen], counts[chosen])]

    return _interval(statistic, columns, draw, resamples)


def _interval(
    statistic: Callable[..., float], columns: Sequence[np.ndarray], draw: Callable[[], np.ndarray], resamples: int
) -> tuple[float, float, float]:
    """The statistic of all rows, and both ends of its percentile interval over the draws."""
    values = np.empty(resamples)
    for i in range(resamples):
        rows = draw()
        values[i] = statistic(*(column[rows] for column in columns))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(statistic(*columns)), float(low), float(high)


def _ranges(starts: Int[np.ndarray, " k"], counts: Int[np.ndarray, " k"]) -> Int[np.ndarray, " total"]:
    """``start, start + 1, ...``, as many as each count says, one range after the other."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def relative_cut(base: Shaped[np.ndarray, " n"], ours: Shaped[np.ndarray, " n"]) -> float:
    """Share of the total of ``base`` that ``ours`` saves: it compares totals, and is no mean of ratios.

    It is 0 where the base has nothing to save, as in some draws of few problems.
    """
    total = base.sum()
    return float(1 - ours.sum() / total) if total else 0.0
