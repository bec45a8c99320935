"""Schema of ``specexit import``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config


class ImportConfig(Config):
    """Turn a published EAGLE-3 draft into a draft directory."""

    draft: Path = Field(description="folder with config.json and safetensors or pytorch_model.bin")
    target: str = Field(description="target the draft belongs to: a name, or a path to its YAML")
    out: Path = Field(description="new draft directory")
    layout: Literal["speculators", "deepspec", "nemo", "torchspec", "specforge", "angelslim", "safeailab"] | None = (
        Field(default=None, description="how it is laid out; found out by default")
    )
    aux_layers: tuple[int, ...] | None = Field(
        default=None,
        description="layers whose residual stream it reads, in vLLM's counting; by default what its config says",
    )
