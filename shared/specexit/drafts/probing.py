"""What the two probes of ``specexit verify`` share: command line, which tokens they read, which rows they keep.

A probe writes ``I.npz`` for trace I: ``logits_K [rows, draft vocabulary]`` of draft step K at the rows of `kept_rows`
that the step has, and, unless the draft is plain, ``raw`` and ``signals [thinking tokens, signals]`` before and after
the activation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from specexit.data.stream import read_batches
from specexit.data.stream import rows_of as batch_rows
from specexit.data.traces import Trace

ENGINE = "engine.json"
"""File of the vLLM probe."""
RAN = "ran.json"
"""File of the PyTorch and the JAX probe: ``dtype`` and ``device`` in which they ran."""
MISTAKES = "mistakes.json"
"""File of the PyTorch probe: acceptance on the traces, and what looks wrong with the draft."""

SCRATCH = 2**30
"""Bytes that all logits of one side take on the disk at most, whatever the number of traces: on many machines the
folder of temporary files is memory. Eight traces of 256 rows and three steps of a vocabulary of 32,000 are 0.79 GB."""


def parse(description: str | None) -> argparse.Namespace:
    """The command line of a probe."""
    parser = argparse.ArgumentParser(description=description)
    for name, kind in (("draft", Path), ("traces", Path), ("target", str), ("out", Path)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in ("n", "steps", "rows", "tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype")  # PyTorch's probe chooses where they are not given, and the others are told
    parser.add_argument("--device")
    return parser.parse_args()


def first_traces(path: Path, n: int, vocab_size: int | None = None) -> Iterator[Trace]:
    """The first ``n`` traces of a file or folder; ``vocab_size`` as of `read_batches`."""
    batches = read_batches(path, rows=min(n, 16), vocab_size=vocab_size)
    return islice((trace for batch in batches for trace in batch_rows(batch, Trace)), n)


def is_judged(trace: Trace, tokens: int, steps: int) -> bool:
    """Whether the first ``tokens`` tokens of a trace can judge a draft.

    For that it needs thinking, and behind its prompt a row whose ``steps`` draft steps all have their token there: a
    prompt that fills the ``tokens`` says nothing of a draft.
    """
    return bool(trace.think_ids) and min(tokens, length_of(trace)) >= needed(trace, steps)


def needed(trace: Trace, steps: int) -> int:
    """How many tokens of a trace have to be read for the draft steps of the first row behind its prompt."""
    return max(len(trace.prompt_ids), 1) + 1 + steps


def length_of(trace: Trace) -> int:
    """Tokens of a trace, the end marker included."""
    return len(trace.prompt_ids) + len(trace.think_ids) + 1 + len(trace.answer_ids)


def judged_traces(arguments: argparse.Namespace) -> Iterator[Trace]:
    """Those of the first ``n`` traces that can judge a draft, see `is_judged`."""
    first = first_traces(arguments.traces, arguments.n)
    return (trace for trace in first if is_judged(trace, arguments.tokens, arguments.steps))


def sequence_of(trace: Trace, think_end: int, limit: int) -> list[int]:
    """The first ``limit`` tokens of a trace: prompt, thinking, end marker, answer."""
    return [*trace.prompt_ids, *trace.think_ids, think_end, *trace.answer_ids][:limit]


def thinking_of(trace: Trace, length: int) -> slice:
    """Places of the thinking tokens among the first ``length`` tokens of a trace."""
    start = len(trace.prompt_ids)
    return slice(start, min(start + len(trace.think_ids), length))


def most_rows(rows: int, n: int, steps: int, vocabulary: int) -> int:
    """How many rows of each trace have their logits kept: as many as asked for, or as fit into `SCRATCH`; at least one.

    Example:
      >>> most_rows(256, 8, 3, 32_000), most_rows(256, 64, 3, 32_000), most_rows(256, 8, 3, 151_936)
      (256, 43, 73)
    """
    return max(1, min(rows, SCRATCH // (n * steps * vocabulary * np.float32().nbytes)))


def kept_rows(arguments: argparse.Namespace, vocabulary: int, length: int) -> list[int]:
    """Rows of a sequence of ``length`` tokens whose logits a probe keeps, given the size of the draft's vocabulary; see
    `most_rows`."""
    return rows_of(length, most_rows(arguments.rows, arguments.n, arguments.steps, vocabulary))


def rows_of(length: int, most: int) -> list[int]:
    """At most ``most`` of a sequence's ``length - 1`` rows, spread evenly; all of them where they are few enough.

    Example:
      >>> rows_of(5, 10), rows_of(100, 4)
      ([0, 1, 2, 3], [0, 33, 65, 98])
    """
    rows = length - 1
    return sorted({int(row) for row in np.rint(np.linspace(0, rows - 1, min(rows, most)))})
