"""The one table of names: a parameter of the Flax draft, and the tensor of a draft directory that it is.

`specexit convert` reads it in both directions. It is bijective but for one tensor: with source ``fc``, ``fc.weight``
holds the rows of ``fc/kernel`` and behind them those of ``signal_head/kernel``. ``d2t`` and ``t2d`` are no parameters;
they follow from the draft vocabulary.
"""

from __future__ import annotations

from specexit.drafts.config import DraftConfig

_FIXED = {
    "fc/kernel": "fc.weight",
    "embed_norm/scale": "midlayer.input_layernorm.weight",
    "hidden_norm/scale": "midlayer.hidden_norm.weight",
    **{f"{part}/kernel": f"midlayer.self_attn.{part}_proj.weight" for part in "qkvo"},
    "post_norm/scale": "midlayer.post_attention_layernorm.weight",
    **{f"mlp/{part}/kernel": f"midlayer.mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    "norm/scale": "norm.weight",
    "lm_head/kernel": "lm_head.weight",
}

SIGNAL_HEAD = "signal_head/kernel"


def tensor_names(config: DraftConfig) -> dict[str, str]:
    """Path of every parameter in `jax_specexit.model.draft.Draft` -> tensor of ``model.safetensors``.

    A ``kernel`` is stored [in, out] by Flax and [out, in] in the directory; everything else as it is.
    """
    names = dict(_FIXED)
    if config.attention_bias:
        names |= {f"{part}/bias": f"midlayer.self_attn.{part}_proj.bias" for part in "qkvo"}
    if config.model_type == "qwen3":
        names |= {f"{part}_norm/scale": f"midlayer.self_attn.{part}_norm.weight" for part in "qk"}
    if config.norm_before_fc:
        names["input_norm/scale"] = "input_norm.weight"
    if config.fc_norm:
        names |= {f"fc_norm/layer_{i}/scale": f"fc_norm.{i}.weight" for i in range(config.num_aux_hidden_states)}
    if config.own_embeddings:
        names["embedding"] = "embed_tokens.weight"
    if config.specexit is not None:
        names[SIGNAL_HEAD] = "fc.weight" if config.specexit.source == "fc" else "signal_head.weight"
    return names
