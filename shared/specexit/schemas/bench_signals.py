"""Schema of ``specexit bench-signals``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class BenchSignalsConfig(Config):
    """What joint signal training costs the tokens: a recipe with its signals and with ones that pull on nothing."""

    recipe: str = Field(description="name in configs/recipes, or a YAML file; signals of source draft")
    data: Path = Field(description="folder that `specexit pack` wrote")
    eval_traces: Path = Field(description="labelled traces of problems that are not trained on")
    evaluate_n: int | None = Field(default=None, gt=0, description="the first n eval_traces; all by default")
    out: Path = Field(description="folder of the runs and of signals.json; interrupted ones in it are continued")
    steps: int | None = Field(default=None, gt=0, description="optimizer steps; the recipe's by default")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=2, description="of each pair of runs")
