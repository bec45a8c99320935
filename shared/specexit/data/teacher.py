"""The teacher that training makes of stored states: an RMSNorm behind the target's last layer, and its LM head.

A target's own norm or head may be of another kind, whatever its ``config.json`` says: a norm that multiplies by
``1 + weight`` looks like any other. So the likeliest tokens behind a few states are compared with those that the engine
which wrote the states has chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from specexit.data.features import FeatureError
from specexit.drafts.target_weights import some_of
from specexit.errors import InputError

REFUSED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "embedding_multiplier", "scale_emb", "mup_width")
"""Fields of a ``config.json`` that change what lies behind the embedding or before the softmax."""

NORM, HEAD, EMBEDDING = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"
BLOCK = 8192
"""Rows of the LM head that are in memory at a time."""


def check_fields(fields: Mapping[str, Any], path: Path | str) -> None:
    """Refuse a target whose ``config.json`` says that its embedding, final norm or logits are of another kind.

    Args:
      fields: of the ``config.json``.
      path: of the target or its ``config.json``, for messages.

    Raises:
      InputError: its final norm is no RMSNorm, or its embedding or logits are scaled.
    """
    odd = [name for name in REFUSED if fields.get(name) not in (None, 1, 1.0)]
    if odd or str(fields.get("model_type", "")).startswith("gemma"):
        what = f"{odd[0]} is {fields[odd[0]]}" if odd else f"model_type is {fields['model_type']}"
        raise InputError(f"{path}: {what}, expected a target whose embedding and logits are plain and unscaled")
    missing = [name for name in ("vocab_size", "hidden_size", "rms_norm_eps") if fields.get(name) is None]
    if missing:
        raise InputError(
            f"{path}: no value for {', '.join(missing)}, expected a target with a final RMSNorm, and these very names"
        )


def is_tied(fields: Mapping[str, Any], folder: Path) -> bool:
    """Whether a target's embedding is its LM head, too.

    As its ``config.json`` says; where that leaves it to a default, which each architecture has of its own, as the
    weights do: a tied target has no head among them. False where there are none.

    Raises:
      TensorError: the weights have to be looked at, and cannot be read.
    """
    said = fields.get("tie_word_embeddings")
    return some_of(folder, (HEAD, EMBEDDING)).keys() == {EMBEDDING} if said is None else bool(said)


def choices(states: Float[np.ndarray, "n hidden"], folder: Path, eps: float) -> Int[np.ndarray, " n"]:
    """The likeliest token behind each state of the last layer, in float32.

    Args:
      states: before the final norm.
      folder: of the target, whose final norm and LM head (or embedding, where it has none) are read.
      eps: of the norm.

    Raises:
      FeatureError: the folder has no such tensors.
    """
    stored = some_of(folder, (NORM, HEAD, EMBEDDING))
    table = stored.get(HEAD, stored.get(EMBEDDING))
    if table is None or NORM not in stored:
        raise FeatureError(f"{folder}: expected tensors {NORM}, and {HEAD} or {EMBEDDING}, which training reads")
    wide = states.astype(np.float32)
    wide = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + eps) * stored[NORM].read().astype(np.float32)
    best, found = np.full(len(wide), -np.inf, np.float32), np.zeros(len(wide), np.int64)
    for begin in range(0, table.shape[0], BLOCK):
        logits = wide @ table.rows(begin, min(begin + BLOCK, table.shape[0])).astype(np.float32).T
        better = logits.max(axis=-1) > best
        found[better] = begin + logits[better].argmax(axis=-1)
        best[better] = logits[better].max(axis=-1)
    return found


def check_teacher(
    states: Float[np.ndarray, "n hidden"], chosen: Int[np.ndarray, " n"], folder: Path, fields: Mapping[str, Any]
) -> None:
    """Compare the likeliest tokens behind a few states with those that the engine has chosen, greedily.

    Rounding, and quantised layers, change few of them; another norm or a scaled head that no field tells of, most.

    Args:
      states: of the last layer, at the end of a text each.
      chosen: the token that the engine wrote behind each.
      folder: of the target.
      fields: of its ``config.json``.

    Raises:
      FeatureError: fewer than half are the same.
    """
    same = int((choices(states, folder, fields["rms_norm_eps"]) == chosen).sum())
    if 2 * same < len(chosen):
        raise FeatureError(
            f"{folder}: an RMSNorm and the LM head choose the token that the engine chose behind {same} of "
            f"{len(chosen)} texts only, expected nearly all: what lies behind the last layer of model_type "
            f"{fields.get('model_type')} is of another kind, and a draft would learn from the wrong teacher"
        )
