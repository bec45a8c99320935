"""A run that starts from an existing draft: its geometry, its weights, and the aux layers that are new to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from jax_specexit.export import params_from_draft
from specexit.config import ConfigError
from specexit.drafts.config import ARCHITECTURE, DraftConfig, DraftError, SpecExitBlock, check_target, read_config
from specexit.drafts.directory import target_ids
from specexit.drafts.policy import FILE as POLICY_FILE
from specexit.drafts.policy import Selection, read_policy
from specexit.drafts.published import check_keys, read_origin
from specexit.schemas.target import TargetConfig
from specexit.schemas.train import DraftShapeConfig

Tensors = dict[str, np.ndarray]


def read_source(folder: Path, target: TargetConfig) -> DraftConfig:
    """What the draft in ``folder`` is; none of its weights are read.

    Raises:
      DraftError: it cannot be read, or was made for another target, be it one of the same sizes; or a published draft
        has a key that nobody here knows.
    """
    if not (folder / "config.json").exists():
        made = (
            f"; `specexit convert run={folder} out=DRAFT` makes one of a run"
            if (folder / "draft.json").exists()
            else ""
        )
        raise DraftError(f"init_from={folder}: holds no config.json, expected a draft directory{made}")
    source = read_config(folder, needs_policy=False)
    check_target(source, folder, target.hf_config(), target.name)
    origin = read_origin(folder)
    if origin is None and source.specexit is None:
        check_keys(folder)  # not ours: an unknown key may change what it computes
    made_for = origin.target if origin is not None else source.target_name
    if made_for not in (None, target.name):
        raise DraftError(
            f"init_from={folder}: the draft was made for target {made_for!r}, but the recipe says {target.name!r}: "
            "expected a draft of the recipe's own target; `specexit import` says anew of a published one whose it is"
        )
    return source


def chosen_on(folder: Path) -> Selection | None:
    """Which prompts chose the draft in ``folder``, as far as it says.

    Raises:
      PolicyError: its ``policy.json`` cannot be used.
    """
    return read_policy(folder).selection if (folder / POLICY_FILE).exists() else None


def length_of(source: DraftConfig, target: TargetConfig) -> int:
    """Longest sequence, in tokens, of a draft that goes on from ``source``: its own, or the target's where longer.

    RoPE works at any position, and an engine needs a draft that is as long as the context. With ``yarn`` alone, an
    engine's table of angles ends where the stretching does.
    """
    wanted = max(target.max_model_len, target.hf_config().get("max_position_embeddings") or 0)
    scaling = source.rope_scaling
    if scaling is not None and scaling.kind == "yarn":
        wanted = min(wanted, int(scaling.factor * scaling.original_max_position_embeddings))
    return max(source.max_position_embeddings, wanted)


def warm_config(
    source: DraftConfig,
    folder: Path,
    target: TargetConfig,
    sizes: DraftShapeConfig,
    layers: tuple[int, ...],
    block: SpecExitBlock,
) -> DraftConfig:
    """The ``config.json`` of a draft that goes on from ``source``: heads, RoPE, eps, norms and biases are its own, and
    it is as long as its target, see `length_of`.

    Raises:
      ConfigError: the recipe says other sizes, other aux layers than its own and further ones, or signals that its
        ``fc`` cannot carry.
    """
    for field, wanted in sizes.model_dump().items():
        if getattr(source, field) != wanted:
            raise ConfigError(
                f"init_from={folder}: {field} is {getattr(source, field)}, but the recipe says draft.{field}={wanted}"
            )
    own = source.eagle_aux_hidden_state_layer_ids
    if own != layers and not set(own) < set(layers):
        raise ConfigError(
            f"init_from={folder}: eagle_aux_hidden_state_layer_ids is {list(own)}, but the recipe says {list(layers)}, "
            "expected the same or some more: aux_layers"
        )
    if own != layers and source.aux_norm_shapes:
        raise ConfigError(
            f"init_from={folder}: its aux hidden states are normed before fc, so no layer can be added to "
            f"{list(own)} without changing what it drafts, but the recipe says {list(layers)}"
        )
    changes: dict[str, Any] = {
        "architectures": (ARCHITECTURE,),
        "torch_dtype": "float32",
        "max_position_embeddings": length_of(source, target),
        "eagle_aux_hidden_state_layer_ids": layers,
        "num_aux_hidden_states": len(layers),
        "specexit": block,
    }
    try:
        return DraftConfig.model_validate(source.model_dump() | changes)
    except ValidationError as error:
        raise ConfigError(f"init_from={folder}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def warm_params(
    source: DraftConfig, tensors: Tensors, shape: DraftConfig, aux_rms: tuple[float, ...]
) -> tuple[dict[str, Any], np.ndarray]:
    """(parameters, target id of every draft token) of an existing draft, for a `Draft` of this shape.

    Without ``signal_head`` where the draft has none, or one of another source: the head then starts afresh.
    """
    source, tensors = widen(source, tensors, shape.eagle_aux_hidden_state_layer_ids)
    params = params_from_draft(source, tensors, aux_rms)
    assert shape.specexit is not None
    if source.specexit is None or source.specexit.source != shape.specexit.source:
        params.pop("signal_head", None)
    return params, target_ids(source, tensors)


def widen(source: DraftConfig, tensors: Tensors, layers: tuple[int, ...]) -> tuple[DraftConfig, Tensors]:
    """An existing draft with further aux layers, which its ``fc`` reads with zeros: it drafts what it did before.

    The draft is returned as it is unless ``layers`` are its own and some more.
    """
    before, h = source.eagle_aux_hidden_state_layer_ids, source.target_hidden_size
    if not set(before) < set(layers):
        return source, tensors
    fc = np.zeros((len(tensors["fc.weight"]), h * len(layers)), tensors["fc.weight"].dtype)
    for i, layer in enumerate(before):
        to = layers.index(layer)
        fc[:, to * h : (to + 1) * h] = tensors["fc.weight"][:, i * h : (i + 1) * h]
    aux = {"eagle_aux_hidden_state_layer_ids": layers, "num_aux_hidden_states": len(layers)}
    return source.model_copy(update=aux), tensors | {"fc.weight": fc}
