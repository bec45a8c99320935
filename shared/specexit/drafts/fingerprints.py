"""Fingerprints of a target: what tells its weights from others of the same name and shape, however large they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specexit.buckets import BucketPath
from specexit.drafts.files import TensorError, parse_json
from specexit.drafts.target_weights import target_files

MODELOPT = "hf_quant_config.json"
"""Where ModelOpt, up to version 0.29, says how it has quantised a model; ``config.json`` says nothing of it then."""
QUANTISED_BY = ("quantization_config", "compression_config")
"""Keys of ``config.json`` that say how a model is quantised; vLLM reads both, transformers the first alone."""
BLOCKS, BLOCK = 64, 4096


def target_fingerprint(folder: Path) -> str | None:
    """SHA-256 that stands for a model folder in Hugging Face layout; None without ``config.json`` or safetensors, and
    while files are missing that its index names.

    It covers all of ``config.json`` and, of each file that vLLM reads weights from, name, size, head and 64 blocks of
    4 KiB spread evenly over it: a fine-tune of the same shape has another one, and a model of 100 GB takes no longer
    than a small one.
    """
    try:
        files = target_files(folder)
    except TensorError:  # as in the Hub's cache, before an engine has fetched the rest
        return None
    if not files or not (folder / "config.json").exists():
        return None
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        for block in _blocks(path, size):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    places = [i * max(0, size - BLOCK) // BLOCKS for i in range(BLOCKS + 1)]
    if isinstance(path, BucketPath):  # an open object would fetch megabytes behind each of them
        yield from path.read_ranges([(at, min(at + BLOCK, size)) for at in places])
        return
    with path.open("rb") as file:
        for at in places:
            file.seek(at)
            yield file.read(BLOCK)


def quantization_of(fields: Mapping[str, Any], keys: tuple[str, ...] = QUANTISED_BY) -> str:
    """The method by which a model's weights are quantised, as its ``config.json`` calls it; 'none' without one.

    Args:
      fields: of that file.
      keys: where it is looked for; the first that says something counts.

    Example:
      >>> quantization_of({"quantization_config": {"quant_method": "gptq", "bits": 4}})
      'gptq'
      >>> quantization_of({"text_config": {"quantization_config": {"quant_method": "fp8"}}})
      'fp8'
    """
    said = None
    for place in (fields, fields.get("text_config")):  # the second where the model reads images, too
        if said is None and isinstance(place, Mapping):
            said = next((value for key in keys if (value := place.get(key))), None)
    return str(said.get("quant_method") or "none") if isinstance(said, Mapping) else "none"


def quantization_served(fields: Mapping[str, Any], folder: Path) -> str:
    """The method by which vLLM takes a model's weights to be quantised: as `quantization_of`, or as `MODELOPT` says.

    Transformers does not read that file.

    Args:
      fields: of the model's ``config.json``.
      folder: where the model lies.

    Raises:
      TensorError: the file is there, and cannot be read.
    """
    path = folder / MODELOPT
    if fields.get("quantization_config") is not None or not path.exists():
        return quantization_of(fields)
    try:
        said = parse_json(path.read_bytes(), path)
    except OSError as error:
        raise TensorError(f"{path}: cannot be read: {error}") from error
    made = said.get("quantization") if isinstance(said, dict) else None
    if isinstance(made, dict) and made.get("quant_algo") is not None:
        return "modelopt"
    return quantization_of({"quantization_config": said})
