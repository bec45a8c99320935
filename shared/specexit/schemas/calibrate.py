"""``specexit calibrate``: exit thresholds with a risk guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from specexit.config import Config
from specexit.method.decision import MOST_TOKENS
from specexit.schemas.early import EARLY, EarlyShare


def _several(value: Any) -> Any:
    """One risk as several: it needs no brackets."""
    try:
        return (float(value),)
    except (TypeError, ValueError):
        return value


def point_name(epsilon: float) -> str:
    """What the operating point of a risk is called."""
    return f"risk-{epsilon:g}"


class CalibrateConfig(Config):
    """Choose validity thresholds on traces that nothing was trained or selected on, and store them with the draft."""

    draft: Path = Field(description="draft directory; the operating points in its policy.json are replaced")
    traces: Path = Field(description="calibration traces: a file or folder, from `collect`")
    scores: Path = Field(description="this draft's signals of the same traces, from `score`")
    target: str | None = Field(
        default=None, description="name or YAML; by default the target that traces and draft name. For the fingerprints"
    )
    risk: Literal["answer_changed", "accuracy_lost"] = Field(
        default="answer_changed",
        description="what counts as an error: any other answer, or one that turns right into wrong (needs references)",
    )
    epsilon: Annotated[tuple[float, ...], BeforeValidator(_several)] = Field(
        default=(0.02,),
        min_length=1,
        description="risks that must not be exceeded, one operating point each; the first one is the default",
    )
    delta: float = Field(
        default=0.1, gt=0, lt=1, description="probability with which each may be exceeded all the same"
    )
    unjudged: Literal["refuse", "error"] = Field(
        default="refuse",
        description="traces that cannot judge (unfinished, no answer, no boundary): left out of the claim, or "
        "counted as errors; an exit where the trial is undecided is an error either way",
    )
    groups: bool = Field(
        default=False, description="bound the risk in every group of the prompts (group, or task), not their average"
    )
    label_noise: Literal["carry", "require", "ignore"] = Field(
        default="carry",
        description="where some trials were compared with the answer written in full: carry what they contradict into "
        "the bound, or, where it is too much, claim trial answers alone (each with half of delta); require: the first "
        "or nothing; ignore: the second",
    )
    early: EarlyShare = EARLY
    smoothing: Literal["none", "ewma"] = Field(
        default="none", description="ewma: a moving average per token (source fc alone: servers run no other)"
    )
    alpha: float = Field(default=0.1, gt=0, le=1, description="weight of the newest value in the moving average")
    patience: int = Field(default=1, ge=1, le=MOST_TOKENS, description="boundaries in a row that must pass")
    min_thinking_tokens: int = Field(
        default=0, ge=0, le=MOST_TOKENS, description="no exit before this many thinking tokens"
    )

    @field_validator("epsilon")
    @classmethod
    def _risks(cls, epsilon: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < value < 1 for value in epsilon):
            raise ValueError("expected risks between 0 and 1")
        if len({point_name(value) for value in epsilon}) < len(epsilon):
            raise ValueError("expected each risk once, in the six digits that the names of operating points have")
        return epsilon
