"""Whether the files of one page belong together, by the hashes that each carries of what it was made from.

Files of older versions carry none, and then nothing is compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from specexit.bench.inputs import draft_inputs, others
from specexit.bench.results import Results
from specexit.data.traces import data_sha256
from specexit.differences import file_sha256
from specexit.drafts.begun import FILE
from specexit.drafts.config import MAX_CONFIG, DraftError
from specexit.drafts.files import read_object
from specexit.errors import cut
from specexit.report.shown import ReportError


@dataclass(frozen=True)
class Measured:
    """What a page is about, as hashes; their keys are those of ``inputs`` in ``results.json``."""

    hashes: Mapping[str, str]
    """Of what was measured, and of ``requests.jsonl``."""
    traces: frozenset[str]
    """Of the trace files: the measured one, and the one that the page is given, as labelled traces are another file."""

    @classmethod
    def of(cls, bench: Path, results: Results, draft: Path | None, traces: Path) -> Measured:
        """The hashes of what a benchmark's folder was made from.

        Raises:
          ReportError: the draft's weights, config or policy are not those that were measured, so that its certificate
            would be read as one of these numbers.
          DraftError, TensorError, TraceError: a file cannot be read.
        """
        ours = draft_inputs(draft) if draft else {}
        if told := others(results.inputs, ours):
            raise ReportError(
                f"{bench / 'results.json'}: measured with {told}, expected {draft} as it was: measure again, or give "
                "the draft of then"
            )
        requests = bench / "requests.jsonl"
        written = {"requests": file_sha256(requests)} if requests.exists() else {}
        return cls(ours | results.inputs | written, frozenset({data_sha256(traces), results.inputs.get("traces", "")}))

    def refuse(self, path: Path, inputs: Mapping[str, str]) -> None:
        """Refuse a file that is of another draft, or of another benchmark's responses.

        Raises:
          ReportError: it is.
        """
        if told := others({key: found for key, found in inputs.items() if key != "traces"}, self.hashes):
            # Given several scores, `ablate` takes the first ones for all but one question.
            how = ", with scores of its draft first" if any(key.startswith("scores.") for key in inputs) else ""
            raise ReportError(f"{path}: made from {told}, expected what this benchmark measured: make it anew{how}")

    def remark(self, what: str, inputs: Mapping[str, str]) -> Iterator[str]:
        """A sentence where ``what`` is of other traces than the responses; none where it is not, or that is unknown."""
        if inputs and inputs["traces"] not in self.traces:
            yield f"{what} are of another file of traces than the benchmark."


def other_run(draft: Path, run: Path) -> str | None:
    """A sentence where a draft's ``convert.json`` names another run folder, of which this one may be a copy; else None.

    Raises:
      DraftError: the file cannot be read.
    """
    record = draft / FILE
    named = read_object(record, MAX_CONFIG, DraftError).get("run") if record.exists() else None
    if not isinstance(named, str):  # made from no run, or published, without the folders of that machine
        return None
    told = tuple(part for part in Path(os.path.normpath(named)).parts if part != "..")
    parts = Path(os.path.abspath(str(run))).parts
    # As `convert` was given it, perhaps from another working directory.
    if told and parts[len(parts) - len(told) :] == told:
        return None
    return f"The draft was made from the run {cut(named)}: nobody has checked that {run} is a copy of it."
