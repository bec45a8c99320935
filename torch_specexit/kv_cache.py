"""How much memory a server on a CPU takes for its KV cache: enough for the target, and no more than there is.

Left to itself vLLM asks for 92 % of all memory, and ends where another program has some of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specexit.drafts.target_weights import target_files
from specexit.errors import InputError

REQUESTS = 16
"""Requests of full length that find room, if the memory suffices."""

PROGRAMS_GIB = 2.0
"""Left for the API server, the engine and the worker beside their weights: 1.8 seen with the tiny reasoner."""

GIB = 1 << 30
BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
"""Of a number, by vLLM's names of types."""


class KVCacheError(InputError):
    """There is not enough memory to serve a target."""


def bytes_per_token(target: Mapping[str, Any], dtype: str) -> int:
    """Bytes of keys and values of one token, in all layers of a target and the one of its draft.

    Example:
      >>> shape = {"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 192}
      >>> bytes_per_token(shape, "float32")
      2560
    """
    heads = target["num_attention_heads"]
    width = (target.get("num_key_value_heads") or heads) * (target.get("head_dim") or target["hidden_size"] // heads)
    return 2 * width * (target["num_hidden_layers"] + 1) * BYTES.get(dtype, 4)


def kv_cache_gib(
    target: Mapping[str, Any], dtype: str, max_model_len: int, weights: int, free: int, *, least: int | None = None
) -> int:
    """Size of the KV cache in GiB, which is how vLLM wants to know it on a CPU.

    Args:
      target: its ``config.json``.
      dtype: of the served weights.
      max_model_len: longest sequence.
      weights: bytes of target and draft.
      free: bytes of memory that nobody uses.
      least: tokens that must find room; by default one request of full length.

    Raises:
      KVCacheError: these tokens find no room.
    """
    one, tokens = bytes_per_token(target, dtype), max_model_len if least is None else least
    room = int((free - weights) / GIB - PROGRAMS_GIB)
    needed = max(1, -(-one * tokens // GIB))
    if room < needed:
        less = f" of one request of {tokens} tokens (--max-model-len in arguments makes that less)"
        raise KVCacheError(
            f"{free / GIB:.1f} GiB of memory are free, expected {needed + PROGRAMS_GIB + weights / GIB:.1f}: "
            f"{weights / GIB:.1f} for the weights, {PROGRAMS_GIB} for the programs, {needed} for the keys and values"
            + (less if needed > 1 else ", the least that vLLM can be told")
        )
    return max(needed, min(room, -(-one * max_model_len * REQUESTS // GIB)))


def weight_bytes(*folders: Path) -> int:
    """Bytes of the weights in some model folders, of the files that vLLM reads.

    Raises:
      TensorError: an index cannot be read, or names a file that is not there.
    """
    return sum(path.stat().st_size for folder in folders for path in target_files(folder))


def free_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that nobody uses, within the limit of this container.

    Args:
      cgroup: where the kernel says what the container may use, in version 2 of its control groups or in version 1.
    """
    import psutil

    free = psutil.virtual_memory().available
    for folder, limit, used, prefix in (
        (cgroup, "memory.max", "memory.current", ""),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            room = int((folder / limit).read_text()) - int((folder / used).read_text())
            free = min(free, room + _cached(folder, prefix))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return free


def _cached(folder: Path, prefix: str) -> int:
    """Bytes of files that a container has read or written: they count as used, and go before its memory runs out."""
    found = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    return sum(map(int, found))
