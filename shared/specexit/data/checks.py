"""Checks of a trace file's rows: no value is missing or out of its range, and columns do not contradict each other.

Each check looks at a whole batch and names the first wrong row. Columns that were not read are not checked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from specexit.data.answers import KINDS
from specexit.data.answers.function import PREFIX
from specexit.data.columns import coded, flat_values, list_lengths
from specexit.data.rows import LABELLED_SCHEMA, SCHEMA, STATES
from specexit.data.seen import Seen
from specexit.errors import InputError

MOST_CONFIDENCE = 1.001
"""An engine rounds log-probabilities, so that the largest may be a little above 0, and a confidence above 1."""

_IDS = ("prompt_ids", "think_ids", "answer_ids")
_PER_BOUNDARY = tuple(name for name in SCHEMA.names if name.startswith("boundary_"))

Problem = tuple[int, str]
"""Row in the batch, and what is wrong with it: "FOUND, expected WANTED"."""


class TraceError(InputError):
    """A trace file that cannot be used; the message names the file, the column and what was expected."""


def check_rows(file: Path, batch: pa.RecordBatch, first: int = 0, vocab_size: int | None = None) -> None:
    """Check the rows of a batch.

    Args:
      file: that they are from, for messages.
      batch: columns of plain or labelled traces.
      first: number of its first row in the file.
      vocab_size: of the target, whose token ids are below it.

    Raises:
      TraceError: a row is wrong.
    """
    for check in CHECKS:
        _report(file, batch, first, check(batch))
    _report(file, batch, first, _ids(batch, vocab_size))


def once(batches: Iterable[pa.RecordBatch], path: Path) -> Iterator[pa.RecordBatch]:
    """Pass batches on as long as no trace occurs twice: it would be counted, or learnt from, twice.

    Raises:
      TraceError: a trace occurs twice.
    """
    seen = Seen()
    for batch in batches:
        for key in zip(batch["id"].to_pylist(), batch["sample"].to_pylist(), strict=True):
            if not seen.add(hash(key)):
                raise TraceError(
                    f"{path}: trace {key[0]!r}, sample {key[1]}, is there twice, expected every sample of a prompt once"
                )
        yield batch


def _report(file: Path, batch: pa.RecordBatch, first: int, problem: Problem | None) -> None:
    if problem is None:
        return
    row, what = problem
    name = batch["id"][row].as_py() if "id" in batch.schema.names else None
    raise TraceError(f"{file}: trace {f'number {first + row}' if name is None else repr(name)} has {what}")


def _has(batch: pa.RecordBatch, *names: str) -> bool:
    return all(name in batch.schema.names for name in names)


def _first(wrong: Bool[np.ndarray, " n"]) -> int | None:
    return int(np.argmax(wrong)) if wrong.any() else None


def _first_value(column: pa.Array, wrong: Bool[np.ndarray, " values"]) -> tuple[int, int] | None:
    """Row of the first wrong value in a column of lists, and its place in that list; None where none is wrong."""
    at = _first(wrong)
    if at is None:
        return None
    ends = np.cumsum(list_lengths(column))
    row = int(np.searchsorted(ends, at, side="right"))
    return row, at - int(ends[row] - list_lengths(column)[row])


def _nulls(batch: pa.RecordBatch) -> Problem | None:
    for name in batch.schema.names:
        column, field = batch[name], LABELLED_SCHEMA.field(name)
        if not field.nullable and column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            return row, f"no {name}, expected a value of type {field.type}"
        if not pa.types.is_list(field.type) or name in ("boundary_answers", "choices"):
            continue
        values = column.flatten()
        if values.null_count:
            found = _first_value(column, values.is_null().to_numpy(zero_copy_only=False))
            assert found is not None
            return found[0], f"null at {found[1]} of {name}, expected {field.type.value_type}"
    return None


def _lengths(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "boundaries"):
        return None
    n = list_lengths(batch["boundaries"])
    for name in filter(batch.schema.names.__contains__, _PER_BOUNDARY):
        lengths = list_lengths(batch[name])
        if (row := _first(lengths != n)) is not None:
            return row, f"{lengths[row]} {name}, expected {n[row]} as it has boundaries"
    return None


def _prompts(batch: pa.RecordBatch) -> Problem | None:
    """A draft judges a token by the one before it, so the first thinking token needs one."""
    if not _has(batch, "prompt_ids") or (row := _first(list_lengths(batch["prompt_ids"]) == 0)) is None:
        return None
    return row, "no prompt_ids, expected at least one token"


def _samples(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "sample"):
        return None
    samples = batch["sample"].to_numpy(zero_copy_only=False)
    return None if (row := _first(samples < 0)) is None else (row, f"sample {samples[row]}, expected 0 or more")


def _order(batch: pa.RecordBatch) -> Problem | None:
    """Boundaries rise from 1 to at most the number of thinking tokens."""
    if not _has(batch, "boundaries", "think_ids"):
        return None
    n, n_think = list_lengths(batch["boundaries"]), list_lengths(batch["think_ids"])
    flat, owner = flat_values(batch["boundaries"], np.int64), _owner(n)
    before = np.concatenate([[0], flat[:-1]])[: len(flat)]
    first = np.concatenate([[True], owner[1:] != owner[:-1]])[: len(flat)]
    found = _first_value(batch["boundaries"], (flat <= np.where(first, 0, before)) | (flat > n_think[owner]))
    if found is None:
        return None
    offsets = batch["boundaries"][found[0]].as_py()
    return found[0], (f"boundaries {offsets}, expected rising offsets within its {n_think[found[0]]} thinking tokens")


def _owner(n: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " values"]:
    """Row of each value."""
    return np.repeat(np.arange(len(n)), n)


def _states(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "boundary_state"):
        return None
    codes, names = coded(batch["boundary_state"].flatten())
    found = _first_value(batch["boundary_state"], ~_is(codes, names, *STATES))
    if found is None:
        return None
    row, at = found
    return row, f"boundary_state {batch['boundary_state'][row][at].as_py()!r}, expected one of {', '.join(STATES)}"


def _is(codes: Int[np.ndarray, " n"], names: list[str], *states: str) -> Bool[np.ndarray, " n"]:
    return np.isin(codes, [code for code, name in enumerate(names) if name in states])


def _verdicts(batch: pa.RecordBatch) -> Problem | None:
    """A trial's verdict is the same in both columns; that of an untried boundary is inferred."""
    if not _has(batch, "boundary_state", "boundary_agrees"):
        return None
    codes, names = coded(batch["boundary_state"].flatten())
    agrees = flat_values(batch["boundary_agrees"], np.bool_)
    wrong = np.where(agrees, _is(codes, names, "differs", "undecided"), _is(codes, names, "agrees"))
    found = _first_value(batch["boundary_state"], wrong)
    if found is None:
        return None
    row, at = found
    value, state = batch["boundary_agrees"][row][at].as_py(), batch["boundary_state"][row][at].as_py()
    return row, f"{value} at {at} of boundary_agrees, expected {not value} as its boundary_state is {state!r}"


def _confidence(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "boundary_confidence"):
        return None
    flat = flat_values(batch["boundary_confidence"], np.float32)
    found = _first_value(batch["boundary_confidence"], ~((flat >= 0) & (flat <= MOST_CONFIDENCE)))
    if found is None:
        return None
    row, at = found
    value = batch["boundary_confidence"][row][at].as_py()
    return row, f"{value:g} at {at} of boundary_confidence, expected a probability from 0 to 1"


def _trial_tokens(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "boundary_trial_tokens"):
        return None
    tokens = flat_values(batch["boundary_trial_tokens"], np.int32)
    found = _first_value(batch["boundary_trial_tokens"], tokens < 0)
    if found is None:
        return None
    row, at = found
    value = batch["boundary_trial_tokens"][row][at].as_py()
    return row, f"{value} at {at} of boundary_trial_tokens, expected 0 or more"


def _kinds(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "answer_kind"):
        return None
    codes, names = coded(batch["answer_kind"])
    unknown = [code for code, name in enumerate(names) if name not in KINDS and not name.startswith(PREFIX)]
    if (row := _first(np.isin(codes, unknown))) is not None:
        return row, f"answer_kind {names[codes[row]]!r}, expected {', '.join(KINDS)} or {PREFIX}module:name"
    return None


def _samplings(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "sampling"):
        return None
    codes, texts = coded(batch["sampling"])
    wrong = [code for code, text in enumerate(texts) if _object(text) is None]
    if (row := _first(np.isin(codes, wrong))) is not None:
        return row, f"sampling {texts[codes[row]]!r:.200}, expected a JSON object"
    return None


def _trials(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "trial"):
        return None
    n = list_lengths(batch["boundaries"]).tolist() if _has(batch, "boundaries") else [sys.maxsize] * len(batch)
    for row, text in enumerate(batch["trial"].to_pylist()):
        trial = _object(text)
        if trial is None:
            return row, f"trial {text!r:.200}, expected a JSON object"
        free = trial.get("free", [])
        if not isinstance(free, list):
            return row, f"free {free!r} in its trial, expected a list"
        for one in free:
            if not _is_free_trial(one, n[row]):
                return row, (
                    f"{one!r} in free of its trial, expected boundary (the index of one of its boundaries), answer "
                    "(text or null), same (true, false or null) and tokens"
                )
    return None


def _is_free_trial(value: object, n: int) -> bool:
    """Whether it is a `specexit.data.rows.FreeTrial` of a trace with so many boundaries."""
    match value:
        case {"boundary": int(at), "answer": str() | None, "same": bool() | None, "tokens": int(), **rest}:
            return 0 <= at < n and not rest
    return False


def _object(text: str) -> dict[str, object] | None:
    """The JSON object of a text; None where the text is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _exits(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "boundaries", "think_ids", "exit_earliest", "exit_stable"):
        return None
    n, n_think = list_lengths(batch["boundaries"]), list_lengths(batch["think_ids"])
    flat, owner = flat_values(batch["boundaries"], np.int64), _owner(n)
    for name in ("exit_earliest", "exit_stable"):
        exits = batch[name].to_numpy(zero_copy_only=False)
        at_one = np.bincount(owner[flat == exits[owner]], minlength=len(n)) > 0
        if (row := _first(~at_one & (exits != n_think))) is not None:
            return row, (
                f"{name} {exits[row]}, expected one of its boundaries or {n_think[row]}, its thinking tokens: run "
                "specexit annotate again"
            )
    return None


def _exits_agree(batch: pa.RecordBatch) -> Problem | None:
    """Exit points are those of `specexit.method.labels.exit_point`; in older files an undecided trial ended a stable
    answer, so that its exit point may come later."""
    if not _has(batch, "boundaries", "boundary_agrees", "think_ids", "exit_earliest", "exit_stable"):
        return None
    flat, agrees = flat_values(batch["boundaries"], np.int64), flat_values(batch["boundary_agrees"], np.bool_)
    owner, n_think = _owner(list_lengths(batch["boundaries"])), list_lengths(batch["think_ids"])

    def first(good: Bool[np.ndarray, " boundaries"]) -> Int[np.ndarray, " rows"]:
        found = n_think.copy()
        np.minimum.at(found, owner[good], flat[good])
        return found

    def behind(wrong: Bool[np.ndarray, " boundaries"]) -> Bool[np.ndarray, " boundaries"]:
        last = np.zeros(len(batch), np.int64)
        np.maximum.at(last, owner[wrong], flat[wrong])
        return flat > last[owner]

    differs = ~agrees
    if _has(batch, "boundary_state"):
        differs = _is(*coded(batch["boundary_state"].flatten()), "differs")
    for name, least, most in (
        ("exit_earliest", first(agrees), first(agrees)),
        ("exit_stable", first(agrees & behind(differs)), first(behind(~agrees))),
    ):
        exits = batch[name].to_numpy(zero_copy_only=False)
        if (row := _first((exits < least) | (exits > most))) is not None:
            expected = f"{least[row]} by its boundary_agrees"
            return row, f"{name} {exits[row]}, expected {expected}: run specexit annotate again"
    return None


def _hard_boundaries(batch: pa.RecordBatch) -> Problem | None:
    if not _has(batch, "boundaries", "hard_boundary"):
        return None
    n = list_lengths(batch["boundaries"])
    index = batch["hard_boundary"].fill_null(0).to_numpy(zero_copy_only=False)
    is_null = batch["hard_boundary"].is_null().to_numpy(zero_copy_only=False)
    if (row := _first(~is_null & ((index < 0) | (index >= n)))) is not None:
        return row, f"hard_boundary {index[row]}, expected the index of one of its {n[row]} boundaries, or none"
    return None


CHECKS = (
    _nulls,
    _lengths,
    _prompts,
    _samples,
    _order,
    _states,
    _verdicts,
    _confidence,
    _trial_tokens,
    _kinds,
    _samplings,
    _trials,
    _exits,
    _exits_agree,
    _hard_boundaries,
)


def _ids(batch: pa.RecordBatch, vocab_size: int | None) -> Problem | None:
    for name in filter(batch.schema.names.__contains__, _IDS):
        flat = flat_values(batch[name], np.int32)
        wrong = flat < 0 if vocab_size is None else (flat < 0) | (flat >= vocab_size)
        if (found := _first_value(batch[name], wrong)) is not None:
            value = batch[name][found[0]][found[1]].as_py()
            expected = "0 or more" if vocab_size is None else f"a token of the target, from 0 to {vocab_size - 1}"
            return found[0], f"{value} at {found[1]} of {name}, expected {expected}"
    return None
