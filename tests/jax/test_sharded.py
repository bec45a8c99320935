"""Eight simulated devices compute what one does, and send each other what they should. Costs about 200 s."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from specexit.schemas.train import TrainConfig
from tests.jax.devices import simulated

pytestmark = pytest.mark.slow

TIME, HIDDEN = 128, 32
"""Of the test's recipe: tokens of a packed row, which no parameter has as a dimension, and the width of the models."""

REPLICATED = "rematerialization"
"""Of what the compiler says of an array that it can only bring from one sharding to another by way of whole copies."""


@pytest.fixture(scope="module")
def found(base_recipe: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """All that `eight.py` reports, and under ``stderr`` what the compiler had to say."""
    recipe = tmp_path_factory.mktemp("eight") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(base_recipe.model_dump(mode="json") | {"steps": 20, "loss_chunk": 32}))
    script = Path(__file__).with_name("eight.py")
    done = subprocess.run([sys.executable, script, recipe], env=simulated(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def test_attention_equals_the_masked_oracle(found: dict) -> None:
    # float64 leaves nothing but the order of sums
    assert max(found["attention"].values()) < 1e-12


def test_a_row_on_several_chips_in_the_splash_kernel(found: dict) -> None:
    # float32, whose rounding over 1,024 keys is a few 1e-6 of the largest gradient
    assert set(found["splash"]) == {"2", "4"}
    assert max(found["splash"].values()) < 3e-5


def test_a_shift_crosses_from_chip_to_chip(found: dict) -> None:
    assert set(found["shifts"].values()) == {0}


def test_fused_cross_entropy_equals_the_plain_one_and_one_device(found: dict) -> None:
    for errors in found["cross_entropy"].values():
        # float32 sums in another order
        assert errors["oracle"] < 2e-5
        assert errors["one device"] < 2e-5
        assert errors["choices"] == 0


def test_a_sharded_table_gives_the_same_rows(found: dict) -> None:
    assert set(found["lookup"].values()) == {0.0}


def test_weights_are_read_piece_by_piece(found: dict) -> None:
    assert found["loading"]["difference"] == 0
    assert found["loading"]["int8"] == 0
    assert found["loading"]["largest"] <= 1 / 8


def test_a_draft_that_the_mesh_does_not_divide_is_refused_before_the_target_is_loaded(found: dict) -> None:
    assert found["refused"].startswith("mesh.tensor=2 does not divide dimension 321 of ['lm_head']['kernel']")


@pytest.mark.parametrize("mesh", ["2 x 2 x 2", "1 x 4 x 2", "4 x 2 x 1", "context 2", "context 4", "permuted"])
def test_ten_steps_equal_one_device(found: dict, mesh: str) -> None:
    ours, oracle = found["losses"][mesh], found["losses"]["one device"]
    assert len(oracle) == 10
    # Reductions run in another order, and training amplifies that; the first steps agree to rounding.
    np.testing.assert_allclose(ours, oracle, rtol=1e-5)


RESHARDS = """
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))

def program(x):
    x = jax.lax.with_sharding_constraint(jax.numpy.sin(x), NamedSharding(mesh, P(("a", "b"), None, None)))
    return jax.lax.with_sharding_constraint(jax.numpy.cos(x), NamedSharding(mesh, P(None, "a", "b")))

jax.jit(program).lower(jax.ShapeDtypeStruct((8, 8, 128), np.float32)).compile()
"""


def test_the_compiler_says_so_where_it_replicates_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shell of these tests silences: or nothing would be left of the next one, here and for experts."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    done = subprocess.run([sys.executable, "-c", RESHARDS], env=simulated(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert REPLICATED in done.stderr


def test_the_compiler_replicates_nothing_by_accident(found: dict) -> None:
    assert REPLICATED not in found["stderr"]


def test_no_activation_is_gathered(found: dict) -> None:
    assert found["gathers"]
    for gather in found["gathers"]:
        activations = [shape for shape in gather["shapes"] if TIME in shape and math.prod(shape) >= TIME * HIDDEN]
        assert not activations, gather


def test_every_program_of_a_run_is_planned(found: dict) -> None:
    assert found["programs"] == {"begin": True, "step of 1 TTT steps": True, "measure": True, "evaluate": True}


def test_a_checkpoint_of_another_mesh_is_restored_without_a_program(found: dict) -> None:
    restored = found["restoring"]
    assert restored["compiled"] == 0
    assert restored["same"]
    assert restored["bytes"] == [restored["planned"]] * 8


def test_collectives_are_counted_with_their_loops(found: dict) -> None:
    counted = {entry["kind"]: entry for entry in found["counting"]}
    # 6 x 10 floats around a ring of 2: all-reduce sends each byte once; of 8 x 4 gathered over 4, 3/4 come from others
    assert counted["all-reduce"] == {"kind": "all-reduce", "axes": ["tensor"], "times": 5, "sent": 240.0}
    assert counted["all-gather"] == {"kind": "all-gather", "axes": ["fsdp"], "times": 1, "sent": 96.0}
