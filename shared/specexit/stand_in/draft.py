"""The large draft: the same layer in the sizes of its target, its signal rows, and a draft vocabulary of real size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from specexit.drafts.directory import DraftConfig, target_ids
from specexit.drafts.policy import OperatingPoint, PolicyFile, read_policy
from specexit.stand_in.shape import SPARE_SCALE, Fit, StandInError
from specexit.stand_in.target import Matrix, Noise, Weights, attention, head, mlp, scale


def draft_config(small: DraftConfig, fit: Fit, draft_vocab: int, target: str, dtype: str) -> DraftConfig:
    """The ``config.json`` of the large draft.

    Raises:
      StandInError: the draft vocabulary is too small, or as large as the target's, or the draft's layer does not fit.
    """
    layer_fit(small, fit)
    if not small.draft_vocab_size <= draft_vocab < fit.large.vocab:
        raise StandInError(
            f"draft_vocab_size is {draft_vocab}, expected {small.draft_vocab_size} or more, and fewer than the "
            f"target's {fit.large.vocab}"
        )
    block = small.specexit
    if block is not None:
        block = block.model_copy(update={"target": target})
    return small.model_copy(
        update={
            "hidden_size": fit.large.hidden,
            "target_hidden_size": fit.large.hidden,
            "intermediate_size": fit.large.intermediate,
            "num_attention_heads": fit.large.heads,
            "num_key_value_heads": fit.large.kv_heads,
            "head_dim": fit.large.head_dim,
            "vocab_size": fit.large.vocab,
            "draft_vocab_size": draft_vocab,
            "rms_norm_eps": small.rms_norm_eps * fit.norm**2,
            "torch_dtype": dtype,
            "eagle_aux_hidden_state_layer_ids": fit.readable,
            "num_aux_hidden_states": len(fit.readable),
            "target_num_hidden_layers": fit.large.layers,
            "specexit": block,
        }
    )


def carried_policy(folder: Path) -> PolicyFile:
    """The small draft's operating points without their certificates, which were given for another target, and which
    prompts chose it: on them, the large one, which signals alike, looks as much too good."""
    stored = read_policy(folder)
    points = tuple(OperatingPoint(name=point.name, policy=point.policy) for point in stored.points)
    return PolicyFile(default=stored.default, points=points, serving=stored.serving, selection=stored.selection)


def draft_tensors(
    small: DraftConfig, weights: Weights, fit: Fit, draft_vocab: int, noise: Noise
) -> dict[str, Shaped[np.ndarray, ...]]:
    """Every tensor of the large draft.

    Args:
      small: config of the small draft, whose ``tensor_shapes`` the weights have.
      weights: its tensors, floating-point ones in float32.
      fit: where the target's parts go; the draft has the target's widths and heads.
      draft_vocab: draft tokens.
      noise: in the type that is written.

    Raises:
      StandInError: the draft's layout is another one.
    """
    layer = {name.removeprefix("midlayer."): value for name, value in weights.items() if name.startswith("midlayer.")}
    own = layer_fit(small, fit)
    makers = attention(layer, own, noise, twice=True) | mlp(layer, own, noise)
    tensors = {f"midlayer.{name}": make() for name, make in makers.items()}
    for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
        tensors[f"midlayer.{name}.weight"] = scale(layer[f"{name}.weight"], fit).astype(noise.dtype)
    tensors["norm.weight"] = scale(weights["norm.weight"], fit, spare=SPARE_SCALE).astype(noise.dtype)
    tensors["fc.weight"] = _fusion(weights["fc.weight"], fit, small.hidden_size, noise)
    tensors["lm_head.weight"] = head(weights["lm_head.weight"], draft_vocab, fit, noise)
    if "signal_head.weight" in weights:
        rows = weights["signal_head.weight"]
        tensors["signal_head.weight"] = head(rows, len(rows), fit, noise)
    tensors |= _vocabulary(target_ids(small, weights), fit.large.vocab, draft_vocab)
    unknown = sorted(set(weights) - set(tensors))
    if unknown:
        raise StandInError(f"the draft has {', '.join(unknown)}, expected the layout of a draft that we train")
    return tensors


def layer_fit(small: DraftConfig, fit: Fit) -> Fit:
    """Where the draft's own layer goes: its heads and MLP need not have the sizes of its target's.

    Raises:
      StandInError: they do not fit.
    """
    sizes = {
        "heads": small.num_attention_heads,
        "kv_heads": small.num_key_value_heads,
        "head_dim": small.head_dim,
        "intermediate": small.intermediate_size,
    }
    return replace(fit, small=replace(fit.small, **sizes))


def _fusion(weight: Matrix, fit: Fit, hidden: int, noise: Noise) -> Matrix:
    """``fc``: the layers that the small draft reads, and nothing of the others; signal rows behind the hidden ones.

    One layer's spare channel is handed on, so that the draft's own head can keep its unknown tokens out of reach.
    """
    width, n_signals = fit.large.hidden, len(weight) - hidden
    large = noise(width + n_signals, width * len(fit.readable))
    rows = np.concatenate([np.arange(hidden), width + np.arange(n_signals)])
    for i in range(len(fit.readable)):
        large[:, i * width : i * width + hidden] = 0
        large[:, (i + 1) * width - 1] = 0
    for source, i in enumerate(fit.reads):
        block = weight[:, source * hidden : (source + 1) * hidden]
        large[rows[:, None], i * width + np.arange(hidden)] = block
    large[width - 1, width - 1] = 1
    return large


def _vocabulary(known: Shaped[np.ndarray, " tokens"], vocab: int, draft_vocab: int) -> dict[str, np.ndarray]:
    """``d2t`` and ``t2d``: the small draft's tokens first, then the target's first others."""
    others = np.setdiff1d(np.arange(vocab), known)[: draft_vocab - len(known)]
    ids = np.concatenate([known, others])
    return {"d2t": ids - np.arange(draft_vocab), "t2d": np.isin(np.arange(vocab), ids)}
