"""Which targets `specexit train` has a forward pass of, by their ``config.json``: `collect` asks before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from specexit.drafts.rope import scaling_of

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
"""Those of the table in `jax_specexit`, which is checked against this one."""

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


def untrainable(config: Mapping[str, Any]) -> str | None:
    """Why JAX has no forward pass of the target of a ``config.json``; None where it has one.

    Example:
      >>> untrainable({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True})
      'use_sliding_window is True, only False is implemented'
    """
    found = architecture(config)
    if found not in ARCHITECTURES:
        return f"architectures is {found}, but `specexit train` knows {', '.join(ARCHITECTURES)}"
    return unimplemented(config)


def unimplemented(config: Mapping[str, Any]) -> str | None:
    """The first field of a known architecture's ``config.json`` with a value that is not implemented; None without one.

    Example:
      >>> unimplemented({"use_sliding_window": True})
      'use_sliding_window is True, only False is implemented'
    """
    for field, only in ONLY.items():
        if config.get(field) not in (None, only):
            return f"{field} is {config[field]!r}, only {only!r} is implemented"
    if architecture(config) != "Qwen2ForCausalLM" and config.get("attention_bias"):
        return "attention_bias is true, which is implemented for Qwen2 only"
    if (why := _window(config)) is not None:
        return why
    try:
        scaling_of(rope_of(config))
    except ValueError as error:
        return str(error)
    return None


FULL = "full_attention"


def _window(config: Mapping[str, Any]) -> str | None:
    """What makes vLLM serve a known architecture with a window, or with layers of another kind, where
    ``use_sliding_window`` says nothing of it.

    Its Llama goes by ``layer_types``, and where there are none gives all layers the width in ``sliding_window``. The
    configs of Qwen forget that width without ``use_sliding_window``.
    """
    types, width = config.get("layer_types"), config.get("sliding_window")
    if types is not None and not (isinstance(types, list) and set(map(str, types)) == {FULL}):
        found = sorted({str(kind) for kind in types} - {FULL}) if isinstance(types, list) else types
        return f"layer_types has {found}, only {FULL!r} is implemented"
    if types is None and width and not architecture(config).startswith("Qwen"):
        return f"sliding_window is {width!r}, which vLLM serves in all layers; only null is implemented"
    return None


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's fields, under either of the names that transformers has for them.

    Raises:
      ValueError: one of the two is something else than fields, or the base stands beside them, too, and is another.
    """
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        fields = config.get(key) or {}
        if not isinstance(fields, Mapping):
            raise ValueError(f"{key} is {fields!r}, expected keys and values")
        found |= fields
    top, inner = config.get("rope_theta"), found.get("rope_theta")
    if None not in (top, inner) and top != inner:
        raise ValueError(f"rope_theta is {top!r}, but rope_parameters says {inner!r}, by which engines go")
    return found


def theta_of(config: Mapping[str, Any]) -> float | None:
    """Base of the rotary embedding, that of full attention where kinds of layers differ; None where it is not said.

    Raises:
      ValueError: it is no number, or see `rope_of`.

    Example:
      >>> theta_of({"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}}})
      1000000.0
    """
    rope = rope_of(config)
    full = rope.get("full_attention")
    of_full = full.get("rope_theta") if isinstance(full, Mapping) else None
    found = config.get("rope_theta") or rope.get("rope_theta") or of_full
    if not isinstance(found, int | float | None):
        raise ValueError(f"rope_theta is {found!r}, expected a number")
    return found


def _original(config: Mapping[str, Any], rope: Mapping[str, Any]) -> float:
    """The context before a stretching, from where transformers and vLLM have it.

    Raises:
      ValueError: it is no number.
    """
    name = "original_max_position_embeddings"
    found = config.get(name) or rope.get(name) or config.get("max_position_embeddings") or math.inf
    if not isinstance(found, int | float):
        raise ValueError(f"{name} is {found!r}, expected a number")
    return found


def long_behind(config: Mapping[str, Any]) -> float | None:
    """Up to how many positions the short factors of RoPE of type ``longrope`` are meant; None for any other type.

    vLLM takes the long ones for every text where its ``max_model_len`` is larger, transformers for longer texts alone.

    Raises:
      ValueError: see `rope_of` and `_original`.

    Example:
      >>> long_behind({"original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope"}})
      4096
    """
    rope = rope_of(config)
    kind = rope.get("rope_type") or rope.get("type")
    return _original(config, rope) if kind in ("longrope", "su") else None


STRETCHED = ("linear", "dynamic")
"""Values of ``rope_type`` with which engines take a model to be longer, by its factor, than its config.json says."""


def positions(config: Mapping[str, Any]) -> float:
    """The longest sequence that an engine serves; infinity where a ``config.json`` does not say.

    Raises:
      ValueError: the rotary embedding's fields are none, or its factor is no number.

    Example:
      >>> positions({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
      8192.0
    """
    rope = rope_of(config)
    kind = rope.get("rope_type") or rope.get("type")
    factor = rope.get("factor") if kind in (*STRETCHED, "yarn") else 1.0
    if not isinstance(factor, int | float):
        raise ValueError(f"factor is {factor!r}, expected a number")
    if kind == "yarn":  # beyond which vLLM has no angles, whatever max_position_embeddings says
        return _original(config, rope) * factor
    return (config.get("max_position_embeddings") or math.inf) * max(1.0, factor)
