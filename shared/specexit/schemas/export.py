"""Schema of ``specexit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config

Format = Literal["plugin", "eagle3", "speculators", "angelslim", "original"]


class ExportConfig(Config):
    """Write a draft directory in the form that another program reads."""

    draft: Path = Field(description="draft directory")
    out: Path = Field(description="new folder")
    format: Format = Field(
        description="plugin: as it is, for vLLM with this plug-in; eagle3: without signals, for stock vLLM and SGLang; "
        "speculators: served by `vllm serve FOLDER` alone, with signals where the draft has them (and this plug-in); "
        "angelslim: SpecExit as released, of source fc; original: what `specexit import` read"
    )
    target: str | None = Field(default=None, description="target the draft belongs to; by default the one it names")
    base_model: str | None = Field(
        default=None,
        description="the target's name on the Hub, for the model card and for `vllm serve FOLDER`, in a folder that is "
        "to be published: nothing in it names this machine, or whom it serves; by default the folder that the "
        "target lies in here",
    )
    license: str | None = Field(
        default=None,
        min_length=1,
        description="of the weights, as the Hub spells it, e.g. apache-2.0, for the model card; nothing here knows it, "
        "so by default the card names none",
    )
    num_speculative_tokens: int = Field(
        default=3, gt=0, description="draft tokens per step, written where a format says it"
    )
    max_file_gib: float = Field(
        default=5.0,
        gt=0,
        le=1 << 20,
        allow_inf_nan=False,
        description="weights are split into files of at most this size; a large number makes it one file",
    )
