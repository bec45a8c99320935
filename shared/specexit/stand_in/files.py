"""Hugging Face's sharded safetensors, written one shard at a time: a model may be larger than the memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from specexit.config import write_text
from specexit.drafts.target_weights import target_files

SHARD_BYTES = 1 << 30
"""Bytes of a shard, which is in memory twice while it is written."""


def write_shards(
    folder: Path,
    makers: Mapping[str, Callable[[], Shaped[np.ndarray, ...]]],
    dtype: np.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[str]:
    """Write ``model-*.safetensors`` and their index; yields each tensor's name once it is made.

    Args:
      folder: an existing one.
      makers: name -> what makes the tensor, in the order of the file.
      dtype: of the file.
      shard_bytes: a shard ends with the tensor that reaches it.
    """
    from safetensors.numpy import save_file

    shard: dict[str, np.ndarray] = {}
    shards: list[list[str]] = []
    total = 0
    for i, (name, make) in enumerate(makers.items()):
        shard[name] = np.ascontiguousarray(make().astype(dtype, copy=False))
        yield name
        size = sum(tensor.nbytes for tensor in shard.values())
        if size >= shard_bytes or i == len(makers) - 1:
            save_file(shard, folder / f"{len(shards)}.safetensors", metadata={"format": "pt"})
            shards.append(list(shard))
            shard, total = {}, total + size
    index: dict[str, str] = {}
    for i, names in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{i}.safetensors").rename(folder / final)
        index |= dict.fromkeys(names, final)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    write_text(folder / "model.safetensors.index.json", text + "\n")


def parameters(folder: Path) -> int:
    """Number of parameters in a model folder, from the headers of the files that vLLM reads.

    Raises:
      TensorError: its index cannot be read, or names a file that is not there.
    """
    from safetensors import safe_open

    count = 0
    for path in target_files(folder):
        with safe_open(path, framework="numpy") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count
