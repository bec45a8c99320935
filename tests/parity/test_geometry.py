"""Every variant of EAGLE-3 that published drafts have: the JAX draft and the PyTorch draft compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jax_specexit.export import params_from_draft
from jax_specexit.model.draft import Draft as JaxDraft
from jax_specexit.training.step import ttt_outputs
from specexit.drafts.directory import read_draft
from specexit.drafts.rope import RopeScaling
from torch_specexit.draft import Draft

STEPS, TIME = 3, 40

TOLERANCE = 5e-5
"""fp32 logits of unit variance differ by some 5e-6 between orders of summation; ten times that."""

VARIANTS = {
    "plain": {},
    "its own theta, eps and head size": {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "head_dim": 12},
    "norm_before_residual": {"norm_before_residual": True},
    "norm_before_fc": {"norm_before_fc": True},
    "fc_norm and norm_output": {"fc_norm": True, "norm_output": True},
    "attention_bias": {"attention_bias": True},
    "qwen3": {"model_type": "qwen3"},
    "rope linear": {"rope_scaling": RopeScaling("linear", 4.0)},
    "rope llama3": {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16)},
    "a window": {"sliding_window": 9},
    "own embeddings, a narrower draft": {"own_embeddings": True, "hidden_size": 48},
    "five aux layers": {"eagle_aux_hidden_state_layer_ids": (0, 1, 2, 3, 4), "num_aux_hidden_states": 5},
}


def logits_of_jax(folder, embedding, tokens, aux):
    config, tensors = read_draft(folder)
    draft = JaxDraft(config, rngs=nnx.Rngs(0))
    params = params_from_draft(config, tensors)
    assert jax.tree.structure(params) == jax.tree.structure(nnx.to_pure_dict(nnx.state(draft)))
    nnx.update(draft, jax.tree.map(jnp.asarray, params))
    positions = jnp.broadcast_to(jnp.arange(TIME), tokens.shape)
    batch = {"tokens": jnp.asarray(tokens), "positions": positions, "segment_ids": jnp.ones_like(positions)}

    @nnx.jit
    def logits(draft, batch):
        outputs = ttt_outputs(draft, jnp.asarray(embedding), jnp.asarray(aux), batch, STEPS)
        return [y @ draft.lm_head.kernel[...] for y in outputs]

    return [np.asarray(y)[:, : TIME - 1 - k] for k, y in enumerate(logits(draft, batch))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_frameworks_agree_on_every_ttt_step(variant, tmp_path, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", None, **VARIANTS[variant])
    config, _ = read_draft(folder)
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(200, 64)).astype(np.float32)
    tokens = rng.integers(0, 200, (2, TIME))
    aux = rng.normal(size=(2, TIME, config.aux_size)).astype(np.float32)
    ours = Draft.load(folder, torch.from_numpy(embedding))
    expected = ours(torch.from_numpy(tokens), torch.from_numpy(aux), steps=STEPS).logits
    for found, wanted in zip(logits_of_jax(folder, embedding, tokens, aux), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "plain"])
def test_every_variant_matters(variant, tmp_path, write_random_draft):
    """Reading such a draft as a plain one would not go unnoticed."""
    changes = dict(VARIANTS[variant])
    rng = np.random.default_rng(1)
    folder = write_random_draft(tmp_path / "draft", None, **changes)
    config, tensors = read_draft(folder)
    embedding = torch.from_numpy(rng.normal(size=(200, 64)).astype(np.float32))
    tokens = torch.from_numpy(rng.integers(0, 200, (1, TIME)))
    aux = torch.from_numpy(rng.normal(0, 3, size=(1, TIME, config.aux_size)).astype(np.float32))
    draft = Draft.load(folder, embedding)
    with_it = draft(tokens, aux, steps=2).logits[1]
    if variant in ("own embeddings, a narrower draft", "five aux layers", "its own theta, eps and head size"):
        return  # of other shapes: a plain reading fails before it computes anything
    plain = config.model_copy(update={name: type(config).model_fields[name].default for name in changes})
    other = Draft(plain, embedding)
    other.load_state_dict(
        {name: torch.from_numpy(value) for name, value in tensors.items() if name in plain.tensor_shapes()},
        strict=False,
    )
    assert float((other(tokens, aux, steps=2).logits[1] - with_it).detach().abs().max()) > 0.01
