"""The same draft in speculators 0.9.0, an independent implementation of EAGLE-3: for parity tests and `bench-training`.

Needs the extra ``dev``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor


def load_in_speculators(
    draft: Path, embedding: Float[Tensor, "vocab hidden"], scratch: Path, *, attention: str = "eager"
) -> Any:
    """Read a draft directory of source None, through speculators' own converter, every weight trainable.

    Args:
      draft: draft directory whose hidden size is the target's.
      embedding: the target's token embedding; it is its LM head as well.
      scratch: folder for what the converter wants to read and write.
      attention: ``eager`` or ``sdpa``. The default of speculators, flex attention, has no backward pass on a CPU.
    """
    from speculators.convert.eagle.eagle3_converter import Eagle3Converter
    from speculators.models.attention import create_float_mask
    from speculators.models.eagle3 import Eagle3DraftModel
    from torch.nn.attention.flex_attention import create_mask
    from transformers import LlamaConfig

    # speculators takes the embedding from the draft's file, and wants a target with weights beside its config.
    copy, target, converted = scratch / "with_embedding", scratch / "target", scratch / "converted"
    copy.mkdir()
    (copy / "config.json").write_text((draft / "config.json").read_text())
    save_file(load_file(draft / "model.safetensors") | {"embed_tokens.weight": embedding}, copy / "model.safetensors")
    shape = json.loads((draft / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    LlamaConfig(
        num_hidden_layers=shape["target_num_hidden_layers"], **{name: shape[name] for name in names}
    ).save_pretrained(target)
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(embedding.shape[1])}
    save_file(weights, target / "model.safetensors")
    layers = shape["eagle_aux_hidden_state_layer_ids"]
    Eagle3Converter().convert(
        copy, converted, base_model=str(target), validate=False, eagle_aux_hidden_state_layer_ids=layers
    )
    model = Eagle3DraftModel.from_pretrained(converted)
    model._attn_impl = attention
    model._create_mask_fn = create_float_mask if attention == "eager" else create_mask
    for layer in model.layers:
        layer.self_attn.config._attn_implementation = attention
    return model.requires_grad_(True)
