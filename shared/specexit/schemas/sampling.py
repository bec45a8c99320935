"""How text is drawn: what model cards say about it, as far as a server with a draft knows it."""

from __future__ import annotations

from typing import Annotated

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


class SamplingConfig(Config):
    """How responses are drawn; the model card says how it wants to be. Trial answers are always greedy."""

    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="probability of the tokens that are drawn from")
    top_k: TopK = Field(default=0, description="0 keeps all tokens")
    min_p: NoMinP = 0.0
