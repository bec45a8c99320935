"""Schema of ``specexit bench-recipe``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class BenchRecipeConfig(Config):
    """What a change of a recipe does to its drafts: it is trained with each of them, seed by seed."""

    recipe: str = Field(description="name in configs/recipes, or a YAML file")
    variants: dict[str, tuple[str, ...]] = Field(
        min_length=2, description="name: [key=value, ...] in the place of the recipe's; all are compared with the first"
    )
    data: Path = Field(description="folder that `specexit pack` wrote")
    shuffle_labels: bool = Field(
        default=False,
        description="train on a copy of the data whose signal labels are dealt out anew at random: what signals cost "
        "the tokens where they cannot be learned",
    )
    eval_traces: Path = Field(description="labelled traces of problems that are not trained on")
    evaluate_n: int | None = Field(default=None, gt=0, description="the first n eval_traces; all by default")
    out: Path = Field(description="folder of the runs and of recipe.json; interrupted ones in it are continued")
    steps: int | None = Field(default=None, gt=0, description="optimizer steps; the recipe's by default")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=2, description="of the runs of each variant")
