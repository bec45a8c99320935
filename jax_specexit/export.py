"""JAX parameters <-> draft directory, one tensor at a time; `specexit.drafts.names` is the table of names.

In a training run, ``fc`` and the signal rows of source fc read the aux hidden states divided by ``aux_rms``; in a draft
directory they read them as they are. Writing a draft directory folds these constants into the weights, and reading one
takes them out. They are powers of two, so neither changes a bit of a weight's mantissa.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from specexit.drafts.config import DraftConfig
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


ReadRows = Callable[[str, int, int], np.ndarray]
"""Name of a tensor, first row, and the one behind the last -> those rows."""

BLOCK = 2 * 2**20
"""Bytes that are read, transposed and rounded at a time. They fit a core's cache, and their memory is used again; that
of larger blocks goes back to the operating system, which clears it each time."""
TILE = 128
"""Rows and columns that are transposed at a time."""
ALIGNMENT = 64
"""Bytes, see `_aligned`."""


def tensor_pieces(
    config: DraftConfig, read: Read, aux_rms: Sequence[float] | None = None
) -> Callable[[str], Iterator[np.ndarray]]:
    """The tensors of a draft directory in blocks of rows, given its parameters one at a time.

    Args:
      config: of the draft.
      read: the parameter at a path of `specexit.drafts.names.tensor_names`.
      aux_rms: of the `Draft` that the parameters belong to.

    Returns:
      What yields the blocks of a tensor, given its name.
    """
    paths: dict[str, list[str]] = {}
    for path, name in tensor_names(config).items():
        paths.setdefault(name, []).append(path)

    def pieces(name: str) -> Iterator[np.ndarray]:
        for path in paths[name]:
            value = read(path)
            rows = value.T if path.endswith("kernel") else value
            for begin, end in _blocks(0, len(rows), rows[:1].nbytes):
                block = np.empty((end - begin, *rows.shape[1:]), value.dtype)
                _copy(rows[begin:end], block)
                if _reads_aux(config, path):
                    block = block / _per_feature(config, aux_rms).astype(block.dtype)
                yield block

    return pieces


def read_parameter_of(config: DraftConfig, rows: ReadRows, aux_rms: Sequence[float] | None = None) -> Read:
    """The inverse of `tensor_pieces`: what reads the parameters of a `Draft` with these ``aux_rms`` from its tensors.

    Beside the parameter that is read, only one block of its rows is in memory.
    """
    names, shapes, hidden = tensor_names(config), config.tensor_shapes(), config.hidden_size

    def parameter(path: str) -> np.ndarray:
        """The parameter at a path, in memory that is aligned for JAX."""
        name = names[path]
        first, last = 0, shapes[name][0]
        if name == "fc.weight":
            first, last = (hidden, last) if path == SIGNAL_HEAD else (0, hidden)
        shape = (last - first, *shapes[name][1:])
        value = None
        for begin, end in _blocks(first, last, 4 * math.prod(shape[1:])):
            block = rows(name, begin, end)
            if _reads_aux(config, path):
                # A float16 times a power of two may underflow; the other types have exponents to spare.
                block = block.astype(np.float32) if block.dtype == np.float16 else block
                block = block * _per_feature(config, aux_rms).astype(block.dtype)
            if value is None:
                value = _aligned(shape[::-1] if path.endswith("kernel") else shape, block.dtype)
            place = value.T if path.endswith("kernel") else value
            _copy(block, place[begin - first : end - first])
        assert value is not None, f"{name} has no rows"
        return value

    return parameter


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that JAX uses in place on a CPU: one that does not begin at a multiple of `ALIGNMENT` it would copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _blocks(first: int, last: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """First row, and the one behind the last, of blocks of about `BLOCK` bytes."""
    step = max(1, BLOCK // max(1, row_bytes))
    for begin in range(first, last, step):
        yield begin, min(begin + step, last)


def _copy(rows: np.ndarray, out: np.ndarray) -> None:
    """Copy, in tiles that a core's cache holds: numpy's own copy of a transposed matrix takes three times as long."""
    if rows.ndim == 1 or rows.flags.c_contiguous == out.flags.c_contiguous:
        out[...] = rows
        return
    for i in range(0, rows.shape[0], TILE):
        for j in range(0, rows.shape[1], TILE):
            out[i : i + TILE, j : j + TILE] = rows[i : i + TILE, j : j + TILE]


def params_from_draft(
    config: DraftConfig, tensors: Mapping[str, np.ndarray], aux_rms: Sequence[float] | None = None
) -> dict[str, Any]:
    """The pure parameter tree of a `Draft` with these ``aux_rms``, from the tensors of a draft directory.

    Parameters are float32 whatever type the tensors are stored in: no bit is lost, and training needs the precision.
    A plain EAGLE-3 draft gives a tree without ``signal_head``.
    """
    parameter = read_parameter_of(config, lambda name, a, b: tensors[name][a:b].astype(np.float32), aux_rms)
    params: dict[str, Any] = {}
    for path in tensor_names(config):
        *parents, last = path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = parameter(path)
    return params
