"""The Flax target against transformers: logits, and features at every layer that a draft may read."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from jax_specexit.model.layers import RopeScaling
from jax_specexit.model.target import Target, TargetShape
from jax_specexit.weights import export_target, load_target
from specexit import tiny
from specexit.errors import InputError
from specexit.schemas.target import TargetConfig
from torch_specexit.features import TargetFeatures

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 16)
"""Original context of 16, so that a short text has wavelengths on every side of the two limits."""
YARN = RopeScaling("yarn", 4.0, original_max_position_embeddings=64, beta_fast=8.0)
"""Of 16 frequencies some are kept, some divided, and some are between."""


def moe(**changes) -> TargetShape:
    """Qwen3-MoE: 3 of 6 experts."""
    plain = TargetShape(96, 32, 48, 3, 4, 2, 32, 10_000.0, 1e-6, False, "Qwen3MoeForCausalLM")
    mixture = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True}
    return replace(plain, **mixture | changes)


SHAPES = {
    "qwen3, tied": TargetShape(96, 32, 48, 3, 4, 2, 8, 10_000.0, 1e-6, True),
    "qwen3": TargetShape(130, 48, 40, 2, 6, 6, 16, 1_000_000.0, 1e-5, False),
    "qwen2": TargetShape(96, 32, 48, 3, 4, 2, 8, 10_000.0, 1e-6, False, "Qwen2ForCausalLM", True),
    "qwen2, linear rope": TargetShape(
        96, 32, 48, 2, 4, 2, 8, 10_000.0, 1e-6, True, "Qwen2ForCausalLM", True, RopeScaling("linear", 4.0)
    ),
    "llama": TargetShape(96, 32, 48, 3, 4, 1, 8, 500_000.0, 1e-5, False, "LlamaForCausalLM"),
    "llama 3.1": TargetShape(96, 64, 48, 2, 2, 2, 32, 5_000.0, 1e-5, False, "LlamaForCausalLM", False, LLAMA3),
    "llama, yarn": TargetShape(
        96, 64, 48, 2, 2, 2, 32, 5_000.0, 1e-5, False, "LlamaForCausalLM", False, replace(YARN, attention_factor=1.3)
    ),
    "qwen3 moe": moe(),
    "qwen3 moe, weights as they are, tied": moe(norm_topk_prob=False, num_experts_per_tok=2, tie_word_embeddings=True),
    "qwen3 moe, yarn": moe(rope_scaling=YARN, num_experts_per_tok=6),
    "qwen3 moe, yarn in fractions": moe(rope_scaling=replace(YARN, truncate=False), num_experts_per_tok=1),
}


def random_target(shape: TargetShape) -> Target:
    """Random weights, biases included."""
    target = Target(shape, rngs=nnx.Rngs(3))
    attention = target.layers.attention
    for i, part in enumerate((attention.q, attention.k, attention.v) if shape.attention_bias else ()):
        part.bias[...] = 0.5 * jax.random.normal(jax.random.key(i), part.bias.shape)
    return target


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_and_features_match_transformers(shape: TargetShape, tmp_path: Path) -> None:
    export_target(random_target(shape), tmp_path)
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


def test_a_mixture_is_read_as_it_is_published(tmp_path: Path) -> None:
    """What transformers writes, in several files and a tensor an expert, gives the features that `score` reads."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "head_dim": 16}
    counts = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True}
    config = Qwen3MoeConfig.from_dict(sizes | counts | experts | {"initializer_range": 0.2})
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path, max_shard_size="40KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    names = {name for file in files for name in safe_open(file, framework="numpy").keys()}  # noqa: SIM118
    assert "model.layers.2.mlp.experts.5.down_proj.weight" in names

    tokens = np.random.default_rng(0).integers(0, 96, (2, 17)).astype(np.int32)
    positions = np.broadcast_to(np.arange(17, dtype=np.int32), tokens.shape)
    ours = load_target(tmp_path)
    hidden, aux = ours(jnp.asarray(tokens), jnp.asarray(positions), jnp.ones_like(tokens), aux_layers=(0, 1, 3))
    described = TargetConfig(name="moe", path=str(tmp_path), aux_layers=(0, 1, 3), max_model_len=64)
    logits, features = TargetFeatures(described, (0, 1, 3), head=True).read(torch.from_numpy(tokens).long())
    assert aux is not None
    np.testing.assert_allclose(np.asarray(aux), features.numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(hidden @ ours.head()), logits.numpy(), atol=1e-4, rtol=1e-4)


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


LLAMA = {"architectures": ["LlamaForCausalLM"]}
MOE = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GptOssForCausalLM"]}, "GptOssForCausalLM, expected one of Qwen3ForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "original_max_position_embeddings is missing"),
        ({"rope_parameters": {"rope_type": "llama3", "mscale": 1.0}}, "mscale is 1.0, which a scaling of"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type is 'dynamic', expected"),
        (
            {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "rope_theta is 500000.0, but rope_parameters says 10000.0, by which engines go",
        ),
        ({"use_sliding_window": True}, "use_sliding_window is True, only False"),
        (
            {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]},
            r"layer_types has \['sliding_attention'\], only",
        ),
        ({**LLAMA, "sliding_window": 128}, "sliding_window is 128, which vLLM serves in all layers; only null"),
        ({**LLAMA, "sliding_window": 128, "use_sliding_window": False}, "sliding_window is 128, which vLLM serves"),
        ({"num_hidden_layers": None}, "no value for num_hidden_layers"),
        ({"attention_bias": True}, "attention_bias is true, which is implemented for Qwen2 only"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is .*fp8.*, only {} is implemented"),
        ({**MOE, "mlp_only_layers": [0]}, r"mlp_only_layers is \[0\], only \[\] is implemented"),
        ({**MOE, "decoder_sparse_step": 2}, "decoder_sparse_step is 2, only 1"),
        ({**MOE, "num_experts": None}, "no value for num_experts"),
        ({**MOE, "num_experts_per_tok": 5}, "num_experts_per_tok is 5, expected at most num_experts=4"),
    ],
)
def test_a_variant_that_is_not_implemented_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    config = json.loads((tiny.MODEL_DIR / "config.json").read_text())
    if "rope_scaling" in change:
        del config["rope_parameters"]
        config["rope_theta"] = 10_000.0
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        load_target(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 2},
        {"sliding_window": 4096},
        {"sliding_window": 128, "layer_types": ["full_attention"] * 4, **LLAMA},
        {"sliding_window": 0, **LLAMA},
    ],
)
def test_a_window_that_is_not_in_force_is_accepted(change: dict) -> None:
    """As Qwen's own configs state one, and as vLLM takes no window from a Llama's."""
    config = json.loads((tiny.MODEL_DIR / "config.json").read_text())
    assert TargetShape.from_config(config | change, "config.json").vocab_size == config["vocab_size"]


def test_weights_beside_those_of_the_index_are_not_read(tmp_path: Path) -> None:
    """The name that came last in the alphabet won, while vLLM serves what the index names."""
    folder = shutil.copytree(tiny.MODEL_DIR, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in tensors.items()}, folder / "older.safetensors")
    with pytest.raises(InputError, match=r"tensor .* is in model\.safetensors and in older\.safetensors"):
        load_target(folder)
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = tensors["model.norm.weight"].float().numpy()
    np.testing.assert_array_equal(load_target(folder).norm.scale[...], expected)


def _as_int8(tensors: dict[str, torch.Tensor], name: str) -> None:
    scale = tensors[name].abs().amax(dim=1, keepdim=True) / 127
    tensors |= {name: (tensors[name] / scale).round().to(torch.int8), f"{name}_scale": scale}


def _as_float8(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def _as_gptq(tensors: dict[str, torch.Tensor], name: str) -> None:
    stem = name.removesuffix(".weight")
    tensors |= {f"{stem}.qweight": tensors.pop(name).to(torch.int32), f"{stem}.scales": torch.ones(4)}


@pytest.mark.parametrize(
    ("quantise", "message"),
    [
        (_as_int8, "NAME_scale says that NAME is quantised, expected plain weights"),
        (_as_float8, "NAME has dtype F8_E4M3, expected plain weights in F32, BF16 or F16"),
        (_as_gptq, "up_proj.qweight says that NAME is quantised"),
    ],
)
def test_quantised_weights_that_the_config_says_nothing_of_are_refused(
    quantise: Callable[[dict[str, torch.Tensor], str], None], message: str, tmp_path: Path
) -> None:
    """They were read as the numbers that they are stored as, without their scales."""
    name, folder = "model.layers.1.mlp.up_proj.weight", shutil.copytree(tiny.MODEL_DIR, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    quantise(tensors, name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = re.escape(message.replace("NAME", name))
    with pytest.raises(InputError, match=said):
        load_target(folder)
    described = TargetConfig(name="tiny", path=str(folder), aux_layers=(0, 1), max_model_len=64)
    if name in tensors:  # else transformers says what is missing
        with pytest.raises(InputError, match=said):
            TargetFeatures(described, (0, 1))


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, "modelopt"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"text_config": {"compression_config": {"quant_method": "fp8"}}}, "fp8"),
    ],
)
def test_quantised_weights_that_transformers_knows_no_method_of_are_refused(
    said: dict, method: str, tmp_path: Path
) -> None:
    """It passes over what it does not know, and cast the weights without their scales."""
    name, folder = "model.layers.1.mlp.up_proj.weight", shutil.copytree(tiny.MODEL_DIR, tmp_path / "model")
    file, described = (
        folder / "config.json",
        TargetConfig(name="tiny", path=str(folder), aux_layers=(0, 1), max_model_len=64),
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    assert TargetFeatures(described, (0, 1)).embedding.isfinite().all(), "none of its weights is quantised"
    tensors = load_file(folder / "model.safetensors")
    _as_float8(tensors, name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said_by = f"config.json says quant_method '{method}', and transformers does not read that: expected plain weights"
    expected = f"{name} has dtype F8_E4M3, of which {said_by}"
    with pytest.raises(InputError, match=re.escape(expected)):
        TargetFeatures(described, (0, 1))
