"""Rotary frequencies of a draft or a target, and the stretchings of them that are understood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class RopeScaling:
    """How a model stretches its rotary frequencies beyond the context it was first trained on."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def scaling_of(fields_of_config: Mapping[str, Any] | None) -> RopeScaling | None:
    """The scaling in a config's ``rope_scaling`` (or ``rope_parameters``, its newer name).

    Raises:
      ValueError: of a kind that is not implemented, or with a field that its kind does not have.
    """
    rope = {key: value for key, value in (fields_of_config or {}).items() if key != "rope_theta" and value is not None}
    kind = rope.pop("rope_type", None) or rope.get("type", "default")
    if rope.pop("type", kind) != kind:
        raise ValueError(f"rope_type is {kind!r}, but type says otherwise")
    known = {"default": (), "linear": ("factor",), "llama3": tuple(f.name for f in fields(RopeScaling))[1:]}
    if kind not in known:
        raise ValueError(f"rope_type is {kind!r}, expected one of {', '.join(known)}")
    for key, value in rope.items():
        if key not in known[kind]:
            raise ValueError(f"{key} is {value!r}, which a scaling of rope_type {kind!r} does not have")
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ValueError(f"{key} is {value!r}, expected a number above 0")
    if kind == "default":
        return None
    if "factor" not in rope:
        raise ValueError(f"factor is missing, which rope_type {kind!r} needs")
    return RopeScaling(kind, **rope)


def scaling_fields(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """As a config's ``rope_scaling`` states it; `scaling_of` reads it back."""
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    named = asdict(scaling)
    return {"rope_type": named.pop("kind"), **named}


def rotary_frequencies(dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[np.ndarray, " half_dim"]:
    """Angle per position of every pair of dimensions.

    ``linear`` divides all of them by the factor (Chen et al. 2023). ``llama3`` leaves wavelengths short against the
    original context alone, divides the long ones, and goes smoothly from one to the other (Llama 3.1's model card).
    """
    frequency = theta ** (-np.arange(dim // 2, dtype=np.float64) / (dim // 2))
    if scaling is None:
        return frequency.astype(np.float32)
    if scaling.kind == "linear":
        return (frequency / scaling.factor).astype(np.float32)
    turns = scaling.original_max_position_embeddings * frequency / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (kept * frequency + (1 - kept) * frequency / scaling.factor).astype(np.float32)
