"""Fingerprints of what an engine serves, for comparison with those that a draft's certificates were made with.

Exits of an engine whose fingerprints differ are served, and called uncertified; with ``required`` they are not served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from specexit.drafts.computation import config_hashes
from specexit.drafts.config import read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.tensors import weights_hash
from specexit.method.decision import Policy
from torch_specexit.plugin.compat.checks import folder_of
from torch_specexit.plugin.protocols import VllmConfig


def served_fingerprints(draft: Path, vllm_config: VllmConfig) -> dict[str, str | None]:
    """Fingerprints of what an engine serves, named as `specexit.drafts.policy.Fingerprints` has them.

    Args:
      draft: the draft directory.
      vllm_config: of the engine.
    """
    model = vllm_config.model_config
    tokenizer = folder_of(model.tokenizer, model.tokenizer_revision, "tokenizer.json") / "tokenizer.json"
    return {
        "draft": weights_hash(draft),
        **config_hashes(read_config(draft, needs_policy=False)),
        "target": served_target(vllm_config),
        "tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.exists() else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization or "none",
        "kv_cache_dtype": _kv_cache_dtype(vllm_config),
    }


def _kv_cache_dtype(vllm_config: VllmConfig) -> str:
    """vLLM's name for the KV cache's type; 'auto' where it is the type that vLLM itself resolves 'auto' to."""
    found, model = vllm_config.cache_config.cache_dtype, cast(Any, vllm_config.model_config)
    try:
        from vllm.utils.torch_utils import resolve_kv_cache_dtype_string
    except ImportError:  # this vLLM has it elsewhere
        return found
    return "auto" if found == resolve_kv_cache_dtype_string("auto", model) else found


def served_target(vllm_config: VllmConfig) -> str | None:
    """Fingerprint of the target that an engine serves; None where its weights are not on this machine.

    The weights of a target on the Hub may arrive only when the engine loads them: ask again then.

    Args:
      vllm_config: of the engine.
    """
    model, cache = vllm_config.model_config, vllm_config.load_config.download_dir
    try:
        return target_fingerprint(folder_of(model.model, model.revision, "config.json", cache))
    except OSError:  # the Hub cannot be asked
        return None


def ends_as_calibrated(report: Mapping[str, Any], policy: Policy, margin: int | None) -> bool:
    """Whether a request's thinking ended in a way that calibration covers.

    It does not cover an end by the client, an end in a loop, or one at any token because the margin after
    ``max_thinking_tokens`` was used up.

    Args:
      report: of the request.
      policy: the one it ran under.
      margin: ``thinking_margin`` of the server, in tokens; None where it has none.

    Example:
      >>> capped, policy = {"outcome": "cap", "thinking_tokens": 110}, Policy(max_thinking_tokens=100)
      >>> ends_as_calibrated(capped, policy, 20), ends_as_calibrated(capped, policy, 10)
      (True, False)
    """
    if report["outcome"] == "cap" and margin is not None and policy.max_thinking_tokens is not None:
        return report["thinking_tokens"] < policy.max_thinking_tokens + margin
    return report["outcome"] not in ("interrupt", "loop")
