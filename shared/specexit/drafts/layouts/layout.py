"""What a layout is, and what all of them share: Hugging Face's fields of a decoder layer, EAGLE-3's own beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from specexit.drafts.config import DraftError
from specexit.drafts.layouts.keys import Keys
from specexit.drafts.rope import RopeScaling, scaling_of
from specexit.drafts.window import SLIDING, window_of
from specexit.errors import shown

Fields = dict[str, Any]
"""Fields of a `specexit.drafts.config.DraftConfig`, without those that only weights or target can say.

Beside them stand ``of_target`` and ``target_named``, see `of_target`, and ``layers_from``, see `eagle_fields`.
"""


@dataclass(frozen=True)
class Layout:
    """One way to publish an EAGLE-3 draft."""

    name: str
    about: str
    """Who writes it, in a sentence."""
    recognises: Callable[[dict[str, Any], Collection[str]], bool]
    """Whether a raw config and the names of its tensors are in this layout."""
    fields: Callable[[Keys], Fields]
    """Geometry from the config; raises DraftError for what it does not understand."""
    layer: str = "midlayer"
    """What it calls the decoder layer."""
    prefix: str = ""
    """What it puts before the trunk's names."""

    @staticmethod
    def ours(name: str) -> str:
        """Our name for a published tensor: in any layout vLLM takes both names of the layer, and ``model.`` or none."""
        name = name.removeprefix("model.")
        return "midlayer." + name.removeprefix("layers.0.") if name.startswith("layers.0.") else name

    def theirs(self, name: str) -> str:
        """This layout's name for one of our tensors."""
        if name in ("lm_head.weight", "d2t", "t2d"):
            return name
        return self.prefix + (self.layer + name.removeprefix("midlayer") if name.startswith("midlayer.") else name)


NUMBER = (int, float)
_IDLE = (
    *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range"),
    "target_model_type",
    *("bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "max_window_layers", "auto_map"),
)
"""Keys that say how a draft was trained, or nothing at all about it."""
_OF_EXPERTS = (
    *("num_experts", "num_local_experts", "num_experts_per_tok", "experts_per_token", "moe_intermediate_size"),
    *("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "output_router_logits", "router_aux_loss_coef"),
)
"""Keys that frameworks copy from a target of experts. A draft with experts has a ``model_type`` and tensors that are
refused."""


def decoder_fields(keys: Keys) -> Fields:
    """Hugging Face's description of a Llama or Qwen3 decoder layer, with the defaults that transformers documents."""
    hidden, heads = keys.take("hidden_size", int), keys.take("num_attention_heads", int)
    model_type = keys.take("model_type", str, "llama")
    if model_type not in ("llama", "qwen3"):
        raise keys.error("model_type", model_type, "only 'llama' and 'qwen3' are implemented")
    if heads < 1:
        raise keys.error("num_attention_heads", heads, "expected at least 1")
    place = "rope_parameters" if keys.rest.get("rope_scaling") is None else "rope_scaling"
    rope = _rope(keys)
    inner = rope.get("rope_theta")
    theta = keys.take("rope_theta", NUMBER, 10_000.0 if inner is None else inner)
    if type(theta) not in NUMBER or not 0 < theta < math.inf:
        raise keys.error("rope_theta", theta, "expected a number above 0")
    if inner is not None and inner != theta:
        raise keys.error("rope_theta", theta, f"but rope_parameters.rope_theta is {shown(inner)}")
    try:
        scaling = scaling_of(rope)
    except ValueError as error:
        raise keys.error(place, rope, f"which is not implemented: {error}") from error
    windowed = keys.rest.get("use_sliding_window") is None  # where that is false, the width says nothing
    keys.only("sliding_window") if windowed else keys.ignore("sliding_window")
    for key, *values in (
        ("num_hidden_layers", 1),
        ("hidden_act", "silu"),
        ("mlp_bias", False),
        ("use_sliding_window", False),
        ("use_mrope", False),
        ("pretraining_tp", 1),
        ("partial_rotary_factor", 1, 1.0),
        ("layer_types", ["full_attention"]),
        ("logit_scale", 1, 1.0),
        ("quantization_config",),
    ):
        keys.only(key, *values)
    keys.ignore(*_IDLE, *_OF_EXPERTS)
    qwen = model_type == "qwen3"
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": keys.take("intermediate_size", int),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.take("num_key_value_heads", int, heads),
        "head_dim": keys.take("head_dim", int, 128 if qwen else hidden // heads),
        "vocab_size": keys.take("vocab_size", int),
        "rms_norm_eps": keys.take("rms_norm_eps", NUMBER, 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_position_embeddings": _positions(keys, scaling, 32_768 if qwen else 2048),
        "attention_bias": keys.take("attention_bias", bool, False),
    }


def take_window(keys: Keys) -> int | None:
    """The sliding window of a layout that can say one; None of full attention, which `decoder_fields` reads.

    Raises:
      DraftError: its keys contradict each other, or the width is no number of tokens.
    """
    if keys.rest.get("layer_types") != SLIDING:
        return None
    said = {key: keys.rest.pop(key, None) for key in ("layer_types", "use_sliding_window", "sliding_window")}
    try:
        return window_of(said)
    except ValueError as error:
        raise DraftError(f"{keys.path}: {keys.within}{error}") from error


def _rope(keys: Keys) -> Fields:
    """``rope_parameters`` and its older name ``rope_scaling`` in one, which must not say two things."""
    newer, older = (
        {name: value for name, value in keys.take(key, dict, {}).items() if value is not None}
        for key in ("rope_parameters", "rope_scaling")
    )
    for name in newer.keys() & older.keys():
        if newer[name] != older[name]:
            raise keys.error(
                f"rope_scaling.{shown(name)[1:-1]}", older[name], f"but rope_parameters says {shown(newer[name])}"
            )
    return newer | older


def _positions(keys: Keys, scaling: RopeScaling | None, default: int) -> int:
    said = keys.take("max_position_embeddings", int, default)
    if scaling is None or scaling.positions is None or said <= scaling.positions:
        return said
    keys.note(
        f"max_position_embeddings is {said}, taken as {scaling.positions}: of a rope_scaling 'yarn' vLLM has angles "
        "for factor times original_max_position_embeddings positions only, and a target may write no further with it"
    )
    return scaling.positions


MODEL_OPTIMIZER = {
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "next_layer_regular": True,
    "parallel_draft_step": 1,
}
"""Keys of ``eagle_config``, most of them of NVIDIA's Model-Optimizer alone; every EAGLE-3 draft has these values."""


def eagle_fields(keys: Keys, decoder: Fields) -> Fields:
    """EAGLE-3's own keys, where they lie beside the decoder's, added to what `decoder_fields` returned.

    ``layers_from`` says in words where the aux layers were read; None where no place names them.
    """
    nested = keys.inner("eagle_config")
    for key, only in MODEL_OPTIMIZER.items():
        nested.only(key, only)
    nested.ignore("parallel_draft_heads_num_layers")  # of heads that parallel_draft_step 1 does without
    layers, layers_from = _aux_layers(keys, nested)
    inner, outer = (where.take("norm_before_fc", bool, None) for where in (nested, keys))
    if None not in (inner, outer) and inner != outer:
        raise keys.error("norm_before_fc", outer, f"but eagle_config.norm_before_fc is {inner}")
    nested.finish()
    keys.only("parallel_drafting", False)
    flags = ("norm_before_residual", "fc_norm", "norm_output")
    vocabulary = keys.take("draft_vocab_size", int, decoder["vocab_size"])
    truncated = keys.take("truncated_vocab_size", int, vocabulary)  # its name in vLLM's configs of the first EAGLE
    if truncated != vocabulary:
        raise keys.error("truncated_vocab_size", truncated, f"but draft_vocab_size is {vocabulary}")
    return decoder | {
        **{flag: keys.take(flag, bool, False) for flag in flags},
        "norm_before_fc": bool(inner or outer),
        "draft_vocab_size": vocabulary,
        "target_hidden_size": keys.take("target_hidden_size", int, decoder["hidden_size"]),
        "tie_word_embeddings": keys.take("tie_word_embeddings", bool, False),
        "eagle_aux_hidden_state_layer_ids": layers,
        "layers_from": layers_from,
        "num_aux_hidden_states": keys.take("num_aux_hidden_states", int, None),
    }


AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"
OUTPUTS = " + 1"
"""What follows the name of a place whose ids count outputs of layers, and so are one less than vLLM's."""


def _aux_layers(keys: Keys, nested: Keys) -> tuple[list[int] | None, str | None]:
    """The aux layers in vLLM's counting, and where they are said; None where no place says them.

    Args:
      keys: of the config.
      nested: of its ``eagle_config``.

    Raises:
      DraftError: two places contradict each other.
    """
    if nested.rest.get(AUX_LAYERS) == []:  # Model-Optimizer's way not to name them
        nested.ignore(AUX_LAYERS)
    # In vLLM's order. Counted from the output of layer 0, ids are one less than vLLM's: those of target_layer_ids, to
    # which it adds one, and those of the nested list, which is SGLang's.
    places = ((keys, AUX_LAYERS, 0), (keys, "target_layer_ids", 1), (nested, "layer_ids", 0), (nested, AUX_LAYERS, 1))
    found: list[tuple[str, list[int], list[int]]] = []
    for where, key, less in places:
        written = layer_ids(where, key)
        if written is not None:
            found.append((f"{where.within}{key}", written, [layer + less for layer in written]))
    if not found:
        return None, None
    name, first, layers = found[0]
    for other, written, means in found[1:]:
        # The nested list may also repeat what stands outside, as written for vLLM.
        if means != layers and not (
            other.startswith(nested.within) and other.endswith(AUX_LAYERS) and written == layers
        ):
            raise DraftError(
                f"{keys.path}: {keys.within}{name} is {first}, but {other} is {written}, which means layers {means}"
            )
    return layers, name + ("" if layers == first else OUTPUTS)


def layer_ids(keys: Keys, key: str) -> list[int] | None:
    """A list of layer ids; None where the config has none.

    Raises:
      DraftError: it is something else.
    """
    value = keys.take(key, list, None)
    if value is not None and not (value and all(type(layer) is int for layer in value)):
        raise keys.error(key, value, "expected a list of ids")
    return value


def architecture(*names: str) -> Callable[[dict[str, Any], Collection[str]], bool]:
    """A test whether a config's ``architectures`` is one of these names alone."""
    return lambda raw, _: raw.get("architectures") in [[name] for name in names]


def plain_fields(keys: Keys) -> Fields:
    """Fields of a layout without keys of its own. Our exports in it add keys for own embeddings and a window."""
    keys.ignore("architectures")
    window = take_window(keys) if "own_embeddings" in keys.rest else None
    said = {"own_embeddings": keys.take("own_embeddings", bool, None), "sliding_window": window}
    return eagle_fields(keys, decoder_fields(keys)) | said | of_target(keys, layers="target_num_hidden_layers")


def llama_fields(keys: Keys) -> Fields:
    """Fields of a class whose layer is Llama's for every target, whatever its config took from the target.

    Full attention in all of the target's layers is full attention in the draft's one. The tensors tell of biases and
    head norms, and those of a second layer or of another kind of layer are refused by name. No tensor tells of a
    window, so a narrow one is noted.
    """
    keys.ignore("model_type", "num_hidden_layers", "attention_bias")
    types = keys.rest.get("layer_types")
    if isinstance(types, list) and types and all(one == "full_attention" for one in types):
        keys.ignore("layer_types")
    width, positions = keys.rest.get("sliding_window"), keys.rest.get("max_position_embeddings")
    wide = isinstance(width, int) and isinstance(positions, int) and width >= positions
    if keys.rest.get("use_sliding_window") is None and width is not None and not wide:
        keys.note(
            f"sliding_window is {shown(width)}, and is passed over: the class of that name reads none, and targets "
            "leave theirs in it; a draft that was trained with a window drafts badly behind it, and no tensor tells"
        )
    if keys.rest.get("layer_types") != SLIDING:  # which our own exports alone may say, see `plain_fields`
        keys.ignore("sliding_window")
    fields = plain_fields(keys)
    del fields["model_type"], fields["attention_bias"]
    return fields


def of_target(
    keys: Keys, *, layers: str | None = None, architectures: str | None = None, named: str | None = None
) -> Fields:
    """What a config says of its target, to be held against the one it is imported for.

    Args:
      keys: the object that says it.
      layers, architectures, named: keys of that object that say the target's number of layers, its architectures and
        its name; None where it has none.

    Returns:
      ``of_target``, field of the target's config -> the key that says it and its value; and ``target_named``, the name.
    """
    said = {
        "num_hidden_layers": (layers, keys.take(layers, int, None) if layers else None),
        "architectures": (architectures, keys.take(architectures, list, []) if architectures else None),
    }
    found = {name: (f"{keys.within}{key}", value) for name, (key, value) in said.items() if value}
    return {"of_target": found, "target_named": keys.take(named, str, None) if named else None}
