"""What `test_sharded` looks at, computed in a process of its own with eight simulated devices; prints one JSON object.

Every mesh computes the same as one device does without any mesh.
"""

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_attention import random_inputs, value_and_gradients
from test_losses import plain, problem

from jax_specexit import weights
from jax_specexit.model.attention import attend, ttt_attention, ttt_attention_reference
from jax_specexit.model.draft import Draft
from jax_specexit.model.layers import segment_starts
from jax_specexit.model.splash import Splash
from jax_specexit.model.target import Target
from jax_specexit.planning.aot import Lowered, lower_step, shapes_of
from jax_specexit.planning.hlo import collectives
from jax_specexit.planning.plan import bytes_on_one_chip
from jax_specexit.sharding import BATCH, look_up, make_mesh, shift
from jax_specexit.training.checkpoint import Checkpoints
from jax_specexit.training.data import Batches, check_data, first_rows
from jax_specexit.training.losses import first_choices, linear_cross_entropy
from jax_specexit.training.start import start
from jax_specexit.training.step import Frozen, make_step
from specexit.config import ConfigError, load
from specexit.drafts.window import first_pass_rows
from specexit.schemas.target import load_target_config
from specexit.schemas.train import MeshConfig, TrainConfig

MESHES = {
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "1 x 4 x 2": MeshConfig(data=1, fsdp=4, tensor=2),
    "4 x 2 x 1": MeshConfig(data=4, fsdp=2, tensor=1),
    "context 2": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
    "context 4": MeshConfig(data=2, fsdp=1, context=4, tensor=1),
}
BEGINNING = ("2 x 2 x 2", "context 4")
"""Meshes on which the target is loaded and measured, too."""

PERMUTED = (5, 2, 7, 0, 3, 6, 1, 4)
STEPS = 10


def difference(ours, oracle) -> float:
    """Largest error in any leaf, relative to the leaf's largest value."""
    leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (ours, oracle))
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(*leaves, strict=True))


def attention(meshes) -> dict[str, float]:
    """In float64, all gradients."""
    found = {}
    with jax.enable_x64(True):
        segments = jnp.asarray(np.cumsum(np.random.default_rng(0).random((8, 40)) < 0.1, axis=1))
        inputs = (*random_inputs(np.zeros((8, 40)), 3, 2), segments)
        oracle = value_and_gradients(ttt_attention_reference)(*inputs)
        for name, mesh in meshes.items():
            with jax.set_mesh(mesh):
                found[name] = difference(value_and_gradients(ttt_attention)(*inputs), oracle)
        oracle = value_and_gradients(partial(ttt_attention_reference, window=9))(*inputs)
        with jax.set_mesh(meshes["context 4"]):
            found["a window"] = difference(value_and_gradients(partial(ttt_attention, window=9))(*inputs), oracle)
    return found


def splash(context: int, window: int | None) -> float:
    """TPUs' attention of a row that lies on several chips, in Pallas' interpreter; a window is of its second step."""
    mesh = make_mesh(MeshConfig(data=8 // context, context=context))
    batch, time, heads, kv, dim = 8 // context, 256 * context, 2, 1, 128
    segments = jnp.asarray(np.cumsum(np.random.default_rng(0).random((batch, time)) < 0.01, axis=1))
    keys = jax.random.split(jax.random.key(0), 6)
    q, wanted = (jax.random.normal(key, (batch, time, heads, dim)) for key in keys[:2])
    k, v = ([jax.random.normal(key, (batch, time, kv, dim)) for key in some] for some in (keys[2:4], keys[4:]))
    local, whole = PartitionSpec(*BATCH), PartitionSpec(BATCH[0])

    def ours(q, k, v):
        seen = None if window is None else first_pass_rows(window, 1)
        attend_here = partial(attend, Splash(context, "TPU v6 lite", interpret=True, window=seen))
        specs = {"in_specs": (local, local, local, whole), "out_specs": local}
        out = jax.shard_map(attend_here, mesh=mesh, check_vma=False, **specs)(q, k, v, segment_starts(segments))
        return jnp.sum(wanted * out)

    def oracle(q, k, v):
        return jnp.sum(wanted * ttt_attention_reference(q, k, v, segments, window))

    got, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (ours, oracle))
    return difference(got, expected)


def shifts(mesh) -> int:
    """Numbers that land elsewhere than on one device."""
    x = jnp.arange(1, 8 * 16 * 3 + 1).reshape(8, 16, 3)
    wrong = 0
    for by in (1, -1, 3, -3):
        with jax.set_mesh(mesh):
            moved = jax.jit(shift, static_argnums=1)(x, by)
        wrong += int(jnp.sum(moved != shift(x, by)))
    return wrong


def cross_entropy(meshes) -> dict[str, dict[str, float]]:
    """Against the plain formula, and what else it reports against one device."""
    hidden, head, teacher, w = problem()
    hidden, w = jnp.tile(hidden, (1, 4, 1, 1)), jnp.tile(w, (1, 4, 1))
    teacher = type(teacher)(jnp.tile(teacher.hidden, (4, 1, 1)), teacher.head, jnp.tile(teacher.labels, (4, 1)))

    def fused(h, k):
        result = linear_cross_entropy(h, k, teacher, w, 4)
        return result.total, result

    oracle = jax.jit(jax.value_and_grad(lambda h, k: plain(h, k, teacher, w), argnums=(0, 1)))(hidden, head)
    alone, found = jax.jit(fused)(hidden, head)[1], {}
    for name, mesh in meshes.items():
        with jax.set_mesh(mesh):
            chosen = jax.jit(first_choices, static_argnums=2)(hidden, head, 4)
            (_, ours), gradients = jax.jit(jax.value_and_grad(fused, argnums=(0, 1), has_aux=True))(hidden, head)
        found[name] = {
            "oracle": difference((ours.total, gradients), oracle),
            "one device": difference(ours, alone),
            "choices": int(jnp.sum(chosen != jnp.argmax(hidden @ head, axis=-1))),
        }
    return found


def lookup(mesh) -> float:
    table = jnp.arange(64.0 * 8).reshape(64, 8)
    tokens = jax.random.randint(jax.random.key(0), (8, 8), 0, 64)
    with jax.set_mesh(mesh):
        return float(jnp.abs(jax.jit(look_up)(table, tokens) - table[tokens]).max())


def loading(folder: Path, mesh) -> dict[str, float]:
    """Largest difference to loading it whole, and the largest piece read, in shares of the largest parameter."""
    largest, reader = 0, weights._reader

    def counting(*args):
        def read(index):
            nonlocal largest
            piece = reader(*args)(index)
            largest = max(largest, piece.size)
            return piece

        return read

    whole = nnx.to_pure_dict(nnx.state(weights.load_target(folder)))
    weights._reader = counting
    sharded = nnx.to_pure_dict(nnx.state(weights.load_target(folder, mesh=mesh)))
    weights._reader = reader
    size = max(leaf.size for leaf in jax.tree.leaves(whole))
    int8 = difference(nnx.to_pure_dict(nnx.state(weights.load_target(folder, mesh=mesh, int8=True))), at_once(folder))
    return {"difference": difference(sharded, whole), "largest": largest / size, "int8": int8}


def at_once(folder: Path) -> Any:
    """The int8 target, all of it quantized in one program on one device."""
    graph, state = nnx.split(weights.load_target(folder))

    def program(values):
        return nnx.to_pure_dict(nnx.state(weights._quantized(nnx.merge(graph, values))))

    return jax.jit(program)(nnx.to_pure_dict(state))


class Begun(NamedTuple):
    """What a run starts from, in this process's memory."""

    draft: Draft
    target: Target
    frozen: Frozen
    params: Any


def begin(config: TrainConfig, mesh: Mesh) -> Begun:
    """Load and measure the target on a mesh, and make the draft."""
    target_config = load_target_config(config.target)
    meta = check_data(config, target_config)
    fixed, draft, target = start(config, target_config, meta, first_rows(config.data, meta), mesh)
    assert isinstance(target, Target)
    frozen = Frozen(nnx.to_pure_dict(nnx.state(target)), np.asarray(fixed.vocab, np.int32), np.ones(640, np.float32))
    params = nnx.to_pure_dict(nnx.state(draft))
    return Begun(draft, target, *jax.tree.map(np.asarray, (frozen, params)))


def refused(config: TrainConfig, mesh: Mesh) -> str:
    """What a run says of a draft that the mesh does not divide, where no target may be loaded."""
    config = config.model_copy(update={"draft": config.draft.model_copy(update={"draft_vocab_size": 321})})
    with patch("jax_specexit.training.start.load_target", side_effect=AssertionError("the target is loaded")):
        try:
            begin(config, mesh)
        except (ConfigError, AssertionError) as error:
            return str(error)
    return "nothing"


def losses(
    config: TrainConfig, devices, mesh_config: MeshConfig, *, steps: int = STEPS, begun: Begun | None = None
) -> list[float]:
    """The first steps' losses, from what was ``begun`` on another mesh or on this one."""
    mesh = make_mesh(mesh_config, devices)
    draft, target, frozen, params = begun or begin(config, mesh)
    step = make_step(config, draft, target, mesh)
    frozen, state, found = jax.device_put(frozen, step.frozen_shardings), step.init(params), []
    meta = check_data(config, load_target_config(config.target))
    for _, batch in Batches(config, meta, step.batch_sharding).steps(1, steps):
        state, values = step.update[config.ttt_steps](state, frozen, batch)
        found.append(float(values["loss"]))
    return found


def planned(config: TrainConfig, mesh_config: MeshConfig) -> Lowered:
    """All programs of the run, with evaluations and a first share on one TTT step."""
    changes = {"mesh": mesh_config, "length": 128, "eval_traces": Path("traces"), "first_step_share": 0.5}
    config = config.model_copy(update=changes)
    return lower_step(config, shapes_of(config, load_target_config(config.target)), jax.devices(), "float32")


def restoring(before: Lowered, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """A state saved on one mesh and restored on another: what is compiled for it, and what it takes of each device."""
    after = planned(config, MESHES["1 x 4 x 2"])
    numbers = iter(range(10**6))
    state = jax.tree.map(lambda x: jax.device_put(np.full(x.shape, next(numbers), x.dtype), x.sharding), before.state)
    with Checkpoints(folder, config.checkpoint) as checkpoints:
        checkpoints.save(1, state)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    with Checkpoints(folder, config.checkpoint) as checkpoints:
        restored = checkpoints.restore(after.state)
    count = len(compiled)
    assert restored is not None
    leaves = jax.tree.leaves(restored[1])
    each = {device.id: 0 for device in jax.devices()}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            each[shard.device.id] += shard.data.nbytes
    return {
        "compiled": count,
        "same": all(np.array_equal(a, b) for a, b in zip(leaves, jax.tree.leaves(state), strict=True)),
        "bytes": list(each.values()),
        "planned": bytes_on_one_chip(after.state),
    }


def gathers(lowered: Lowered) -> list[dict]:
    """All-gathers of the compiled step: the shapes of what they yield, their axes and how often they run."""
    text = lowered.step.compile().as_text()
    found = [c for c in collectives(text, lowered.mesh) if c.kind == "all-gather"]
    return [{"shapes": c.shapes, "axes": c.axes, "times": c.times} for c in found]


def counting_is_right(mesh) -> list[dict]:
    """A loop of 5 that sums over ``tensor``, and one gather along ``fsdp`` outside of it."""

    def program(x, y):
        def local(x, y):
            x, _ = jax.lax.scan(lambda x, _: (jax.lax.psum(x, "tensor") * 0.5, None), x, None, length=5)
            return x, jax.lax.all_gather(y, "fsdp", axis=0, tiled=True)

        out = (PartitionSpec(), PartitionSpec())
        in_specs = (PartitionSpec(), PartitionSpec("fsdp"))
        return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out, check_vma=False)(x, y)

    shapes = [jax.ShapeDtypeStruct((6, 10), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32)]
    shapes[1] = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    text = jax.jit(program).lower(*shapes).compile().as_text()
    return [{"kind": c.kind, "axes": c.axes, "times": c.times, "sent": c.sent} for c in collectives(text, mesh)]


def main(recipe: str) -> None:
    config = load(TrainConfig, Path(recipe))
    devices = jax.devices()
    assert len(devices) == math.prod((2, 2, 2))
    meshes = {name: make_mesh(mesh_config) for name, mesh_config in MESHES.items()}
    alone = begin(config, make_mesh(MeshConfig(), devices[:1]))
    found = {
        "attention": attention(meshes),
        "splash": {str(context): splash(context, window) for context, window in ((2, 100), (4, None))},
        "shifts": {name: shifts(mesh) for name, mesh in meshes.items()},
        "cross_entropy": cross_entropy(meshes),
        "lookup": {name: lookup(mesh) for name, mesh in meshes.items()},
        "loading": loading(load_target_config(config.target).folder, meshes["1 x 4 x 2"]),
        "refused": refused(config, meshes["2 x 2 x 2"]),
        "counting": counting_is_right(meshes["1 x 4 x 2"]),
        "gathers": gathers(lowered := planned(config, MESHES["2 x 2 x 2"])),
        "programs": {name: lower().compile().memory_analysis() is not None for name, lower in lowered.others.items()},
        "restoring": restoring(lowered, config, Path(recipe).with_suffix(".restored")),
        "losses": {
            "one device": losses(config, devices[:1], MeshConfig(), begun=alone),
            **{
                name: losses(config, devices, mesh_config, begun=None if name in BEGINNING else alone)
                for name, mesh_config in MESHES.items()
            },
            "permuted": losses(config, [devices[i] for i in PERMUTED], MESHES["2 x 2 x 2"], begun=alone),
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
