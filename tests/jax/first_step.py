"""The first step of a run, as far as its gradients: what is learned from a target, however that is read."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jax_specexit.model.cached import CachedTarget
from jax_specexit.model.target import Target
from jax_specexit.sharding import make_mesh
from jax_specexit.training.data import check_data, first_rows, open_features
from jax_specexit.training.start import start
from jax_specexit.training.step import Followed, Frozen, make_loss
from specexit.method.signals import SIGNALS
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig


class FirstStep(NamedTuple):
    """Of the first rows of the data, with one TTT step: the target is in it once, however many follow."""

    target: Target | CachedTarget
    aux_rms: tuple[float, ...]
    token_loss: np.ndarray
    signal_loss: np.ndarray
    gradients: Any


def first_step(config: TrainConfig) -> FirstStep:
    """Load, measure, begin and differentiate as `train` does, on one device."""
    target_config = load_target_config(config.target)
    meta = check_data(config, target_config)
    rows = first_rows(config.data, meta, features=open_features(config, target_config, meta))
    fixed, draft, target = start(config, target_config, meta, rows, make_mesh(config.mesh, jax.devices()[:1]))
    (graph, params), (target_graph, weights) = nnx.split(draft), nnx.split(target)
    known = np.ones(target.shape.vocab_size, np.float32)
    frozen = Frozen(nnx.to_pure_dict(weights), np.asarray(fixed.vocab, np.int32), known)
    none = np.zeros(len(SIGNALS), np.float32)
    before = Followed(np.zeros(1 + len(SIGNALS), np.float32), none, none)
    # As numpy's, or some would be bound to the mesh and some not.
    arguments = jax.tree.map(np.asarray, (nnx.to_pure_dict(params), frozen, rows, before))
    loss = make_loss(config, graph, target_graph, 1)
    gradients, (metrics, _) = jax.jit(jax.grad(loss, has_aux=True))(*arguments)
    losses = (np.asarray(metrics[name]) for name in ("token_loss", "signal_loss"))
    return FirstStep(target, fixed.aux_rms, *losses, jax.tree.map(np.asarray, gradients))


class Difference(NamedTuple):
    """Of two gradients, relative to the second, by norm."""

    whole: float
    each: dict[str, float]
    """By parameter."""


def difference(ours: Any, theirs: Any) -> Difference:
    """How far gradients are from those that they should be."""

    def relative(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        a, b = ([x.ravel() for x in side] for side in (a, b))
        return float(np.linalg.norm(np.concatenate(a) - np.concatenate(b)) / np.linalg.norm(np.concatenate(b)))

    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: relative([a], [b]), ours, theirs))
    each = {jax.tree_util.keystr(path): found for path, found in leaves}
    return Difference(relative(jax.tree.leaves(ours), jax.tree.leaves(theirs)), each)
