"""How devices become a mesh, on stand-ins for the chips of one or several slices, and how parameters and rows are cut
over them."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from flax import nnx

from jax_specexit.model.context import order
from jax_specexit.model.draft import Draft
from jax_specexit.sharding import device_grid, spec_of
from jax_specexit.training.data import check_length
from jax_specexit.weights import abstract_target
from specexit.config import ConfigError
from specexit.drafts.directory import DraftConfig, SpecExitBlock
from specexit.errors import lasts
from specexit.schemas.train import MeshConfig, TrainConfig
from tests.jax.conftest import SHAPE
from tests.shapes import TINY_DRAFT


@dataclass(frozen=True)
class Chip:
    """What JAX says of a TPU v5e chip."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def slices(*sizes: int, width: int = 4) -> list[Chip]:
    """Slices of so many chips, in rows of ``width``, in an order that says nothing."""
    chips = [
        Chip(100 * number + i, number, (i % width, i // width, 0), 100 * number + i // 4)
        for number, size in enumerate(sizes)
        for i in range(size)
    ]
    return [chips[i] for i in np.random.default_rng(0).permutation(len(chips))]


def test_every_replica_lies_within_one_slice() -> None:
    grid = device_grid(MeshConfig(dcn_data=2, fsdp=4, tensor=2), slices(16, 16))
    assert grid.shape == (4, 4, 1, 1, 2)
    numbers = np.vectorize(lambda chip: chip.slice_index)(grid)
    np.testing.assert_array_equal(numbers, np.repeat([0, 0, 1, 1], 8).reshape(grid.shape))
    assert len({chip.id for chip in grid.flat}) == 32


def test_the_number_of_slices_may_be_left_open() -> None:
    for number in (1, 2, 4):  # so a run goes on with as many as there are
        grid = device_grid(MeshConfig(dcn_data=-1, fsdp=16), slices(*[16] * number))
        assert grid.shape == (number, 16, 1, 1, 1)


@pytest.mark.parametrize(
    ("mesh", "sizes", "lasting", "message"),
    [
        ({}, (16, 16), True, "mesh.dcn_data=1, but the devices are of 2 slices: expected mesh.dcn_data=2"),
        ({"dcn_data": 2}, (16,), False, "mesh.dcn_data=2, but the devices are of 1 slices"),
        (
            {"dcn_data": 2, "fsdp": 32},
            (16, 16),
            False,
            "mesh dcn_data=2 data=-1 fsdp=32 expert=1 context=1 tensor=1 does not fit 32 devices",
        ),
        ({"dcn_data": 2}, (16, 8), False, "the slices have 16, 8 devices, expected equal ones"),
        ({"data": 1, "fsdp": 16}, (32,), True, "does not fit 32 devices"),
        ({"data": 2, "fsdp": 16}, (28,), False, "does not fit 28 devices"),
        ({"fsdp": 8}, (12,), False, "does not fit 12 devices"),  # of 16, for instance
    ],
    ids=str,
)
def test_slices_that_the_mesh_does_not_fit_are_refused(
    mesh: dict, sizes: tuple[int, ...], lasting: bool, message: str
) -> None:
    """Devices may have been too few, as where a chip did not come up, but never too many."""
    with pytest.raises(ConfigError, match=message) as refused:
        device_grid(MeshConfig.model_validate(mesh), slices(*sizes))
    assert lasts(refused.value) == lasting


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_every_chip_attends_to_as_many_pairs(shards: int) -> None:
    places = order(48, shards)
    assert sorted(places.flat) == list(range(48))
    # The first place sees one key, the second two.
    assert np.ptp((places + 1).sum(axis=1)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": {"context": 3}}, "mesh.context=3 does not divide length=128 into an even number of rows each"),
        ({"mesh": {"context": 128}, "loss_chunk": 1}, "mesh.context=128 does not divide length=128 into an even"),
        (
            {"mesh": {"context": 2}, "loss_chunk": 128},
            "loss_chunk=128 does not divide length=128 / mesh.context=2, as 64 ",
        ),
        ({"loss_chunk": 48}, "loss_chunk=48 does not divide length=128, as 32 does$"),
        (
            {"mesh": {"context": 64}, "loss_chunk": 2, "ttt_steps": 2},
            "is 2 rows a chip, expected more than ttt_steps=2",
        ),
    ],
    ids=str,
)
def test_rows_that_cannot_be_cut_so_are_refused(base_recipe: TrainConfig, changes: dict, message: str) -> None:
    config = TrainConfig.model_validate(base_recipe.model_dump() | changes)
    with pytest.raises(ConfigError, match=message):
        check_length(config, 128)


IN, OUT = ("fsdp", "tensor"), ("tensor", "fsdp")
ATTENTION = {"q/kernel": IN, "k/kernel": IN, "v/kernel": IN, "o/kernel": OUT}
SPLIT = {
    "draft": {
        **{"embedding": OUT, "fc/kernel": ("fsdp", None), **ATTENTION, "lm_head/kernel": IN},
        **{"mlp/gate/kernel": IN, "mlp/up/kernel": IN, "mlp/down/kernel": OUT},
    },
    "target": {
        **{"embedding": OUT, "lm_head/kernel": IN, "layers/mlp/router/kernel": (None, "fsdp", None)},
        **{f"layers/attention/{name}": (None, *axes) for name, axes in ATTENTION.items()},
        **{f"layers/mlp/experts/{name}/kernel": (None, "expert", *IN) for name in ("gate", "up")},
        **{f"layers/mlp/experts/{name}/scale": (None, "expert", "tensor") for name in ("gate", "up")},
        "layers/mlp/experts/down/kernel": (None, "expert", *OUT),
        "layers/mlp/experts/down/scale": (None, "expert", None),
    },
}
"""Parameters of a draft, and of a target in int8 with experts -> the mesh axis that each dimension is split over."""


@pytest.mark.parametrize("model", SPLIT)
def test_every_large_parameter_is_split_over_fsdp_and_what_is_small_is_whole_everywhere(model: str) -> None:
    """One that is whole trains the same, and takes the memory of all shards on every device."""
    geometry = {"own_embeddings": True, "attention_bias": True, "num_aux_hidden_states": 3}
    draft = DraftConfig.model_validate(TINY_DRAFT | {"target_num_hidden_layers": 4} | geometry)
    draft = draft.model_copy(update={"specexit": SpecExitBlock(target="t")})
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    target = replace(SHAPE, tie_word_embeddings=False, **experts)
    made = {
        "draft": lambda: nnx.eval_shape(lambda: Draft(draft, rngs=nnx.Rngs(0))),
        "target": lambda: abstract_target(target, "bfloat16", int8=True),
    }
    found = {}
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(made[model]()))):
        found["/".join(str(key.key) for key in path)] = tuple(spec_of(path, leaf))
    assert {name: axes for name, axes in found.items() if any(axes)} == SPLIT[model]
