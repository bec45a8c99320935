"""Ask for an answer at every boundary that was tried, and exit once the last m of them are the same."""

from collections.abc import Iterator

from specexit.data.answers import same_answer
from specexit.method.policies.method import Method, Played, play_trials
from specexit.method.replay import Replay
from specexit.schemas.simulate import SimulateConfig

MOST = 8


def agree(answers: list[str | None], m: int, kind: str = "math") -> bool:
    """Whether the last m answers are there and all the same.

    Example:
      >>> agree(["1", "7", "7"], 2), agree(["7", "7"], 3), agree([None, None], 2)
      (True, False, False)
    """
    last = answers[-m:]
    return len(last) == m and all(same_answer(answer, last[0], kind) for answer in last)


def _play(replay: Replay, config: SimulateConfig) -> Iterator[Played]:
    for m in range(1, MOST + 1):
        yield play_trials(
            replay, f"{m} the same", lambda trace, answers, sure, m=m: agree(answers, m, trace.answer_kind)
        )


METHOD = Method("stability", "trial answers at every boundary, the last m the same", _play)
