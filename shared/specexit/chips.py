"""TPU chips by their published peaks, and the slices of them that exist.

Every number is from Google's own pages, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; the rate of int8 on v5p
alone is what JAX says (``int8_ops_per_second`` of ``pltpu.get_tpu_info_for_chip``). They are peaks: no program reaches
them, so a time computed from them is a lower bound.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from specexit.config import ConfigError


@dataclass(frozen=True)
class Chip:
    """One chip."""

    name: str
    flops: float
    """Peak bf16 FLOP/s."""
    int8_flops: float
    """Peak int8 operations a second; that of bf16 where none is named."""
    hbm_gib: float
    hbm_bytes_per_second: float
    ici_bytes_per_second: float
    """Sent over all links together; half of what is published as bidirectional."""
    dimensions: int
    """Of the torus."""
    most: int
    """Chips of the largest slice."""
    dcn_bytes_per_second: float | None = None
    """Sent to other slices, its share of its host's network cards; None where the page does not say."""
    devices: int = 1
    """How many JAX shows of one chip. Where it does not join the TensorCores of a chip, each is a device with its share
    of the rest (``num_tensor_cores_per_logical_device`` of ``pltpu.get_tpu_info_for_chip``)."""
    usable_gib: float | None = None
    """HBM that the compiler lets a program have, where that is less: "Used 24.00G of 15.75G hbm", say its errors, which
    people quote of v4 and v6e as well."""


CHIPS = {
    "v4": Chip("v4", 275e12, 275e12, 32, 1200e9, 300e9, 3, 4096, usable_gib=30.75),
    "v5e": Chip("v5e", 197e12, 393e12, 16, 819e9, 200e9, 2, 256, 3.125e9, usable_gib=15.75),
    "v5p": Chip("v5p", 459e12, 918e12, 95, 2765e9, 600e9, 3, 6144, 6.25e9),
    "v6e": Chip("v6e", 918e12, 1836e12, 32, 1638e9, 400e9, 2, 256, 12.5e9, usable_gib=31.25),
    "tpu7x": Chip("tpu7x", 2307e12, 2307e12, 192, 7380e9, 600e9, 3, 9216, devices=2),
}

DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}
"""What JAX calls a chip -> its name in `CHIPS`."""

PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""The slices of the chips with a two-dimensional torus."""


def chip_of(topology: str) -> Chip:
    """The chip of a slice such as ``v5e:4x4``.

    Raises:
      ConfigError: no such chip, one that JAX shows as several devices, or no slice of this form.

    Example:
      >>> chip_of("v5p:8x8x16").hbm_gib
      95
    """
    name, _, grid = topology.partition(":")
    if name not in CHIPS:
        known = ", ".join(other for other, chip in CHIPS.items() if chip.devices == 1)
        raise ConfigError(
            f"topology {topology!r} does not exist: chip is {name!r}, expected one of {known}, as in v5e:4x4"
        )
    chip = CHIPS[name]
    if chip.devices > 1:
        raise ConfigError(
            f"topology {topology!r} cannot be planned: JAX shows each {name} as {chip.devices} devices, and a plan "
            "takes a device for a chip"
        )
    form = "x".join(["N"] * chip.dimensions)
    if not re.fullmatch("x".join([r"[1-9]\d*"] * chip.dimensions), grid):
        raise ConfigError(f"topology {topology!r} does not exist: grid is {grid!r}, expected {form} for {name}")
    if chip.dimensions == 2 and grid not in PLANES:
        raise ConfigError(f"topology {topology!r} does not exist: {name} comes as {', '.join(PLANES)}")
    chips = math.prod(map(int, grid.split("x")))
    if chips > chip.most:
        raise ConfigError(f"topology {topology!r} does not exist: {name} has slices of up to {chip.most} chips")
    return chip
