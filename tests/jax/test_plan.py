"""`specexit plan`: real recipes compiled for real TPU slices, and what is refused before any compilation.

`make test-tpu-small` compiles small programs, as does what decides whether a change lands; `make test-tpu` adds larger
ones, one recipe as it is and one with a single TTT step instead of 5, and `make plan-all` every recipe as it is, which
takes minutes for each. Skipped where libtpu is not installed.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jax_specexit.planning.aot import shapes_of
from jax_specexit.planning.page import table
from specexit.config import REPOSITORY, load
from specexit.schemas.plan import PlanConfig
from specexit.schemas.target import load_target_config
from tests.jax.test_plan_numbers import FULL_SIZE

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiles for TPUs: pip install libtpu, or specexit[tpu]"
)


def small(test: Callable) -> Callable:
    """Compiles programs of small models."""
    return needs_libtpu(pytest.mark.small(test))


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, because libtpu takes a while to leave, with the compiler's warnings on stderr."""
    environment = os.environ | {"TPU_STDERR_LOG_LEVEL": "1"} | more
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def plan(*arguments: str) -> subprocess.CompletedProcess:
    return run("-m", "specexit", "plan", *arguments)


REPLICATED = "Involuntary full rematerialization"
"""What the compiler says of an array that it can only bring from one sharding to another by way of whole copies."""


def planned(*arguments: str) -> dict:
    done = plan(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert REPLICATED not in done.stderr
    return json.loads(done.stdout)


def check(found: dict) -> None:
    """What holds of every plan."""
    assert found["hbm_gib"]["spare"] >= 0.1
    assert found["batch_that_fits"] >= found["batch_size"]
    assert found["step_seconds"] == max(found["seconds"].values()) == found["seconds"][found["binds"]]
    assert 0.5 < found["useful_flops"] <= 1
    check_estimate(found)
    axes = {"data", "fsdp", "expert", "context", "tensor", *(["dcn_data"] if found["slices"] > 1 else [])}
    assert all(set(together.split("+")) <= axes for together in found["collective_bytes"])
    tokens = found["batch_size"] * found["length"]
    rate = tokens / found["step_seconds"] / found["chips"]
    assert found["tokens_per_second_per_chip"] == pytest.approx(rate)
    # A run compiles more than its step, and all of it has to fit.
    assert {"begin", "measure", "evaluate", "restore", "save"} <= set(found["others"])
    assert all(program["hbm_gib"]["spare"] >= 0.1 for program in found["others"].values())
    # No recipe leaves traces out that its target can write.
    assert found["evaluation"]["length"] >= load_target_config(found["target"]).max_model_len
    for collective in gathers(found):
        assert not any(is_activation(shape, found) for shape in collective["shapes"]), collective


def check_estimate(found: dict) -> None:
    """What holds of every estimate."""
    guess, links = found["estimate"], found["seconds"]["interconnect"] + found["seconds"].get("network", 0.0)
    assert guess["step_seconds"] > found["step_seconds"]
    assert guess["step_seconds"] >= sum(guess["seconds"].values())
    assert all(guess["seconds"][part] > 0 for part in ("products", "attention"))
    # Only what is sent can be waited for; and of two programs that each take a while, one is rarely wholly hidden.
    assert 0 < guess["seconds"]["exposed"] == pytest.approx(sum(guess["exposed_seconds"].values()))
    assert guess["seconds"]["exposed"] <= 1.001 * links
    assert set(guess["exposed_seconds"]) <= {*found["collective_bytes"]}
    assert 0.1 < guess["mfu"] < 1


def gathers(found: dict) -> list[dict]:
    """Gathers that may be of weights and token ids alone, never of hidden states.

    A token goes where its experts are; and of a row that lies on several chips keys and values are gathered, along
    `tensor` with the queries, too, where a mesh has both axes.
    """
    others = [["context"], ["expert"], *([["tensor"]] if found["mesh"]["context"] > 1 else [])]
    return [c for c in found["collectives"] if c["kind"] == "all-gather" and list(c["axes"]) not in others]


def is_activation(shape: list[int], found: dict) -> bool:
    """Whether a shape is that of hidden states: the time of a chip or of a row, and large."""
    mesh, width = found["mesh"], load_target_config(found["target"]).hf_config()["hidden_size"]
    time = found["length"] // mesh["context"]
    rows = found["batch_size"] // (mesh["data"] * mesh["fsdp"] * mesh["expert"])
    if not {found["length"], time, rows * time} & {*shape} or math.prod(shape) < min(1000, width) * time:
        return False
    # A time that is a multiple of the model's width does not tell; then, only a matrix for each of several rows does.
    return time % width > 0 or sum(size > 1 for size in shape) > 2


def test_hidden_states_would_be_noticed_where_a_row_lies_on_several_chips(tmp_path: Path) -> None:
    """Their shapes, and those of what may be gathered, as compiled programs have them: of one chip."""
    mesh = {"data": 1, "fsdp": 4, "expert": 1, "context": 4, "tensor": 1}
    found = {"target": "qwen3-4b-thinking-2507", "length": 32768, "batch_size": 4, "mesh": mesh}
    assert all(is_activation(shape, found) for shape in ([4, 8192, 2560], [1, 8192, 2560], [8192, 2560]))
    weights, tokens = ([1, 2560, 9728], [2560, 32000], [10240, 2560]), [4, 1, 8192]
    assert not any(is_activation(shape, found) for shape in (*weights, tokens))
    small_recipe(tmp_path)
    mesh = {"data": 1, "fsdp": 2, "expert": 1, "context": 2, "tensor": 2}
    found = {"target": str(tmp_path / "target.yaml"), "length": 2048, "batch_size": 4, "mesh": mesh}
    assert is_activation([4, 1024, 512], found)
    assert not any(is_activation(shape, found) for shape in ([2048, 512], [1536, 512], [2, 2, 1024]))


RESHARDS = """
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jax_specexit.planning.aot import topology_devices

mesh = Mesh(np.array(topology_devices("v5e:2x4")[1]).reshape(2, 4), ("a", "b"))

def program(x):
    x = jax.lax.with_sharding_constraint(jax.numpy.sin(x), NamedSharding(mesh, P(("a", "b"), None, None)))
    return jax.lax.with_sharding_constraint(jax.numpy.cos(x), NamedSharding(mesh, P(None, "a", "b")))

x = jax.ShapeDtypeStruct((8, 8, 128), np.float32, sharding=NamedSharding(mesh, P()))
jax.jit(program).lower(x).compile()
"""


@small
def test_the_compiler_says_so_where_it_replicates_an_array() -> None:
    """With the flags of the job files, all of which libtpu knows: of others it says so, and dies."""
    manifest = yaml.safe_load((REPOSITORY / "configs" / "jobs" / "jobset.yaml").read_text())
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    flags = {entry["name"]: entry["value"] for entry in pod["env"]}["LIBTPU_INIT_ARGS"]
    done = run("-c", RESHARDS, LIBTPU_INIT_ARGS=flags)
    assert done.returncode == 0, done.stderr
    assert REPLICATED in done.stderr
    assert run("-c", RESHARDS, LIBTPU_INIT_ARGS=f"{flags} --xla_no_such_flag=true").returncode != 0


SMALL = {
    "name": "small",
    "path": "not-there",
    "aux_layers": [1, 2, 3],
    "max_model_len": 4096,
    "config": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    },
}
"""A target with heads as wide as those of real ones, which the splash kernel asks for."""


def small_recipe(folder: Path, target: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Every mesh axis but one is used, and every program of a run; ``target`` changes its configuration."""
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    (folder / "target.yaml").write_text(yaml.safe_dump(SMALL | {"config": SMALL["config"] | (target or {})}))
    recipe = {
        "target": str(folder / "target.yaml"),
        "data": "not-there",
        "eval_traces": "not-there",
        "out": str(folder / "run"),
        "topology": "v5e:2x4",
        "mesh": {"data": 1, "fsdp": 2, "context": 2, "tensor": 2},
        "draft": {name: SMALL["config"][name] for name in sizes} | {"draft_vocab_size": 1024},
        "steps": 10,
        "batch_size": 4,
        "length": 2048,
        "ttt_steps": 2,
        "loss_chunk": 256,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def check_small(found: dict) -> None:
    """What holds of every program of a small run."""
    others = found["others"]
    assert {name for name, program in others.items() if not program["compile_seconds"]} == {"restore", "save"}
    state = others["save"]["hbm_gib"]["total"]
    # A target is quantized before there is a state.
    assert all(program["hbm_gib"]["total"] >= state for name, program in others.items() if name != "quantize")
    assert found["hbm_gib"]["total"] > state
    gathered = gathers(found)
    assert gathered
    assert not any(is_activation(shape, found) for c in gathered for shape in c["shapes"])


@small
def test_a_small_run_compiles_for_a_slice(tmp_path: Path) -> None:
    found = planned(str(small_recipe(tmp_path, first_step_share=0, skip_unknown=True)))
    assert set(found["others"]) == {"begin", "measure", "evaluate", "restore", "save"}
    assert found["evaluation"] == {"rows": 2, "length": SMALL["max_model_len"]}  # and training has four of half of it
    check_small(found)
    check_estimate(found)


@small
def test_a_run_on_two_slices_sums_gradients_between_them_and_nothing_else(tmp_path: Path) -> None:
    mesh = {"dcn_data": 2, "data": 2, "fsdp": 2, "context": 2, "tensor": 1}
    found = planned(str(small_recipe(tmp_path, mesh=mesh, batch_size=8, first_step_share=0, eval_traces=None)))
    check_small(found)
    assert (found["slices"], found["chips"]) == (2, 16)
    crossing = [c for c in found["collectives"] if "dcn_data" in c["axes"]]
    # Muon's products must not be spread over the slices, which the compiler would do of its own accord.
    assert {c["kind"] for c in crossing} == {"all-reduce"}
    sizes = [math.prod(shape) for c in crossing for shape in c["shapes"]]
    draft = sum(math.prod(shape) for shape in draft_shapes(tmp_path / "recipe.yaml"))
    # Every parameter once: an eighth on each of a slice's chips where its gradient is spread over all of them, half
    # where it is over the shards alone.
    assert draft / 8 <= sum(sizes) <= draft / 2
    assert found["seconds"]["network"] == pytest.approx(found["collective_bytes"]["dcn_data"] / 3.125e9)


def draft_shapes(recipe: Path) -> list[tuple[int, ...]]:
    """Of all parameters of a recipe's draft."""
    config = load(PlanConfig, recipe)
    shapes = shapes_of(config, load_target_config(config.target)).draft.tensor_shapes()
    return [shape for name, shape in shapes.items() if name not in ("d2t", "t2d")]


@needs_libtpu
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
def test_so_it_does_with_steps_of_two_lengths(tmp_path: Path, int8: bool) -> None:
    found = planned(str(small_recipe(tmp_path, first_step_share=0.5, target_int8=int8)))
    always = {"begin", "step of 1 TTT steps", "measure", "evaluate", "restore", "save"}
    assert set(found["others"]) == always | ({"quantize"} if int8 else set())
    check_small(found)
    if int8:
        # Of 3 layers a chip has a quarter of the weights, a byte each, and of the embedding, and it has a quarter of
        # one of the largest matrices of all layers in bfloat16 beside them.
        layer = 512 * (512 + 2 * 256) + 512 * 512 + 3 * 512 * 1024
        least = (3 * layer + 2 * 4096 * 512 + 2 * 3 * 512 * 1024) / 4
        assert found["others"]["quantize"]["hbm_gib"]["total"] * 2**30 >= least


MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}


STEPS_ALONE = """
import dataclasses, json, sys
from pathlib import Path
from jax_specexit.planning.aot import lower_step, shapes_of, topology_devices
from jax_specexit.planning.plan import bytes_on_one_chip, summarise
from jax_specexit.planning.timeline import timeline
from specexit.config import load
from specexit.schemas.plan import PlanConfig
from specexit.schemas.target import load_target_config

for recipe in sys.argv[1:]:
    config = load(PlanConfig, Path(recipe))
    target = load_target_config(config.target)
    shapes, (chip, devices) = shapes_of(config, target), topology_devices(config.topology)
    lowered = lower_step(config, shapes, devices, target.dtype)
    compiled, frozen = lowered.step.compile(), bytes_on_one_chip(lowered.frozen)
    found = summarise(config, shapes, chip, lowered.mesh, compiled, 0.0, {})
    spent = timeline(compiled.as_text(), lowered.mesh, chip, found.estimate.efficiencies)
    print(json.dumps(dataclasses.asdict(found) | {"frozen": frozen, "spent": spent}))
"""


@small
def test_a_mixture_of_experts_compiles_in_bfloat16_and_in_int8(tmp_path: Path) -> None:
    """In int8 its products with experts are another kernel. The draft's trunk, which others compile, is frozen."""
    changes = {"batch_size": 8, "ttt_steps": 1, "first_step_share": 0, "mesh": {"data": 1, "fsdp": 4, "expert": 2}}
    changes |= {"init_from": "not-there", "freeze_trunk": True, "signals": {"source": "fc"}}
    recipes = []
    for topology, int8 in (("v5e:2x4", False), ("v6e:2x4", True)):
        folder = tmp_path / topology.replace(":", "-")
        folder.mkdir()
        recipes.append(small_recipe(folder, target=MIXTURE, topology=topology, target_int8=int8, **changes))
    done = run("-c", STEPS_ALONE, *map(str, recipes))
    assert done.returncode == 0, done.stderr
    assert REPLICATED not in done.stderr
    both = [json.loads(line) for line in done.stdout.splitlines()]
    for found in both:
        check_estimate(found)
        # The products that are read off the program are those that are counted from the shapes.
        guess, spent = found["estimate"]["seconds"], found["spent"]
        assert spent["experts"] == pytest.approx(guess["experts"])
        assert spent["products"] == pytest.approx(guess["products"], rel=0.1)
        # In each of 3 layers a chip's 2,048 tokens go to the other one along the axis, and as many sums come back.
        along = [c for c in found["collectives"] if c["axes"] == ["expert"] and c["times"] == 3]
        sent = {c["kind"]: c["sent"] for c in along if c["sent"] > 1e6}
        assert sent == {"all-gather": 3 * 2048 * 512 * 2, "reduce-scatter": 3 * 2048 * 512 * 2}
    # A byte less of every weight of 3 layers, of which a chip has an eighth of the experts and a quarter of the rest,
    # and 4 bytes more of every column, along the axes of which only that of the experts cuts them.
    weights = 3 * (8 * 3 * 512 * 256 / 8 + (512 * (512 + 2 * 256) + 512 * 512) / 4)
    columns = 3 * (4 * (2 * 256 + 512) + 512 + 2 * 256 + 512)
    assert both[0]["frozen"] - both[1]["frozen"] == weights - 4 * columns


@small
def test_a_step_that_does_not_fit_is_refused_with_a_batch_that_should(tmp_path: Path) -> None:
    done = plan(str(small_recipe(tmp_path, batch_size=4096)))
    assert done.returncode == 1
    assert "batch_size=4096 of length 2048 needs" in done.stderr
    assert "choose batch_size=" in done.stderr


@needs_libtpu
def test_a_recipe_fits_and_its_weights_are_gathered_once(tmp_path: Path) -> None:
    found = planned("qwen3-4b-warm-fc", f"out={tmp_path}")
    check(found)
    assert json.loads((tmp_path / "plan.json").read_text()) == found
    assert "lower bound" in found["note"]
    # 3.6e9 parameters of 36 layers in bfloat16: 15/16 of them come from other chips, and XLA's windowed products send
    # one window more than they need to. The rest is small.
    weights = 3.63e9 * 2
    assert 15 / 16 * weights <= found["collective_bytes"]["fsdp"] <= 1.1 * weights
    # A forward pass is 2 FLOPs per parameter and token, and attention of 36 layers over 8k causal tokens.
    tokens = found["length"]
    assert found["flops"] == pytest.approx(2 * 3.63e9 * tokens + 36 * 2 * tokens**2 * 32 * 128, rel=0.1)


@needs_libtpu
def test_a_joint_recipe_with_one_ttt_step(tmp_path: Path) -> None:
    found = planned("qwen3-4b-v5e-16", "ttt_steps=1", "first_step_share=0", "length=2048", f"out={tmp_path}")
    check(found)
    # The target's weights, and little beside them: the draft's once, its gradients, the optimizer.
    assert found["collective_bytes"]["fsdp"] < 2 * 3.63e9 * 2
    assert {"draft", "logits", "draft attention", "optimizer"} <= set(found["flops_by_part"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qwen3-4b-v5e-1"], "recipes 'qwen3-4b-v5e-1' does not exist, did you mean 'qwen3-4b-v5e-16'"),
        (["recipe.yaml"], "recipe.yaml: file does not exist"),
        (["tiny-reasoner"], "topology is not set"),
        (["qwen3-4b-v5e-16", "topology=v5e:3x3"], "topology 'v5e:3x3' does not exist"),
        (["qwen3-4b-v5e-16", "length=null"], "length is not set"),
        (["qwen3-4b-v5e-16", "mesh.dcn_data=-1"], "mesh.dcn_data=-1: expected how many slices to plan for"),
        (["qwen3-4b-v5e-16", "loss_chunk=100"], "loss_chunk=100 does not divide length=8192"),
        (["qwen3-4b-v5e-16", "mesh.context=3"], "mesh.context=3 does not divide length=8192"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    done = plan(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@small
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mesh.tensor=16", "mesh.fsdp=1"], "mesh.tensor=16 does not divide num_key_value_heads=8: choose mesh.tensor"),
        (["mesh.fsdp=8"], "mesh data=1 fsdp=8 expert=1 context=1 tensor=1 does not fit 16 devices"),
        (
            ["batch_size=12"],
            "mesh.data x mesh.fsdp x mesh.expert = 16 does not divide batch_size=12: choose a multiple of 16",
        ),
        (
            ["mesh.tensor=4", "mesh.fsdp=4", "draft.draft_vocab_size=32002"],
            "mesh.tensor=4 does not divide dimension 32002 of",
        ),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_divide_is_refused_before_compiling(arguments: list[str], message: str) -> None:
    done = plan("r1-llama-8b-v5e-16", *arguments)
    assert done.returncode == 1
    assert message in done.stderr


@needs_libtpu
@pytest.mark.skipif("SPECEXIT_PLAN_ALL" not in os.environ, reason="minutes for each recipe: make plan-all")
@pytest.mark.parametrize("recipe", FULL_SIZE)
def test_every_recipe_fits(recipe: str) -> None:
    folder = REPOSITORY / "runs" / "plans" / recipe  # of which `make plan-all` makes the table
    found = planned(recipe, f"out={folder}")
    print(f"\n{table({recipe: found})}")
    check(found)


@needs_libtpu
@pytest.mark.skipif("SPECEXIT_PLAN_ALL" not in os.environ, reason="minutes for each recipe: make plan-all")
@pytest.mark.parametrize("slices", [2, 4])
def test_every_slice_sends_gradients_alone(slices: int) -> None:
    recipe = "qwen3-4b-v5e-16"
    name = f"{recipe}-on-{slices}-slices"
    changes = (f"mesh.dcn_data={slices}", f"batch_size={16 * slices}", f"out={REPOSITORY / 'runs' / 'plans' / name}")
    found = planned(recipe, *changes)
    print(f"\n{table({name: found})}")
    check(found)
    assert {c["kind"] for c in found["collectives"] if "dcn_data" in c["axes"]} == {"all-reduce"}
