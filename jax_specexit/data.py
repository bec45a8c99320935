"""Packed examples to batches: grain over ArrayRecord, map-only, its position saved with every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grain
import numpy as np

from specexit.packing import PackError, PackMeta, check_target, read_example, read_meta
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig
from specexit.sequences import Example


def load_batches(config: TrainConfig, target: TargetConfig) -> tuple[grain.DatasetIterator, PackMeta]:
    """Endless shuffled batches of a recipe.

    Examples are drawn without replacement within an epoch and reshuffled between epochs, all from ``seed``. Workers
    are not used: with them the order would depend on their number.

    Raises:
      PackError: no shards there, truncated, or packed for another target or tokenizer.
    """
    meta = read_meta(config.data)
    check_target(meta, config.data, target)
    shards = [str(config.data / name) for name in meta.shards]
    source: Any = grain.sources.ArrayRecordDataSource(shards)  # its methods are not typed
    if len(source) < config.batch_size:
        raise PackError(f"{config.data}: {len(source)} packed rows, expected at least batch_size={config.batch_size}")
    dataset = (
        grain.MapDataset.source(source)
        .seed(config.seed)
        .shuffle()
        .repeat()
        .map(read_example)
        .batch(config.batch_size, drop_remainder=True)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    )
    return iter(dataset), meta


def first_rows(folder: Path, meta: PackMeta, n: int = 4) -> Example:
    """The first packed rows, stacked: the same on every host."""
    source: Any = grain.sources.ArrayRecordDataSource(str(folder / min(meta.shards)))
    rows = [read_example(source[i]) for i in range(min(n, len(source)))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def choose_draft_vocab(meta: PackMeta, size: int, always: tuple[int, ...]) -> np.ndarray:
    """Target ids of the draft vocabulary: the most frequent tokens of the training traces, in rising order.

    Args:
      meta: of the packed data; holds how often each token was generated.
      size: of the draft vocabulary.
      always: ids that must be in it, such as the end marker.
    """
    counts = np.asarray(meta.token_counts, np.int64).copy()
    counts[list(always)] = counts.max() + 1
    frequent = np.argsort(-counts, kind="stable")[:size]
    return np.sort(frequent).astype(np.int32)
