"""Small random instances of published EAGLE-3 drafts: configs as their exporters write them, sizes scaled down.

What an exporter writes is more than the file that a draft is trained by: transformers adds `LLAMA`'s keys as it saves,
TorchSpec its version, AngelSlim the kind of the target, and Model-Optimizer a RoPE for longer texts.
"""

import copy
import json
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from specexit.drafts.export import export
from specexit.drafts.published import import_draft
from specexit.drafts.tensors import FLOATS
from specexit.schemas.export import ExportConfig
from specexit.schemas.published import ImportConfig

HIDDEN, INTERMEDIATE, HEADS, KV, HEAD_DIM, VOCAB, DRAFT_VOCAB, LAYERS = 64, 96, 4, 2, 16, 200, 120, 12
TARGET = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "architectures": ["LlamaForCausalLM"],
}

SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "vocab_size": VOCAB,
}
QWEN = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    **SIZES,
    "initializer_range": 0.02,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "llama",
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "draft_vocab_size": DRAFT_VOCAB,
}

LLAMA = {"mlp_bias": False, "pretraining_tp": 1}
"""What transformers adds to any Llama config that it saves."""

CONFIGS = {
    "safeailab": {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "hidden_act": "silu",
        **SIZES,
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.28.1",
        "use_cache": True,
        "draft_vocab_size": DRAFT_VOCAB,
    },
    "angelslim": {
        "architectures": ["Eagle3LlamaForCausalLM"],
        "target_model_type": "qwen3",
        **QWEN,
        **LLAMA,
    },
    "specforge": {
        "architectures": ["LlamaForCausalLMEagle3"],
        **QWEN,
        **LLAMA,
        "fc_norm": True,
        "norm_output": True,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 5, 8], "use_aux_hidden_state": True},
    },
    "torchspec": {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 248044,
        "eos_token_id": 248044,
        "pad_token_id": 248044,
        "head_dim": 12,
        "hidden_act": "silu",
        **SIZES,
        "initializer_range": 0.02,
        "max_position_embeddings": 262144,
        "num_aux_hidden_states": 3,
        "num_hidden_layers": 1,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000000.0,
        "target_hidden_size": HIDDEN,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "draft_vocab_size": VOCAB,
        "_torchspec_version": "0.1.0",
    },
    "nemo": {
        **QWEN,
        "architectures": ["LlamaEagle3DraftModel"],
        "model_type": "qwen3",
        "num_hidden_layers": LAYERS,
        "layer_types": ["full_attention"] * LAYERS,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "target_hidden_size": HIDDEN,
    },
    "deepspec": {
        **QWEN,
        "architectures": ["Qwen3Eagle3Model"],
        "model_type": "qwen3",
        "num_target_layers": LAYERS,
        "layer_types": ["full_attention"],
        "target_model_name_or_path": "Qwen/Qwen3-4B",
        "target_layer_ids": [1, 3, 5, 7, 9],
        "ttt_length": 7,
        "step_loss_decay": 0.8,
        "draft_num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "draft_vocab_size": None,
    },
    "speculators": {
        "architectures": ["Eagle3Speculator"],
        "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        "draft_vocab_size": DRAFT_VOCAB,
        "eagle_aux_hidden_state_layer_ids": [2, 6, 9],
        "has_no_defaults_at_init": False,
        "norm_before_residual": True,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"accept_tolerance": 0.0, "proposal_type": "greedy", "speculative_tokens": 5, "verifier_accept_k": 1}
            ],
            "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "meta-llama/Llama-3.1-8B-Instruct"},
        },
        "speculators_model_type": "eagle3",
        "speculators_version": "0.1.0.dev42",
        "target_hidden_size": None,
        "torch_dtype": "bfloat16",
        "transformer_layer_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            **SIZES,
            "initializer_range": 0.02,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_hidden_layers": 1,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "use_cache": True,
        },
        "transformers_version": "4.53.2",
    },
}
"""Layout -> ``config.json`` as published, the sizes replaced."""

MODEL_OPTIMIZER = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "hidden_act": "silu",
    **SIZES,
    "initializer_range": 0.01,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_hidden_layers": 1,
    "pad_token_id": None,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "draft_vocab_size": DRAFT_VOCAB,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 2048},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": HEAD_DIM,
    **LLAMA,
    "rope_theta": 10000,
    "eagle_config": {
        "eagle_aux_hidden_state_layer_ids": [1, 5, 8],
        "use_aux_hidden_state": True,
        "use_input_layernorm_in_first_layer": True,
        "use_last_layernorm": True,
        "use_mtp_layernorm": False,
        "next_layer_regular": True,
        "parallel_draft_step": 1,
        "parallel_draft_heads_num_layers": 1,
    },
}
"""What NVIDIA's Model-Optimizer exports by default, in layout ``specforge``: trained with RoPE as it is, and with a
scaling for longer texts. Its tensors are those of ``tensors_of("model-optimizer", config=MODEL_OPTIMIZER)``."""

TRANSFORMERS_5 = {
    "torch_dtype": None,
    "dtype": "bfloat16",
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "pad_token_id": None,
    "transformers_version": "5.19.0",
}
"""Of `QWEN`, what transformers 5 saves under other names; it leaves out what is None here."""

HUNYUAN = {
    "target_model_type": "hunyuan_v1_dense",
    "add_classification_head": False,
    "attention_dropout": 0.1,
    "attention_head_dim": HEAD_DIM,
    "bos_token_id": 1,
    "cla_share_factor": 2,
    "class_num": 0,
    "dense_list": [HIDDEN, 0],
    "eod_token_id": 127967,
    "eos_token_id": 127960,
    "im_end_id": 5,
    "im_newline_id": 11,
    "im_start_id": 4,
    "mask_init_id": 12,
    "norm_type": "rms",
    "org_vocab_size": VOCAB,
    "pad_id": 127961,
    "pad_token_id": 127961,
    "pool_type": "last",
    "sep_token_id": 127962,
    "text_end_id": 7,
    "text_start_id": 6,
    "use_cla": False,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
}
"""What AngelSlim's configs for Hunyuan say beside the rest; the draft's class has no norms of queries and keys."""

DTYPES = {"safeailab": "float16", "nemo": "float32"}
AUX = {"deepspec": 5}
LAYER = {"nemo": "model.layers.0."} | dict.fromkeys(("deepspec", "speculators", "model-optimizer"), "layers.0.")

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
PHI3 = {"model_type": "phi3", "embd_pdrop": 0.0, "resid_pdrop": 0.0, "sliding_window": 2047}
PHI3 |= {"use_sliding_window": None, "original_max_position_embeddings": 4096}
SHAPE = {"eagle_aux_hidden_state_layer_ids": (2, 6, 9), "target_num_hidden_layers": 12}
WINDOW = {"sliding_window": 2048, "use_sliding_window": True, "layer_types": ["sliding_attention"]}
"""What speculators 0.9.0 writes of its window unless it is told otherwise."""

SPECULATORS_0_9 = {
    "architectures": ["Eagle3DraftModel"],
    "embed_requires_grad": False,
    "fc_norm": False,
    "norm_before_fc": True,
    "norm_output": True,
    "speculators_version": "0.9.0",
    "transformer_layer_config": {
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        **SIZES,
        "initializer_range": 0.02,
        "max_position_embeddings": 40960,
        "model_type": "llama",
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        **WINDOW,
        "sliding_window": 16,
    },
    "transformers_version": "5.19.0",
}
"""What speculators 0.9.0 writes otherwise than the older one of `CONFIGS` where it is told nothing, its window scaled
down, too. Tensors: ``tensors_of("speculators", config=CONFIGS["speculators"] | SPECULATORS_0_9)``."""


def tensors_of(layout: str, seed: int = 0, config: dict | None = None) -> dict[str, np.ndarray]:
    """Random weights under the names that the layout gives them; a bfloat16 rounds what is drawn."""
    rng = np.random.default_rng(seed)
    config = CONFIGS[layout] if config is None else config
    config = config | config.get("transformer_layer_config", {})
    hidden, inner, vocab = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, draft_vocab = config.get("head_dim", hidden // heads), config.get("draft_vocab_size") or vocab
    aux = len(config.get("target_layer_ids", "abc"))
    of_target = config.get("target_hidden_size") or hidden
    trunk = "model." if layout == "nemo" else ""
    layer = LAYER.get(layout, "midlayer.")
    matrices = {
        f"{trunk}fc.weight": (hidden, of_target * aux),
        f"{layer}self_attn.q_proj.weight": (heads * head_dim, 2 * hidden),
        f"{layer}self_attn.k_proj.weight": (kv * head_dim, 2 * hidden),
        f"{layer}self_attn.v_proj.weight": (kv * head_dim, 2 * hidden),
        f"{layer}self_attn.o_proj.weight": (hidden, heads * head_dim),
        f"{layer}mlp.gate_proj.weight": (inner, hidden),
        f"{layer}mlp.up_proj.weight": (inner, hidden),
        f"{layer}mlp.down_proj.weight": (hidden, inner),
        "lm_head.weight": (draft_vocab, hidden),
    }
    if layout in ("deepspec", "specforge", "torchspec", "nemo", "speculators"):
        matrices[f"{trunk}embed_tokens.weight"] = (vocab, hidden)
    vectors = {f"{layer}{name}.weight": hidden for name in ("input_layernorm", "hidden_norm")}
    vectors |= {f"{layer}post_attention_layernorm.weight": hidden, f"{trunk}norm.weight": hidden}
    if config.get("fc_norm"):
        vectors |= {f"fc_norm.{i}.weight": of_target for i in range(3)}
    if config.get("norm_before_fc") or config.get("eagle_config", {}).get("norm_before_fc"):
        vectors["input_norm.weight"] = of_target * aux
    if layout == "deepspec":
        vectors |= {f"{layer}self_attn.{part}_norm.weight": head_dim for part in "qk"}
    biases = {}
    if config.get("attention_bias"):
        biases = {name.replace("weight", "bias"): shape[0] for name, shape in matrices.items() if "self_attn" in name}
    tensors = {name: rng.normal(size=shape) * shape[1] ** -0.5 for name, shape in matrices.items()}
    tensors |= {name: rng.normal(1, 0.2, size) for name, size in vectors.items()}
    tensors |= {name: rng.normal(0, 0.3, size) for name, size in biases.items()}
    tensors = {name: tensor.astype(FLOATS[DTYPES.get(layout, "bfloat16")]) for name, tensor in tensors.items()}
    if draft_vocab < vocab:
        chosen = np.sort(rng.choice(vocab, draft_vocab, replace=False))
        tensors["d2t"] = chosen - np.arange(draft_vocab)
        if layout != "model-optimizer":
            tensors["t2d"] = np.isin(np.arange(vocab), chosen)
    return tensors


def write_published(folder: Path, layout: str, config: dict | None = None, tensors: dict | None = None) -> Path:
    """A published draft in safetensors, any part of it replaced."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[layout] if config is None else config))
    save_file(tensors_of(layout) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def write_target(folder: Path, **changes: object) -> str:
    """A target of these sizes, of which only the config is there; its YAML's path."""
    model = folder / "target"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(TARGET | changes))
    fields = {"name": "small", "path": str(model), "aux_layers": [2, 6, 9], "max_model_len": 512}
    (folder / "small.yaml").write_text(yaml.safe_dump(fields))
    return str(folder / "small.yaml")


def imported(tmp_path, layout, /, config=None, tensors=None, **options):
    """Folder of the draft that comes of an instance."""
    source = write_published(tmp_path / "published", layout, config, tensors)
    target = write_target(tmp_path / "of")
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft", **options))
    return tmp_path / "draft"


def mutated(layout, place, value):
    """The config of an instance with another value in one place, whose names are joined by dots."""
    config = copy.deepcopy(CONFIGS[layout])
    *parents, last = place.split(".")
    inside = config
    for key in parents:
        inside = inside.setdefault(key, {})
    inside[last] = value
    return config


def exported(folder, tmp_path, name, target, **options):
    out = tmp_path / name
    export(ExportConfig(draft=folder, out=out, format=name, target=target, **options))
    return json.loads((out / "config.json").read_text()), load_file(out / "model.safetensors"), out
