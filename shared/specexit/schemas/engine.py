"""Settings of a vLLM engine, shared by every command that starts one."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from specexit.config import Config
from specexit.errors import shown

OVERRIDES = ("hf_overrides", "hf_config_path")
"""Arguments of ``vllm.LLM`` that change a model beside its own ``config.json``, which everything else here reads."""


class EngineConfig(Config):
    """Engine settings that a user may want to change."""

    max_num_seqs: int = Field(default=16, gt=0, description="largest batch")
    max_num_batched_tokens: int = Field(default=4096, gt=0, description="tokens in one forward pass")
    kv_cache_gib: int | None = Field(
        default=None,
        gt=0,
        description="KV cache; if unset 2 on a CPU, and on a GPU what gpu_memory_utilization leaves; of engines that "
        "take turns in a benchmark 2 each, or a quarter more than the longest request needs. On a CPU "
        "VLLM_CPU_KVCACHE_SPACE of the environment, where set, counts in its place",
    )
    extra: dict[str, Any] = Field(default={}, description="further arguments of vllm.LLM")

    @field_validator("extra")
    @classmethod
    def _one_config(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in OVERRIDES:
            if extra.get(name):
                raise ValueError(
                    f"{name} is {shown(extra[name])}, expected none: `score`, `verify` and training read the target's "
                    "config.json, and would compute another model than vLLM serves; write what it says into the "
                    "config.json of the target's folder, or of a copy that target=FILE.yaml names"
                )
        return extra


def check_largest_batch(engine: EngineConfig, largest: int) -> None:
    """Refuse a ``max_num_seqs`` where the command's batches say it, and it would not be heard.

    Raises:
      ValueError: it is another one. The default is none: a ``run.yaml`` has it, whatever the batches are.
    """
    if engine.max_num_seqs not in (largest, EngineConfig().max_num_seqs):
        raise ValueError(
            f"engine.max_num_seqs is {engine.max_num_seqs}, expected none: here it is the largest batch, {largest}"
        )
