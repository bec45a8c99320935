"""Published EAGLE-3 drafts: what is not understood is refused by name, what cannot matter is passed over aloud."""

import json

import numpy as np
import pytest

from specexit.config import ConfigError
from specexit.drafts.config import DraftError
from specexit.drafts.directory import read_config, read_draft
from specexit.drafts.published import import_draft
from specexit.drafts.rope import RopeScaling
from specexit.drafts.vocabulary import read_vocabulary
from specexit.schemas.published import ImportConfig
from tests.shared.published import (
    CONFIGS,
    DRAFT_VOCAB,
    HUNYUAN,
    LLAMA3,
    MODEL_OPTIMIZER,
    PHI3,
    TARGET,
    TRANSFORMERS_5,
    VOCAB,
    WINDOW,
    imported,
    mutated,
    tensors_of,
    write_published,
    write_target,
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_aux_hidden_state", False),
        ("use_input_layernorm_in_first_layer", False),
        ("use_last_layernorm", False),
        ("use_mtp_layernorm", True),
        ("next_layer_regular", False),
        ("parallel_draft_step", 2),
    ],
)
def test_what_model_optimizer_can_change_of_a_draft_is_refused(key, value, tmp_path):
    config = MODEL_OPTIMIZER | {"eagle_config": MODEL_OPTIMIZER["eagle_config"] | {key: value}}
    with pytest.raises(DraftError, match=f"eagle_config.{key} is {value}, only .* is implemented"):
        imported(tmp_path, "specforge", config)


def test_rising_numbers_that_are_offsets_or_ids_are_refused_with_what_to_add(tmp_path):
    """Every second token, or the first ones: both are vocabularies."""
    d2t, second = np.arange(10), np.arange(0, 20, 2)
    with pytest.raises(
        DraftError, match=r"begins with \[0, 1, 2, 3\] and can be .* as ids: add t2d, .* of the 40 target"
    ):
        read_vocabulary(d2t, None, 10, 40, tmp_path)
    for ids, form in ((second, "offsets"), (d2t, "ids")):
        found = read_vocabulary(d2t, np.isin(np.arange(40), ids), 10, 40, tmp_path)
        assert (found[0].tolist(), found[1]) == (ids.tolist(), form)
    assert read_vocabulary(second * 2, None, 10, 40, tmp_path)[1] == "ids"  # as offsets they would pass the vocabulary


@pytest.mark.parametrize("d2t", [[40, 3], [39, 39]], ids=["beyond the target", "twice"])
def test_without_t2d_a_token_that_is_not_there_or_comes_twice_is_refused(d2t, tmp_path):
    with pytest.raises(DraftError, match="neither offsets nor ids of 2 different tokens below vocab_size 40"):
        read_vocabulary(np.array(d2t), None, 2, 40, tmp_path)
    # As offsets the last token would be beyond the target, or there twice: so they are ids.
    for ids in ([3, 39], [39, 38]):
        assert read_vocabulary(np.array(ids), None, 2, 40, tmp_path)[1] == "ids"


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

MUTATIONS = [
    ("architectures", ["MistralForCausalLM"], r"architectures is \['MistralForCausalLM'\], .* say layout="),
    ("hidden_act", "gelu", "hidden_act is 'gelu'"),
    ("mlp_bias", True, "mlp_bias is True"),
    ("use_sliding_window", True, "use_sliding_window is True"),
    ("layer_types", ["sliding_attention"], r"layer_types is \['sliding_attention'\]"),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings is missing, which"),
    ("rope_scaling", {"rope_type": "longrope", "factor": 4.0}, "rope_scaling is .*'longrope', expected one of default"),
    (
        *("rope_scaling", YARN | {"mscale": 0.7}),
        "mscale is 0.7 and mscale_all_dim 0, which trainers and engines read in two ways",
    ),
    (
        *("rope_scaling", YARN | {"mscale_all_dim": 1.0}),
        "mscale is None and mscale_all_dim 1.0, which trainers and engines read in two ways",
    ),
    ("rope_scaling", {"rope_type": "linear", "factor": 4.0, "beta": 1}, "rope_scaling is .*beta is 1"),
    ("rope_scaling", {"rope_type": ["yarn"]}, r"rope_scaling is .*rope_type is \['yarn'\], expected one of default"),
    ("rope_scaling", {"rope_type": ""}, "rope_scaling is .*rope_type is '', expected one of default"),
    ("rope_scaling", {"rope_type": False, "factor": 4.0}, "rope_scaling is .*rope_type is False, expected one of"),
    ("rope_theta", "1e6", "rope_theta is '1e6'"),
    ("rope_theta", float("nan"), "rope_theta is nan, expected a number above 0"),
    (
        *("rope_parameters", {"rope_type": "default", "rope_theta": 5e6}),
        "rope_theta is 1000000, but rope_parameters.rope_theta is 5000000.0",
    ),
    ("target_num_hidden_layers", 36, "target_num_hidden_layers is 36, but target small has num_hidden_layers 12"),
    ("own_embeddings", True, r"own_embeddings is True, but tensor embed_tokens\.weight is not"),
    ("partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5"),
    ("pretraining_tp", 2, "pretraining_tp is 2"),
    ("rms_norm_eps", 0, "rms_norm_eps is 0"),
    ("hidden_size", 128, "hidden_size is 128"),
    ("hidden_size", None, "hidden_size is missing"),
    (
        *("intermediate_size", 97),
        r"gate_proj.weight has shape \[96, 64\], expected \[97, 64\] \(intermediate_size 97, hidden_size 64\)",
    ),
    ("num_attention_heads", 3, "num_attention_heads is 3"),
    ("num_attention_heads", 0, "num_attention_heads is 0"),
    ("num_key_value_heads", 4, r"k_proj.weight has shape \[32, 128\], expected \[64, 128\] \(num_key_value_heads 4, "),
    ("head_dim", 15, "head_dim is 15"),
    ("vocab_size", 999, "vocab_size is 999"),
    ("draft_vocab_size", 64, r"d2t is int64 \[120\], expected integers \[64\], draft_vocab_size"),
    ("draft_vocab_size", 500, "draft_vocab_size is 500"),
    ("norm_before_residual", "yes", "norm_before_residual is 'yes'"),
    ("norm_before_fc", True, r"input_norm.weight \[192\] is missing"),
    ("fc_norm", True, r"fc_norm.0.weight \[64\] is missing"),
    ("target_hidden_size", 128, "target_hidden_size is 128"),
    ("num_aux_hidden_states", 4, "num_aux_hidden_states is 4"),
    ("eagle_aux_hidden_state_layer_ids", [9, 2, 6], r"eagle_aux_hidden_state_layer_ids is \[9, 2, 6\]"),
    ("eagle_aux_hidden_state_layer_ids", [2, 6, 99], r"eagle_aux_hidden_state_layer_ids is \[2, 6, 99\]"),
    (
        *("eagle_aux_hidden_state_layer_ids", [2, 6]),
        r"fc.weight has shape \[64, 192\], expected \[64, 128\] \(.*eagle_aux_hidden_state_layer_ids \(2, 6\)\)",
    ),
    ("head_dim", 2**33, "head_dim is 8589934592: Input should be less than or equal to 65536"),
    ("eagle_aux_hidden_state_layer_ids", "2,6,9", "eagle_aux_hidden_state_layer_ids is '2,6,9'"),
    ("eagle_config.use_aux_hidden_state", False, "eagle_config.use_aux_hidden_state is False"),
    ("eagle_config.surprise", 7, "eagle_config.surprise is 7"),
    ("early_stop_method", "confidence", "early_stop_method is 'confidence'"),
    ("parallel_drafting", True, "parallel_drafting is True"),
    ("use_mrope", True, "use_mrope is True, only False is implemented"),
    ("truncated_vocab_size", 64, "truncated_vocab_size is 64, but draft_vocab_size is 120"),
    ("rope_scaling", LLAMA3 | {"low_freq_factor": None}, "rope_scaling is .*low_freq_factor is missing, .* 'llama3'"),
    ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "low_freq_factor is missing, which rope_type 'llama3'"),
    ("logit_scale", 0.25, "logit_scale is 0.25"),
    ("quantization_config", {"bits": 4}, r"quantization_config is \{'bits': 4\}, none is implemented"),
    ("rope_thetta", 5e6, "rope_thetta is 5000000.0"),
    (
        *("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.25}),
        "rope_parameters is .*partial_rotary_factor is 0.25",
    ),
    ("rms_norm_eps", 1e308, r"rms_norm_eps is 1e\+308, expected a number above 0 in float32"),
    ("rms_norm_eps", 1e-320, "rms_norm_eps is 1e-320, expected a number above 0 in float32"),
    ("rope_scaling", {"rope_type": "linear", "factor": 1e-39}, "rope_scaling .*1e-39.*, expected finite angles"),
    (
        "rope_scaling",
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512, "attention_factor": 1e99},
        r"rope_scaling .*1e\+99.*, expected finite angles and factor in float32",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), MUTATIONS)
def test_a_mutated_config_is_refused_by_name(key, value, message, tmp_path):
    config = mutated("angelslim", key, value)
    if key in ("num_aux_hidden_states",):
        config["architectures"] = ["LlamaForCausalLMEagle3"]
    with pytest.raises(DraftError, match=message) as error:
        imported(tmp_path, "angelslim", config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "draft").exists()


QWEN3_MOE = {"decoder_sparse_step": 1, "output_router_logits": False, "router_aux_loss_coef": 0.001}
GPT_OSS = {"num_local_experts": 16, "experts_per_token": 4}
SPECULATORS_LAYER = CONFIGS["speculators"]["transformer_layer_config"]
FULL = {"use_sliding_window": False, "layer_types": ["full_attention"]}
"""With ``--full-attention-indices 0``; the width stays."""
WINDOWS = (
    ({"sliding_window": 0}, "sliding_window is 0, expected a number from 1 to 2147483647 with layer_types"),
    ({"sliding_window": -1}, "sliding_window is -1, expected a number from 1"),
    ({"sliding_window": 2048.0}, r"sliding_window is 2048\.0, expected a number from 1"),
    ({"sliding_window": None}, "sliding_window is None, expected a number from 1"),
    ({"use_sliding_window": False}, "use_sliding_window is False, expected True with layer_types"),
    ({"layer_types": ["full_attention"]}, "use_sliding_window is True, only False is implemented"),
    ({"layer_types": None}, "use_sliding_window is True, only False is implemented"),
    ({"layer_types": ["sliding_attention"] * 2}, "use_sliding_window is True, only False is implemented"),
)
"""Beside `WINDOW`, what contradicts it or is none."""
COPIED = {
    "speculators 0.9.0 without its window": (
        "speculators",
        {"transformer_layer_config": SPECULATORS_LAYER | WINDOW | FULL},
    ),
    "AngelSlim of Qwen3-30B-A3B": ("angelslim", QWEN3_MOE),
    "AngelSlim, an older one": ("angelslim", {"architectures": ["Eagle3LLamaforCausalLM"]}),
    "AngelSlim of Qwen2.5": ("angelslim", {"use_mrope": False, "sliding_window": 131072}),
    "SpecForge of gpt-oss": ("specforge", GPT_OSS),
    "SpecForge's own file for gpt-oss": ("specforge", GPT_OSS | {"model_type": "gpt_oss"}),
    "SpecForge's own file for Phi-4": ("specforge", {"model_type": "phi3", "head_dim": None}),
    "SpecForge's own file for QwQ": ("specforge", {"model_type": "qwen2", "sliding_window": 32768}),
    "SpecForge of Qwen3, no head size said": ("specforge", {"model_type": "qwen3", "head_dim": None}),
    "SpecForge's config made of gpt-oss's": (
        "specforge",
        GPT_OSS | {"attention_bias": True, "sliding_window": 128, "use_sliding_window": None},
    ),
    "NeMo of R1-Distill-Qwen": ("nemo", {"model_type": "qwen2", "use_mrope": False}),
    "NeMo of Qwen3-30B-A3B": (
        "nemo",
        QWEN3_MOE
        | {"model_type": "qwen3_moe", "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True}
        | {"num_experts": 128, "num_experts_per_tok": 8},
    ),
    "NeMo of Phi-3": (
        "nemo",
        PHI3 | {"rope_parameters": {"rope_theta": 1_000_000, "rope_type": "default", "partial_rotary_factor": 1.0}},
    ),
    "nebius": ("safeailab", {"truncated_vocab_size": DRAFT_VOCAB}),
    "SafeAILab of Vicuna 13B": ("safeailab", {"num_hidden_layers": 40}),
    "SafeAILab of Vicuna 33B": ("safeailab", {"num_hidden_layers": 60, "max_sequence_length": 2048}),
    "SafeAILab of Qwen2": ("safeailab", {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}),
    "SafeAILab of Qwen3": ("safeailab", {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}),
    "SafeAILab of Mixtral": ("safeailab", {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}),
    "AngelSlim of Hunyuan": ("angelslim", HUNYUAN),
    "AngelSlim of Qwen2.5, its layers": ("angelslim", {"model_type": "qwen2", "num_hidden_layers": 28}),
    "AngelSlim by transformers 5": ("angelslim", TRANSFORMERS_5),
    "SpecForge by transformers 5": ("specforge", TRANSFORMERS_5),
    "SpecForge of Qwen3, its layers": (
        "specforge",
        {"num_hidden_layers": 36, "layer_types": ["full_attention"] * 36},
    ),
    "SafeAILab of Qwen3, its layers": (
        "safeailab",
        {"num_hidden_layers": 36, "layer_types": ["full_attention"] * 36},
    ),
    "SpecForge of Gemma 3": (
        "specforge",
        {"sliding_window": 512, "use_sliding_window": False, "target_model_type": "gemma3_text"},
    ),
    "TorchSpec's converter": ("torchspec", {"num_aux_hidden_states": None}),
    "TorchSpec, an older one": ("torchspec", {"_torchspec_version": None}),
}


@pytest.mark.parametrize("framework", COPIED)
def test_what_a_framework_copies_from_its_target_changes_nothing(framework, tmp_path):
    layout, says = COPIED[framework]
    (tmp_path / "without").mkdir()
    without = read_draft(imported(tmp_path / "without", layout))
    config, tensors = read_draft(imported(tmp_path, layout, CONFIGS[layout] | says))
    assert config == without[0]
    assert {name: tensor.tobytes() for name, tensor in tensors.items()} == {
        name: tensor.tobytes() for name, tensor in without[1].items()
    }


@pytest.mark.parametrize(
    ("layout", "place", "value", "message"),
    [
        ("speculators", "norm_before_residual", None, "norm_before_residual is None, expected true or false"),
        ("speculators", "speculators_config.algorithm", "dflash", "speculators_config.algorithm is 'dflash'"),
        (
            *("speculators", "speculators_config.verifier.architectures", ["Qwen3ForCausalLM"]),
            r"speculators_config.verifier.architectures is \['Qwen3ForCausalLM'\], but target small has architectures",
        ),
        ("speculators", "transformer_layer_config.foo", 1, "transformer_layer_config.foo is 1, which is unknown"),
        ("speculators", "speculators_model_type", "dflash", "speculators_model_type is 'dflash'"),
        (
            "speculators",
            "transformer_layer_config.model_type",
            "mistral",
            "transformer_layer_config.model_type is 'mis",
        ),
        ("speculators", "transformer_layer_config.num_hidden_layers", 2, "num_hidden_layers is 2, only 1 is implement"),
        (
            *("speculators", "transformer_layer_config.attention_bias", True),
            r"q_proj.bias \[64\] is missing \(attention_bias True, ",
        ),
        *(
            ("speculators", "transformer_layer_config", SPECULATORS_LAYER | WINDOW | says, f"_config.{message}")
            for says, message in WINDOWS
        ),
        # Of a Llama without layer_types vLLM has this window in all layers.
        ("speculators", "transformer_layer_config.sliding_window", 2048, "sliding_window is 2048, none is implemented"),
        ("deepspec", "layer_types", ["sliding_attention"], r"layer_types is \['sliding_attention'\], only \['full_att"),
        ("deepspec", "draft_num_hidden_layers", 2, "draft_num_hidden_layers is 2"),
        ("deepspec", "model_type", "qwen3_moe", "model_type is 'qwen3_moe'"),
        ("deepspec", "target_layer_ids", None, "target_layer_ids is None"),
        ("deepspec", "num_target_layers", 36, "num_target_layers is 36, but target small has num_hidden_layers 12"),
        (
            *("deepspec", "eagle_aux_hidden_state_layer_ids", [1, 3, 5, 7, 9]),
            r"ids is \[1, 3, 5, 7, 9\], but target_layer_ids is \[1, 3, 5, 7, 9\], which means .*\[2, 4, 6, 8, 10\]",
        ),
        ("angelslim", "rope_theta", -1, "rope_theta is -1, expected a number above 0"),
        ("angelslim", "rope_parameters", {"rope_theta": "1e6"}, "rope_theta is 1000000, but .*rope_theta is '1e6'"),
        (
            *("speculators", "transformer_layer_config"),
            SPECULATORS_LAYER | {"rope_theta": None, "rope_parameters": {"rope_theta": True}},
            "transformer_layer_config.rope_theta is True, expected a number above 0",
        ),
        ("nemo", "head_dim", 8, r"q_proj.weight has shape \[64, 128\], expected \[32, 128\]"),
        (
            *("specforge", "eagle_aux_hidden_state_layer_ids", [3, 7, 10]),
            r"is \[3, 7, 10\], but eagle_config.eagle_aux.* is \[1, 5, 8\], which means layers \[2, 6, 9\]",
        ),
        (
            *("specforge", "eagle_config.layer_ids", [3, 7, 10]),
            r"eagle_config.layer_ids is \[3, 7, 10\], but eagle_config.eagle_aux_hidden_state_layer_ids is \[1, 5, 8\]",
        ),
        ("specforge", "target_layer_ids", [2, 6, 9], r"target_layer_ids is \[2, 6, 9\], but eagle_config.eagle_aux"),
        (
            # NVIDIA's draft of gpt-oss-120b counts as vLLM does, where SGLang and Model-Optimizer count outputs.
            *("specforge", "eagle_config.eagle_aux_hidden_state_layer_ids", [1, 5, 12]),
            r"published/config\.json: eagle_config\.eagle_aux_hidden_state_layer_ids is \[1, 5, 12\], expected ids "
            r"from 0 to 11, .* of target small: .* say aux_layers=\[1,5,12\] if these are counted as vLLM does",
        ),
        ("speculators", "speculators_config.surprise", 7, "speculators_config.surprise is 7, which is unknown"),
        (
            *("speculators", "speculators_config.verifier.surprise", "x"),
            "speculators_config.verifier.surprise is 'x', which is unknown",
        ),
        (
            *("speculators", "speculators_config.proposal_methods", [{"proposal_type": "tree", "surprise": 1}]),
            r"speculators_config.proposal_methods\[0\].surprise is 1, which is unknown",
        ),
        (
            "speculators",
            "speculators_config.proposal_methods",
            ["greedy"],
            r"proposal_methods\[0\] is 'greedy', expected",
        ),
        (
            *("speculators", "transformer_layer_config.num_aux_hidden_states", 4),
            "num_aux_hidden_states is 4, but there are 3 aux layers",
        ),
    ],
)
def test_layouts_refuse_what_is_their_own(layout, place, value, message, tmp_path):
    with pytest.raises(DraftError, match=message):
        imported(tmp_path, layout, mutated(layout, place, value))


LINEAR = {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (
            {"rope_parameters": LINEAR, "rope_scaling": LINEAR | {"factor": 2.0}},
            r"rope_scaling\.factor is 2\.0, but rope_parameters says 4\.0",
        ),
        (
            {"rope_parameters": {"rope_theta": 5e6}, "rope_scaling": {"rope_theta": 1e4}, "rope_theta": None},
            r"rope_scaling\.rope_theta is 10000\.0, but rope_parameters says 5000000\.0",
        ),
        (
            {
                "eagle_aux_hidden_state_layer_ids": [2, 6, 9],
                "target_layer_ids": [1, 5, 8],
                "eagle_config": {"layer_ids": [3, 7, 10]},
            },
            r"ids is \[2, 6, 9\], but eagle_config\.layer_ids is \[3, 7, 10\], which means layers \[3, 7, 10\]",
        ),
        (
            {"norm_before_fc": True, "eagle_config": {"norm_before_fc": False}},
            r"norm_before_fc is True, but eagle_config\.norm_before_fc is False",
        ),
    ],
)
def test_two_keys_that_contradict_each_other_are_refused(says, message, tmp_path):
    with pytest.raises(DraftError, match=message):
        imported(tmp_path, "angelslim", CONFIGS["angelslim"] | says)


def test_two_keys_that_agree_are_read(tmp_path):
    says = {"rope_parameters": LINEAR | {"rope_theta": 1e6}, "rope_scaling": LINEAR, "own_embeddings": True}
    config = read_config(imported(tmp_path, "specforge", CONFIGS["specforge"] | says))
    assert config.rope_scaling == RopeScaling("linear", 4.0)
    assert config.rope_theta == 1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("d2t"), "d2t is missing, but draft_vocab_size is 120 of 200"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight .* is missing"),
        (lambda t: t.update({"fc.bias": np.zeros(64, np.float32)}), r"fc.bias \[64\] is not part of the draft"),
        (lambda t: t.update({"mask_hidden": np.zeros((1, 192), np.float32)}), "mask_hidden .* is not part"),
        (lambda t: t.update({"layers.1.mlp.up_proj.weight": np.zeros((2, 2), np.float32)}), "layers.1.* is not part"),
        (lambda t: t["d2t"].__setitem__(3, -50), "neither offsets nor ids"),
        (lambda t: t["d2t"].__setitem__(3, t["d2t"][4] + 1), "neither offsets nor ids"),
        (lambda t: t["t2d"].__setitem__(slice(None), True), "neither offsets nor ids .* that t2d marks"),
        (lambda t: t.update(t2d=np.arange(VOCAB)), r"t2d is int64 \[200\], expected true or false"),
        (lambda t: t.update(d2t=t["d2t"].astype(np.float32)), "d2t is float32 .* expected integers"),
        (
            lambda t: t["norm.weight"].__setitem__(0, np.nan),
            r"published/model\.safetensors: tensor norm.weight holds NaN",
        ),
        (
            lambda t: t.update({"norm.weight": t["norm.weight"].view(np.uint16).astype(np.int32)}),
            "norm.weight is int32",
        ),
    ],
)
def test_tensors_that_are_not_understood_are_refused_by_name(change, message, tmp_path):
    tensors = tensors_of("angelslim")
    change(tensors)
    with pytest.raises(DraftError, match=message):
        imported(tmp_path, "angelslim", tensors=tensors)
    assert not (tmp_path / "draft").exists()


def test_tensors_behind_an_unknown_prefix_are_refused_by_it(tmp_path):
    """As a data-parallel wrapper saves them; d2t, which was there, was said to be missing."""
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of("angelslim").items()}
    with pytest.raises(DraftError, match=r"tensor module\.fc\.weight stands behind a prefix that no layout has"):
        imported(tmp_path, "angelslim", tensors=tensors)


def test_a_draft_of_the_first_eagle_is_refused_for_what_it_is_and_no_target_is_asked_for(tmp_path):
    """It has no LM head either; but with the target's at hand it would be refused all the same."""
    config = {key: value for key, value in CONFIGS["safeailab"].items() if key != "draft_vocab_size"}
    tensors = {name: value for name, value in tensors_of("safeailab").items() if name not in ("d2t", "t2d")}
    del tensors["lm_head.weight"], tensors["midlayer.hidden_norm.weight"], tensors["midlayer.input_layernorm.weight"]
    tensors["fc.weight"] = tensors["fc.weight"][:, :128].copy()
    with pytest.raises(DraftError, match=r"fc\.weight has shape \[64, 128\], expected \[64, 192\] \(hidden_size 64, "):
        imported(tmp_path, "safeailab", config, tensors)


def test_a_whole_vocabulary_in_another_order_is_refused(tmp_path):
    order = np.arange(VOCAB)
    order[[3, 4]] = 4, 3
    with pytest.raises(
        DraftError, match="d2t maps draft token 3 to target token 4, expected itself: the draft has all"
    ):
        imported(tmp_path, "torchspec", tensors=tensors_of("torchspec") | {"d2t": order})


def test_two_names_of_one_tensor_are_refused(tmp_path):
    tensors = tensors_of("nemo")
    tensors["norm.weight"] = tensors["model.norm.weight"]
    with pytest.raises(DraftError, match=r"two tensors are norm\.weight in layout nemo"):
        imported(tmp_path, "nemo", tensors=tensors)


@pytest.mark.parametrize("layout", CONFIGS)
def test_what_reads_drafts_of_ours_says_that_import_reads_the_others(tmp_path, layout):
    folder = write_published(tmp_path / "published", layout)
    with pytest.raises(DraftError, match=r"is missing, expected a draft directory .*; `specexit import` makes one"):
        read_config(folder)


def test_another_target_is_refused(tmp_path):
    source = write_published(tmp_path / "published", "angelslim")
    target = write_target(tmp_path / "of", vocab_size=333)
    with pytest.raises(DraftError, match="vocab_size is 200, but target small has vocab_size 333"):
        import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))


def test_a_target_whose_sizes_lie_in_its_text_config_is_refused_in_one_line(tmp_path):
    source, target = write_published(tmp_path / "published", "angelslim"), write_target(tmp_path / "of")
    sizes = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": TARGET}
    (tmp_path / "of" / "target" / "config.json").write_text(json.dumps(sizes))
    said = r"target/config\.json: no value for num_hidden_layers, expected the model's own, not those in text_config$"
    with pytest.raises(ConfigError, match=said):
        import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))


def test_a_name_on_the_hub_and_a_bin_without_torch_are_told_what_is_missing(tmp_path, monkeypatch):
    """The first was told of files that the folder lacks, the second of a module that Python had not found."""
    options = {"target": write_target(tmp_path / "of"), "out": tmp_path / "draft"}
    with pytest.raises(
        DraftError,
        match=r"^somebody/draft: no such folder; of a name on the Hub, `hf download NAME --local-dir FOLDER`",
    ):
        import_draft(ImportConfig.model_validate({"draft": "somebody/draft"} | options))
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr("specexit.drafts.published.find_spec", lambda name: None)
    with pytest.raises(DraftError, match=r"pytorch_model\.bin: needs torch, which is not installed: pip install torch"):
        import_draft(ImportConfig.model_validate({"draft": folder} | options))
