"""The emergency stop: a NaN or an infinity ends the run before it can spoil a checkpoint, and leaves its batch behind.

The step itself skips an update whose loss or gradient is not finite, so the parameters are always those of the last
good step, and the check may come one step late, when the numbers are there anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from jax_specexit.cluster import is_first
from specexit.config import write_bytes
from specexit.data.features import FeatureError
from specexit.data.packed import write_example
from specexit.data.sequences import Example
from specexit.errors import InputError


class NotFiniteError(InputError):
    """Too many steps in a row whose loss or gradient was not finite; the message names the first batch."""


class NonFiniteStop:
    """Counts skipped updates, writes their batches where it can, and stops the run after too many in a row.

    Args:
      run: folder of the run; batches go to ``nonfinite/step-<n>.npz``, one array of [batch, time, ...] per field of a
        packed example, for ``numpy.load`` or `specexit.data.packed.read_example`.
      limit: updates in a row that may be skipped.
      read: the batch of a step, with the rows of all processes.
      check_features: raises a `FeatureError` where stored features of a step, of all processes, are not finite.
      target: the target's parameters, on the run's mesh.
    """

    def __init__(
        self,
        run: Path,
        limit: int,
        read: Callable[[int], Example],
        check_features: Callable[[int], None],
        target: Any,
    ):
        self.folder, self.limit, self.read, self.target = run / "nonfinite", limit, read, target
        self.check_features = check_features
        self.in_a_row = 0

    def check(self, step: int, loss: float, gradient_norm: float) -> bool:
        """Whether a step's loss and gradient are finite; if not, its batch is written, and the step reported.

        Raises:
          NotFiniteError: one skipped update more than the limit.
        """
        if np.isfinite(loss) and np.isfinite(gradient_norm):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        path, fault = self.folder / f"step-{step:08d}.npz", ""
        kept, damaged, stored = f"is in {path}", _damaged(self.target), ""
        if is_first():
            try:
                batch = self.read(step)  # with the rows of other hosts, which this one has not read yet
                fault = _fault(batch)
                write_bytes(path, write_example(batch))
            except (OSError, InputError) as error:  # no reason to end: what is, is said below
                kept = f"could not be read or written ({error})"
            try:
                self.check_features(step)
            except FeatureError as error:
                stored = str(error)
        what = f"step {step}: loss {loss}, gradient norm {gradient_norm}; update skipped, its batch {kept}{fault}"
        what += f"; the target's own {damaged[0]} is not finite" if damaged else ""
        what += f"; {stored}" if stored else ""
        if self.in_a_row <= self.limit:
            if is_first():
                Console(stderr=True).print(what, soft_wrap=True, markup=False)
            return False
        mend = "mend the data or lower the rates and start again, or let a few be skipped with max_nonfinite"
        mend = "get the target's weights anew" if damaged else "mend the stored features" if stored else mend
        raise NotFiniteError(
            f"{what}. Stopped behind {self.in_a_row} such steps (max_nonfinite={self.limit}); the last checkpoint is "
            f"good: {mend}"
        )


def _damaged(target: Any) -> list[str]:
    """Names of the parameters that hold a NaN or an infinity. Every process has to ask, as each has a part of them."""
    found = {
        ".".join(str(getattr(key, "key", key)) for key in path): leaf
        for path, leaf in jax.tree.leaves_with_path(target)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    if not found:
        return []
    everywhere = NamedSharding(next(iter(found.values())).sharding.mesh, PartitionSpec())
    finite = jax.jit(lambda tensors: [jnp.isfinite(x).all() for x in tensors], out_shardings=everywhere)
    return [name for name, good in zip(found, finite([*found.values()]), strict=True) if not good]


def _fault(batch: Example) -> str:
    """Which fields of which rows are not finite themselves, as the end of a sentence."""
    faults = [
        f"{name} of row {row}"
        for name, values in batch.items()
        if np.issubdtype(values.dtype, np.floating)
        for row in np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    ]
    return f", in which {', '.join(faults[:4])} is not finite" if faults else ", all of which is finite"
