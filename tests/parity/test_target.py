"""The Flax target against transformers: logits, and features at every layer that a draft may read."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoModelForCausalLM

from jax_specexit.target import Target, TargetShape, export_target, load_target
from specexit import tiny

SHAPES = [
    TargetShape(96, 32, 48, 3, 4, 2, 8, 10_000.0, 1e-6, True),
    TargetShape(130, 48, 40, 2, 6, 6, 16, 1_000_000.0, 1e-5, False),
]


@pytest.mark.parametrize("shape", SHAPES, ids=["tied", "untied"])
def test_logits_and_features_match_transformers(shape: TargetShape, tmp_path: Path) -> None:
    export_target(Target(shape, rngs=nnx.Rngs(3)), tmp_path)
    ours = load_target(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(0, shape.vocab_size, (2, 17)).astype(np.int32)
    positions = np.broadcast_to(np.arange(17, dtype=np.int32), tokens.shape)
    layers = tuple(range(shape.num_hidden_layers + 1))
    hidden, aux = ours(jnp.asarray(tokens), jnp.asarray(positions), jnp.ones_like(tokens), aux_layers=layers)

    stream: list[torch.Tensor] = []
    for layer in theirs.model.layers:
        layer.register_forward_hook(lambda _, __, out: stream.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens).long()).logits.numpy()
        embeds = theirs.model.embed_tokens(torch.from_numpy(tokens).long())
    expected = np.concatenate([x.numpy() for x in [embeds, *stream]], axis=-1)
    # float32 throughout; the sums differ in order only
    np.testing.assert_allclose(np.asarray(hidden @ ours.head()), logits, atol=1e-4, rtol=1e-4)
    assert aux is not None
    np.testing.assert_allclose(np.asarray(aux), expected, atol=1e-4, rtol=1e-4)


def test_packed_segments_are_separate_sequences() -> None:
    target = load_target(tiny.MODEL_DIR)
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 600, 9), rng.integers(0, 600, 14)
    packed = jnp.asarray(np.concatenate([a, b])[None], jnp.int32)
    positions = jnp.asarray(np.concatenate([np.arange(9), np.arange(14)])[None], jnp.int32)
    segments = jnp.asarray([[1] * 9 + [2] * 14], jnp.int32)
    together, _ = target(packed, positions, segments)
    alone, _ = target(packed[:, 9:], positions[:, 9:], jnp.ones((1, 14), jnp.int32))
    # float32: masked scores change the order of the sums
    np.testing.assert_allclose(together[:, 9:], alone, atol=1e-4)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GptOssForCausalLM"]}')
    with pytest.raises(ValueError, match="GptOssForCausalLM, expected Qwen3ForCausalLM"):
        load_target(tmp_path)
