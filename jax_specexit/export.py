"""JAX parameters <-> draft directory: one table of names, kernels transposed to PyTorch's [out, in].

What reads the aux hidden states (``fc`` and the signal rows of source fc) reads them divided by ``aux_rms`` in a
training run, and as they are in a draft directory: the constants are folded into the weights on the way out, and taken
out of them on the way in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from specexit.drafts.directory import DraftConfig

NAMES: dict[tuple[str, ...], str] = {
    ("fc", "kernel"): "fc.weight",
    ("embed_norm", "scale"): "midlayer.input_layernorm.weight",
    ("hidden_norm", "scale"): "midlayer.hidden_norm.weight",
    ("q", "kernel"): "midlayer.self_attn.q_proj.weight",
    ("k", "kernel"): "midlayer.self_attn.k_proj.weight",
    ("v", "kernel"): "midlayer.self_attn.v_proj.weight",
    ("o", "kernel"): "midlayer.self_attn.o_proj.weight",
    ("post_norm", "scale"): "midlayer.post_attention_layernorm.weight",
    ("mlp", "gate", "kernel"): "midlayer.mlp.gate_proj.weight",
    ("mlp", "up", "kernel"): "midlayer.mlp.up_proj.weight",
    ("mlp", "down", "kernel"): "midlayer.mlp.down_proj.weight",
    ("norm", "scale"): "norm.weight",
    ("lm_head", "kernel"): "lm_head.weight",
}
"""Path in `jax_specexit.model.draft.Draft` -> tensor name of EAGLE-3."""


def _get(tree: Mapping[str, Any], path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        tree = tree[key]
    return np.asarray(tree, np.float32)


def _per_feature(config: DraftConfig, aux_rms: Sequence[float] | None) -> np.ndarray:
    """What each aux feature is divided by in training."""
    layers = config.num_aux_hidden_states
    return np.repeat(np.asarray(aux_rms or [1.0] * layers, np.float32), config.aux_size // layers)


def tensors_from_params(
    config: DraftConfig, params: Mapping[str, Any], vocab: np.ndarray, aux_rms: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """Parameters to the tensors of ``model.safetensors``.

    Args:
      config: of the draft; its ``specexit.source`` says where the signal rows go.
      params: pure parameter tree of `Draft`.
      vocab: target id of every draft token.
      aux_rms: of the `Draft` that the parameters belong to.
    """
    assert config.specexit is not None
    tensors = {}
    for path, name in NAMES.items():
        value = _get(params, path)
        tensors[name] = value.T if path[-1] == "kernel" else value
    divisor = _per_feature(config, aux_rms)
    tensors["fc.weight"] = tensors["fc.weight"] / divisor
    rows = _get(params, ("signal_head", "kernel")).T
    if config.specexit.source == "fc":
        tensors["fc.weight"] = np.concatenate([tensors["fc.weight"], rows / divisor])
    else:
        tensors["signal_head.weight"] = rows
    tensors["d2t"] = (vocab - np.arange(len(vocab))).astype(np.int64)
    tensors["t2d"] = np.isin(np.arange(config.vocab_size), vocab)
    return tensors


def params_from_draft(
    config: DraftConfig, tensors: Mapping[str, np.ndarray], aux_rms: Sequence[float] | None = None
) -> dict[str, Any]:
    """The way back: tensors of a draft directory to the pure parameter tree of a `Draft` with these ``aux_rms``.

    Parameters are float32 whatever the directory is stored in: no bit is lost, and training needs the room below.
    A plain EAGLE-3 draft gives a tree without ``signal_head``.
    """
    fc, params = tensors["fc.weight"].astype(np.float32) * _per_feature(config, aux_rms), {}
    for path, name in NAMES.items():
        value = fc[: config.hidden_size] if name == "fc.weight" else tensors[name].astype(np.float32)
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.ascontiguousarray(value.T if path[-1] == "kernel" else value)
    if config.specexit is not None:
        from_fc = config.specexit.source == "fc"
        rows = fc[config.hidden_size :] if from_fc else tensors["signal_head.weight"].astype(np.float32)
        params["signal_head"] = {"kernel": np.ascontiguousarray(rows.T)}
    return params
