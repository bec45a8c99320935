"""``engine.yaml`` beside traces: of which types the model was that wrote them, where its engine was told so.

`collect` hands ``engine.extra`` on to vLLM, where it goes over what the target's YAML says. Another type of weights or
of the KV cache is another model, of which certificates have to know; what is not in the file is as the target has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from specexit.config import Config, load, write_text

FILE = "engine.yaml"

SHORT = {"half": "float16", "float": "float32"}
"""vLLM's other names of two types."""


class EngineTypes(Config):
    """``engine.yaml``: arguments of ``vllm.LLM``, None for those that it was not given."""

    dtype: str | None = Field(default=None, description="of the weights")
    quantization: str | None = Field(default=None, description="as they are loaded")
    kv_cache_dtype: str | None = None


def save_engine_types(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Leave the file in a folder of traces; none where there is nothing to say.

    Args:
      folder: of the traces.
      arguments: of ``vllm.LLM``, others among them.
    """
    given = {name: arguments.get(name) for name in EngineTypes.model_fields}
    told = {name: str(value).lower().removeprefix("torch.") for name, value in given.items() if value is not None}
    if told:
        write_text(folder / FILE, yaml.safe_dump(told, sort_keys=False))
    else:
        (folder / FILE).unlink(missing_ok=True)


def engine_types_of(traces: Path) -> EngineTypes:
    """What lies beside traces, given their file or folder.

    Raises:
      ConfigError: it cannot be read.
    """
    path = (traces if traces.is_dir() else traces.parent) / FILE
    found = load(EngineTypes, path) if path.exists() else EngineTypes()
    return found.model_copy(update={"dtype": SHORT.get(found.dtype or "", found.dtype)})
