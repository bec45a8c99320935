"""Certaindex (Dynasor, Fu et al. 2024, arXiv 2412.20993): ask every so many tokens, exit once the answers are settled.

Settled is measured by the entropy of the last w answers: ``1 - H / log(w)`` is 1 where all are the same. Dynasor asks
at fixed distances; here it asks at the first boundary behind each. `specexit.bench.methods.certaindex` is another rule:
it probes every 32 tokens, wherever that falls, until 3 answers agree.
"""

import math
from collections.abc import Iterator
from itertools import product

from specexit.data.answers import same_answer
from specexit.method.policies.method import Method, Played, play_trials
from specexit.method.replay import Replay
from specexit.schemas.simulate import SimulateConfig

WINDOWS = (2, 3, 5)
DISTANCES = (0, 32, 64)
CERTAINTIES = (1.0, 0.5)


def certainty(answers: list[str | None], window: int, kind: str = "math") -> float:
    """How settled the last ``window`` answers are, 0..1: 0 where there are fewer, or the last is missing. A missing one
    before it counts as an answer of its own.

    Example:
      >>> certainty(["7", "7", "7"], 3), round(certainty(["7", "8", "7"], 3), 2), certainty(["7"], 3)
      (1.0, 0.42, 0.0)
    """
    last = answers[-window:]
    if len(last) < window or last[-1] is None:
        return 0.0
    kinds: list[tuple[str | None, int]] = []
    for answer in last:
        for i, (other, count) in enumerate(kinds):
            if answer is not None and same_answer(answer, other, kind):
                kinds[i] = (other, count + 1)
                break
        else:
            kinds.append((answer, 1))
    entropy = -sum(count / window * math.log(count / window) for _, count in kinds)
    return 1.0 - entropy / math.log(window)


def _play(replay: Replay, config: SimulateConfig) -> Iterator[Played]:
    for window, distance, least in product(WINDOWS, DISTANCES, CERTAINTIES):
        yield play_trials(
            replay,
            f"last {window} answers, every {distance} tokens, certainty >= {least:g}",
            lambda trace, answers, sure, window=window, least=least: (
                certainty(answers, window, trace.answer_kind) >= least - 1e-9
            ),
            every=distance,
        )


METHOD = Method("certaindex", "trial answers at boundaries so many tokens apart, their entropy low", _play)
