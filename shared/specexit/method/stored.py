"""Replays of traces that stay on the disk, a block of them at a time: memory does not grow with their boundaries.

What a policy does to a trace takes five bytes. They are kept in a file, so that a policy can be asked for its `Outcome`
on all traces at any time, and it is what a `Replay` of all of them would say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped

from specexit.data.rows import can_judge
from specexit.data.scores import StoredScores
from specexit.data.traces import stream_bare
from specexit.method.decision import Policy
from specexit.method.replay import Largest, Outcome, Replay

RECORD = np.dtype([("kept", np.int32), ("flags", np.uint8)])
FLAGS = ("exited", "changed", "inferred", "right", "known")
"""Bits of ``flags``; the last two say what is ``correct``."""


def replays(
    traces: Path, scores: StoredScores, *, round_tokens: int = 3, largest: Largest | None = None
) -> Iterator[Replay]:
    """Replays of the traces of a file or folder that can judge, a block of them at a time, in their order.

    Raises:
      TraceError, ScoreError: see `stream_bare` and `StoredScores`.
    """
    for block in stream_bare(traces):
        if able := [trace for trace in block if can_judge(trace)]:
            yield Replay(able, scores.of(able), round_tokens=round_tokens, largest=largest)


class StoredReplay:
    """What each of some policies does to traces that are replayed block by block.

    Args:
      blocks: of the traces, each asked for once.
      policies: the only ones that can be played later.
      file: to keep the outcomes in: empty, and open for as long as policies are played.
    """

    def __init__(self, blocks: Iterable[Replay], policies: Sequence[Policy], file: IO[bytes]):
        self.policies, self._file, self._sizes = list(policies), file, list[int]()
        n_think, n_answer, correct = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
        for replay in blocks:
            for policy in self.policies:
                file.write(_packed(replay.play(policy)).tobytes())
            self._sizes.append(len(replay.n_think))
            n_think.append(replay.n_think)
            n_answer.append(replay.n_answer)
            correct.append(replay.correct)
        self.n_think, self.n_answer, self.correct = map(np.concatenate, (n_think, n_answer, correct))

    def play(self, policy: Policy) -> Outcome:
        """What a policy does to every trace.

        Raises:
          ValueError: it is none of those that were played.
        """
        row, start, found = self.policies.index(policy), 0, [np.zeros(0, RECORD)]
        for size in self._sizes:
            self._file.seek((start * len(self.policies) + row * size) * RECORD.itemsize)
            found.append(np.frombuffer(self._file.read(size * RECORD.itemsize), RECORD))
            start += size
        return _unpacked(np.concatenate(found))


AnyReplay = Replay | StoredReplay
"""What a policy does to each trace is the same in both."""


def _packed(outcome: Outcome) -> Shaped[np.ndarray, " traces"]:
    known = ~np.isnan(outcome.correct)
    bits = (outcome.exited, outcome.changed, outcome.inferred, outcome.correct == 1, known)
    packed = np.zeros(len(known), RECORD)
    packed["kept"] = outcome.kept
    for i, bit in enumerate(bits):
        packed["flags"] |= bit.astype(np.uint8) << i
    return packed


def _unpacked(packed: Shaped[np.ndarray, " traces"]) -> Outcome:
    bit = {name: packed["flags"] >> i & 1 == 1 for i, name in enumerate(FLAGS)}
    correct = np.where(bit["known"], bit["right"].astype(np.float64), np.nan)
    return Outcome(packed["kept"].astype(np.int64), bit["exited"], bit["changed"], correct, bit["inferred"])
