"""What is known of many traces as wholes, for what has to know of all of them at once: some hundred bytes of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, Int64, Shaped

from specexit.data.rows import AnyTrace, free_trials, is_tried_throughout, prompt_sha256, short_hash, why_not

FEW = ("sampling", "trial", "task", "group", "answer_kind", "barred")
"""Texts of which there are few: a trace has the number of its own. ``trial`` is without ``free``, ``barred`` what
`why_not` says."""
RECORD = np.dtype(
    [
        ("prompt", np.uint64),
        *((name, np.int32) for name in ("sample", "n_prompt", "n_think", "n_answer", "n_boundaries")),
        ("has_reference", np.bool_),
        ("throughout", np.bool_),
        *((name, np.int32) for name in FEW),
    ]
)
"""``prompt`` is the `short_hash` of its tokens, ``throughout`` is `is_tried_throughout`; the rest is as in `Trace`."""
IDS_AT_ONCE = 1 << 16


class Outlines:
    """A column for each thing that is known; see `RECORD`.

    Args:
      rows: of `RECORD`, one of each trace.
      ids: of the traces.
      texts: what the numbers in a column of `FEW` stand for.
      whole: boundaries where the answer was written in full too: row of the trace, thinking tokens there, and
        `FreeTrial.same` (-1 where it is not known). 0 tokens stand for the first boundary, which is there under its own
        as well.
    """

    def __init__(
        self,
        rows: Shaped[np.ndarray, " traces"],
        ids: pa.ChunkedArray,
        texts: dict[str, list[str | None]],
        whole: Int64[np.ndarray, "asked 3"],
    ):
        self.rows, self.ids, self.texts, self.whole = rows, ids, texts, whole

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Shaped[np.ndarray, " traces"]:
        """A column."""
        return self.rows[name]

    def only(self, kept: Bool[np.ndarray, " traces"]) -> Outlines:
        """Some of the traces."""
        number = np.cumsum(kept) - 1
        whole = self.whole[kept[self.whole[:, 0]]]
        whole = np.column_stack([number[whole[:, 0]], whole[:, 1:]])
        return Outlines(self.rows[kept], self.ids.filter(pa.array(kept)), self.texts, whole)

    def has(self, name: str, text: str | None) -> Bool[np.ndarray, " traces"]:
        """Which traces have a text in a column of `FEW`."""
        return self.rows[name] == (self.texts[name].index(text) if text in self.texts[name] else -1)

    def different(self, name: str) -> list[str | None]:
        """The texts of a column of `FEW`, in the order in which they come."""
        return [self.texts[name][code] for code in np.unique(self.rows[name])]

    def counted(self, name: str) -> dict[str | None, int]:
        """How many traces have each of them."""
        codes, counts = np.unique(self.rows[name], return_counts=True)
        return {self.texts[name][code]: n for code, n in zip(codes, counts.tolist(), strict=True)}

    def groups(self) -> tuple[Int[np.ndarray, " traces"], list[str]]:
        """Number of each trace's group (its ``group``, by default its ``task``; -1 without), and the groups' names."""
        known = sorted({name for of in ("group", "task") for name in self.different(of) if name})
        numbers = {name: number for number, name in enumerate(known)}
        by_group, by_task = (
            np.array([numbers.get(name or "", -1) for name in self.texts[of]], np.int64)[self.rows[of]]
            for of in ("group", "task")
        )
        return np.where(by_group < 0, by_task, by_group), known

    def id_of(self, row: int) -> str:
        """Id of a trace."""
        return self.ids[row].as_py()

    def names(self) -> Iterator[tuple[str, int]]:
        """Id and sample of each trace."""
        ids = (id for chunk in self.ids.iterchunks() for id in chunk.to_pylist())
        return zip(ids, map(int, self.rows["sample"]), strict=True)


def outlines(traces: Iterable[AnyTrace]) -> Outlines:
    """What is known of traces as wholes."""
    numbers: dict[str, dict[str | None, int]] = {name: {} for name in FEW}
    ids, chunks, whole = list[str](), list[pa.Array](), list[tuple[int, int, int]]()

    def record(row: int, trace: AnyTrace) -> tuple[Any, ...]:
        """A trace as a row of `RECORD`; what is as long as it likes to be is put aside."""
        ids.append(trace.id)
        if len(ids) == IDS_AT_ONCE:
            chunks.append(pa.array(ids, pa.string()))
            ids.clear()
        whole.extend(_whole(row, trace))
        texts = {name: getattr(trace, name, None) for name in FEW} | {"trial": _trial(trace), "barred": why_not(trace)}
        return (
            short_hash(prompt_sha256(trace)),
            *(trace.sample, trace.n_prompt, trace.n_think, trace.n_answer, len(trace.boundaries)),
            trace.reference is not None,
            is_tried_throughout(trace),
            *(numbers[name].setdefault(texts[name], len(numbers[name])) for name in FEW),
        )

    rows = np.fromiter((record(row, trace) for row, trace in enumerate(traces)), RECORD)
    found = np.array(whole, np.int64).reshape(-1, 3)
    return Outlines(
        rows,
        pa.chunked_array([*chunks, pa.array(ids, pa.string())]),
        {name: list(of) for name, of in numbers.items()},
        found,
    )


def _trial(trace: AnyTrace) -> str:
    """How its trials were made, whatever was asked with nothing forced."""
    trial = json.loads(trace.trial)
    trial.pop("free", None)
    return json.dumps(trial)


def _whole(row: int, trace: AnyTrace) -> Iterator[tuple[int, int, int]]:
    for free in free_trials(trace):
        same = -1 if free.same is None else int(free.same)
        yield row, trace.boundaries[free.boundary], same
        if free.boundary == 0:
            yield row, 0, same
