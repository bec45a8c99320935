"""Rotary frequencies of a draft or a target, and the stretchings of them that are understood."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float

from specexit.errors import shown

Kind = Literal["linear", "llama3", "yarn"]

FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
        *("attention_factor", "truncate"),
    ),
}
"""``rope_type`` -> the fields of such a scaling."""

NEEDED = {"linear": ("factor",), "llama3": FIELDS["llama3"], "yarn": ("factor", "original_max_position_embeddings")}
"""Of these fields, those without which transformers and vLLM read no such scaling."""


@dataclass(frozen=True)
class RopeScaling:
    """How a model stretches its rotary frequencies beyond the context it was first trained on."""

    kind: Kind
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    """Turns in the original context from which on a frequency is left alone (``yarn``)."""
    beta_slow: float = 1.0
    """Turns below which it is divided by the factor whole."""
    attention_factor: float | None = None
    """What queries and keys are multiplied by; follows from ``factor`` where None."""
    truncate: bool = True
    """Whether the two limits are rounded to whole dimensions."""

    @property
    def positions(self) -> int | None:
        """How many positions vLLM has angles for; None where ``max_position_embeddings`` says it."""
        return int(self.original_max_position_embeddings * self.factor) if self.kind == "yarn" else None


def scaling_of(fields_of_config: Mapping[str, Any] | None) -> RopeScaling | None:
    """The scaling in a config's ``rope_scaling`` (or ``rope_parameters``, its newer name); None for RoPE as it is.

    Raises:
      ValueError: the kind is not implemented, a field is wrong, missing or none of its kind, or the numbers together
        exceed every float.
    """
    rope = {key: value for key, value in (fields_of_config or {}).items() if key != "rope_theta" and value is not None}
    kind = rope.pop("rope_type", rope.get("type", "default"))
    if rope.pop("type", kind) != kind:
        raise ValueError(f"rope_type is {shown(kind)}, but type says otherwise")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError(f"rope_type is {shown(kind)}, expected one of {', '.join(FIELDS)}")
    if rope.get("partial_rotary_factor") == 1:  # transformers 5 saves it so: whole heads are rotated, as without it
        del rope["partial_rotary_factor"]
    if kind == "yarn":
        check_attn_factor(rope | {"rope_type": kind})
        rope.pop("attn_factor", None)
    scales = {key: rope.pop(key) for key in ("mscale", "mscale_all_dim") if kind == "yarn" and key in rope}
    for key, value in rope.items():
        if key not in FIELDS[kind]:
            raise ValueError(f"{key} is {value!r}, which a scaling of rope_type {kind!r} does not have")
        if key == "truncate":
            if not isinstance(value, bool):
                raise ValueError(f"truncate is {value!r}, expected true or false")
        elif not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{key} is {value!r}, expected a number above 0")
    if kind == "default":
        return None
    for key in NEEDED[kind]:
        if key not in rope:
            raise ValueError(f"{key} is missing, which rope_type {kind!r} needs")
    if kind == "yarn":
        _check_yarn(rope)
    scaling = RopeScaling(cast(Kind, kind), **rope)
    if kind == "llama3" and not scaling.low_freq_factor < scaling.high_freq_factor:
        raise ValueError(
            f"high_freq_factor is {scaling.high_freq_factor:g}, expected more than low_freq_factor, "
            f"{scaling.low_freq_factor:g}"
        )
    return _sharpened(scaling, **scales) if scales else scaling


def check_attn_factor(rope: Mapping[str, Any]) -> None:
    """Refuse an ``attn_factor`` of ``yarn`` with which releases of vLLM do not multiply rotated queries and keys alike.

    Older ones multiply it into the factor that follows from ``factor``. vLLM 0.32 and transformers pass it over and
    take ``attention_factor``, which older vLLM passes over. Nothing in a config.json tells which of them a model was
    trained with, and some release would serve another computation than the one that is taught, scored and certified:
    so neither is chosen here. The two keys beside each other say one factor to all readers, if they agree.

    Args:
      rope: as a config states it, of any ``rope_type``, other fields included.

    Raises:
      ValueError: they do not agree, or one of them is no number.
    """
    if (rope.get("rope_type") or rope.get("type")) != "yarn" or rope.get("attn_factor") is None:
        return
    for key in ("attn_factor", "factor", "attention_factor"):
        value = rope.get(key)
        if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
            raise ValueError(f"{key} is {value!r}, expected a number above 0")
    plain = _sharpness(rope.get("factor") or 1.0)
    now, before = rope.get("attention_factor") or plain, plain * rope["attn_factor"]
    if not math.isclose(now, before, rel_tol=1e-5):
        raise ValueError(
            f"attn_factor is {rope['attn_factor']:g}, which transformers and vLLM 0.32 pass over (they multiply "
            f"rotated queries and keys by {now:g}), and older vLLM multiplies in (by {before:g}): expected none, for "
            f'the first, or "attention_factor": {float(f"{before:.6g}")} beside it, for the second, before any trace '
            "is collected"
        )


def by_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a ``config.json`` that says its RoPE by ``rope_theta`` and ``rope_scaling``.

    transformers 5 writes neither: it puts both into ``rope_parameters``.

    Raises:
      ValueError: the newer name says something else than the older ones, or holds no fields.

    Example:
      >>> by_older_names({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})["rope_theta"]
      500000.0
    """
    newer, older = config.get("rope_parameters"), config.get("rope_scaling") or {}
    if newer is None or not isinstance(older, Mapping):
        return dict(config)
    if not isinstance(newer, Mapping):
        raise ValueError(f"rope_parameters is {shown(newer)}, expected keys and values")
    older = {**older, "rope_theta": config.get("rope_theta")}
    newer, older = ({name: value for name, value in fields.items() if value is not None} for fields in (newer, older))
    for name in sorted(newer.keys() & older.keys()):
        if newer[name] != older[name]:
            raise ValueError(
                f"rope_parameters.{shown(name)[1:-1]} is {shown(newer[name])}, but rope_theta or rope_scaling says "
                f"{shown(older[name])}, expected the same"
            )
    both = older | newer
    said = {"rope_theta": both.pop("rope_theta")} if "rope_theta" in both else {}
    return {**config, **said, "rope_scaling": both}


def _check_yarn(rope: Mapping[str, Any]) -> None:
    """Refuse numbers whose product or ratio is 0 or infinite as a float."""
    original, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
    if original * factor == math.inf:
        raise ValueError(
            f"factor is {factor:g} and original_max_position_embeddings {original:g}, expected a product that is finite"
        )
    for key in ("beta_fast", "beta_slow"):
        turns = float(rope.get(key, 1.0))
        if not 0 < original / (2 * math.pi * turns) < math.inf:
            raise ValueError(f"{key} is {turns:g}, expected turns in {original:g} positions")


def _sharpened(scaling: RopeScaling, mscale: Any = None, mscale_all_dim: Any = 0) -> RopeScaling:
    """The scaling with the ``attention_factor`` that follows from ``mscale`` and ``mscale_all_dim``, as DeepSeek's
    models state it.

    transformers and vLLM read the two together, SpecForge's and TorchSpec's trainers each by itself, the first as 1
    where it is missing. They agree where neither is 0 or missing, and where they are 1 and 0, which changes nothing.

    Raises:
      ValueError: they do not agree, a number is wrong, or ``attention_factor`` is stated as well.
    """
    said = f"mscale is {mscale!r} and mscale_all_dim {mscale_all_dim!r}"
    stated = [scale for scale in (mscale, mscale_all_dim) if scale is not None]
    if not all(type(scale) in (int, float) and 0 <= scale < math.inf for scale in stated):
        raise ValueError(f"{said}, expected numbers from 0")
    if scaling.attention_factor is not None:
        raise ValueError(f"{said}, but attention_factor is {scaling.attention_factor:g}: expected one or the other")
    if mscale and mscale_all_dim:
        ratio = _sharpness(scaling.factor, mscale) / _sharpness(scaling.factor, mscale_all_dim)
        if not 0 < ratio < math.inf:
            raise ValueError(f"{said}, expected numbers of which there is a ratio")
        return replace(scaling, attention_factor=ratio)
    if mscale not in (None, 1) or mscale_all_dim:
        raise ValueError(f"{said}, which trainers and engines read in two ways: expected both above 0, or 1 and 0")
    return scaling


def scaling_fields(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """As a config's ``rope_scaling`` states it; `scaling_of` reads it back."""
    if scaling is None:
        return None
    said = {name: getattr(scaling, name) for name in FIELDS[scaling.kind]}
    return {"rope_type": scaling.kind} | {name: value for name, value in said.items() if value is not None}


def rotary_frequencies(dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[np.ndarray, " half_dim"]:
    """Angle per position, in radians, of every pair of dimensions.

    ``linear`` divides all of them by the factor (Chen et al. 2023). ``llama3`` keeps those whose wavelength is short
    against the original context, divides the long ones, and goes smoothly from one to the other (Llama 3.1's model
    card). So does ``yarn``, in a straight line over the dimensions (Peng et al. 2023).

    Rounded where transformers and vLLM round: at position 16,384 a frequency that is off by two units in the last
    place of float32 turns 0.002 radians too far.
    """
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequency = np.float32(1.0) / (theta ** exponent.astype(np.float64)).astype(np.float32)
    if scaling is None:
        return frequency
    frequency = frequency.astype(np.float64)
    if scaling.kind == "linear":
        return (frequency / scaling.factor).astype(np.float32)
    if scaling.kind == "yarn":
        kept = _kept_by_yarn(dim, theta, scaling)
    else:
        turns = scaling.original_max_position_embeddings * frequency / (2 * np.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (kept * frequency + (1 - kept) * frequency / scaling.factor).astype(np.float32)


def _kept_by_yarn(dim: int, theta: float, scaling: RopeScaling) -> Float[np.ndarray, " half_dim"]:
    """How far each frequency is left alone, as transformers and vLLM have it: 1 below the dimension that turns
    ``beta_fast`` times in the original context, 0 above the one that turns ``beta_slow`` times."""

    def dimension(turns: float) -> float:
        return dim * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001  # theirs, against a division by 0
    return 1 - np.clip((np.arange(dim // 2) - first) / width, 0.0, 1.0)


def _sharpness(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_factor(scaling: RopeScaling | None) -> float:
    """What rotated queries and keys are multiplied by: with ``yarn`` scores become sharper in longer contexts."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return _sharpness(scaling.factor) if scaling.attention_factor is None else scaling.attention_factor
