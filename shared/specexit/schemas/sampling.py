"""What a model card says about sampling beside temperature and top_p, as far as a server with a draft knows it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def _zero(value: float) -> float:
    if value:
        raise ValueError("expected 0, as model cards have it: vLLM takes no other together with a draft")
    return value


TopK = Annotated[int, BeforeValidator(lambda value: 0 if value == -1 else value), Field(ge=0)]
"""0 keeps all tokens, and so does -1, as vLLM has it."""

NoMinP = Annotated[float, AfterValidator(_zero), Field(exclude=True, description="0 alone: keeps all tokens")]
"""It changes nothing, so no record holds it."""
