"""Schema of ``specexit bench-certificate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from specexit.config import Config
from specexit.outputs import OutputFile


class BenchCertificateConfig(Config):
    """How often a certificate is broken: calibration samples drawn from a population whose risk is known."""

    traces: dict[str, Path] = Field(
        min_length=1,
        description="decoding -> traces of the population, from `collect`; greedy and sampled have to be what they say",
    )
    scores: dict[str, dict[str, Path]] = Field(
        description="decoding -> source (draft, fc) -> signals of these traces, from `score`"
    )
    out: OutputFile = Field(default=Path("runs/bench/certificate.json"), description="JSON file to write")
    risks: tuple[Literal["answer_changed", "accuracy_lost"], ...] = Field(
        default=("answer_changed", "accuracy_lost"), min_length=1, description="what a certificate bounds"
    )
    epsilon: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.01, 0.02, 0.05), min_length=1, description="bounds that are asked for"
    )
    n: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(250, 500, 1000), min_length=1, description="prompts in a calibration sample"
    )
    delta: float = Field(default=0.1, gt=0, lt=1, description="probability with which a certificate may be broken")
    draws: int = Field(default=1000, gt=0, description="calibration samples in a cell")
    grouped: bool = Field(
        default=True,
        description="the worst group as well, where the prompts have groups (or tasks): all of them, or none",
    )
    seed: int = Field(default=0, description="of the samples drawn")

    @model_validator(mode="after")
    def _scores_of_all(self) -> BenchCertificateConfig:
        for decoding in self.traces:
            if not self.scores.get(decoding):
                raise ValueError(f"scores.{decoding} is missing, expected signals of traces.{decoding} by source")
        return self
