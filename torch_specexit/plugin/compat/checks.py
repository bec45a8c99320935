"""What must hold of a draft directory before an engine serves it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from specexit.drafts.config import ARCHITECTURES
from specexit.drafts.directory import DraftConfig, DraftError, SpecExitBlock, check_target, check_vocabulary
from specexit.drafts.layouts import LAYOUTS
from specexit.drafts.window import window_fields
from torch_specexit.plugin.protocols import ModelConfig, VllmConfig


def folder_of(model: str, revision: str | None, file: str, cache: str | None = None) -> Path:
    """Local folder of a model's file: the path itself, or where the Hub client keeps it, in its cache by default.

    Raises:
      OSError: there is no such folder, and the file cannot be had from the Hub.
    """
    if Path(model).is_dir():
        return Path(model)
    from transformers.utils.hub import cached_file

    return Path(str(cached_file(model, file, revision=revision, cache_dir=cache))).parent


def draft_cache(vllm_config: VllmConfig) -> str | None:
    """Where vLLM keeps the weights of a draft that is named as on the Hub; None for the Hub client's own cache."""
    own = getattr(vllm_config.speculative_config, "draft_load_config", None)
    return (own or vllm_config.load_config).download_dir


def draft_folder(model: str, revision: str | None, cache: str | None) -> Path:
    """Folder of the draft that an engine is configured with. One that is named as on the Hub is fetched whole.

    vLLM itself fetches no ``policy.json``, and without it exits would come at a default that nobody has calibrated.

    Args:
      model: the folder, or the name on the Hub.
      revision: on the Hub.
      cache: see `draft_cache`.

    Raises:
      DraftError: no such folder, and it cannot be had from the Hub.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=cache))
    except (OSError, ValueError) as error:
        raise DraftError(
            f"speculative_config.model is {model!r}, expected a folder, or a draft's name on the Hub: {error}"
        ) from error


def check_draft(config: DraftConfig, folder: Path, target: ModelConfig, window: int | None = None) -> SpecExitBlock:
    """Check that a draft can serve a target.

    Args:
      config: of the draft.
      folder: of the draft.
      target: vLLM's ``ModelConfig`` of the target.
      window: the target's sliding window, which vLLM gives to a draft's layer that states none; None for none.

    Returns:
      The draft's ``specexit`` block.

    Raises:
      DraftError: it was made for another target, is shorter than the engine's context, names the class of another model
        type, has no ``specexit`` block, a policy that cannot be served (one of another smoothing, or without any
        threshold), or signals that would be read in a window that its ``config.json`` does not state.
    """
    path = folder / "config.json"
    names = ("hidden_size", "num_hidden_layers", "vocab_size")
    check_target(config, folder, {name: getattr(target.hf_text_config, name) for name in names}, target.model)
    if config.max_position_embeddings < target.max_model_len:
        raise DraftError(
            f"{path}: max_position_embeddings is {config.max_position_embeddings}, but the engine serves max_model_len "
            f"{target.max_model_len}: beyond its own length the draft is silent and nothing could exit; expected "
            f"max_model_len {config.max_position_embeddings} (of vLLM, or in the target's YAML){_longer(config)}"
        )
    architecture = ARCHITECTURES[config.model_type]
    if architecture not in config.architectures:
        raise DraftError(
            f"{path}: architectures is {list(config.architectures)}, expected {architecture!r} with model_type "
            f"{config.model_type!r}"
        )
    block = config.specexit
    if block is None:
        raise DraftError(f"{path}: no specexit block, expected one in a draft of architecture {config.architectures}")
    if block.policy.smoothing not in block.smoothings:
        raise DraftError(
            f"{path}: specexit.policy.smoothing is {block.policy.smoothing!r}, expected "
            f"{' or '.join(block.smoothings)} with source {block.source!r}"
        )
    if not block.policy.thresholds:
        raise DraftError(
            f"{path}: specexit.policy.thresholds is empty, expected at least one: every request would exit at once"
        )
    if block.source == "draft":
        _check_window(config, path, window, target.max_model_len)
    return block


def _check_window(config: DraftConfig, path: Path, window: int | None, length: int) -> None:
    """Check that vLLM reads signals in the window of ``config.json``: scores and certificates were made with that."""
    if config.sliding_window is None and window is not None and window < length:
        said = json.dumps(window_fields(window))
        raise DraftError(
            f"{path}: sliding_window is None, but all layers of the target have {window}, which vLLM gives the draft "
            f"as well; expected max_model_len {window} at most, found {length}, or {said} in that file, and then "
            "`specexit verify`, `score` and `calibrate` again"
        )


def _longer(config: DraftConfig) -> str:
    """How a draft that is shorter than an engine's context can be made longer, for the message about it."""
    most = config.most_positions
    if most is not None and most <= config.max_position_embeddings:
        return f": its rope_scaling 'yarn' ends at {most}"
    end = "for RoPE has no end" if most is None else f"of at most {most}, where its rope_scaling 'yarn' ends"
    return f", or a larger max_position_embeddings in that file, {end}: then run `specexit verify` again"


def as_in_directory(
    weights: Iterable[tuple[str, Tensor]], config: DraftConfig, apart: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Give tensors the names of a draft directory, where they have those of an export for speculators.

    Such an export names its layer differently, and has the signal rows of source ``fc`` as a tensor of their own. It
    holds embeddings for a draft that has none: these are dropped, as vLLM lets the draft use the target's.

    Args:
      weights: the tensors by name.
      config: of the draft.
      apart: memory between calls: a copy of one half of ``fc.weight`` while it waits for the other.
    """
    fc = config.specexit is not None and config.specexit.source == "fc"
    for theirs, tensor in weights:
        name = LAYOUTS["speculators"].ours(theirs)
        if name == "embed_tokens.weight" and not config.own_embeddings:
            continue
        if fc and (name == "signal_head.weight" or (name == "fc.weight" and len(tensor) == config.hidden_size)):
            apart[name] = tensor.clone()  # a sender of single tensors may reuse the memory of this one
            if len(apart) == 2:
                halves = (apart.pop(half).to(tensor.device) for half in ("fc.weight", "signal_head.weight"))
                yield "fc.weight", torch.cat(list(halves))
        else:
            yield name, tensor


def checked(
    weights: Iterable[tuple[str, Tensor]], config: DraftConfig, folder: Path, *, whole: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Pass a draft's tensors on while an engine loads them.

    Args:
      weights: the tensors by name.
      config: of the draft.
      folder: of the draft.
      whole: whether all tensors of the draft have to be among them.

    Raises:
      DraftError: the file is truncated, a tensor is missing, misshapen or not finite, or the draft's vocabulary points
        outside of the target's.
    """
    path = folder / "model.safetensors"
    missing = config.tensor_shapes()
    try:
        for name, tensor in weights:
            shape = missing.pop(name, None)
            if shape is not None and tuple(tensor.shape) != shape:
                raise DraftError(f"{path}: tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}")
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise DraftError(f"{path}: tensor {name} holds NaN or infinity, expected finite weights")
            if name == "d2t":
                check_vocabulary(config, tensor.cpu().numpy(), path)
            yield name, tensor
    except SafetensorError as error:
        raise DraftError(f"{path}: cannot be read as safetensors (truncated?): {error}") from error
    if missing and whole:
        name, shape = next(iter(missing.items()))
        raise DraftError(f"{path}: tensor {name} {list(shape)} is missing")
