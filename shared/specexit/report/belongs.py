"""Whether what is put on one page belongs together, by the hashes that files carry of what they are of.

Files of before carry none, and then nothing is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from specexit.bench.inputs import draft_inputs
from specexit.bench.results import Results
from specexit.differences import SHOWN
from specexit.report.shown import ReportError


def refuse_other_draft(path: Path, results: Results, draft: Path) -> None:
    """Refuse a draft that was not measured: its certificate would be read as one of these numbers.

    Args:
      path: of the results, for messages.
      results: of the benchmark.
      draft: as it is now.

    Raises:
      ReportError: its weights or its policy are others than those that were measured.
      DraftError, TensorError: it cannot be read.
    """
    if {"draft.weights", "draft.policy"} & set(results.inputs):
        _compare(path, results.inputs, draft_inputs(draft), f"{draft} has", "measure again, or give the draft of then")


def _compare(path: Path, there: Mapping[str, str], here: Mapping[str, str], whose: str, advice: str) -> None:
    for key, ours in here.items():
        theirs = there.get(key, ours)
        if theirs != ours:
            raise ReportError(
                f"{path}: inputs.{key} is {theirs[:SHOWN]}, but {whose} {ours[:SHOWN]}, expected the same: {advice}"
            )
