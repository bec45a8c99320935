"""What the tokens of a request say about it by themselves: the part of its row in the tables that has no memory of
signals. In plain Python, token by token; what the fast versions know is checked against it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch_specexit.plugin.worker.loops import FINGERPRINT, NOTHING, Follower
from torch_specexit.plugin.worker.rule import (
    BEFORE,
    BEGINS,
    BOUNDARY,
    OTHER,
    OVER,
    STATE,
    THINKING,
    THOUGHT,
    Admission,
    Markers,
)

READ = ("phase", "thoughts", "start", "matched", "last", "outputs", *FINGERPRINT)
"""Columns of `rule.STATE` that follow from the tokens. A boundary becomes a mere thought when it has been judged."""


class Reader:
    """Reads the tokens of requests.

    Args:
      markers: what tokens mean.
    """

    def __init__(self, markers: Markers):
        self.bits: list[int] = markers.bits.tolist()
        closing: list[int] = markers.closing.tolist()
        self.marker = closing[len(closing) - markers.n_marker :]
        self.loops = markers.loops

    def read(self, admission: Admission, tokens: Sequence[int]) -> dict[str, int]:
        """Columns of `READ` behind the output tokens of a request."""
        return self._read(admission, tokens)[0]

    def _read(self, admission: Admission, tokens: Sequence[int]) -> tuple[dict[str, int], Follower | None]:
        follower = Follower(self.loops) if self.loops else None
        phase, start = (THINKING, 0) if admission.thinking else (BEFORE, -1)
        thoughts = matched = 0
        last = OTHER
        wanted, least = admission.knobs()[0], admission.knobs()[2]
        for position, token in enumerate(tokens):
            meant = self.bits[token] & wanted if 0 <= token < len(self.bits) - 1 else 0
            last = OTHER
            if phase == BEFORE and meant & BEGINS:
                phase, start = THINKING, position + 1
            elif phase == THINKING:
                matched = matched + 1 if token == self.marker[matched] else int(token == self.marker[0])
                if matched == len(self.marker):
                    phase, thoughts, matched = OVER, thoughts - len(self.marker) + 1, 0
                    continue
                thoughts, last = thoughts + 1, THOUGHT
                if follower is not None:
                    follower.push(token)
                if meant & (BEGINS - 1) and not matched and thoughts >= least:
                    last = BOUNDARY
        loops = follower.columns() if follower else dict.fromkeys(FINGERPRINT, 0) | NOTHING
        found = (phase, thoughts, start, matched, last, len(tokens), *loops.values())
        return dict(zip(READ, found, strict=True)), follower

    def rebuild(self, admission: Admission, tokens: Sequence[int]) -> tuple[list[float], list[int]]:
        """Rows of `Tables.state` and `Tables.recent` from the tokens: without any memory of verdicts, and with nothing
        left to be judged."""
        read, follower = self._read(admission, tokens)
        row = dict(zip(STATE, admission.state(), strict=True)) | read
        row["last"] = min(row["last"], THOUGHT)
        return [float(value) for value in row.values()], follower.kept() if follower else []
