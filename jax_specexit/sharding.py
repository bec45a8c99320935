"""Where every parameter lives on the mesh: names to logical axes, logical axes to mesh axes. Two tables, no magic.

The mesh has the axes ``data`` (replicas), ``fsdp`` (shards of parameters and of the batch), ``expert`` (experts of the
target, and the batch), ``context`` (stretches of each row's time) and ``tensor`` (heads, MLP width, vocabulary).
Optimizer state mirrors the parameters' names, so it follows the same tables. The compiler derives the sharding of
activations from their inputs, except where the code calls `constrain`. That uses the mesh in force (`jax.set_mesh`, or
`jax.sharding.use_abstract_mesh` inside of a jitted function); without one, everything runs on one device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from specexit.config import ConfigError, PassingError
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
    "experts/gate/kernel": ("expert", "embed", "mlp"),
    "experts/up/kernel": ("expert", "embed", "mlp"),
    "experts/down/kernel": ("expert", "mlp", "embed"),
    "experts/gate/scale": ("expert", "mlp"),
    "experts/up/scale": ("expert", "mlp"),
    "experts/down/scale": ("expert", None),
    "router/kernel": ("embed", None),
    "signal_head/kernel": (None, None),
    "ns_coeffs": (None, None),
    "scale": (None,),
    "bias": (None,),
}
"""End of a parameter's path -> the logical name of each of its dimensions."""

EXPERT = "expert"
"""Mesh axis that the experts of a mixture are spread over."""

ROWS = ("data", "fsdp", EXPERT)
"""Mesh axes that the rows of a batch are spread over."""

CONTEXT = "context"
"""Mesh axis that the time of every row is spread over."""

AXES = ("data", "fsdp", EXPERT, CONTEXT, "tensor")
"""Axes of the mesh, from the slowest link to the fastest."""

MESH_AXES = {
    **{"batch": ROWS, "time": CONTEXT, "expert": EXPERT},
    **{"vocab": "tensor", "heads": "tensor", "mlp": "tensor", "embed": "fsdp"},
}
"""Logical axis -> mesh axis."""

BATCH = PartitionSpec(ROWS, CONTEXT)
"""Partition of an array [batch, time, ...]."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices in a mesh.

    Args:
      config: sizes of the mesh.
      devices: what is arranged; None for all devices of the job.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or ``dcn_data`` is not the number of slices.
    """
    grid = device_grid(config, jax.devices() if devices is None else devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(config: MeshConfig, devices: Sequence[Any]) -> Shaped[np.ndarray, "data fsdp expert context tensor"]:
    """The devices in an array with an axis for each of the mesh's.

    On TPUs they are in the order of the interconnect, so that neighbours on the mesh are neighbours in the torus. Only
    the data centre's network joins several slices, so each slice holds whole replicas: ``data`` runs over the slices
    first, and nothing but the sum of the gradients crosses them. Elsewhere each process counts as a slice, and
    ``dcn_data=1`` is one mesh over all of them: what joins processes of one machine is no slow network.

    Raises:
      ConfigError: see `make_mesh`; a `PassingError` where the next start may find devices that fit.
    """
    slices = len({slice_of(device) for device in devices})
    wanted = slices if config.dcn_data == -1 else config.dcn_data
    if wanted > 1 and wanted != slices:
        raise PassingError(f"mesh.dcn_data={wanted}, but the devices are of {slices} slices: expected as many, or -1")
    if slices > 1 and wanted == 1 and devices[0].platform == "tpu":
        raise ConfigError(
            f"mesh.dcn_data=1, but the devices are of {slices} slices: expected mesh.dcn_data={slices}, or -1 for as "
            "many as there are"
        )
    each, rest = len(devices) // wanted, config.fsdp * config.expert * config.context * config.tensor
    data = each // rest if config.data == -1 else config.data
    product = data * rest * wanted
    if product != len(devices) or data == 0:
        over = f" dcn_data={wanted}" if wanted > 1 else ""
        sizes = " ".join(f"{axis}={getattr(config, axis)}" for axis in AXES)
        # Too many devices do not become fewer by waiting, and with mesh.data given none of the sizes can give way.
        lasting = config.data != -1 and product < len(devices)
        raise (ConfigError if lasting else PassingError)(
            f"mesh{over} {sizes} does not fit {len(devices)} devices: the product must be the number of devices"
        )
    shape = (data, config.fsdp, config.expert, config.context, config.tensor)
    groups = [
        [device for device in devices if wanted == 1 or slice_of(device) == one] for one in _slices(devices, wanted)
    ]
    if any(len(group) != each for group in groups):
        sizes = ", ".join(str(len(group)) for group in groups)
        raise PassingError(f"mesh.dcn_data={wanted}: the slices have {sizes} devices, expected equal ones")
    grids = [mesh_utils.create_device_mesh(shape, group, allow_split_physical_axes=True) for group in groups]
    return np.concatenate(grids, axis=0)


def slice_of(device: Any) -> int:
    """Slice that a TPU chip belongs to, 0 where it does not say, as when planning; for other devices, their process."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else device.process_index


def _slices(devices: Sequence[Any], wanted: int) -> list[int]:
    return sorted({slice_of(device) for device in devices}) if wanted > 1 else [0]


def spec_of(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
    """The partition of one leaf of parameters or optimizer state.

    Raises:
      KeyError: `LOGICAL_AXES` has no entry for a leaf of two or more dimensions, which is not replicated by accident.
    """
    name = "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path)
    stacked: tuple[str | None, ...] = (None,) if "layers/" in name else ()
    for ending, axes in LOGICAL_AXES.items():
        axes = stacked + axes
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


def check_mesh(mesh: Mesh | AbstractMesh, batch_size: int, models: Sequence[Any]) -> None:
    """Check that a mesh divides heads, experts and rows, which the shapes of parameters alone do not show.

    Args:
      mesh: what is trained on.
      batch_size: rows per step.
      models: whatever has ``num_attention_heads`` and ``num_key_value_heads``, and ``num_experts`` if any.

    Raises:
      ConfigError: an axis does not divide heads, experts or rows; says which, and what would fit.
    """
    experts, shards = max(getattr(model, "num_experts", 0) for model in models), mesh.shape[EXPERT]
    if shards > 1 and experts == 0:
        raise ConfigError(
            f"mesh.expert={shards}, but no experts are run: leave mesh.expert at 1 for a target that has none, and "
            "with features, where none of the target's layers are run"
        )
    if experts % shards:
        fitting = [n for n in range(1, experts + 1) if experts % n == 0]
        raise ConfigError(
            f"mesh.expert={shards} does not divide num_experts={experts}: choose mesh.expert from {fitting}"
        )
    rows, tensor = math.prod(mesh.shape[axis] for axis in ROWS), mesh.shape["tensor"]
    for model in models:
        for field in ("num_attention_heads", "num_key_value_heads"):
            heads = getattr(model, field)
            if heads % tensor:
                fitting = [n for n in range(1, heads + 1) if heads % n == 0]
                raise ConfigError(
                    f"mesh.tensor={tensor} does not divide {field}={heads}: choose mesh.tensor from {fitting}, and "
                    "mesh.fsdp or mesh.data larger"
                )
    if batch_size % rows:
        together = " x ".join(f"mesh.{axis}" for axis in ROWS)
        raise ConfigError(
            f"{together} = {rows} does not divide batch_size={batch_size}: choose a multiple of {rows}, or a larger "
            "mesh.context or mesh.tensor"
        )


def constrain(x: Shaped[Array, "*shape"], *axes: str | None) -> Shaped[Array, "*shape"]:
    """Say where an activation lives, by one logical axis per dimension; does nothing where no mesh is in force."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(MESH_AXES[axis] if axis else None for axis in axes)))


def shift(x: Shaped[Array, "batch time *rest"], by: int) -> Shaped[Array, "batch time *rest"]:
    """``y[:, t] = x[:, t + by]``, zeros where that is outside; negative ``by`` looks back.

    Where time lies on several chips each hands a few rows to its neighbour, and nothing is gathered.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if by == 0:
        return x
    if mesh.empty or mesh.shape[CONTEXT] == 1:
        return _shift(x, by, jnp.zeros_like(x[:, : abs(by)]))
    n, axes = mesh.shape[CONTEXT], PartitionSpec(ROWS, CONTEXT)
    moves = [(i, i - 1) for i in range(1, n)] if by > 0 else [(i - 1, i) for i in range(1, n)]

    def local(x: Array) -> Array:
        edge = x[:, :by] if by > 0 else x[:, by:]
        return _shift(x, by, jax.lax.ppermute(edge, CONTEXT, moves))  # zeros for the chip that nobody sends to

    return jax.shard_map(local, in_specs=axes, out_specs=axes, check_vma=False)(x)


def _shift(x: Array, by: int, edge: Array) -> Array:
    return jnp.concatenate([x[:, by:], edge] if by > 0 else [edge, x[:, :by]], axis=1)


def gather(params: Any) -> Any:
    """Draft parameters as every TTT step reads them, whole along ``fsdp``.

    Call it once before the steps: left to itself, the compiler gathers them for each step, and again for its backward
    pass. Their gradients are then added up over the steps and scattered once. The LM head is left out, as its loss
    gathers it itself.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return params

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        if "lm_head" in jax.tree_util.keystr(path):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, whole_along_fsdp(path, leaf))

    return jax.tree.map_with_path(one, params)


def whole_along_fsdp(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
    """The partition of a parameter while it is used: whole along ``fsdp``, otherwise as it is stored."""
    return PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec_of(path, leaf)))


def look_up(table: Float[Array, "vocab hidden"], tokens: Int[Array, "batch time"]) -> Float[Array, "batch time hidden"]:
    """Rows of a sharded table.

    Left to itself, the compiler gathers the whole table, 0.8 GB for a 4B model. Tokens are small, so they are gathered
    instead: every device looks up its columns for the tokens of all its ``fsdp`` neighbours, then they swap.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return table[tokens]

    def local(table: Array, tokens: Array) -> Array:
        tokens = jax.lax.all_gather(tokens, "fsdp", axis=0, tiled=True)
        place = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        mine = (place >= 0) & (place < table.shape[0])
        rows = jnp.where(mine[..., None], table[jnp.clip(place, 0, table.shape[0] - 1)], 0)
        rows = jax.lax.psum(rows, "tensor")  # all but one are zero
        return jax.lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=2, tiled=True)

    in_specs = (PartitionSpec("tensor", "fsdp"), BATCH)
    return jax.shard_map(local, in_specs=in_specs, out_specs=BATCH, check_vma=False)(table, tokens)
