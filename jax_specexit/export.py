"""JAX parameters <-> draft directory, one tensor at a time; `specexit.drafts.names` is the table of names.

What reads the aux hidden states (``fc`` and the signal rows of source fc) reads them divided by ``aux_rms`` in a
training run, and as they are in a draft directory: the constants are folded into the weights on the way out, and taken
out of them on the way in. They are powers of two, so neither changes a bit of a weight's mantissa.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from specexit.drafts.config import DraftConfig
from specexit.drafts.directory import vocabulary_tensors
from specexit.drafts.names import SIGNAL_HEAD, tensor_names

Read = Callable[[str], np.ndarray]
"""Name -> array: of a parameter by its path, or of a tensor."""


def _per_feature(config: DraftConfig, aux_rms: Sequence[float] | None) -> np.ndarray:
    """What each aux feature is divided by in training."""
    layers = config.num_aux_hidden_states
    return np.repeat(np.asarray(aux_rms or [1.0] * layers, np.float32), config.target_hidden_size)


def _reads_aux(config: DraftConfig, path: str) -> bool:
    of_fc = config.specexit is not None and config.specexit.source == "fc"
    return path == "fc/kernel" or (path == SIGNAL_HEAD and of_fc)


BLOCK = 16 * 2**20
"""Bytes that are transposed and rounded at a time."""


def tensor_pieces(
    config: DraftConfig, read: Read, aux_rms: Sequence[float] | None = None, dtype: np.dtype | None = None
) -> Callable[[str], Iterator[np.ndarray]]:
    """The tensors of a draft directory in blocks of rows, given its parameters one at a time.

    Args:
      config: of the draft.
      read: the parameter at a path of `specexit.drafts.names.tensor_names`.
      aux_rms: of the `Draft` that the parameters belong to.
      dtype: of the tensors; the parameters' own where None.
    """
    paths: dict[str, list[str]] = {}
    for path, name in tensor_names(config).items():
        paths.setdefault(name, []).append(path)

    def pieces(name: str) -> Iterator[np.ndarray]:
        for path in paths[name]:
            value = read(path)
            rows = value.T if path.endswith("kernel") else value
            step = max(1, BLOCK // max(1, rows[:1].nbytes))
            for begin in range(0, len(rows), step):
                block = rows[begin : begin + step]
                if _reads_aux(config, path):
                    block = block / _per_feature(config, aux_rms).astype(block.dtype)
                yield np.ascontiguousarray(block, dtype or block.dtype)

    return pieces


def read_parameter_of(config: DraftConfig, read: Read, aux_rms: Sequence[float] | None = None) -> Read:
    """The way back: reader of the parameters of a `Draft` with these ``aux_rms``, given one of its tensors."""
    names, hidden = tensor_names(config), config.hidden_size

    def parameter(path: str) -> np.ndarray:
        value = read(names[path])
        if names[path] == "fc.weight":
            value = value[hidden:] if path == SIGNAL_HEAD else value[:hidden]
        if _reads_aux(config, path):
            # Half a tiny float16 is not always one; the other types have exponents to spare.
            value = value.astype(np.float32) if value.dtype == np.float16 else value
            value = value * _per_feature(config, aux_rms).astype(value.dtype)
        return value.T if path.endswith("kernel") else value

    return parameter


def tensors_from_params(
    config: DraftConfig, params: Mapping[str, Any], vocab: np.ndarray, aux_rms: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """All tensors of ``model.safetensors`` at once, in float32, for drafts that fit into memory twice.

    Args:
      config: of the draft; its ``specexit.source`` says where the signal rows go.
      params: pure parameter tree of `Draft`.
      vocab: target id of every draft token.
      aux_rms: of the `Draft` that the parameters belong to.
    """

    def read(path: str) -> np.ndarray:
        tree: Any = params
        for key in path.split("/"):
            tree = tree[key]
        return np.asarray(tree, np.float32)

    pieces = tensor_pieces(config, read, aux_rms)
    vocabulary = vocabulary_tensors(vocab, config.vocab_size)
    names = (name for name in config.tensor_shapes() if name not in vocabulary)
    return {name: np.concatenate([*pieces(name)]) for name in names} | vocabulary


def params_from_draft(
    config: DraftConfig, tensors: Mapping[str, np.ndarray], aux_rms: Sequence[float] | None = None
) -> dict[str, Any]:
    """The way back: tensors of a draft directory to the pure parameter tree of a `Draft` with these ``aux_rms``.

    Parameters are float32 whatever the directory is stored in: no bit is lost, and training needs the room below.
    A plain EAGLE-3 draft gives a tree without ``signal_head``.
    """
    parameter = read_parameter_of(config, lambda name: tensors[name].astype(np.float32), aux_rms)
    params: dict[str, Any] = {}
    for path in tensor_names(config):
        *parents, last = path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = np.ascontiguousarray(parameter(path))
    return params
