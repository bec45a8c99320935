"""Replays of traces that stay on the disk, a block of them at a time: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from specexit.data.rows import can_judge
from specexit.data.scores import StoredScores
from specexit.data.traces import stream_bare
from specexit.method.replay import Largest, Replay


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
