"""Packed examples to batches: one global order, of which every process reads its rows.

The batch of step i is a pure function of (data, seed, i). So the step in a checkpoint is the position in the data, and
a run goes on with any number of processes, nothing repeated and nothing skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int

from jax_specexit.model.cached import ends_of
from jax_specexit.sharding import CONTEXT, ROWS
from specexit.config import ConfigError
from specexit.data.features import Features, check
from specexit.data.overlap import FILE as PROMPTS
from specexit.data.overlap import read_prompts
from specexit.data.packed import PackError, PackMeta, Records, check_target, open_rows, read_example, read_meta
from specexit.data.sequences import Example
from specexit.data.traces import vocab_size_of
from specexit.drafts.fingerprints import target_fingerprint
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig


def check_data(config: TrainConfig, target: TargetConfig) -> PackMeta:
    """Check that the packed data is whole and fits the recipe; reads no example.

    Raises:
      PackError: no shards there, truncated or damaged, too few rows, or packed for another target, tokenizer or size of
        the vocabulary, or with labels at other boundaries; or the list of its prompts is not with it.
      OverlapError: a list of prompts, which the run hands on, cannot be read.
      ConfigError: its rows have another length than the recipe says, or ``loss_chunk`` does not divide it.
    """
    meta = read_meta(config.data)
    listed, *_ = [read_prompts(folder) for folder in trained_on(config)]  # the first is of its data
    if meta.prompts is not None and (listed is None or len(listed) != meta.prompts):
        has = "is missing" if listed is None else f"lists {len(listed)} prompts"
        raise PackError(
            f"{config.data / PROMPTS}: {has}, expected {meta.prompts} prompts as meta.json says: without them nobody "
            "could tell later what was trained on; copy it along, or pack again"
        )
    check_target(meta, config.data, target)
    counted, vocab = len(meta.token_counts), vocab_size_of(target)
    if counted != vocab:  # of other weights under the same name: JAX takes any id for one that there is
        raise PackError(
            f"{config.data / 'meta.json'}: token_counts is of {counted} token ids, but {target.config_place} says "
            f"vocab_size={vocab}: expected rows that were packed for this target"
        )
    found = len(open_rows(config.data, meta))
    if found != meta.n:
        raise PackError(f"{config.data}: {found} examples in its shards, expected {meta.n} as meta.json says")
    if meta.n < config.batch_size:
        raise PackError(f"{config.data}: {meta.n} packed rows, expected at least batch_size={config.batch_size}")
    if config.length not in (None, meta.length):
        raise ConfigError(f"length={config.length}, but the rows in {config.data} have {meta.length} tokens")
    check_length(config, meta.length)
    return meta


def trained_on(config: TrainConfig) -> tuple[Path, ...]:
    """Folders that may say which prompts a run's draft has seen (`specexit.data.overlap`).

    Its data; the draft that it starts from; and its own folder, as that draft may be gone when the run resumes.
    """
    return (config.data, config.out) if config.init_from is None else (config.data, config.out, config.init_from)


def check_length(config: TrainConfig, length: int) -> None:
    """Check that a row can be cut as the recipe says.

    Raises:
      ConfigError: ``loss_chunk`` or ``mesh.context`` does not divide its ``length``, or a stretch is too short.
    """
    shards = config.mesh.context
    if shards > 1 and length % (2 * shards):
        raise ConfigError(
            f"mesh.context={shards} does not divide length={length} into an even number of rows each: choose a "
            f"mesh.context of which twice as much divides {length}"
        )
    stretch = length // shards
    if stretch % config.loss_chunk:
        each = f" / mesh.context={shards}" if shards > 1 else ""
        fits = next(chunk for chunk in range(min(config.loss_chunk, stretch), 0, -1) if stretch % chunk == 0)
        raise ConfigError(f"loss_chunk={config.loss_chunk} does not divide length={length}{each}, as {fits} does")
    if stretch <= config.ttt_steps:
        raise ConfigError(
            f"length={length} / mesh.context={shards} is {stretch} rows a chip, expected more than "
            f"ttt_steps={config.ttt_steps}"
        )


def open_features(config: TrainConfig, target: TargetConfig, meta: PackMeta) -> Features | None:
    """The stored features of a recipe, checked; None where they are computed.

    Raises:
      FeatureError: they are not whole, or are of another target, of other data or of other layers.
      InputError: the target is of a kind whose final norm or LM head is not known, or its config lacks a field.
    """
    if config.features is None:
        return None
    sizes, layers = target.needed("hidden_size", "num_hidden_layers"), target.layers_read(config.aux_layers)
    ends_of(target.hf_config(), target.config_place, target.folder)
    needed = {
        "target": target.name,
        "target_sha256": target_fingerprint(target.folder),
        "target_dtype": target.dtype,
        "tokenizer_sha256": meta.tokenizer_sha256,
        "data": meta.identity,
        "n": meta.n,
        "length": meta.length,
        "hidden_size": sizes["hidden_size"],
    }
    return Features(config.features, check(config.features, needed, {*layers, sizes["num_hidden_layers"]}))


class Rows:
    """Random access to packed rows, joined with the stored features of each where there are any."""

    def __init__(self, records: Records, features: Features | None):
        self.records, self.features = records, features

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: Any) -> Example:
        """Row i, counted over all shards.

        Raises:
          PackError, FeatureError: the row cannot be read, or the features are of another one.
        """
        example = read_example(self.records[i])
        return example if self.features is None else example | self.features.read(int(i), example)


class Batches:
    """Endless shuffled batches of a recipe.

    Examples are drawn without replacement within an epoch and reshuffled between epochs, all from ``seed``; a batch may
    hold the end of one epoch and the start of the next.

    Args:
      config: the run's.
      meta: of its data.
      sharding: of a batch on the mesh.
      features: stored ones, which then are part of a batch.

    Raises:
      ConfigError: the mesh does not divide the batch.
    """

    def __init__(self, config: TrainConfig, meta: PackMeta, sharding: NamedSharding, features: Features | None = None):
        records = open_rows(config.data, meta)

        def shuffled(rows: Any) -> Any:
            return grain.MapDataset.source(rows).seed(config.seed).shuffle().repeat()

        self.examples, self.packed = shuffled(Rows(records, features)), shuffled(Rows(records, None))
        self.order, self.features = shuffled(range(len(records))), features
        self.size, self.sharding = config.batch_size, sharding
        self.rows = rows_of_process(config.batch_size, sharding)

    def read(self, step: int, rows: Sequence[int] | np.ndarray) -> Example:
        """Rows of the batch of a step (counted from 1), stacked."""
        return self._stacked(self.examples, step, rows)

    def whole(self, step: int) -> Example:
        """The packed examples of a step, of all processes; stored features of all would be more than a host holds."""
        return self._stacked(self.packed, step, range(self.size))

    def check_features(self, step: int) -> None:
        """Check that the stored features of a step, of all processes, are finite; row by row, see `whole`.

        Raises:
          FeatureError: some are not, or cannot be read.
        """
        if self.features is not None:
            for place in range((step - 1) * self.size, step * self.size):
                self.features.check_finite(int(self.order[place]), self.packed[place])

    def _stacked(self, examples: Any, step: int, rows: Sequence[int] | np.ndarray) -> Example:
        found = [examples[(step - 1) * self.size + int(row)] for row in rows]
        return {name: np.stack([example[name] for example in found]) for name in found[0]}

    def steps(self, first: int, last: int) -> Iterator[tuple[int, dict[str, jax.Array]]]:
        """(step, batch on the mesh) of the steps from ``first`` to ``last``; the next ones are read meanwhile."""
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        reader = grain.MapDataset.range(first, last + 1).map(lambda step: (step, self.read(step, self.rows)))
        for step, local in reader.to_iter_dataset(options) if first <= last else ():
            yield int(step), place(local, self.rows, self.size, self.sharding)


def rows_of_process(size: int, sharding: NamedSharding) -> Int[np.ndarray, " local"]:
    """Which rows of a batch live on this process's devices, rising.

    Raises:
      ConfigError: the mesh does not divide the batch.
    """
    shards = math.prod(sharding.mesh.shape[axis] for axis in ROWS)
    if size % shards:
        raise ConfigError(f"batch_size={size} does not divide over {' x '.join(ROWS)} = {shards} shards of the mesh")
    held = sharding.addressable_devices_indices_map((size, sharding.mesh.shape[CONTEXT])).values()
    return np.unique(np.concatenate([np.arange(size)[index[0]] for index in held if index is not None]))


def place(local: Example, rows: Int[np.ndarray, " local"], size: int, sharding: NamedSharding) -> dict[str, jax.Array]:
    """A process's rows of a batch as arrays of the whole batch on the mesh."""

    def one(x: np.ndarray) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            begin, end, _ = index[0].indices(size)
            at = int(np.searchsorted(rows, begin))
            return x[(slice(at, at + end - begin), *index[1:])]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, shard)

    return {name: one(value) for name, value in local.items()}


FIRST_ROWS = 4
"""Packed rows that a run is measured on."""


def first_rows(folder: Path, meta: PackMeta, features: Features | None = None) -> Example:
    """The first `FIRST_ROWS` packed rows, or as many as the first shard has, stacked: the same on every host."""
    source = Rows(Records(folder, [min(meta.shards)]), features)
    rows = [source[i] for i in range(min(FIRST_ROWS, len(source)))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def choose_draft_vocab(meta: PackMeta, size: int, always: tuple[int, ...]) -> Int[np.ndarray, " dvocab"]:
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
