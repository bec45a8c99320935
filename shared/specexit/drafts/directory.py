"""The draft directory: the only contract between training and serving.

``config.json`` and ``model.safetensors`` (or its shards and their index) in EAGLE-3's own layout, so that vLLM and
everything that reads EAGLE-3 drafts understands them, plus a ``specexit`` block in the config and a few extra rows in
the weights:

* source ``draft``: ``signal_head.weight [signals, hidden]``, read from the draft layer's normed output;
* source ``fc``: ``fc.weight [hidden + signals, aux_hidden]``, the layout of the released reference code.

Without those rows it is a plain EAGLE-3 draft. `specexit.drafts.config` says what is in the config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped

from specexit.config import write_text
from specexit.drafts.config import ARCHITECTURES, PLAIN_ARCHITECTURES, DraftConfig, DraftError, read_config
from specexit.drafts.config import Source as Source
from specexit.drafts.config import SpecExitBlock as SpecExitBlock
from specexit.drafts.config import check_target as check_target
from specexit.drafts.files import TensorError
from specexit.drafts.policy import Mode as Mode
from specexit.drafts.policy import Serving as Serving
from specexit.drafts.tensors import FLOATS, INDEX, WEIGHTS, Pieces, Shapes, Stored, open_tensors, write_tensors
from specexit.drafts.window import window_fields
from specexit.errors import shown
from specexit.outputs import new_folder
from specexit.schemas.target import find_target

_EXPONENTS = {"float32": (np.uint32, 0x7F80_0000), "bfloat16": (np.uint16, 0x7F80), "float16": (np.uint16, 0x7C00)}
"""Type -> the integer type of its bits, and the bits of its exponent: all of them set are infinity or NaN."""


def check_given(folder: Path, target: str | None) -> None:
    """Check that a draft belongs to the user's ``target=``, where there is one.

    Raises:
      DraftError, PolicyError, ConfigError: it does not, or one of the two cannot be read.
    """
    if target is not None:
        config = read_config(folder)
        found = find_target(target, folder, name=config.target_name)
        check_target(config, folder, found.hf_config(), found.name)


def open_draft(folder: Path, *, needs_policy: bool = True) -> tuple[DraftConfig, dict[str, Stored]]:
    """Check a draft directory's config, its tensors' names, types and shapes, and its vocabulary; read no weight yet.

    Args:
      folder: the draft directory.
      needs_policy: see `read_config`.

    Returns:
      The config, and where each of its tensors lies.

    Raises:
      DraftError: see `read_config`; also for a file that is truncated or malformed, a tensor that is missing,
        misshapen or unknown, and a draft vocabulary that is no part of the target's.
      PolicyError: see `read_config`.
    """
    config = read_config(folder, needs_policy=needs_policy)
    path = weights_path(folder)
    try:
        tensors = open_tensors(folder)
    except TensorError as error:
        raise DraftError(str(error)) from error
    if any(name.startswith("layers.0.") for name in tensors):
        raise DraftError(
            f"{path}: calls the layer layers.0, as an export for `vllm serve FOLDER` does, expected midlayer: take the "
            "draft directory that it was made from"
        )
    check_shapes(config, {name: (stored.dtype, stored.shape) for name, stored in tensors.items()}, path)
    d2t, t2d = (tensors[name].read() if name in tensors else None for name in ("d2t", "t2d"))
    if d2t is not None or t2d is not None:
        check_vocabulary(config, np.zeros(config.draft_vocab_size, np.int64) if d2t is None else d2t, path, t2d)
    return config, {name: tensors[name] for name in tensors if name in config.tensor_shapes()}


def weights_path(folder: Path) -> Path:
    """The file that errors about a folder's tensors name."""
    return folder / (INDEX if (folder / INDEX).exists() else WEIGHTS)


def read_draft(folder: Path, *, needs_policy: bool = True) -> tuple[DraftConfig, dict[str, np.ndarray]]:
    """Read and check a whole draft directory; weights stay in the type they are stored in (see `FLOATS`).

    Args:
      folder: the draft directory.
      needs_policy: see `read_config`.

    Raises:
      DraftError: see `open_draft`; also for NaN or infinity in the weights.
      PolicyError: see `read_config`.
    """
    config, stored = open_draft(folder, needs_policy=needs_policy)
    tensors = {}
    for name, place in stored.items():
        tensors[name] = place.read()
        check_values(name, tensors[name], weights_path(folder))
    return config, tensors


def check_shapes(config: DraftConfig, tensors: Shapes, path: Path) -> None:
    """Check names, types and shapes of a draft's tensors.

    Raises:
      DraftError: names the file, the tensor, what was found and what was expected.
    """
    needed = config.tensor_shapes()
    expected = needed | config.vocabulary_shapes  # which older versions also wrote of a whole vocabulary
    for name, shape in expected.items():
        if name not in tensors:
            if name not in needed:
                continue
            raise DraftError(f"{path}: tensor {name} {list(shape)} is missing{_by(config, name)}")
        found, types = tensors[name], {"d2t": ("int64",), "t2d": ("bool",)}.get(name, tuple(FLOATS))
        if found[1] != shape:
            by = _by(config, name)
            raise DraftError(f"{path}: tensor {name} has shape {list(found[1])}, expected {list(shape)}{by}")
        if found[0].name not in types:
            raise DraftError(f"{path}: tensor {name} is {found[0].name}, expected {' or '.join(types)}")
    for name in tensors:
        if name not in expected:
            shape, by = list(tensors[name][1]), _by(config, name)
            raise DraftError(f"{path}: tensor {name} {shape} is not part of the draft in config.json{by}")


_HEADS = {
    "q": "num_attention_heads",
    "k": "num_key_value_heads",
    "v": "num_key_value_heads",
    "o": "num_attention_heads",
}
_SAID_BY = {
    "fc.weight": ("hidden_size", "target_hidden_size", "eagle_aux_hidden_state_layer_ids"),
    **{f"midlayer.self_attn.{part}_proj.weight": (heads, "head_dim", "hidden_size") for part, heads in _HEADS.items()},
    **{f"midlayer.self_attn.{part}_proj.bias": ("attention_bias", heads, "head_dim") for part, heads in _HEADS.items()},
    **{f"midlayer.self_attn.{part}_norm.weight": ("model_type", "head_dim") for part in "qk"},
    **{f"midlayer.mlp.{part}_proj.weight": ("intermediate_size", "hidden_size") for part in ("gate", "up", "down")},
    "lm_head.weight": ("draft_vocab_size", "hidden_size"),
    "embed_tokens.weight": ("vocab_size", "hidden_size"),
}
"""Tensor -> the fields of ``config.json`` that say its shape, or whether there is one."""


def _by(config: DraftConfig, name: str) -> str:
    """The fields of ``config.json`` that a tensor contradicts, for an error: nobody knows which of the two is wrong."""
    said = [f"{field} {shown(getattr(config, field))}" for field in _SAID_BY.get(name, ())]
    return f" ({', '.join(said)})" if said else ""


def check_values(name: str, tensor: Shaped[np.ndarray, "*shape"], path: Path) -> None:
    """Check that a tensor of weights holds neither NaN nor infinity.

    Raises:
      DraftError: names the file and the tensor.
    """
    if tensor.dtype.name in _EXPONENTS:
        integer, mask = _EXPONENTS[tensor.dtype.name]
        bits = np.ascontiguousarray(tensor).view(integer)
        if bits.size and int((bits & integer(mask)).max()) == mask:
            raise DraftError(f"{path}: tensor {name} holds NaN or infinity, expected finite weights")


def check_vocabulary(
    config: DraftConfig,
    d2t: Int[np.ndarray, " draft_vocab"],
    path: Path,
    t2d: Bool[np.ndarray, " vocab"] | None = None,
) -> None:
    """Check that every draft token stands for a target token of its own.

    Args:
      config: of the draft.
      d2t: what is added to a draft token to get the target token.
      path: named in errors.
      t2d: whether a target token has a draft token; None where that is not at hand.

    Raises:
      DraftError: names the file and the first token that does not; or ``d2t`` holds ids.
    """
    marked = None if t2d is None else np.flatnonzero(t2d)
    # Sorted, as ids may stand in any order. Offsets never match: their sum is that of the ids less 0 + 1 + 2 + ...
    if marked is not None and len(d2t) > 1 and np.array_equal(marked, np.sort(d2t)):
        raise DraftError(
            f"{path}: d2t holds ids, expected what is added to a draft token to get its id; `specexit import` reads "
            "either"
        )
    if config.whole_vocabulary and d2t.any():
        moved = np.flatnonzero(d2t)[0]
        raise DraftError(
            f"{path}: d2t maps draft token {moved} to target token {moved + d2t[moved]}, expected itself: "
            f"draft_vocab_size and vocab_size are both {config.vocab_size}"
        )
    ids = d2t + np.arange(config.draft_vocab_size)
    bad = np.flatnonzero((ids < 0) | (ids >= config.vocab_size))
    if bad.size:
        raise DraftError(
            f"{path}: d2t maps draft token {bad[0]} to target token {ids[bad[0]]}, "
            f"expected an id below vocab_size {config.vocab_size}"
        )
    counts = np.bincount(ids, minlength=config.vocab_size)
    if counts.max() > 1:
        raise DraftError(
            f"{path}: d2t maps {counts.max()} draft tokens to target token {counts.argmax()}, expected one"
        )
    if t2d is not None and not np.array_equal(t2d, counts > 0):
        token = np.flatnonzero(t2d != (counts > 0))[0]
        raise DraftError(f"{path}: t2d says {bool(t2d[token])} of target token {token}, but d2t says {not t2d[token]}")


def target_ids(config: DraftConfig, tensors: Mapping[str, np.ndarray]) -> Int[np.ndarray, " draft_vocab"]:
    """Target id of every draft token, given a draft directory's tensors."""
    ids = np.arange(config.draft_vocab_size)
    return ids if config.whole_vocabulary else ids + tensors["d2t"]


def vocabulary_tensors(vocab: Int[np.ndarray, " draft_vocab"], vocab_size: int) -> dict[str, np.ndarray]:
    """``d2t`` and ``t2d``, given the target id of every draft token; empty where the draft has all of the target's."""
    if len(vocab) == vocab_size:
        return {}
    offsets = (vocab - np.arange(len(vocab))).astype(np.int64)
    return {"d2t": offsets, "t2d": np.isin(np.arange(vocab_size), vocab)}


def write_draft(folder: Path, config: DraftConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a draft directory, which appears whole or not at all.

    Raises:
      DraftError: the tensors do not fit the config.
      FileExistsError: the folder is there and not empty.
    """
    shapes = {name: (tensors[name].dtype, tensors[name].shape) for name in config.tensor_shapes() if name in tensors}
    check_shapes(config, shapes, folder / WEIGHTS)
    if "d2t" in tensors:
        check_vocabulary(config, tensors["d2t"], folder / WEIGHTS, tensors.get("t2d"))
    with new_folder(folder) as beside:
        write_into(beside, config, shapes, lambda name: [tensors[name]], named=folder / WEIGHTS)


def write_into(
    folder: Path,
    config: DraftConfig,
    shapes: Shapes,
    pieces: Pieces,
    *,
    max_bytes: int | None = None,
    files: Sequence[Sequence[str]] | None = None,
    named: Path,
) -> dict[str, str]:
    """Write a draft's config and its weights into an existing folder, the weights piece by piece.

    Args:
      folder: to write into, as a rule one that `specexit.outputs.new_folder` will move into its place.
      config: of the draft.
      shapes, pieces, max_bytes, files: see `specexit.drafts.tensors.write_tensors`.
      named: path that errors name: where the tensors come from, or will lie.

    Returns:
      Hash of every tensor, see `specexit.drafts.tensors.tensor_hash`.

    Raises:
      DraftError: the tensors do not fit the config, or hold NaN or infinity.
    """
    check_shapes(config, shapes, named)
    hashes = write_tensors(
        folder, shapes, pieces, max_bytes, lambda name, values: check_values(name, values, named), files
    )
    _write_config(folder, config)
    return hashes


def plain_copy(source: Path, folder: Path) -> None:
    """Write the plain EAGLE-3 draft inside a SpecExit one: the same trunk, no signal rows.

    Raises:
      DraftError, PolicyError: ``source`` cannot be read.
      FileExistsError: ``folder`` is there and not empty.
    """
    config, tensors = read_draft(source)
    architecture = PLAIN_ARCHITECTURES[config.model_type]
    plain = config.model_copy(update={"architectures": (architecture,), "specexit": None})
    write_draft(folder, plain, tensors | {"fc.weight": tensors["fc.weight"][: config.hidden_size]})


def _write_config(folder: Path, config: DraftConfig) -> None:
    fields = config.model_dump(mode="json") | window_fields(config.sliding_window)
    if config.specexit is None:
        del fields["specexit"]
    else:
        fields["architectures"] = [ARCHITECTURES[config.model_type]]
    write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
