"""What a pod owner watches beside losses and time: how busy the chips are, their memory, the learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jax_specexit.planning.aot import Shapes
from jax_specexit.planning.work import step_work
from jax_specexit.training.optimizer import schedule
from specexit.chips import CHIPS, DEVICE_KINDS
from specexit.schemas.train import TrainConfig


def steps_of(config: TrainConfig, step: int) -> int:
    """TTT steps of an optimizer step."""
    return 1 if step <= config.first_step_share * config.steps else config.ttt_steps


class Watch:
    """Numbers about a run that its step does not return: ``watch(update, timed, seconds)``.

    Args:
      config: the recipe.
      shapes: of its models and rows.
      mesh: that it runs on.
      kind: what JAX calls its devices.
    """

    def __init__(self, config: TrainConfig, shapes: Shapes, mesh: Mesh, kind: str):
        rates = config.optimizer
        peaks = {"muon": rates.muon_rate, "adam": rates.adam_rate, "head": rates.head_rate}
        # All of them now: asked of the devices behind a step, one would come when that step is done.
        updates = np.arange(config.steps)
        self.rates = {name: np.asarray(schedule(rates, peak, config.steps)(updates)) for name, peak in peaks.items()}
        self.config = config
        shorter = {k: config.model_copy(update={"ttt_steps": k}) for k in (1, config.ttt_steps)}
        self.useful = {k: sum(w.useful for w in step_work(one, shapes, mesh)) for k, one in shorter.items()}
        self.chip = CHIPS.get(DEVICE_KINDS.get(kind, ""))

    def __call__(self, update: int, timed: Sequence[int], seconds: float) -> dict[str, Any]:
        """Learning rates of the update; MFU and the most HBM used so far, where the devices say what they are.

        ``update`` is the step less those that were skipped, with which the schedule of the rates has not moved on.
        MFU is useful FLOPs (`jax_specexit.planning.work.Work`: as if a row were one text, padding included) of the
        ``timed`` steps over what a device's share of its chip's published peak gives in the ``seconds`` that they took.
        """
        found: dict[str, Any] = {"learning_rate": {name: float(rate[update - 1]) for name, rate in self.rates.items()}}
        if self.chip is not None and timed:
            useful = sum(self.useful[steps_of(self.config, one)] for one in timed)
            found["mfu"] = round(useful / seconds / (self.chip.flops / self.chip.devices), 4)
        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
        used = [peak for peak in peaks if peak is not None]
        return found | ({"hbm_peak_gib": round(max(used) / 2**30, 3)} if used else {})
