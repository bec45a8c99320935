"""DEER (Yang et al. 2025, arXiv 2504.15895): ask for an answer at every boundary, and exit once it is confident.

Its confidence is the geometric mean of the probabilities of the trial answer's tokens, its own threshold 0.95. The
original asks where words such as "Wait" begin a new thought; here it asks at the boundaries that were tried.
"""

from collections.abc import Iterator

from specexit.method.policies.method import Method, Played, play_trials
from specexit.method.replay import Replay
from specexit.schemas.simulate import SimulateConfig

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 0.9999)


def _play(replay: Replay, config: SimulateConfig) -> Iterator[Played]:
    for tau in THRESHOLDS:
        yield play_trials(
            replay,
            f"trial confidence >= {tau:g}",
            lambda trace, answers, sure, tau=tau: answers[-1] is not None and sure[-1] >= tau,
        )


METHOD = Method("deer", "trial answers at every boundary, one of them confident", _play)
