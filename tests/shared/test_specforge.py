"""Drafts of SpecForge, whose configs say of the target what is not so of the draft: its layer is always Llama's."""

import numpy as np
import pytest

from specexit.drafts.config import DraftError
from specexit.drafts.directory import read_config, read_draft
from tests.shared.published import CONFIGS, imported, mutated, tensors_of


def test_a_draft_of_specforge_has_a_llama_layers_defaults_whatever_its_target_is(tmp_path):
    said = {"rope_theta": None, "rms_norm_eps": None, "max_position_embeddings": None, "num_key_value_heads": 2}
    config = read_config(imported(tmp_path, "specforge", CONFIGS["specforge"] | {"model_type": "gpt_oss"} | said))
    assert (config.rope_theta, config.rope_scaling, config.rms_norm_eps) == (10_000.0, None, 1e-6)
    assert config.architectures == ("LlamaForCausalLMEagle3",)


HEAD_NORMS = {f"{part}_norm.weight": (16,) for part in "qk"}
BIASES = {"q_proj.bias": (64,), "k_proj.bias": (32,), "v_proj.bias": (32,), "o_proj.bias": (64,)}


@pytest.mark.parametrize(
    ("shapes", "model_type", "attention_bias"), [(HEAD_NORMS, "qwen3", False), (BIASES, "llama", True)]
)
def test_head_norms_and_biases_of_a_draft_of_specforge_are_told_by_its_tensors(
    shapes, model_type, attention_bias, tmp_path
):
    more = {f"midlayer.self_attn.{name}": np.full(shape, 0.5, np.float32) for name, shape in shapes.items()}
    config = mutated("specforge", "model_type", "qwen2")
    folder = imported(tmp_path, "specforge", config, tensors_of("specforge") | more)
    config, tensors = read_draft(folder)
    assert (config.model_type, config.attention_bias) == (model_type, attention_bias)
    assert all(np.array_equal(tensors[name], tensor) for name, tensor in more.items())


@pytest.mark.parametrize(
    ("theirs", "instead_of", "message"),
    [
        ("mlp.experts.gate_up_proj", "mlp.", "is of a layer with experts, expected a Llama layer"),
        ("mlp.experts.7.up_proj.weight", "mlp.", "is of a layer with experts"),
        ("mlp.router.weight", "mlp.", "is of a layer with experts"),
        ("mlp.gate.weight", "mlp.", "is of a layer with experts"),
        ("mlp.gate_up_proj.weight", "mlp.gate", "is both halves of the MLP in one"),
        ("self_attn.qkv_proj.weight", "self_attn.q", "is queries, keys and values in one"),
        ("self_attn.sinks", "self_attn.sinks", "is of attention with sinks"),
    ],
)
@pytest.mark.parametrize("model_type", ["gpt_oss", "phi3"])
def test_a_layer_of_another_kind_is_refused_by_what_tells_it(theirs, instead_of, message, model_type, tmp_path):
    kept = {name: one for name, one in tensors_of("specforge").items() if not name.startswith(f"midlayer.{instead_of}")}
    tensors = kept | {f"midlayer.{theirs}": np.zeros((4, 4), np.float32)}
    with pytest.raises(DraftError, match=rf"published: tensor midlayer\.{theirs} {message}"):
        imported(tmp_path, "specforge", mutated("specforge", "model_type", model_type), tensors)
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("use_sliding_window", True), ("layer_types", ["sliding_attention"]), ("mlp_bias", True)]
)
def test_what_would_change_a_llama_layer_is_refused_in_a_draft_of_specforge_too(key, value, tmp_path):
    with pytest.raises(DraftError, match=f"{key} is .*, only .* is implemented"):
        imported(tmp_path, "specforge", mutated("specforge", key, value) | {"model_type": "qwen2"})
