"""What `test_experts` looks at, in a process of its own with eight simulated devices; prints one JSON object."""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from conftest import SHAPE
from eight import difference, loading, losses
from flax import nnx

from jax_specexit.model.target import Target, TargetShape
from jax_specexit.planning.hlo import collectives
from jax_specexit.sharding import BATCH, make_mesh, shardings
from jax_specexit.weights import export_target
from specexit import tiny
from specexit.config import load
from specexit.schemas.train import MeshConfig, TrainConfig

MESHES = {
    "fsdp 2, expert 2, tensor 2": MeshConfig(fsdp=2, expert=2, tensor=2),
    "expert 4, context 2": MeshConfig(expert=4, context=2),
}
"""All eight devices; the first has all kinds of shards of an expert's matrices."""

STEPS = 3


def shape() -> TargetShape:
    mixture = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "norm_topk_prob": True}
    return TargetShape(**vars(SHAPE) | {"architecture": "Qwen3MoeForCausalLM"} | mixture)


def forward(target: Target, mesh_config: MeshConfig | None) -> tuple[list[np.ndarray], list[tuple[str, list[int]]]]:
    """Hidden states, and what is sent along ``expert``."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 640, (8, 32)))
    rows = (tokens, jnp.broadcast_to(jnp.arange(32), tokens.shape), jnp.ones_like(tokens))
    if mesh_config is None:
        return list(map(np.asarray, nnx.jit(partial(run, layers=(1, 2, 3)))(target, *rows))), []
    mesh, (graph, state) = make_mesh(mesh_config), nnx.split(target)
    values = nnx.to_pure_dict(state)
    values = jax.device_put(values, shardings(values, mesh))
    rows = jax.device_put(rows, jax.sharding.NamedSharding(mesh, BATCH))
    with jax.set_mesh(mesh):
        program = jax.jit(lambda values, *rows: run(nnx.merge(graph, values), *rows, layers=(1, 2, 3)))
        compiled = program.lower(values, *rows).compile()
        out = list(map(np.asarray, compiled(values, *rows)))
    sent = [
        (c.kind, list(shape))
        for c in collectives(compiled.as_text() or "", mesh)
        if c.axes == ("expert",)
        for shape in c.shapes
    ]
    return out, sent


def run(target: Target, *rows: jax.Array, layers: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The final hidden state and the aux hidden states."""
    hidden, aux = target(*rows, aux_layers=layers)
    assert aux is not None
    return hidden, aux


def recipe(data: Path, folder: Path) -> TrainConfig:
    """Three steps with that target, whose data are those of the small dense one: the vocabulary is the same."""
    (folder / "small.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "path": str(folder / "model"),
                "aux_layers": [1, 2, 3],
                "max_model_len": 512,
                "dtype": "float32",
            }
        )
    )
    draft = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields = {
        "target": str(folder / "small.yaml"),
        "data": str(data),
        "out": str(folder / "run"),
        "draft": draft | {"head_dim": 8, "draft_vocab_size": 320},
        "steps": STEPS,
        "batch_size": 8,
        "ttt_steps": 1,
        "loss_chunk": 64,
        "dtype": "float32",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return load(TrainConfig, folder / "recipe.yaml")


def main(data: str, out: str) -> None:
    folder = Path(out)
    target = Target(shape(), rngs=nnx.Rngs(1))
    export_target(target, folder / "model", eos_token_id=608, max_position_embeddings=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((tiny.MODEL_DIR / name).read_bytes())
    config, name = recipe(Path(data), folder), "fsdp 2, expert 2, tensor 2"
    alone, _ = forward(target, None)
    on_mesh = {name: forward(target, mesh_config) for name, mesh_config in MESHES.items()}
    found = {
        "forward": {name: difference(states, alone) for name, (states, _) in on_mesh.items()},
        "sent": on_mesh["expert 4, context 2"][1],
        "loading": loading(folder / "model", make_mesh(MESHES[name])),
        "losses": {
            "one device": losses(config, jax.devices()[:1], MeshConfig(), steps=STEPS),
            name: losses(config, jax.devices(), MESHES[name], steps=STEPS),
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
