"""Schema of ``specexit collect``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from specexit.config import Config
from specexit.schemas.engine import EngineConfig
from specexit.schemas.prompts import ColumnsConfig
from specexit.schemas.sampling import TopK
from specexit.schemas.url import why_no_url

TrialChoice = Literal["refine", "all", "stable", "bisect"]


class PartConfig(Config):
    """One source of prompts, collected into a folder of its own."""

    prompts: str | None = None
    split: Literal["draft", "calibration", "test"] | None = None
    n: int | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _prompts_alone(cls, given: object) -> object:
        return {"prompts": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_source(self) -> PartConfig:
        if (self.prompts is None) == (self.split is None):
            raise ValueError("exactly one of prompts and split is needed")
        return self


class CollectConfig(Config):
    """Let the target write traces and, behind step boundaries, the answer it would give there."""

    target: str = Field(description="name in configs/targets, or path of such a YAML file")
    out: Path = Field(description="folder of the traces; collecting goes on where an earlier run stopped")
    prompts: str | None = Field(
        default=None,
        description="file of prompts (JSONL, CSV, Parquet), datasets folder, gsm8k:FILE, reasoning-gym:TASK ...",
    )
    columns: ColumnsConfig = ColumnsConfig()
    split: Literal["draft", "calibration", "test"] | None = Field(
        default=None, description="problems of an embedded target in place of a prompt file"
    )
    n: int | None = Field(
        default=None, gt=0, description="the first n prompts; by default the whole file, or 500 of what is generated"
    )
    parts: dict[str, PartConfig] = Field(
        default={},
        description="several sources on the same engines, each into out/NAME: parts.NAME=FILE, or "
        "parts.NAME.prompts or .split, and .n",
    )
    samples: int = Field(default=1, gt=0, description="traces of each prompt")
    seed: int = Field(default=0, description="of the split's problems and of sampling")
    temperature: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="of the traces; by default the target's"
    )
    top_p: float | None = Field(default=None, gt=0, le=1, description="of the traces; by default the target's")
    top_k: TopK | None = Field(default=None, description="of the traces; by default the target's; 0 keeps all")
    max_new_tokens: int | None = Field(
        default=None, gt=0, description="longest response, thinking and answer; by default the target's"
    )
    trial_max_tokens: int | None = Field(
        default=None, gt=0, description="longest trial; one that is cut off is undecided; by default the target's"
    )
    boundaries: TrialChoice = Field(
        default="refine",
        description="refine: every few boundaries, towards each change, and where the answer is stated; "
        "stable: back from the end, for exit_point=stable alone; bisect: the same, as if the verdict changed once; "
        "or all, for calibration traces of more than 31 boundaries",
    )
    stride: int = Field(
        default=8, gt=0, description="refine: boundaries between the first trials, fewer where there are few"
    )
    free_share: float = Field(
        default=0.02, ge=0, le=1, description="share of the trials made again with nothing forced, to compare"
    )
    shard: str | None = Field(default=None, description="i/n, from 0: this run's part of the work, for job arrays")
    chunk: int = Field(default=100, gt=0, description="traces in a Parquet file")
    workers: int | None = Field(
        default=None, gt=0, description="engines side by side; by default as many as the GPUs allow, or two on a CPU"
    )
    engine: EngineConfig = EngineConfig(max_num_seqs=128)
    endpoints: tuple[str, ...] | None = Field(
        default=None, description="URLs of vLLM servers to ask in place of engines of one's own, as a list"
    )
    ray: str | None = Field(
        default=None, description="address of a Ray cluster whose machines run the engines; auto, or local for one here"
    )
    model: str | None = Field(default=None, description="the target's name at the endpoints, where it is another")
    api_key: str | None = Field(
        default=None, description="of the endpoints; by default OPENAI_API_KEY of the environment", exclude=True
    )
    requests: int = Field(default=64, gt=0, description="at once at each endpoint")
    retries: int = Field(default=6, gt=0, description="failures in a row after which an endpoint is given up")
    timeout: float = Field(default=3600.0, gt=0, description="seconds that one request to an endpoint may take")
    any_architecture: bool = Field(
        default=False, description="collect from a target that `train` has no forward pass of"
    )
    min_finished: float = Field(default=0.8, ge=0, le=1, description="share of traces that must come to their end")
    min_answered: float = Field(default=0.8, ge=0, le=1, description="share of traces that must state an answer")
    max_undecided: float = Field(default=0.02, ge=0, le=1, description="share of undecided trials that is a warning")
    max_unbroken: float = Field(
        default=0.2, ge=0, le=1, description="share of answered traces without a step boundary; more is a warning"
    )
    min_forced_as_free: float = Field(
        default=0.9, ge=0, le=1, description="share of forced trials with the whole answer's verdict; less is a warning"
    )

    @field_validator("endpoints")
    @classmethod
    def _urls(cls, endpoints: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if endpoints == ():
            raise ValueError("expected at least one URL; without the key, engines of one's own are asked")
        for url in endpoints or ():
            why = why_no_url(url)
            if why is not None:
                raise ValueError(f"{url!r} {why}, expected a URL such as http://HOST:8000")
        return endpoints

    @model_validator(mode="after")
    def _one_source(self) -> CollectConfig:
        if [self.prompts is None, self.split is None, not self.parts].count(False) != 1:
            raise ValueError("exactly one of prompts, split and parts is needed")
        for name in self.parts:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"parts has the name {name!r}, expected one that a folder may have")
        return self

    @model_validator(mode="after")
    def _one_place(self) -> CollectConfig:
        if self.endpoints and self.ray is not None:
            raise ValueError("endpoints and ray cannot be given together: either servers or a cluster's own engines")
        return self

    @model_validator(mode="after")
    def _a_part_of_the_work(self) -> CollectConfig:
        number, of = self.part
        if number >= of:
            raise ValueError(f"shard is {self.shard!r}, expected i/n with i from 0 to n-1, such as 0/8")
        return self

    def each(self) -> list[CollectConfig]:
        """A config for every folder that is written: this one, or one of each of its parts."""
        return [
            self.model_copy(
                update={
                    "parts": {},
                    "prompts": part.prompts,
                    "split": part.split,
                    "n": part.n or self.n,
                    "out": self.out / name,
                }
            )
            for name, part in self.parts.items()
        ] or [self]

    @property
    def part(self) -> tuple[int, int]:
        """(number, of how many) of the shard; (0, 1) for all of the work.

        Raises:
          ValueError: ``shard`` has another form, which no config has that was checked.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard or "0/1")
        if found is None:
            raise ValueError(f"shard is {self.shard!r}, expected i/n with i from 0 to n-1, such as 0/8")
        return int(found[1]), int(found[2])

    @property
    def is_whole(self) -> bool:
        """Whether this run does all of the work."""
        return self.part[1] == 1
