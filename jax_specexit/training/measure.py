"""What is measured before a run: the size of the target's hidden states at each aux layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_specexit.model.layers import exact_products
from jax_specexit.model.target import Target
from jax_specexit.planning.hbm import fitting
from jax_specexit.sharding import BATCH, ROWS
from jax_specexit.training.data import FIRST_ROWS
from specexit.data.features import FeatureError, check_hashes, read_manifest
from specexit.data.sequences import Example
from specexit.errors import InputError

NAMES = ("tokens", "positions", "segment_ids")
"""Fields of a packed example that the target reads."""


def measurement(layers: tuple[int, ...], mesh: Mesh, dtype: DTypeLike) -> Callable[..., Array]:
    """The jitted program behind `measure_aux`: (target, tokens, positions, segments) -> median RMS of each layer."""

    def medians(target: Target, tokens: Array, positions: Array, segments: Array) -> Array:
        with exact_products(dtype), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            _, aux = target(tokens, positions, segments, aux_layers=layers, dtype=dtype)
        assert aux is not None
        states = aux.reshape(*tokens.shape, len(layers), -1).astype(jnp.float32)
        rms = jnp.sqrt(jnp.mean(states**2, axis=-1))
        real = segments[..., None] > 0
        broken = jnp.any(real & ~jnp.isfinite(rms), axis=(0, 1))
        return jnp.where(broken, jnp.nan, jnp.nanmedian(jnp.where(real, rms, jnp.nan), axis=(0, 1)))

    return jax.jit(medians, out_shardings=NamedSharding(mesh, PartitionSpec()))


def rows_measured(mesh: Mesh | AbstractMesh, n: int = FIRST_ROWS) -> int:
    """``n``, rounded up so that every place for rows on the mesh has as many."""
    places = math.prod(mesh.shape[axis] for axis in ROWS)
    return -(-n // places) * places


def measure_aux(
    target: Target, layers: tuple[int, ...], rows: Example, mesh: Mesh, dtype: DTypeLike
) -> tuple[float, ...]:
    """Typical RMS of the target's hidden states after each aux layer, as a power of two.

    The median over tokens: a few of them, the first of a sequence above all, have states a hundred times larger. A
    power of two, so that folding it into weights and taking it out again changes no bit of them.

    Args:
      target: on the mesh.
      layers: ids of the aux layers.
      rows: a few packed examples.
      mesh: that the target is on.
      dtype: of the target's matrix products.

    Raises:
      InputError: the states are not finite, or all of them 0 somewhere.
    """
    # Every device needs a row; the padding is in segment 0, which no median counts.
    none = ((0, rows_measured(mesh, len(rows["tokens"])) - len(rows["tokens"])), (0, 0))
    batch = [jax.device_put(np.pad(rows[name], none), NamedSharding(mesh, BATCH)) for name in NAMES]
    with fitting("measure"):
        found = np.asarray(measurement(layers, mesh, dtype)(target, *batch))
    if wrong := _wrong(layers, found):
        raise InputError(
            f"the target's hidden states have {wrong} (a damaged download, or a dtype that its weights are "
            "too large for)"
        )
    return _powers_of_two(found)


def measure_stored(
    layers: tuple[int, ...], folder: Path, rows: Example, states: Float[np.ndarray, "batch time layer hidden"]
) -> tuple[float, ...]:
    """What `measure_aux` finds, from states that are stored.

    Args:
      layers: ids of the aux layers.
      folder: of the stored features.
      rows: the first packed examples.
      states: theirs.

    Raises:
      FeatureError: the states are not finite, or all of them 0 somewhere; it names a shard that is damaged.
    """
    manifest = read_manifest(folder)
    rms = np.sqrt(np.mean(states.astype(np.float32) ** 2, axis=-1))[rows["segment_ids"] > 0]
    median = np.where(np.isfinite(rms).all(axis=0), np.median(rms, axis=0), np.nan)
    found = median[[manifest.layers.index(k) for k in layers]]
    if wrong := _wrong(layers, found):
        check_hashes(folder, manifest, range(len(states)))
        raise FeatureError(
            f"{folder}: the stored hidden states have {wrong}, and their shards are as `specexit features` wrote them: "
            "choose a target and a `dtype` that go together, and store its states anew"
        )
    return _powers_of_two(found)


def _wrong(layers: tuple[int, ...], found: np.ndarray) -> str:
    """What is wrong with the RMS of each layer; empty where nothing is."""
    if np.all(np.isfinite(found)) and np.all(found > 0):
        return ""
    rms = ", ".join(f"{size:g} at layer {layer}" for layer, size in zip(layers, found, strict=True))
    return f"an RMS of {rms}: expected finite ones above 0"


def _powers_of_two(found: np.ndarray) -> tuple[float, ...]:
    return tuple(2.0 ** int(np.rint(np.log2(x))) for x in found)
