"""Settings of a vLLM engine, shared by every command that starts one."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from specexit.config import Config


class EngineConfig(Config):
    """Engine settings that a user may want to change."""

    max_num_seqs: int = Field(default=16, gt=0, description="largest batch")
    max_num_batched_tokens: int = Field(default=4096, gt=0, description="tokens in one forward pass")
    kv_cache_gib: int | None = Field(
        default=None,
        gt=0,
        description="KV cache; if unset 2 on a CPU, and on a GPU what gpu_memory_utilization leaves; of engines that "
        "take turns in a benchmark 2 each, or a quarter more than the longest request needs",
    )
    extra: dict[str, Any] = Field(default={}, description="further arguments of vllm.LLM")
