"""The training run: read a recipe, build the step, loop, checkpoint; the same code on a laptop and on a pod."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import yaml
from flax import nnx

from jax_specexit.checkpoint import Checkpoints
from jax_specexit.data import first_rows, load_batches
from jax_specexit.evaluate import evaluate_draft
from jax_specexit.metrics import Metrics
from jax_specexit.run import save_start, start
from jax_specexit.sharding import make_mesh
from jax_specexit.step import Frozen, make_step
from specexit.config import ConfigError, save_run
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig
from specexit.traces import read_labelled


def train(config: TrainConfig) -> None:
    """Train a draft; goes on from the newest checkpoint where the run folder has one.

    Raises:
      ConfigError: the run folder belongs to another recipe, the mesh does not fit, or the data is for another target.
    """
    _check_same_recipe(config)
    target_config = load_target_config(config.target)
    batches, meta = load_batches(config, target_config)
    if config.length not in (None, meta.length):
        raise ConfigError(f"length={config.length}, but the rows in {config.data} have {meta.length} tokens")
    if meta.length % config.loss_chunk:
        raise ConfigError(f"loss_chunk={config.loss_chunk} does not divide the packed length {meta.length}")
    mesh = make_mesh(config.mesh)
    fixed, draft, target = start(config, target_config, meta, first_rows(config.data, meta), mesh)
    save_start(config.out, fixed)
    save_run(config, config.out)

    step = make_step(config, draft, target, mesh)
    weight = np.ones(target.shape.vocab_size, np.float32)
    weight[list(target_config.think_tokens().split)] = config.signals.boundary_weight
    frozen = jax.device_put(
        Frozen(nnx.to_pure_dict(nnx.state(target)), np.asarray(fixed.vocab, np.int32), weight), step.frozen_shardings
    )
    state = step.init(nnx.to_pure_dict(nnx.state(draft)))
    checkpoints = Checkpoints(config.out, config.checkpoint)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, step.state_shardings)
    state = checkpoints.restore(like, batches) or state
    begin = int(state.step)

    with Metrics(config.out, total=config.steps, start=begin) as metrics:
        for i in range(begin + 1, config.steps + 1):
            host = next(batches)
            batch = {
                name: jax.make_array_from_process_local_data(step.batch_sharding, value) for name, value in host.items()
            }
            single = i <= config.first_step_share * config.steps
            state, values = step.update[1 if single else config.ttt_steps](state, frozen, batch)
            if i % config.log_every == 0 or i == config.steps:
                metrics.advance(i, values)
            else:
                metrics.count(int((host["segment_ids"] > 0).sum()))
            checkpoints.save(state, batches, force=i == config.steps)
    checkpoints.close()
    if config.eval_traces is not None:
        nnx.update(draft, jax.tree.map(np.asarray, state.params))
        traces = read_labelled(config.eval_traces)
        out = config.out / "evaluation.json"
        evaluate_draft(draft, target, fixed.vocab, target_config, traces, config.ttt_steps, int(state.step), out)


def _check_same_recipe(config: TrainConfig) -> None:
    """A run folder is continued only by the recipe that began it."""
    path = Path(config.out) / "run.yaml"
    if not path.exists():
        return
    before = yaml.safe_load(path.read_text())["config"]
    now = config.model_dump(mode="json")
    for key in now:
        if (
            key not in ("log_every", "checkpoint", "mesh", "topology", "remat", "eval_traces")
            and before.get(key) != now[key]
        ):
            raise ConfigError(
                f"{path}: this run was begun with {key}={before.get(key)}, but the recipe says {now[key]}; "
                "choose another `out` or restore the recipe"
            )
