"""Which prompts a draft was trained on, or a method tuned on, so that nothing is judged or calibrated on them.

Beside packed data, and later in the draft directory, lies ``prompts.npy``: the first eight bytes of each training
prompt's hash (`specexit.data.rows.Trace.prompt_hash`), sorted. Prompts are the same if their tokens are, whatever
their ids and samples.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from specexit.config import write_bytes
from specexit.data.outlines import Hashes, Outlines, outlines
from specexit.data.rows import AnyTrace, short_hash
from specexit.data.traces import data_sha256
from specexit.drafts.files import read_bytes
from specexit.drafts.policy import PolicyFile, Selection
from specexit.errors import InputError

FILE = "prompts.npy"
MAX_BYTES = 2**28
"""Size of a list that can be read: 33 million prompts."""


class OverlapError(InputError):
    """Prompts are used where they must not be, or a list of prompts cannot be read or written."""


def write_prompts(folder: Path, hashes: Hashes | Collection[int]) -> None:
    """Write the prompts' hashes, which are given rising, into a folder.

    Raises:
      OverlapError: there are more of them than can be read back.
    """
    if 8 * len(hashes) >= MAX_BYTES:
        raise OverlapError(
            f"{folder / FILE}: would hold {len(hashes)} prompts, expected fewer than {MAX_BYTES // 8} in one folder"
        )
    buffer = io.BytesIO()
    np.save(buffer, np.fromiter(hashes, np.uint64, len(hashes)), allow_pickle=False)
    write_bytes(folder / FILE, buffer.getvalue())


def copy_prompts(source: Path, folder: Path) -> None:
    """Copy the list of a run to a draft, or back; do nothing where there is none.

    Raises:
      OverlapError, TensorError: see `read_prompts`: whatever judges the run or draft later would refuse it.
    """
    if read_prompts(source) is not None:
        write_bytes(folder / FILE, read_bytes(source / FILE, MAX_BYTES))


def join_prompts(sources: Iterable[Path], folder: Path) -> None:
    """Merge the lists of several folders into one in another folder; do nothing where none of them has one.

    Raises:
      OverlapError, TensorError: see `read_prompts`.
    """
    found = [hashes for hashes in map(read_prompts, sources) if hashes is not None]
    if found:
        write_prompts(folder, np.unique(np.concatenate(found)))


def read_prompts(folder: Path) -> Hashes | None:
    """The prompts' hashes in a folder; None where it does not say.

    Raises:
      OverlapError: the list is none.
      TensorError: see `specexit.drafts.files.read_bytes`.
    """
    path = folder / FILE
    if not path.exists():
        return None
    data = read_bytes(path, MAX_BYTES)
    try:
        return _hashes_in(data)
    except ValueError as error:
        raise OverlapError(f"{path}: cannot be read as the hashes of prompts: {error}") from error


def _hashes_in(data: bytes) -> Hashes:
    """What `write_prompts` wrote. `np.load` would make room for whatever number of values a header claims."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("expected version 1.0 of NumPy's format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    values = data[file.tell() :]
    if dtype != np.uint64 or shape != (len(values) // 8,):
        raise ValueError(f"its {len(values)} bytes are said to be {dtype} {list(shape)}, expected uint64 in one row")
    return np.frombuffer(values, np.uint64)


def refuse_trained(folder: Path, traces: Sequence[AnyTrace] | Outlines, where: Path) -> None:
    """Check that no trace is of a prompt that was trained on; a folder without a list of prompts refuses nothing.

    Args:
      folder: packed data or a draft.
      traces: what is to be judged.
      where: path of the traces, for the message.

    Raises:
      OverlapError: some are.
      OverlapError, TensorError: see `read_prompts`.
    """
    trained = read_prompts(folder)
    if trained is None:
        return
    known = traces if isinstance(traces, Outlines) else outlines(traces)
    shared, first = known.among(trained)
    if shared:
        raise OverlapError(
            f"{where}: {shared} of {known.n_prompts()} prompts were trained on according to {folder / FILE} (the first "
            f"is of trace {first!r}), expected prompts of a split of their own"
        )


def unlisted(draft: Path) -> list[str]:
    """A remark where a draft has no list of prompts, so that `refuse_trained` refuses nothing; empty where it has."""
    if (draft / FILE).exists():
        return []
    return [
        f"{draft}: does not list what it was trained on (no {FILE}): nobody can tell whether these prompts were among "
        "it, on which it would look better"
    ]


def refuse_selected(
    folder: Path, selection: Selection | None, traces: Sequence[AnyTrace] | Outlines, where: Path
) -> None:
    """Check that no trace is of a prompt that chose a draft's checkpoint.

    Args:
      folder: of the draft, for the message.
      selection: what its ``policy.json`` says of that; None where nothing was chosen.
      traces: what is to be judged.
      where: path of the traces, for the message.

    Raises:
      OverlapError: some are.
    """
    if selection is None:
        return
    known = traces if isinstance(traces, Outlines) else outlines(traces)
    both, _ = known.among(np.array([short_hash(prompt) for prompt in selection.prompts], np.uint64))
    if both:
        raise OverlapError(
            f"{where}: {both} of {known.n_prompts()} prompts chose the checkpoint of {folder} (by {selection.by}), "
            "which makes it look better on them: expected prompts that nothing was selected on"
        )


def refuse_calibrated(folder: Path, stored: PolicyFile, where: Path) -> None:
    """Check that no policy of a draft was certified on the very trace files that are judged; it does not notice other
    files of the same prompts.

    Args:
      folder: of the draft, for the message.
      stored: its ``policy.json``.
      where: path of the traces.

    Raises:
      OverlapError: one was.
      TraceError: they cannot be read.
    """
    on = {point.certificate.data_sha256: point.name for point in stored.points if point.certificate is not None}
    if on and (name := on.get(data_sha256(where))):
        raise OverlapError(
            f"{where}: point {name!r} of {folder} was certified on these very traces, and looks better on them: "
            "expected other prompts"
        )


def refuse_shared(known: Outlines, source: Path, traces: Sequence[AnyTrace], where: Path) -> None:
    """Check that no prompt that parameters are chosen on is among those that are judged.

    Args:
      known: traces that parameters are chosen on.
      source: their path, for the message.
      traces: what is judged.
      where: their path, for the message.

    Raises:
      OverlapError: some are.
    """
    judged = outlines(traces)
    shared, first = judged.among(np.fromiter(known.prompts(), np.uint64, known.n_prompts()))
    if shared:
        raise OverlapError(
            f"{source}: {shared} of its {known.n_prompts()} prompts are among the {judged.n_prompts()} of {where} (the "
            f"first is of trace {first!r}), expected other ones: what is tuned on a problem looks better on it"
        )
