"""Start a vLLM engine in this process, on a GPU or on a CPU, with the settings that each of them needs."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specexit.errors import InputError
from specexit.processes import unsaid
from specexit.schemas.engine import EngineConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.kv_cache import GIB, bytes_per_token
from torch_specexit.plugin.compat.fit import V1_RUNNER

if TYPE_CHECKING:
    from vllm import LLM

KV_CACHE_GIB = 2
"""Size of the KV cache of an engine on a CPU, and of each of several engines that share a GPU, unless it is given."""


def set_environment(config: EngineConfig) -> None:
    """Set what vLLM reads when it is imported: one OpenMP thread (two oversubscribe a small model 50-fold), the engine
    in process, no hub. What the environment says already stays, also the size of a KV cache."""
    defaults = {
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib or KV_CACHE_GIB),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.update(unsaid(defaults))


def vllm_platform() -> Any:
    """vLLM's platform of this machine.

    Raises:
      InputError: it finds none, as the vLLM that was installed is for other machines.
    """
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        raise InputError(
            "vLLM finds no device that it is built for: the one of '.[serve]' or '.[train,serve]' needs an NVIDIA GPU; "
            "on a machine without, `make install` in a checkout of SpecExit brings the one for CPUs"
        )
    return current_platform


def has_v1_runner() -> bool:
    """Whether the installed vLLM has its V1 model runner: 0.34 has V2's alone. Nothing of it is imported."""
    found = importlib.util.find_spec("vllm")
    folders = found.submodule_search_locations if found else None
    module = V1_RUNNER.partition(":")[0].split(".")[1:]
    return any(Path(folder, *module).with_suffix(".py").is_file() for folder in folders or ())


def accelerator_name() -> str | None:
    """Name of the GPU that this process has; None where there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def start_engine(
    target: TargetConfig,
    config: EngineConfig,
    *,
    draft: Path | None = None,
    num_speculative_tokens: int = 3,
    seed: int = 0,
    seeded: bool = False,
) -> LLM:
    """Start vLLM on a target, with an EAGLE-3 draft where one is given.

    Sets the environment of the process first, so nothing of vllm may be imported before this or `set_environment`.

    Args:
      target: the model.
      config: engine settings.
      draft: draft directory, plain or SpecExit.
      num_speculative_tokens: draft tokens per step.
      seed: of the engine.
      seeded: whether requests bring seeds of their own.

    Raises:
      InputError: see `vllm_platform`.
    """
    set_environment(config)
    on_cpu = vllm_platform().is_cpu()
    from vllm import LLM

    arguments: dict[str, Any] = {
        "model": str(target.folder),
        "dtype": target.dtype,
        "max_model_len": target.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "enable_prefix_caching": True,
        "disable_log_stats": False,
        "seed": seed,
        **platform_arguments(config, on_cpu=on_cpu),
    }
    if seeded and on_cpu:
        arguments |= whole_prompts(config, target)
    if draft is not None:
        arguments["speculative_config"] = {
            "method": "eagle3",
            "model": str(draft),
            "num_speculative_tokens": num_speculative_tokens,
        }
    return LLM(**arguments | config.extra)


def platform_arguments(config: EngineConfig, *, on_cpu: bool) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` that a CPU and a GPU want different.

    Args:
      config: engine settings.
      on_cpu: whether vLLM runs on a CPU; else it compiles and captures CUDA graphs, as it does by itself.
    """
    if on_cpu:
        # vLLM's CPU attention is fast at multiples of 32, and small blocks share more of a prefix.
        return {"enforce_eager": True, "block_size": 32}
    if config.kv_cache_gib is None:
        return {}
    # vLLM does not start where less than this share of the card is free, even if the size of the cache is given.
    return {"kv_cache_memory_bytes": config.kv_cache_gib << 30, "gpu_memory_utilization": 0.01}


def whole_prompts(config: EngineConfig, target: TargetConfig) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` with which no prompt comes in chunks, however many there are at once.

    Behind a chunk vLLM takes back what the generator of a request with a seed has drawn, and a CPU's generator cannot:
    the engine would end.
    """
    length = chosen_length(config, target)
    tokens = None if length is None else max(config.max_num_batched_tokens, length)
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens}


def chosen_length(config: EngineConfig, target: TargetConfig) -> int | None:
    """Most tokens of a request, prompt and response; None where vLLM chooses, by -1 or a word such as auto."""
    length = config.extra.get("max_model_len", target.max_model_len)
    return length if isinstance(length, int) and length > 0 else None


def one_of_several(config: EngineConfig, target: TargetConfig, **changes: Any) -> EngineConfig:
    """Settings of an engine that shares its machine with others of its kind: its KV cache has a fixed size.

    Unless the config gives one, that is two GiB, or 1.25 times what the longest request needs if that is more.

    Args:
      config: settings of an engine that has the machine to itself.
      target: the model.
      changes: other fields of the config to set.
    """
    changed = config.model_copy(update=changes)
    longest = chosen_length(changed, target) or target.max_model_len
    dtype = changed.extra.get("dtype", "auto")
    one = bytes_per_token(target.hf_config(), target.dtype if dtype == "auto" else dtype)
    gib = changed.kv_cache_gib or max(KV_CACHE_GIB, math.ceil(1.25 * one * longest / GIB))
    return changed.model_copy(update={"kv_cache_gib": gib})


def seed_everything(seed: int) -> None:
    """Seed what an engine in this process draws from; vLLM's CPU sampler dies of seeds of single requests."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - vLLM draws from numpy's global state
    torch.manual_seed(seed)
