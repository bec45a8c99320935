"""Whether a request is sampled as the traces of a calibration were: a certificate says nothing of text that is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from specexit.schemas.sampling import NEUTRAL, drawn
from torch_specexit.plugin.protocols import SamplingParams

KEYS = ("temperature", "top_p", "top_k")
"""Fields of the traces' sampling that decide which tokens are drawn."""


def covered(calibrated: Mapping[str, Any] | None) -> dict[str, float] | None:
    """The sampling that a policy file's certificates are of, by `KEYS`; None where the file does not say it.

    Args:
      calibrated: ``sampling`` of the file.

    Example:
      >>> covered({"temperature": 0.6, "max_tokens": 512}), covered({})
      ({'top_p': 1.0, 'top_k': 0, 'temperature': 0.6}, None)
    """
    if calibrated is None or "temperature" not in calibrated:
        return None
    return {"top_p": 1.0, "top_k": 0} | {key: calibrated[key] for key in KEYS if key in calibrated}


def not_neutral(params: SamplingParams) -> dict[str, float]:
    """What vLLM's `SamplingParams` say that traces are collected without (`NEUTRAL`), such as a penalty."""
    said = {name: getattr(params, name) for name in NEUTRAL}
    return {name: value for name, value in said.items() if not math.isclose(value, NEUTRAL[name])}


def is_sampled_as(params: SamplingParams, calibrated: Mapping[str, float]) -> bool:
    """Whether vLLM's `SamplingParams` draw tokens as `covered` says. Seeds and lengths make no difference."""
    asked, made = drawn({key: getattr(params, key) for key in KEYS}), drawn(calibrated)
    if asked is None or made is None:  # no temperature is said
        return False
    return not not_neutral(params) and all(math.isclose(a, b) for a, b in zip(asked, made, strict=True))
