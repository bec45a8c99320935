"""``specexit stand-in``: write the target, its draft and its YAML."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from specexit.config import ConfigError, save_run, write_text
from specexit.data.overlap import copy_prompts
from specexit.drafts.directory import FLOATS, check_target, read_draft, write_draft
from specexit.drafts.policy import write_policy
from specexit.drafts.target_weights import target_files
from specexit.errors import shown
from specexit.outputs import new_folder
from specexit.schemas.stand_in import StandInConfig
from specexit.schemas.target import TargetConfig, load_target_config
from specexit.stand_in.draft import carried_policy, draft_config, draft_tensors
from specexit.stand_in.files import parameters, write_shards
from specexit.stand_in.shape import Fit, Shape, StandInError, eagle3_layers
from specexit.stand_in.target import Noise, Weights, target_tensors
from specexit.trainable import FULL, unimplemented
from specexit.yaml_text import dump_yaml


@dataclass(frozen=True)
class Written:
    """What a stand-in's folder holds."""

    target: Path
    """Its YAML, as every command takes it."""
    draft: Path | None
    parameters: int


def stand_in(config: StandInConfig) -> Written:
    """Write ``target/``, ``target.yaml``, ``run.yaml`` and, where a draft is given, ``draft/``.

    Raises:
      StandInError: a model is no dense Qwen3, or has more than its sizes say (biases of the attention, windows,
        quantised weights); or the small one does not fit into the large one.
      ConfigError: a target, or the shape, is not there.
      DraftError: the draft cannot be used, or belongs to another target.
      FileExistsError: the output folder is not empty.
    """
    source = load_target_config(config.target)
    name, fields, readable = read_shape(config.shape)
    drafted = read_draft(config.draft) if config.draft else None
    if drafted and config.draft:
        check_target(drafted[0], config.draft, source.hf_config(), source.name)
    read = drafted[0].eagle_aux_hidden_state_layer_ids if drafted else source.aux_layers
    small_shape, large_shape = Shape.read(source.hf_config(), source.name), Shape.read(fields, name)
    for model, own in ((source.name, source.hf_config()), (f"shape={config.shape}", fields)):
        if (why := unimplemented(own)) is not None:
            raise StandInError(f"{model}: {why}")
    try:
        fit = Fit(small_shape, large_shape, tuple(read), readable)
    except StandInError as error:
        raise StandInError(f"shape={config.shape}: {error}") from None
    large = draft_config(drafted[0], fit, config.draft_vocab_size, _name(name), config.dtype) if drafted else None
    dtype, noise = FLOATS[config.dtype], Noise(FLOATS[config.dtype], config.seed)
    with new_folder(config.out) as folder:
        (folder / "target").mkdir()
        makers = target_tensors(read_weights(source), fit, noise)
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task(f"{name}, {config.dtype}", total=len(makers))
            for _ in write_shards(folder / "target", makers, dtype):
                progress.advance(bar)
        _write_target(folder, config, source, fit, fields, name)
        if drafted and large and config.draft:
            small, weights = drafted[0], _float32(drafted[1])
            tensors = draft_tensors(small, weights, fit, config.draft_vocab_size, noise)
            write_draft(folder / "draft", large, tensors)
            if small.specexit:
                write_policy(folder / "draft", carried_policy(config.draft))
            copy_prompts(config.draft, folder / "draft")
            shutil.copy(folder / "target.yaml", folder / "draft" / "target.yaml")
        save_run(config, folder)
        count = parameters(folder / "target")
    written = Written(config.out / "target.yaml", config.out / "draft" if drafted else None, count)
    Console().print(
        f"{config.out}: {source.name} in the shape of {name}, {count / 1e9:.2f} billion parameters in {config.dtype}; "
        f"target={written.target}" + (f" draft={written.draft}" if written.draft else "")
    )
    return written


def read_shape(shape: str) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """Name, ``config.json`` fields and the layers that a draft reads, of a target or of a ``config.json`` alone.

    Raises:
      ConfigError: neither is there.
      StandInError: a ``config.json`` does not say how many layers there are.
    """
    path = Path(os.path.expanduser(shape))
    if path.suffix == ".json" or path.is_dir():
        path = path / "config.json" if path.is_dir() else path
        try:
            fields = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"shape={shape}: cannot be read as a model's config.json: {error}") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"shape={shape}: holds a {type(fields).__name__}, expected a model's config.json")
        layers = fields.get("num_hidden_layers")
        if type(layers) is not int:
            raise StandInError(f"{path}: num_hidden_layers is {shown(layers)}, expected a number")
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
        return name, fields, tuple(eagle3_layers(layers))
    target = load_target_config(shape)
    return target.name, target.config or target.hf_config(), tuple(target.aux_layers)


def read_weights(target: TargetConfig) -> Weights:
    """A small target's tensors, in float32.

    Raises:
      StandInError: there are none.
      TensorError: see `target_files`.
    """
    from safetensors.numpy import load_file

    files = target_files(target.folder)
    if not files:
        raise StandInError(f"{target.folder}: no .safetensors file of target {target.name}")
    return _float32({name: value for file in files for name, value in load_file(file).items()})


def _float32(weights: Weights) -> Weights:
    integers = ("d2t", "t2d")
    return {name: value if name in integers else value.astype(np.float32) for name, value in weights.items()}


def _write_target(
    folder: Path, config: StandInConfig, source: TargetConfig, fit: Fit, fields: Mapping[str, Any], name: str
) -> None:
    """``config.json``, the small model's tokenizer, and the target's YAML."""
    small = source.hf_config()
    own = {"rms_norm_eps": small["rms_norm_eps"] * fit.norm**2, "torch_dtype": config.dtype}
    own["max_position_embeddings"] = fields.get("max_position_embeddings") or small["max_position_embeddings"]
    # Where the small one says such things of its layers, as transformers 5 writes them.
    of_layers = {"layer_types": [FULL] * fit.large.layers, "max_window_layers": fit.large.layers}
    own |= {key: value for key, value in of_layers.items() if key in small}
    text = json.dumps(small | fit.large.fields() | own, indent=2)
    write_text(folder / "target" / "config.json", text + "\n")
    for path in source.folder.iterdir():
        if path.is_file() and path.name != "config.json" and ".safetensors" not in path.name:
            shutil.copy(path, folder / "target" / path.name)
    target = source.model_copy(
        update={
            "name": _name(name),
            "path": str((config.out / "target").resolve()),
            "aux_layers": fit.readable,
            "dtype": config.dtype,
            "config": None,
        }
    )
    write_text(folder / "target.yaml", dump_yaml(target.model_dump(mode="json")))


def _name(shape: str) -> str:
    return f"stand-in-{shape}"
