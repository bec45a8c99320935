"""``specexit verify``: signals and logits of JAX, PyTorch and vLLM side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from specexit.config import Config


class VerifyConfig(Config):
    """Compare the JAX and the PyTorch draft on real traces, both in one dtype, and what vLLM makes of it."""

    draft: Path = Field(description="draft directory")
    target: str | None = Field(
        default=None, description="name or YAML file of the target; by default the one that the draft names"
    )
    traces: Path = Field(description="trace file or folder, from `collect`")
    n: int = Field(default=8, gt=0, description="number of traces")
    steps: int = Field(default=3, gt=0, description="draft steps, each fed with the trace's own tokens")
    rows: int = Field(default=256, gt=0, description="rows of each trace whose logits are compared, at most")
    tokens: int = Field(default=4096, gt=1, description="longest beginning of a trace that is read")
    vllm: bool | None = Field(
        default=None,
        description="run a vLLM engine beside the two, in the target's dtype; by default where vLLM is there",
    )
    device: Literal["cpu", "cuda"] | None = Field(default=None, description="by default a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="of target and draft; by default float32 on a CPU, the target's on a GPU"
    )
    tolerance: float | None = Field(
        default=None,
        gt=0,
        description="largest difference allowed; by default 1e-4 in float32 (relative for `remaining` and for tokens "
        "of probability 0), and root mean square of 0.04 in bfloat16, 0.005 in float16 (of a row's largest logit; of "
        "signals before activation)",
    )
