"""A table on the disk with a row for each trace, for commands that need to know something of all traces at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import UInt64

from specexit.data.rows import AnyTrace, is_tried_throughout, short_hash, why_not
from specexit.data.scratch import Scratch
from specexit.data.seen import HALF

FEW = ("sampling", "trial", "task", "part", "answer_kind", "barred")
"""Columns with few different texts, of which the table holds numbers. ``trial`` is without ``free``, ``part`` is a
trace's group, by default its task, and ``barred`` what `why_not` says; an empty task or group is None."""
NUMBERS = ("sample", "n_prompt", "n_think", "n_answer", "n_boundaries", "is_known", "throughout", "has_free")
"""Columns of numbers: as in `Trace`; ``is_known`` is whether its answer is known to be right or wrong, ``throughout``
`is_tried_throughout`, and ``has_free`` whether any answer was also written in full."""
COLUMNS = ("row", "id", "prompt", *NUMBERS, *FEW)
"""``prompt`` is the `short_hash` of the prompt's tokens, less `HALF`."""
TABLE = f"""
create table traces (row integer primary key, {", ".join(COLUMNS[1:])});
create index of_prompt on traces (prompt, row);
"""

Hashes = UInt64[np.ndarray, " prompts"]


@dataclass(frozen=True)
class Outlines:
    """A row of a table for each trace, in the traces' order; see `COLUMNS`."""

    file: Scratch
    texts: dict[str, dict[str | None, int]]
    """For each column of `FEW`, the number that stands for each text."""
    where: str = "true"
    """Condition in SQL that selects rows."""

    def __len__(self) -> int:
        return self.number("count(*)")

    def only(self, **texts: str | None) -> Outlines:
        """Those of the selected traces that have these texts in columns of `FEW`."""
        asked = (f"{name} = {self.texts[name].get(text, -1)}" for name, text in texts.items())
        return replace(self, where=" and ".join([self.where, *asked]))

    def ask(self, what: str, then: str = "") -> Iterator[tuple[Any, ...]]:
        """Columns, or SQL expressions of them, of the selected traces; ``then`` may group or order these."""
        return chain.from_iterable(self._pieces(what, then))

    def _pieces(self, what: str, then: str = "") -> Iterator[list[tuple[Any, ...]]]:
        return self.file.pieces(f"select {what} from traces where {self.where} {then}")

    def number(self, what: str) -> int:
        """One SQL aggregate over the selected traces; 0 where there are none."""
        [(found,)] = self.ask(what)
        return found or 0

    def counted(self, name: str) -> dict[str | None, int]:
        """How many traces have each text of a column of `FEW`, in the order in which the texts first occur."""
        names = list(self.texts[name])
        return {names[code]: n for code, n in self.ask(f"{name}, count(*)", f"group by {name} order by {name}")}

    def different(self, name: str) -> list[str | None]:
        """The texts of a column of `FEW`, in the order of `counted`."""
        return list(self.counted(name))

    def n_prompts(self) -> int:
        """Number of different prompts."""
        return self.number("count(distinct prompt)")

    def prompts(self) -> Iterator[int]:
        """Hashes of the different prompts, rising."""
        return (prompt + HALF for (prompt,) in self.ask("distinct prompt", "order by prompt"))

    def among(self, known: Hashes) -> tuple[int, str | None]:
        """How many of the prompts are among ``known``, and the id of the first trace of such a prompt, else None."""
        n, first, known = 0, None, np.sort(known)
        for some in self._pieces("prompt, min(row), id", "group by prompt"):
            ours = np.array([prompt + HALF for prompt, _, _ in some], np.uint64)
            at = np.searchsorted(known, ours)
            there = at < len(known)
            there[there] = known[at[there]] == ours[there]
            shared = [some[i][1:] for i in np.flatnonzero(there).tolist()]
            first = min(filter(None, [first, *shared]), default=None)
            n += len(shared)
        return n, first and first[1]

    def names(self) -> Iterator[tuple[str, int]]:
        """Id and sample of each trace."""
        return self.ask("id, sample", "order by row")  # pyright: ignore[reportReturnType]


def outlines(traces: Iterable[AnyTrace]) -> Outlines:
    """Read traces into a table, see `Outlines`."""
    texts: dict[str, dict[str | None, int]] = {name: {} for name in FEW}
    file = Scratch(TABLE)
    rows = (_row(row, trace, texts) for row, trace in enumerate(traces))
    file.write(f"insert into traces values ({', '.join('?' * len(COLUMNS))})", rows)
    return Outlines(file, texts)


def _row(row: int, trace: AnyTrace, texts: dict[str, dict[str | None, int]]) -> tuple[Any, ...]:
    """A trace as a row of the table."""
    trial = json.loads(trace.trial)
    free = trial.pop("free", None)
    found = {
        "sampling": trace.sampling,
        "trial": json.dumps(trial),
        "task": trace.task or None,
        "part": trace.group or trace.task or None,
        "answer_kind": trace.answer_kind,
        "barred": why_not(trace),
    }
    return (
        *(row, trace.id, short_hash(trace.prompt_hash) - HALF),
        *(trace.sample, trace.n_prompt, trace.n_think, trace.n_answer, len(trace.boundaries)),
        *(trace.reference is not None and trace.correct is not None, is_tried_throughout(trace), bool(free)),
        *(texts[name].setdefault(found[name], len(texts[name])) for name in FEW),
    )
