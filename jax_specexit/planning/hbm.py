"""Programs that do not fit a chip's HBM: what the compiler says of them, and what makes each of them smaller."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from specexit.config import ConfigError

LARGER = "a larger mesh.fsdp or mesh.tensor"
SHORTER = f"{LARGER}, or a shorter length"
REMEDIES = {
    "begin": LARGER,
    "quantize": LARGER,
    "measure": SHORTER,
    "evaluate": "a smaller evaluate_length (down to length), or a larger mesh.context",
}
"""What makes a program smaller, by its name; of steps see `smaller`. Loading and making the first state have no rows.
An evaluation has at least one for each shard, which holds the longest trace whole, whatever ``length`` is."""

USED = re.compile(
    r"Used (?P<all>[\d.]+)(?P<unit>[GM]) of (?P<has>[\d.]+)G hbm"
    r"|HLO temporaries \((?P<temporaries>[\d.]+)G\) exceeds available HBM \((?P<there>[\d.]+)G\)"
)
"""What the compiler says of a program that does not fit: how much it needs in all, or, where the temporaries alone are
too much, how much these need."""


def too_much(error: str, arguments: float) -> tuple[float, float] | None:
    """What a program needs of a chip's HBM and what there is, in GiB, by the compiler's error; None for another error.

    Args:
      error: text of the error.
      arguments: size of the program's arguments, in GiB.

    Example:
      >>> too_much("Used 30.50G of 15.75G hbm. Exceeded hbm capacity by 14.75G.", 2.0)
      (30.5, 15.75)
      >>> too_much("the total memory required for HLO temporaries (68.37G) exceeds available HBM (15.75G).", 2.0)
      (70.37, 15.75)
    """
    used = USED.search(error)
    if used is None:
        return None
    if used["all"] is None:
        return float(used["temporaries"]) + arguments, float(used["there"])
    return float(used["all"]) / (1 if used["unit"] == "G" else 1024), float(used["has"])


def smaller(name: str) -> str:
    """What makes a program of a run smaller, by its name."""
    return REMEDIES.get(name, f"remat=true, a smaller loss_chunk, {SHORTER}")


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """A context for the calls of one of a run's programs, the first of which compiles it.

    Raises:
      ConfigError: the program does not fit the HBM.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        used = too_much(str(error), 0.0)
        if used is None:
            raise
        # From None: an error that a RuntimeError has caused is taken for one that may pass.
        raise ConfigError(
            f"{name} needs at least {used[0]:.1f} GiB of HBM per chip, of which a program can have {used[1]:.2f}: "
            f"choose {smaller(name)}; `specexit plan` says so before a run"
        ) from None
