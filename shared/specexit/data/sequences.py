"""From a labelled trace to a training sequence, and from many sequences to rows of one length.

A label is stored at the token it belongs to. Which row of the draft predicts that token's signals depends on the
signal source and is the trainer's business.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from specexit.data.traces import LabelledTrace
from specexit.method.labels import ExitKind, token_labels
from specexit.method.signals import SIGNALS

Example = dict[str, np.ndarray]
"""One packed row, arrays of one length T: ``tokens``, ``segment_ids`` (1, 2, ...; 0 is padding) and ``positions``
(from 0 in each segment), int32; ``loss_mask`` (tokens that the target wrote), bool; ``signal_labels [T, signals]``,
float32; ``signal_mask [T, signals]``, bool."""


@dataclass(frozen=True)
class TrainingSequence:
    """One trace as the trainer sees it: prompt, thinking, ``</think>``, answer."""

    tokens: Int[np.ndarray, " time"]
    loss_mask: Bool[np.ndarray, " time"]
    signal_labels: Float[np.ndarray, "time signals"]
    signal_mask: Bool[np.ndarray, "time signals"]

    def __len__(self) -> int:
        return len(self.tokens)


def make_sequence(
    trace: LabelledTrace, end: int, kind: ExitKind = "earliest", *, truncate: bool = False
) -> TrainingSequence:
    """Lay a trace out.

    Args:
      trace: with its exit points.
      end: id of the end marker.
      kind: which exit point the labels count down to.
      truncate: end the thinking there, marker and answer appended (the paper), in place of the whole trace with
        labels that are saturated behind it.
    """
    exit_at = trace.exit_earliest if kind == "earliest" else trace.exit_stable
    n_think, n_prompt = len(trace.think_ids), len(trace.prompt_ids)
    labels, mask = token_labels(trace.boundaries, trace.boundary_agrees, trace.boundary_confidence, n_think, exit_at)
    kept = exit_at if truncate else n_think
    tokens = np.array([*trace.prompt_ids, *trace.think_ids[:kept], end, *trace.answer_ids], np.int32)
    thinking = slice(n_prompt, n_prompt + kept)
    signal_labels = np.zeros((len(tokens), len(SIGNALS)), np.float32)
    signal_mask = np.zeros((len(tokens), len(SIGNALS)), bool)
    signal_labels[thinking], signal_mask[thinking] = labels[:kept], mask[:kept]
    return TrainingSequence(tokens, np.arange(len(tokens)) >= n_prompt, signal_labels, signal_mask)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing bin packing: the longest first, each into the fullest bin that still has room for it.

    Args:
      lengths: of the items, each between 1 and ``capacity``.
      capacity: of a bin.

    Returns:
      Bins of item indices.

    Example:
      >>> best_fit([3, 5, 2, 4], 8)
      [[1, 0], [3, 2]]
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(free, (lengths[item], -1))
        if at < len(free):
            room, number = free.pop(at)
        else:
            room, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        insort(free, (room - lengths[item], number))
    return bins


def assemble(sequences: Sequence[TrainingSequence], length: int) -> Example:
    """Put sequences behind one another into one row and pad it.

    Raises:
      ValueError: they do not fit.
    """
    total = sum(map(len, sequences))
    if total > length:
        raise ValueError(f"{total} tokens do not fit a row of {length}")
    example: Example = {
        "tokens": np.zeros(length, np.int32),
        "segment_ids": np.zeros(length, np.int32),
        "positions": np.zeros(length, np.int32),
        "loss_mask": np.zeros(length, bool),
        "signal_labels": np.zeros((length, len(SIGNALS)), np.float32),
        "signal_mask": np.zeros((length, len(SIGNALS)), bool),
    }
    start = 0
    for segment, sequence in enumerate(sequences, start=1):
        at = slice(start, start + len(sequence))
        example["segment_ids"][at] = segment
        example["positions"][at] = np.arange(len(sequence))
        for name in ("tokens", "loss_mask", "signal_labels", "signal_mask"):
            example[name][at] = getattr(sequence, name)
        start += len(sequence)
    return example
