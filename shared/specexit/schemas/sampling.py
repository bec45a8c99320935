"""How text is drawn: what model cards say about it, as far as a server with a draft knows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from specexit.config import Config


def _zero(value: float) -> float:
    if value:
        raise ValueError("expected 0, as model cards have it: vLLM takes no other together with a draft")
    return value


TopK = Annotated[int, BeforeValidator(lambda value: 0 if value == -1 else value), Field(ge=0)]
"""0 keeps all tokens, and so does -1, as vLLM has it."""

NoMinP = Annotated[float, AfterValidator(_zero), Field(exclude=True, description="0 alone: keeps all tokens")]
"""It changes nothing, so no record holds it."""


COLDEST = 0.01
"""Lowest temperature above 0 that vLLM draws at: it takes this one in the place of any below."""


NEUTRAL = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
"""Parameters that traces are collected without, and their values then. A server takes those that a request does not say
from the model's ``generation_config.json``."""


class SamplingConfig(Config):
    """How responses are drawn; the model card says how it wants to be. Trial answers are always greedy."""

    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="probability of the tokens that are drawn from")
    top_k: TopK = Field(default=0, description="0 keeps all tokens")
    min_p: NoMinP = 0.0


def drawn(sampling: Mapping[str, Any]) -> tuple[Any, Any, Any] | None:
    """Temperature, top_p and top_k of a record, the same for two that draw alike; None where it does not say.

    Example:
      >>> drawn({"temperature": 0.6, "max_tokens": 512}), drawn({"max_tokens": 512})
      ((0.6, 1, 0), None)
      >>> drawn({"temperature": 0.0, "top_p": 0.9}) == drawn({"temperature": 0.6, "top_k": 1})
      True
      >>> drawn({"temperature": 1e-6, "top_k": -1}) == drawn({"temperature": 0.01})
      True
    """
    if "temperature" not in sampling:
        return None
    temperature, top_k = sampling["temperature"], sampling.get("top_k", 0)
    if temperature == 0 or top_k == 1:
        return 0, 1, 0
    return max(temperature, COLDEST), sampling.get("top_p", 1), 0 if top_k == -1 else top_k


def is_greedy(sampling: Mapping[str, Any]) -> bool:
    """Whether a record draws the likeliest token every time; one that names no temperature does.

    Example:
      >>> is_greedy({"temperature": 0.6, "top_k": 1}), is_greedy({"temperature": 0.6}), is_greedy({})
      (True, False, True)
    """
    return drawn({"temperature": 0, **sampling}) == drawn({"temperature": 0})
