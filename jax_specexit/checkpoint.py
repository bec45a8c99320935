"""Checkpoints of a run: model state and data position in the same step, asynchronous, through orbax."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from jax_specexit.step import TrainState
from specexit.config import ConfigError
from specexit.schemas.train import CheckpointConfig


class Checkpoints:
    """The checkpoints in ``<run>/checkpoints``.

    A kill in the middle of a save leaves an orbax temporary that the next start removes; the step before it is intact.
    """

    def __init__(self, run: Path, config: CheckpointConfig):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep, save_interval_steps=config.every, cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager((run / "checkpoints").absolute(), options=options)

    def save(self, state: TrainState, data: grain.DatasetIterator, *, force: bool = False) -> None:
        """Save if the step is due; returns before the files are written."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(data))
        self.manager.save(int(state.step), args=args, force=force)

    def restore(self, like: Any, data: grain.DatasetIterator) -> TrainState | None:
        """The newest state, on the shardings of ``like`` (shapes with shardings), and ``data`` moved to its position.

        Returns None where there is no checkpoint yet.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), data=grain.checkpoint.CheckpointRestore(data))
        return self.manager.restore(step, args=args)["state"]

    def close(self) -> None:
        """Wait until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def restore_params(run: Path) -> tuple[int, Any]:
    """(step, parameters) of the newest checkpoint, on this machine's default device.

    Raises:
      ConfigError: the run has none.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns that it will not restore what is not asked for
    folder = (run / "checkpoints").absolute()
    if not folder.is_dir():
        raise ConfigError(f"{run}: no checkpoints folder, expected a run folder that `specexit train` wrote")
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = manager.latest_step()
        if step is None:
            raise ConfigError(f"{folder}: no finished checkpoint there")
        tree = manager.item_metadata(step)["state"]
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]
    params = restored["params"] if isinstance(restored, dict) else restored.params
    return step, params
