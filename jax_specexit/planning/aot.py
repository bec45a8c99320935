"""The real training step of a recipe, traced from shapes alone, to be compiled for devices that are not there."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.traversals import flatten_mapping
from jax.sharding import Mesh

from jax_specexit.evaluation.held_out import scoring
from jax_specexit.evaluation.rows import Rows, largest_rows, longest_evaluated
from jax_specexit.model.cached import CachedTarget, ends_of
from jax_specexit.model.draft import Draft
from jax_specexit.model.splash import check_version
from jax_specexit.model.target import Target, TargetShape
from jax_specexit.sharding import ROWS, make_mesh
from jax_specexit.training.data import check_length
from jax_specexit.training.measure import NAMES, measurement, rows_measured
from jax_specexit.training.start import draft_config
from jax_specexit.training.step import Frozen, Step, make_step
from jax_specexit.weights import abstract_ends, abstract_target, quantizing
from specexit.chips import Chip, chip_of
from specexit.config import ConfigError
from specexit.data.features import DTYPES, FILE, StoredType, check_layers, read_manifest, stored_layers
from specexit.drafts.directory import DraftConfig
from specexit.errors import InputError, install
from specexit.method.signals import SIGNALS
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig

HINTS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # Its lock keeps one process from another's chips; nobody takes any here.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
"""Environment that tells libtpu what it would ask a TPU machine's metadata server, and lets several plans be made at a
time. Which type of machine is named here does not matter."""


def topology_devices(name: str, slices: int = 1) -> tuple[Chip, Sequence[Any]]:
    """The chips of a TPU slice that need not exist, e.g. of ``v5e:4x4``, or of several such slices.

    Raises:
      ConfigError: no such slice.
      InputError: libtpu, which compiles for TPUs, is not installed, or JAX is another version than attention on TPUs
        was checked with.
    """
    from jax.experimental import topologies

    chip = chip_of(name)
    check_version()
    jax.config.update("jax_platforms", "cpu")  # planning never takes a TPU that is there
    for key, value in HINTS.items():
        os.environ.setdefault(key, value)
    try:
        return chip, topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices
    except (RuntimeError, NotImplementedError) as error:
        if "libtpu" in str(error) or "not installed" in str(error):
            raise InputError(f"compiling for TPUs needs libtpu: {install('tpu')}") from error
        raise ConfigError(f"topology {name!r} does not exist: {error}") from error


class Shapes(NamedTuple):
    """Everything that a step is compiled from."""

    target: TargetShape
    draft: DraftConfig
    batch: int
    length: int
    stored: StoredType | None = None
    """Type of stored features; None where they are computed."""
    evaluated: int = 0
    """Tokens of the longest trace that is evaluated; 0 where none is longer than a row."""
    held: tuple[int, ...] = ()
    """Layers whose features are stored already, of which the draft may read only some; empty where none are."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Ids of the layers whose states are stored, or would be."""
        return self.held or stored_layers(
            self.draft.eagle_aux_hidden_state_layer_ids, self.draft.target_num_hidden_layers
        )


def shapes_of(config: TrainConfig, target_config: TargetConfig) -> Shapes:
    """The sizes of a recipe, without its data or any weights.

    Raises:
      ConfigError: the recipe does not say how long its rows are, or how its draft embeds tokens.
      InputError: the target is of an unknown architecture, or its config lacks a field; or see `with_stored`.
    """
    length = config.length
    if length is None:
        raise ConfigError("length is not set, expected the tokens of a packed row, as given to `specexit pack`")
    check_length(config, length)
    if config.init_from is not None and not config.init_from.exists():
        width, expected = config.draft.hidden_size, target_config.needed("hidden_size")["hidden_size"]
        if width != expected:
            raise ConfigError(
                f"init_from={config.init_from}: is not there, and only it says how a draft of another width than its "
                f"target embeds tokens: draft.hidden_size={width}, the target's is {expected}"
            )
        config = config.model_copy(update={"init_from": None})  # the recipe says its sizes
    draft = draft_config(config, target_config, "earliest")
    fields, path = target_config.hf_config(), target_config.config_place
    if config.features is None:
        target = TargetShape.from_config(fields, path)
    else:
        target = ends_of(fields, path, target_config.folder)
    evaluated = longest_evaluated(config, target_config)
    shapes = Shapes(target, draft, config.batch_size, length, evaluated=evaluated)
    return shapes if config.features is None else with_stored(shapes, config.features)


def with_stored(shapes: Shapes, folder: Path) -> Shapes:
    """``shapes`` with the features in a folder; if there are none yet, `specexit features` will write its default type.

    Raises:
      FeatureError: they cannot be read, or lack a layer.
    """
    if not (folder / FILE).exists():
        return shapes._replace(stored="bfloat16")
    manifest = read_manifest(folder)
    check_layers(folder, manifest, shapes.layers)
    return shapes._replace(stored=manifest.dtype, held=manifest.layers)


class Lowered(NamedTuple):
    """A step that is checked and traced, and not yet compiled."""

    mesh: Mesh
    step: jax.stages.Lowered
    frozen: Frozen
    """Shapes and shardings of what the step reads."""
    state: Any
    others: dict[str, Callable[[], jax.stages.Lowered]]
    """The other programs of a run, by what they do; traced when called."""


def lower_step(config: TrainConfig, shapes: Shapes, devices: Sequence[Any], dtype: str = "bfloat16") -> Lowered:
    """Trace the step of a recipe for a mesh over ``devices``; evaluations run in ``dtype``, the target's in serving.

    Raises:
      ConfigError: the mesh does not fit the devices, or does not divide the model.
    """
    mesh = make_mesh(config.mesh, devices)
    target: Target | CachedTarget
    if shapes.stored is None:
        target = abstract_target(shapes.target, config.dtype, int8=config.target_int8)
    else:
        target = abstract_ends(shapes.target, shapes.layers, config.dtype)
    draft = nnx.eval_shape(lambda: Draft(shapes.draft, rngs=nnx.Rngs(0)))
    step = make_step(config, draft, target, mesh)

    def placed(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    vocab = jax.ShapeDtypeStruct((shapes.draft.draft_vocab_size,), jnp.int32)
    weight = jax.ShapeDtypeStruct((shapes.target.vocab_size,), jnp.float32)
    frozen = Frozen(nnx.to_pure_dict(nnx.state(target)), vocab, weight)
    frozen = jax.tree.map(placed, frozen, step.frozen_shardings)
    state = jax.eval_shape(step.init, nnx.to_pure_dict(nnx.state(draft)))
    state = jax.tree.map(placed, state, step.state_shardings)
    batch = examples(EXAMPLE | stored_example(shapes), (shapes.batch, shapes.length), step)
    others = _others(config, shapes, dtype, step, (draft, target), (state, frozen, batch))
    return Lowered(mesh, step.update[config.ttt_steps].lower(state, frozen, batch), frozen, state, others)


def _others(
    config: TrainConfig,
    shapes: Shapes,
    dtype: str,
    step: Step,
    models: tuple[Draft, Target | CachedTarget],
    arguments: tuple,
) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """What a run compiles beside its main step, from quantizing a matrix of the target to evaluating."""
    (draft, target), (state, frozen, batch) = models, arguments
    mesh = cast(Mesh, step.batch_sharding.mesh)
    programs: dict[str, Callable[[], jax.stages.Lowered]] = {"begin": partial(cast(Any, step.init).lower, state.params)}
    programs |= {
        f"step of {k} TTT steps": partial(update.lower, state, frozen, batch)
        for k, update in step.update.items()
        if k != config.ttt_steps
    }
    if isinstance(target, CachedTarget):
        return programs
    if config.target_int8:
        programs["quantize"] = _quantize(frozen, config.dtype)
    if not shapes.draft.aux_norm_shapes:
        layers = shapes.draft.eagle_aux_hidden_state_layer_ids
        rows = examples({name: EXAMPLE[name] for name in NAMES}, (rows_measured(mesh), shapes.length), step)
        on_mesh = nnx.merge(nnx.graphdef(target), frozen.target)
        programs["measure"] = partial(measurement(layers, mesh, config.dtype).lower, on_mesh, *rows.values())
    if config.eval_traces is not None:
        score = scoring(config, step, nnx.graphdef(draft), nnx.graphdef(target), dtype)
        held_out = examples(EXAMPLE, rows_evaluated(shapes, mesh), step)
        programs["evaluate"] = partial(cast(Any, score).lower, state.params, frozen, held_out)
    return programs


def _quantize(frozen: Frozen, dtype: str) -> Callable[[], jax.stages.Lowered]:
    """The program that loading compiles for each matrix of the target, here for the one that takes most of a chip."""
    leaves = flatten_mapping(frozen.target)
    kernels = [path for path, leaf in leaves.items() if leaf.dtype == jnp.int8]
    largest = max(kernels, key=lambda path: math.prod(leaves[path].sharding.shard_shape(leaves[path].shape)))
    kernel, scale = leaves[largest], leaves[(*largest[:-1], "scale")]
    stored = jax.ShapeDtypeStruct(kernel.shape, jnp.dtype(dtype), sharding=kernel.sharding)
    return partial(quantizing((kernel.sharding, scale.sharding)).lower, stored)


def rows_evaluated(shapes: Shapes, mesh: Mesh) -> Rows:
    """The largest batch that an evaluation on these traces may take."""
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    return largest_rows(max(shapes.evaluated, 1), shapes.length, shapes.batch, shards)


def examples(
    fields: dict[str, tuple[tuple[int, ...], Any]], rows: tuple[int, int], step: Step
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of so many rows and tokens, by its shapes alone."""
    return {
        name: jax.ShapeDtypeStruct((*rows, *width), dtype, sharding=step.batch_sharding)
        for name, (width, dtype) in fields.items()
    }


EXAMPLE: dict[str, tuple[tuple[int, ...], Any]] = {
    "tokens": ((), jnp.int32),
    "segment_ids": ((), jnp.int32),
    "positions": ((), jnp.int32),
    "loss_mask": ((), jnp.bool_),
    "signal_labels": ((len(SIGNALS),), jnp.float32),
    "signal_mask": ((len(SIGNALS),), jnp.bool_),
}
"""Width and type of the fields of a packed example, see `specexit.data.sequences`."""


def stored_example(shapes: Shapes) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Width and type of the fields of stored features, see `specexit.data.features`; empty where none are stored."""
    if shapes.stored is None:
        return {}
    layers = len(shapes.layers)
    states = {"states": ((layers, shapes.target.hidden_size), DTYPES[shapes.stored])}
    return states | ({"scales": ((layers,), jnp.float32)} if shapes.stored == "float8" else {})
