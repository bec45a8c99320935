"""From a labelled trace to a training sequence, and from many sequences to rows of one length.

A label is stored at the token it belongs to. Which row of the draft predicts that token's signals depends on the
signal source and is the trainer's business.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from specexit.data.columns import coded
from specexit.data.rows import LabelledTrace, known_verdicts
from specexit.data.stream import values_of
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

    def prefix(self, length: int) -> TrainingSequence:
        """The first ``length`` tokens, or all."""
        return TrainingSequence(
            self.tokens[:length], self.loss_mask[:length], self.signal_labels[:length], self.signal_mask[:length]
        )


@dataclass(frozen=True)
class TraceArrays:
    """What a training sequence is made of, without a Python object for each token."""

    prompt: Int[np.ndarray, " _prompt"]
    think: Int[np.ndarray, " _think"]
    answer: Int[np.ndarray, " _answer"]
    boundaries: Int[np.ndarray, " boundaries"]
    agrees: Bool[np.ndarray, " boundaries"]
    confidence: Float[np.ndarray, " boundaries"]
    decided: Bool[np.ndarray, " boundaries"]
    exit_earliest: int
    exit_stable: int

    def exit_at(self, kind: ExitKind) -> int:
        """Offset of the exit point of a kind."""
        return self.exit_earliest if kind == "earliest" else self.exit_stable

    def length(self, kind: ExitKind, *, truncate: bool) -> int:
        """Tokens of the whole sequence that `make_sequence` would lay out."""
        kept = self.exit_at(kind) if truncate else len(self.think)
        return len(self.prompt) + kept + 1 + len(self.answer)

    @classmethod
    def of(cls, trace: LabelledTrace) -> TraceArrays:
        """The arrays of one trace."""
        return cls(
            *(np.array(ids, np.int32) for ids in (trace.prompt_ids, trace.think_ids, trace.answer_ids)),
            boundaries=np.array(trace.boundaries, np.int64),
            agrees=np.array(trace.boundary_agrees, bool),
            confidence=np.array(trace.boundary_confidence, np.float32),
            decided=known_verdicts(trace.boundary_state),
            exit_earliest=trace.exit_earliest,
            exit_stable=trace.exit_stable,
        )


COLUMNS = (
    "prompt_ids",
    "think_ids",
    "answer_ids",
    "boundaries",
    "boundary_agrees",
    "boundary_confidence",
    "boundary_state",
    "exit_earliest",
    "exit_stable",
)
"""Columns of labelled traces that `arrays_of` reads."""


def arrays_of(batch: pa.RecordBatch) -> list[TraceArrays]:
    """The arrays of all traces of a batch."""
    tokens = [values_of(batch[name], np.int32) for name in COLUMNS[:3]]
    boundaries = values_of(batch["boundaries"], np.int64)
    agrees = values_of(batch["boundary_agrees"], np.bool_)
    confidence = values_of(batch["boundary_confidence"], np.float32)
    codes, names = coded(batch["boundary_state"].flatten())
    states = np.array([*names, ""])[codes]  # "" makes it strings even where there is no boundary
    ends = np.cumsum([len(found) for found in boundaries])[:-1]
    decided = map(known_verdicts, np.split(states, ends))
    exits = [batch[name].to_pylist() for name in COLUMNS[-2:]]
    return [TraceArrays(*row) for row in zip(*tokens, boundaries, agrees, confidence, decided, *exits, strict=True)]


def make_sequence(
    trace: LabelledTrace | TraceArrays,
    end: int,
    kind: ExitKind = "earliest",
    *,
    truncate: bool = False,
    length: int | None = None,
) -> TrainingSequence:
    """Lay a trace out.

    Args:
      trace: with its exit points.
      end: id of the end marker.
      kind: which exit point the labels count down to.
      truncate: end the thinking at the exit point and put marker and answer behind it (the paper), rather than keep
        the whole trace, with labels that are saturated behind the exit point.
      length: tokens to keep, from the first on; labels are those of the whole trace.
    """
    arrays = trace if isinstance(trace, TraceArrays) else TraceArrays.of(trace)
    exit_at = arrays.exit_at(kind)
    n_think, n_prompt = len(arrays.think), len(arrays.prompt)
    labels, mask = token_labels(arrays.boundaries, arrays.agrees, arrays.confidence, n_think, exit_at, arrays.decided)
    kept = exit_at if truncate else n_think
    tokens = np.concatenate([arrays.prompt, arrays.think[:kept], [end], arrays.answer]).astype(np.int32)
    thinking = slice(n_prompt, n_prompt + kept)
    signal_labels = np.zeros((len(tokens), len(SIGNALS)), np.float32)
    signal_mask = np.zeros((len(tokens), len(SIGNALS)), bool)
    signal_labels[thinking], signal_mask[thinking] = labels[:kept], mask[:kept]
    whole = TrainingSequence(tokens, np.arange(len(tokens)) >= n_prompt, signal_labels, signal_mask)
    return whole if length is None else whole.prefix(length)


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
