"""Which optimizer updates which parameter, and what its first update is. A few seconds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jax_specexit.model.draft import Draft
from jax_specexit.training.optimizer import make_optimizer
from jax_specexit.training.step import group_of
from specexit.drafts.config import DraftConfig, SpecExitBlock
from specexit.schemas.train import OptimizerConfig
from tests.shapes import TINY_DRAFT

MATRICES = {"fc/kernel", *(f"{part}/kernel" for part in "qkvo"), *(f"mlp/{x}/kernel" for x in ("gate", "up", "down"))}


def test_muon_updates_the_inner_matrices_alone() -> None:
    geometry = {"own_embeddings": True, "attention_bias": True, "fc_norm": True}
    shape = DraftConfig.model_validate(
        TINY_DRAFT | {"num_aux_hidden_states": 3, "target_num_hidden_layers": 4} | geometry
    )
    shape = shape.model_copy(update={"specexit": SpecExitBlock(target="t")})
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Draft(shape, rngs=nnx.Rngs(0)))))
    found: dict[str, set[str]] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        found.setdefault(group_of(path, leaf), set()).add("/".join(str(key.key) for key in path))
    assert found["muon"] == MATRICES
    assert found["head"] == {"signal_head/kernel"}
    assert {"embedding", "lm_head/kernel", "norm/scale", "q/bias", "fc_norm/layer_2/scale"} <= found["adam"]


Tree = dict[str, dict[str, jax.Array]]


def tree(seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    shapes = {"q": (6, 4), "lm_head": (5, 7), "signal_head": (5, 4), "norm": (5,)}
    return {name: {"kernel": jnp.asarray(rng.normal(size=size), jnp.float32)} for name, size in shapes.items()}


def last_update(params: Tree, *gradients: Tree, **changes: float) -> Tree:
    """The update by the last of these gradients; no warm-up, and no decay yet."""
    rates = {"muon_rate": 0.1, "adam_rate": 0.2, "head_rate": 0.3, "warmup": 0, "decay": 0.1, "clip": 1e9}
    optimizer = make_optimizer(OptimizerConfig.model_validate(rates | changes), 100, group_of)

    @jax.jit
    def run(params: Tree, gradients: tuple[Tree, ...]) -> Any:
        state, updates = optimizer.init(params), params
        for one in gradients:
            updates, state = optimizer.update(one, state, params)
        return updates

    return run(params, gradients)


RATES = {"q": 0.1, "lm_head": 0.2, "signal_head": 0.3, "norm": 0.2}


def test_each_group_has_its_own_rate_and_all_decay() -> None:
    params, gradient = tree(0), tree(1)
    found = last_update(params, gradient, weight_decay=0.5)
    step = {name: -found[name]["kernel"] / rate - 0.5 * params[name]["kernel"] for name, rate in RATES.items()}
    for name in ("lm_head", "signal_head", "norm"):  # Adam's first step is a sign
        np.testing.assert_allclose(step[name], jnp.sign(gradient[name]["kernel"]), atol=1e-3)
    left, _, right = np.linalg.svd(gradient["q"]["kernel"], full_matrices=False)
    # As its iterations leave it: singular values around 1, in the gradient's own directions.
    inner = np.diag(left.T @ step["q"] @ right.T)
    assert 0.6 < inner.min() <= inner.max() < 1.3


def test_a_gradient_is_clipped_by_the_norm_of_all_of_it() -> None:
    params, first, spike = tree(0), tree(1), jax.tree.map(lambda x: 100 * x, tree(2))
    norm = optax.tree.norm(spike)
    small = jax.tree.map(lambda x: x * 50 / norm, spike)
    clipped, expected = last_update(params, first, spike, clip=50), last_update(params, first, small)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), clipped, expected)
