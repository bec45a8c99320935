"""Where every parameter lives on the mesh: names to logical axes, logical axes to mesh axes. Two tables, no magic.

The mesh has the axes ``data`` (replicas), ``fsdp`` (shards of parameters and of the batch) and ``tensor`` (heads, MLP
width, vocabulary). Optimizer state mirrors the parameters' names, so it follows the same tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from specexit.config import ConfigError
from specexit.schemas.train import MeshConfig

LOGICAL_AXES: dict[str, tuple[str | None, ...]] = {
    "embedding": ("vocab", "embed"),
    "fc/kernel": ("embed", None),
    "q/kernel": ("embed", "heads"),
    "k/kernel": ("embed", "heads"),
    "v/kernel": ("embed", "heads"),
    "o/kernel": ("heads", "embed"),
    "gate/kernel": ("embed", "mlp"),
    "up/kernel": ("embed", "mlp"),
    "down/kernel": ("mlp", "embed"),
    "lm_head/kernel": ("embed", "vocab"),
    "signal_head/kernel": (None, None),
    "scale": (None,),
    "bias": (None,),
}
"""End of a parameter's path -> the logical name of each of its dimensions."""

MESH_AXES = {"vocab": "tensor", "heads": "tensor", "mlp": "tensor", "embed": "fsdp"}
"""Logical axis -> mesh axis."""

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices in a mesh.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    data = len(devices) // rest if config.data == -1 else config.data
    if data * rest != len(devices) or data == 0:
        raise ConfigError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not fit {len(devices)} devices: "
            f"the product must be the number of devices"
        )
    grid = np.array(devices).reshape(data, config.fsdp, config.tensor)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def spec_of(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
    """The partition of one leaf of parameters or optimizer state.

    Raises:
      KeyError: a parameter that the table does not know, so that none is replicated by accident.
    """
    name = "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path)
    for ending, axes in LOGICAL_AXES.items():
        if name.endswith(ending) and leaf.ndim == len(axes):
            return PartitionSpec(*(MESH_AXES.get(axis or "") for axis in axes))
    if leaf.ndim <= 1:
        return PartitionSpec()
    raise KeyError(f"parameter {name} {leaf.shape} has no entry in jax_specexit.sharding.LOGICAL_AXES")


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a tree of arrays or shapes.

    Raises:
      ConfigError: a dimension does not divide by its mesh axis; the message says which to change.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec = spec_of(path, leaf)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % math.prod(mesh.shape[a] for a in np.atleast_1d(axis)):
                raise ConfigError(
                    f"mesh.{axis}={mesh.shape[axis]} does not divide dimension {size} of "
                    f"{jax.tree_util.keystr(path)}: choose another size of mesh axis {axis!r}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree.map_with_path(one, tree)
