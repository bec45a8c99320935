"""Schema of ``specexit bench-full-size``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from specexit.config import Config
from specexit.outputs import OutputFile
from specexit.schemas.engine import EngineConfig, check_largest_batch


class BenchFullSizeConfig(Config):
    """EAGLE-3 and SpecExit on a stand-in of a real target's size, and that it writes what the small target writes.

    The times are those of a target and a draft of that size on this machine, for texts of the small target's lengths,
    acceptance and exits. How long a real model thinks, how well it is drafted and how often its exits are right are not
    in them.
    """

    shape: str = Field(default="qwen3-0.6b", description="whose sizes: see stand-in")
    target: str | None = Field(
        default=None, description="name or YAML file of the small target; by default the one that the draft names"
    )
    draft: Path = Field(description="draft directory of the small target")
    traces: Path = Field(description="traces of its test split")
    models: Path = Field(description="folder for the stand-ins, which are kept; 0.6 billion parameters are 3.9 GB")
    out: OutputFile = Field(description="file for the numbers, full-size.json; replaced where it exists")
    n: int = Field(default=50, gt=0, description="problems")
    tasks: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="problems of these tasks alone; by default of all"
    )
    n_latency: int = Field(default=12, gt=0, description="how many of them, at most, are asked one at a time")
    batch: int = Field(default=8, gt=1, description="problems in progress at once")
    rounds: int = Field(default=6, gt=0, description="slices of the problems; the methods take turns slice by slice")
    n_exact: int = Field(
        default=50,
        ge=0,
        description="how many of them, at most, are also asked in float32; all texts have to be the small target's, "
        "else nothing is measured on a CPU",
    )
    max_new_tokens: int = Field(default=768, gt=0, description="of one response, thinking included")
    num_speculative_tokens: int = Field(default=3, gt=0, description="draft tokens per step")
    engine: EngineConfig = Field(default=EngineConfig(), description="here always the value of batch")
    seed: int = Field(default=0, description="of the stand-ins' noise and of the bootstrap")

    @model_validator(mode="after")
    def _largest_batch(self) -> BenchFullSizeConfig:
        check_largest_batch(self.engine, self.batch)
        return self
