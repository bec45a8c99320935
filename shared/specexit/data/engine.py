"""The number types of the model that wrote traces: in their files' metadata, and in ``engine.yaml`` beside them where
its engine was told any.

`collect` hands ``engine.extra`` on to vLLM, where it overrides the target's YAML. With another type of weights or KV
cache the model is another one, which certificates have to know; a type that nothing says is the target's. Traces of
servers say none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from specexit.config import Config, load, write_text
from specexit.data.traces import TraceError, said_of
from specexit.errors import first_problem
from specexit.schemas.target import TargetConfig, target_beside
from specexit.yaml_text import dump_yaml

FILE = "engine.yaml"

TYPES = b"specexit.engine"
"""Key in the metadata of a trace file: `EngineTypes` as JSON, with the ``dtype`` that the engine had."""

SHORT = {"half": "float16", "float": "float32"}
"""vLLM's other names of two types."""


class EngineTypes(Config):
    """Arguments of ``vllm.LLM``, None for those that it was not given."""

    dtype: str | None = Field(default=None, description="of the weights")
    quantization: str | None = Field(default=None, description="as they are loaded")
    kv_cache_dtype: str | None = None


def types_told(arguments: Mapping[str, Any]) -> EngineTypes:
    """The types among the arguments of ``vllm.LLM``, each by one name."""
    given = {name: arguments.get(name) for name in EngineTypes.model_fields}
    told = {name: str(value).lower().removeprefix("torch.") for name, value in given.items() if value is not None}
    return EngineTypes.model_validate(told | {"dtype": SHORT.get(told.get("dtype", ""), told.get("dtype"))})


def save_engine_types(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Write ``engine.yaml`` into a folder of traces, or remove it where no type is given.

    Args:
      folder: of the traces.
      arguments: of ``vllm.LLM``; those that are no fields of `EngineTypes` are left out.
    """
    if told := types_told(arguments).model_dump(exclude_none=True):
        write_text(folder / FILE, dump_yaml(told))
    else:
        (folder / FILE).unlink(missing_ok=True)


def engine_types_of(traces: Path) -> EngineTypes:
    """Read ``engine.yaml`` beside traces, given their file or folder; without one every type is None.

    Raises:
      ConfigError: it cannot be read.
    """
    path = (traces if traces.is_dir() else traces.parent) / FILE
    return types_told(load(EngineTypes, path).model_dump() if path.exists() else {})


def types_in_metadata(arguments: Mapping[str, Any], target: TargetConfig) -> str:
    """What the metadata of traces says under `TYPES`, if an engine of the target with these arguments writes them."""
    return types_told({"dtype": target.dtype, **arguments}).model_dump_json(exclude_none=True)


def types_written_with(traces: Path, target: TargetConfig) -> EngineTypes:
    """The types of the model that wrote traces, ``dtype`` among them: as their files say; else ``engine.yaml``; else
    the copy of the target beside them, whatever the target given says by now; else that.

    Args:
      traces: their file or folder.
      target: theirs.

    Raises:
      TraceError: their files say different things, or what `collect` does not write; or cannot be read.
      ConfigError: ``engine.yaml`` or the copy cannot be read.
    """
    if (said := said_of(traces, TYPES)) is not None:
        try:
            return EngineTypes.model_validate_json(said)
        except ValidationError as error:
            raise TraceError(f"{traces}: metadata {TYPES.decode()}: {first_problem(error)}") from error
    told, copy = engine_types_of(traces), target_beside(traces, target)
    return told.model_copy(update={"dtype": told.dtype or (copy or target).dtype})
