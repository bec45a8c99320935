"""From a run to a draft directory and back: what training divides by is folded into the weights, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_specexit.convert import convert
from jax_specexit.export import params_from_draft, tensors_from_params
from jax_specexit.model.draft import Draft
from jax_specexit.training.run import read_start, widen
from jax_specexit.training.train import train
from specexit.drafts.directory import FLOATS, DraftConfig, SpecExitBlock, read_draft
from specexit.method.signals import NAMES
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.train import SignalConfig, TrainConfig


def shape(source: str) -> DraftConfig:
    return DraftConfig(
        hidden_size=8,
        target_hidden_size=6,
        intermediate_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        vocab_size=20,
        draft_vocab_size=10,
        eagle_aux_hidden_state_layer_ids=(1, 2, 3),
        num_aux_hidden_states=3,
        target_num_hidden_layers=4,
        specexit=SpecExitBlock.model_validate({"source": source, "target": "t", "split_endings": ["\n\n"]}),
    )


@pytest.mark.parametrize("source", ["draft", "fc"])
@settings(max_examples=10, deadline=None)
@given(exponents=st.tuples(*[st.integers(-8, 12)] * 3), seed=st.integers(0, 99))
def test_a_draft_directory_computes_what_the_run_computed(source, exponents, seed):
    rms = tuple(2.0**e for e in exponents)
    trained = Draft(shape(source), rngs=nnx.Rngs(seed), aux_rms=rms)
    params, vocab = nnx.to_pure_dict(nnx.state(trained)), np.arange(0, 20, 2)
    tensors = tensors_from_params(shape(source), params, vocab, rms)

    served = Draft(shape(source), rngs=nnx.Rngs(0))
    nnx.update(served, jax.tree.map(jnp.asarray, params_from_draft(shape(source), tensors)))
    rng = np.random.default_rng(seed)
    aux = jnp.asarray(rng.normal(size=(2, 5, 18)) * np.repeat(rms, 6), jnp.float32)
    normed = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    np.testing.assert_array_equal(served.fuse(aux), trained.fuse(aux))
    np.testing.assert_array_equal(served.signals(aux, normed), trained.signals(aux, normed))
    jax.tree.map(np.testing.assert_array_equal, params_from_draft(shape(source), tensors, rms), params)


def test_a_directory_in_bfloat16_is_trained_in_float32() -> None:
    params = nnx.to_pure_dict(nnx.state(Draft(shape("fc"), rngs=nnx.Rngs(0))))
    tensors = tensors_from_params(shape("fc"), params, np.arange(0, 20, 2))
    half = {name: t.astype(FLOATS["bfloat16"]) if t.dtype == np.float32 else t for name, t in tensors.items()}
    wide = {name: t.astype(np.float32) for name, t in half.items()}
    read = params_from_draft(shape("fc"), half, (0.5, 2.0, 8.0))
    jax.tree.map(np.testing.assert_array_equal, read, params_from_draft(shape("fc"), wide, (0.5, 2.0, 8.0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(read)} == {"float32"}


def test_a_frozen_trunk_is_the_same_to_the_bit(recipe: TrainConfig, tmp_path) -> None:
    train(recipe)
    convert(ConvertConfig(run=recipe.out, out=tmp_path / "draft"))
    changes = {
        "signals": SignalConfig(source="fc"),
        "freeze_trunk": True,
        "init_from": tmp_path / "draft",
        "out": tmp_path / "probe",
    }
    train(recipe.model_copy(update=changes))
    assert set(read_start(tmp_path / "probe").aux_rms) != {1.0}  # else there would be nothing to fold
    convert(ConvertConfig(run=tmp_path / "probe", out=tmp_path / "draft-fc"))
    (_, before), (_, after) = read_draft(tmp_path / "draft"), read_draft(tmp_path / "draft-fc")
    rows = after["fc.weight"][-len(NAMES) :]
    assert np.abs(rows).max() > 0
    after["fc.weight"] = after["fc.weight"][: -len(NAMES)]
    del before["signal_head.weight"]
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_freezing_a_trunk_that_does_not_exist_is_refused(recipe: TrainConfig) -> None:
    with pytest.raises(ValueError, match="expected source fc and a draft directory"):
        TrainConfig.model_validate(recipe.model_dump() | {"freeze_trunk": True})


def test_a_draft_with_a_further_aux_layer_drafts_what_it_did() -> None:
    narrow = shape("draft")
    draft = Draft(narrow, rngs=nnx.Rngs(1))
    tensors = tensors_from_params(narrow, nnx.to_pure_dict(nnx.state(draft)), np.arange(0, 20, 2))
    config, wider = widen(narrow, tensors, (1, 2, 4, 3))
    assert config.eagle_aux_hidden_state_layer_ids == (1, 2, 4, 3)
    served = Draft(config, rngs=nnx.Rngs(0))
    nnx.update(served, jax.tree.map(jnp.asarray, params_from_draft(config, wider)))
    states = jax.random.normal(jax.random.key(0), (2, 5, 24))  # of the layers 1, 2, 4, 3
    old = jnp.concatenate([states[..., :12], states[..., 18:]], axis=-1)
    # the zeros change nothing but the order of the sums
    np.testing.assert_allclose(served.fuse(states), draft.fuse(old), rtol=1e-5, atol=1e-6)
    assert widen(narrow, tensors, (1, 2)) == (narrow, tensors)
