"""Packed data whose signals cannot be learned: what training on them costs the tokens is the signals' price alone."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from specexit.config import write_text
from specexit.data.packed import open_rows, read_example, read_meta, write_example
from specexit.data.packing import shard_writer
from specexit.outputs import new_folder

SHARD = "examples-00000-of-00001.array_record"


def shuffle_labels(data: Path, out: Path, seed: int = 0) -> None:
    """Copy packed data, with each signal's labels dealt out anew at random among all tokens that have one.

    Tokens and masks stay as they are, and so does every signal's distribution; nothing tells which token has which
    label. All examples are in memory, with three copies of their labels: about 70 bytes a token.

    Args:
      data: folder that `specexit pack` wrote.
      out: new folder, of another identity.
      seed: of the order.

    Raises:
      PackError: the data cannot be read.
      FileExistsError: the output folder is not empty.
    """
    meta = read_meta(data)
    records = open_rows(data, meta)
    rows = [read_example(records[i]) for i in range(meta.n)]
    labels, mask = (np.stack([row[f"signal_{name}"] for row in rows]) for name in ("labels", "mask"))
    labels = shuffled(labels, mask, seed)
    with new_folder(out) as folder:
        for path in data.iterdir():
            if path.name not in (*meta.shards, "meta.json"):
                shutil.copy(path, folder)
        with shard_writer(folder / SHARD) as writer:
            for row, one in zip(rows, labels, strict=True):
                writer.write(write_example(row | {"signal_labels": one}))
        changes = {
            "shards": {SHARD: (folder / SHARD).stat().st_size},
            "config_sha256": hashlib.sha256(f"{meta.config_sha256} shuffled {seed}".encode()).hexdigest(),
        }
        write_text(folder / "meta.json", meta.model_copy(update=changes).model_dump_json(indent=2) + "\n")


def shuffled(
    labels: Float[np.ndarray, "rows time signals"], mask: Bool[np.ndarray, "rows time signals"], seed: int
) -> Float[np.ndarray, "rows time signals"]:
    """The labels that there are, signal by signal in another order; the others as they are."""
    rng, out = np.random.default_rng(seed), labels.copy()
    for signal in range(labels.shape[-1]):
        given = mask[..., signal]
        out[..., signal][given] = rng.permutation(labels[..., signal][given])
    return out
