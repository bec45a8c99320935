"""``engine.yaml`` beside traces: the number types of the model that wrote them, where its engine was told any.

`collect` hands ``engine.extra`` on to vLLM, where it overrides the target's YAML. With another type of weights or KV
cache the model is another one, which certificates have to know; a type that is not in the file is the target's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from specexit.config import Config, load, write_text
from specexit.yaml_text import dump_yaml

FILE = "engine.yaml"

SHORT = {"half": "float16", "float": "float32"}
"""vLLM's other names of two types."""


class EngineTypes(Config):
    """``engine.yaml``: arguments of ``vllm.LLM``, None for those that it was not given."""

    dtype: str | None = Field(default=None, description="of the weights")
    quantization: str | None = Field(default=None, description="as they are loaded")
    kv_cache_dtype: str | None = None


def save_engine_types(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Write ``engine.yaml`` into a folder of traces, or remove it where no type is given.

    Args:
      folder: of the traces.
      arguments: of ``vllm.LLM``; those that are no fields of `EngineTypes` are left out.
    """
    given = {name: arguments.get(name) for name in EngineTypes.model_fields}
    told = {name: str(value).lower().removeprefix("torch.") for name, value in given.items() if value is not None}
    if told:
        write_text(folder / FILE, dump_yaml(told))
    else:
        (folder / FILE).unlink(missing_ok=True)


def engine_types_of(traces: Path) -> EngineTypes:
    """Read ``engine.yaml`` beside traces, given their file or folder; without one every type is None.

    Raises:
      ConfigError: it cannot be read.
    """
    path = (traces if traces.is_dir() else traces.parent) / FILE
    found = load(EngineTypes, path) if path.exists() else EngineTypes()
    return found.model_copy(update={"dtype": SHORT.get(found.dtype or "", found.dtype)})
