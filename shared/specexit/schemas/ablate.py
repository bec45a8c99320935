"""Schema of ``specexit ablate``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specexit.config import Config


class Alternative(Config):
    """A draft that is trained for a question."""

    change: tuple[str, ...] = Field(default=(), description="[key=value, ...] in the place of the recipe's")
    traces: Path | None = Field(
        default=None, description="labelled traces on which its exits are replayed; by default those of all"
    )


class Question(Config):
    """Alternatives that are held against each other."""

    asks: str = Field(description="what a reader wants to know")
    variants: dict[str, Alternative] = Field(min_length=2, description="name: what is trained for it")


class TrainedConfig(Config):
    """Questions that no replay can answer: a draft is trained for each alternative, then replayed."""

    recipe: str = Field(description="name in configs/recipes, or a YAML file")
    data: Path = Field(description="folder that `specexit pack` wrote")
    questions: dict[str, Question] = Field(min_length=1, description="name: question and alternatives")
    out: Path = Field(description="folder of the runs, drafts and scores; what is in it is kept and continued")
    steps: int | None = Field(default=None, gt=0, description="optimizer steps; the recipe's by default")
    evaluate_n: int | None = Field(
        default=None, gt=0, description="the first n traces tell the acceptance length; all by default"
    )


class AblateConfig(Config):
    """What each choice of the method is worth, from recorded traces and scores: a table and a figure each."""

    traces: Path = Field(description="trace file or folder, from `collect`")
    scores: dict[str, Path] = Field(
        min_length=1, description="name of a source or draft -> its signals of the traces; the first is the one varied"
    )
    out: Path = Field(description="new folder for ablations.json, a figure for each ablation, and run.yaml")
    target: str | None = Field(
        default=None,
        description="name or YAML; by default the copy that lies with the traces (target.yaml), else the one of the "
        "name in them. For the text of split tokens",
    )
    trained: TrainedConfig | None = Field(default=None, description="questions that need a draft of their own each")
    tolerances: tuple[float, ...] = Field(
        default=(0.0, 0.01, 0.02), min_length=1, description="losses of accuracy at which the tables quote each variant"
    )
