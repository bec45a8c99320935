"""What shares of a TPU's peak are published for the parts of a training step, and for whole training runs.

Nothing here was measured by this project. Where nothing is published for a chip, the number is that of another one, and
`Efficiency.derived` says so. Sources:

* Products of large matrices: JAX's Pallas guide, ``docs/pallas/tpu/matmul.ipynb``, runs XLA's own bfloat16 product on
  a v5e: 84 % of the peak at 4,096 x 4,096 x 4,096 and 92 % at 8,192. The smaller one is taken, which is the nearer to
  a chip's share of these recipes. No other chip's is published, nor one of int8.
* Products with one of many experts for every row: `MaxText issue 1256
  <https://github.com/AI-Hypercomputer/maxtext/issues/1256>`_ trains a mixture without attention on v5p: 50 % of the
  peak with 8 experts of width 14,336, and at most 28 % with 56 of width 2,048. The latter is taken.
* Attention: `SPLASH`.
* Whole runs: MaxText's tables, ``docs/reference/models/tiering.md`` and ``src/maxtext/configs/tpu/{v4,v5e,v5p}/
  README.md``, the lowest of each on one slice, of models of at most 256B parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specexit.chips import Chip

PRODUCTS = 0.84
"""Share of the peak; published for v5e."""

EXPERTS = 0.28
"""Share of the peak; published for v5p."""

SPLASH = {
    # tokens: (half: forward, backward), (whole: forward, backward)
    4096: ((0.2062, 0.2521), (0.3582, 0.4800)),
    8192: ((0.2487, 0.3015), (0.4486, 0.5690)),
    32768: ((0.3091, 0.3473), (0.5681, 0.6581)),
    131072: ((0.3426, 0.3716), (0.6335, 0.7171)),
}
"""Shares of the peak that causal splash attention reaches on a tpu7x, in bfloat16 with 32 heads on 8, tuned for each
length: Tokamax' ``splash_attention/microbenchmarks.pdf`` of November 2025. FLOPs are those of half of all pairs, two
products forward and five backward.

The matrix unit of a tpu7x is 256 wide: a head of 128 fills half of it, one of 256 the whole. That of v6e is as wide;
that of v4, v5e and v5p is 128 wide, so a head of 128 fills it. Other chips are given the column of a head that fills as
much of their unit."""

MATRIX_UNIT = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256, "tpu7x": 256}
"""Rows and columns, as JAX has them (``mxu_column_size`` of ``pltpu.TpuInfo``)."""

DENSE = {"v4": 0.56, "v5e": 0.56, "v5p": 0.65, "v6e": 0.44}
"""MFU of whole runs: 52B on v4-384, 128B on v5e-256, Llama 2 70B on 512 chips of v5p and 256 of v6e. It includes losses
of every kind: recomputation and waits, too."""

MIXTURES = {"v5p": 0.53, "v6e": 0.35}
"""The same of mixtures of experts: Mixtral 8x7B on 256 chips."""


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peak that the parts of a step may reach on a chip."""

    products: float
    experts: float
    forward: float
    """Of attention, FLOPs counted as `SPLASH` does."""
    backward: float
    run: float | None
    """MFU of whole training runs of such models; None where nothing is published."""
    derived: tuple[str, ...]
    """Which of these are another chip's: ``products``, ``experts``, ``attention``."""


def efficiency(chip: Chip, length: int, head_dim: int, experts: bool) -> Efficiency:
    """What is published for attention of this length and head size, or for what is nearest to it.

    Args:
      chip: what it runs on.
      length: of a row, in tokens; between published lengths, shares are interpolated by its logarithm.
      head_dim: of attention.
      experts: whether the target is a mixture.
    """
    column = int(head_dim >= MATRIX_UNIT[chip.name])
    lengths = [math.log(tokens) for tokens in SPLASH]
    forward, backward = (
        float(np.interp(math.log(length), lengths, [columns[column][way] for columns in SPLASH.values()]))
        for way in (0, 1)
    )
    own = {"products": "v5e", "experts": "v5p", "attention": "tpu7x"}
    derived = tuple(part for part, on in own.items() if on != chip.name and (experts or part != "experts"))
    run = (MIXTURES if experts else DENSE).get(chip.name)
    return Efficiency(PRODUCTS, EXPERTS, forward, backward, run, derived)
