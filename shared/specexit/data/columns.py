"""Columns of a record batch as arrays, without a Python object for each value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Shaped


def list_lengths(column: pa.Array) -> Int[np.ndarray, " rows"]:
    """Length of each list in a column."""
    return np.diff(column.offsets.to_numpy().astype(np.int64))


def flat_values(column: pa.Array, dtype: type[np.generic]) -> Shaped[np.ndarray, " values"]:
    """The lists of a column behind one another."""
    return column.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=False)


def coded(strings: pa.Array) -> tuple[Int[np.ndarray, " rows"], list[str]]:
    """Strings as numbers, and what each number stands for."""
    encoded = strings.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()
