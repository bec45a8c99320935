"""Which TPU slices there are."""

import pytest

from specexit.chips import CHIPS, chip_of
from specexit.config import ConfigError


@pytest.mark.parametrize("name", ["v5e:4x4", "v5e:16x16", "v6e:4x4", "v6e:16x16", "v5p:2x2x4", "v5p:8x8x16"])
def test_a_slice_is_made_of_its_chip(name: str) -> None:
    assert chip_of(name) is CHIPS[name.partition(":")[0]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:4x4", "chip is 'v9', expected one of v4, v5e, v5p, v6e, as in"),
        ("v5e", "grid is '', expected NxN for v5e"),
        ("v5e:4x4x4", "grid is '4x4x4', expected NxN"),
        ("v5p:4x4", "grid is '4x4', expected NxNxN for v5p"),
        ("v5e:3x3", "v5e comes as 1x1, 2x2"),
        ("v6e:16x32", "v6e comes as"),
        ("v5p:32x32x32", "v5p has slices of up to 6144 chips"),
        ("v5p:0x2x2", "grid is '0x2x2'"),
        ("tpu7x:4x4x4", "'tpu7x:4x4x4' cannot be planned: JAX shows each tpu7x as 2 devices"),
    ],
)
def test_one_that_does_not_exist_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chip_of(name)
