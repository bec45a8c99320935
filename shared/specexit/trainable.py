"""Which targets `specexit train` has a forward pass of, by their ``config.json``: `collect` asks before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specexit.drafts.rope import FIELDS, scaling_of

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
"""`jax_specexit` holds it against its own table."""

ONLY = {
    **{"mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu"},
    **{"mlp_only_layers": [], "decoder_sparse_step": 1, "partial_rotary_factor": 1.0, "quantization_config": {}},
}
"""Fields of a ``config.json`` -> their only value that is implemented."""


def architecture(config: Mapping[str, Any]) -> str:
    """The class that a ``config.json`` names first; words where it names none.

    Example:
      >>> architecture({"architectures": ["Qwen3ForCausalLM"]}), architecture({})
      ('Qwen3ForCausalLM', 'none')
    """
    found = config.get("architectures") or ["none"]
    return str(found[0]) if isinstance(found, list) else f"{found!r}, which is no list"


def unimplemented(config: Mapping[str, Any]) -> str | None:
    """The first field of a known architecture's ``config.json`` with a value that is not implemented.

    Example:
      >>> unimplemented({"use_sliding_window": True})
      'use_sliding_window is True, only False is implemented'
    """
    for field, only in ONLY.items():
        if config.get(field) not in (None, only):
            return f"{field} is {config[field]!r}, only {only!r} is implemented"
    if architecture(config) != "Qwen2ForCausalLM" and config.get("attention_bias"):
        return "attention_bias is true, which is implemented for Qwen2 only"
    try:
        scaling_of(rope_of(config), tuple(FIELDS))
    except ValueError as error:
        return str(error)
    return None


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's fields, under either of the names that transformers has for them."""
    return (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
