"""How many rows of which length an evaluation takes at once: for the run, and for ``plan``, which sees no traces."""

from __future__ import annotations

from typing import NamedTuple

from specexit.schemas.target import TargetConfig
from specexit.schemas.train import TrainConfig


class Rows(NamedTuple):
    """Number of rows of a batch that is scored, and their length in tokens."""

    at_once: int
    length: int


def rows_for(longest: int, length: int, batch_size: int, shards: int) -> Rows:
    """Rows that hold a trace of ``longest`` tokens whole.

    They are as long as in training, or the smallest multiple of that. There are about as many tokens at once as in
    training: fewer rows where they are longer, but one for every shard.

    Args:
      longest: tokens of the longest trace.
      length: tokens of a row in training.
      batch_size: rows of a step in training.
      shards: how many shards the rows are spread over.

    Example:
      >>> rows_for(5000, 4096, 64, 16)
      Rows(at_once=32, length=8192)
    """
    times = -(-longest // length)
    return Rows(max(shards, batch_size // times // shards * shards), times * length)


def largest_rows(longest: int, length: int, batch_size: int, shards: int) -> Rows:
    """Of all traces up to ``longest`` tokens, the rows that take the most memory: the most tokens, then the longest."""
    lengths = range(length, longest + length, length)
    found = [rows_for(one, length, batch_size, shards) for one in lengths]
    return max(found, key=lambda rows: (rows.at_once * rows.length, rows.length))


def longest_evaluated(config: TrainConfig, target: TargetConfig) -> int:
    """Tokens of the longest trace that a run evaluates."""
    return config.evaluate_length or target.max_model_len
