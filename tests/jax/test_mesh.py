"""How devices become a mesh, on stand-ins for the chips of one and of several slices."""

from dataclasses import dataclass

import numpy as np
import pytest

from jax_specexit.sharding import device_grid
from specexit.config import ConfigError
from specexit.schemas.train import MeshConfig


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
    assert grid.shape == (4, 4, 2)
    numbers = np.vectorize(lambda chip: chip.slice_index)(grid)
    np.testing.assert_array_equal(numbers, np.repeat([0, 0, 1, 1], 8).reshape(4, 4, 2))
    assert len({chip.id for chip in grid.flat}) == 32


def test_the_number_of_slices_may_be_left_open() -> None:
    for number in (1, 2, 4):  # so a run goes on with as many as there are
        grid = device_grid(MeshConfig(dcn_data=-1, fsdp=16), slices(*[16] * number))
        assert grid.shape == (number, 16, 1)


@pytest.mark.parametrize(
    ("mesh", "sizes", "message"),
    [
        ({}, (16, 16), "mesh.dcn_data=1, but the devices are of 2 slices: expected mesh.dcn_data=2"),
        ({"dcn_data": 2}, (16,), "mesh.dcn_data=2, but the devices are of 1 slices"),
        ({"dcn_data": 2, "fsdp": 32}, (16, 16), "mesh dcn_data=2 data=-1 fsdp=32 tensor=1 does not fit 32 devices"),
        ({"dcn_data": 2}, (16, 8), "the slices have 16, 8 devices, expected equal ones"),
    ],
    ids=str,
)
def test_slices_that_the_mesh_does_not_fit_are_refused(mesh: dict, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        device_grid(MeshConfig.model_validate(mesh), slices(*sizes))
