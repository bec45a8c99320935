"""What an exit method is to `simulate`: something that ends recorded traces at some of their boundaries, at a price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from specexit.data.rows import AnyTrace, heard_answers
from specexit.method.decision import Policy
from specexit.method.replay import Outcome, Replay
from specexit.schemas.simulate import SimulateConfig


@dataclass(frozen=True)
class Played:
    """One setting of a method, played on all traces."""

    setting: str
    """As a person would name it: ``validity >= 0.9``."""
    outcome: Outcome
    probe_tokens: Int[np.ndarray, " traces"] | None = None
    """Tokens generated beside the response in order to decide; None for a method that generates none."""
    policy: Policy | None = None
    """The setting as a policy that a server can be given, where it is one."""


@dataclass(frozen=True)
class Method:
    """One method, in one file: ``METHOD = Method(...)``."""

    name: str
    about: str
    """One line for the table."""
    play: Callable[[Replay, SimulateConfig], Iterable[Played]]
    """Plays all of its settings. They are swept on these very traces, so a method is shown by its whole curve."""
    tuned: bool = True
    """False: its settings are quoted as they are, and none is picked."""


def play_policies(replay: Replay, policies: Iterable[Policy], names: Callable[[Policy], str]) -> Iterator[Played]:
    """Settings that are plain policies."""
    for policy in policies:
        yield Played(names(policy), replay.play(policy), policy=policy)


def play_trials(
    replay: Replay,
    setting: str,
    stops: Callable[[AnyTrace, list[str | None], list[float]], bool],
    *,
    every: int = 0,
) -> Played:
    """Play a method that makes the target answer while it thinks, and ends the thinking once an answer suits it.

    Its trials are those that were recorded, and it pays for each one it asks for: its tokens and the end marker before.

    Args:
      replay: the traces.
      setting: name of the setting.
      stops: given a trace, and the answers and confidences of all its trials so far, whether to exit now.
      every: the fewest thinking tokens between two trials; 0 asks at every boundary that was tried.
    """
    exits = np.full(len(replay.traces), -1, np.int64)
    paid = np.zeros(len(replay.traces), np.int64)
    for i, trace in enumerate(replay.traces):
        answers, heard = list[str | None](), heard_answers(trace)
        sure: list[float] = []
        asked = 0
        for j, at in enumerate(trace.boundaries):
            if trace.boundary_state[j] == "untried" or at - asked < every:
                continue
            asked = at
            answers.append(heard[j])
            sure.append(trace.boundary_confidence[j])
            # Where the file does not say how long a trial was: as long as the answer.
            paid[i] += 1 + (trace.boundary_trial_tokens[j] or trace.n_answer)
            if stops(trace, answers, sure):
                exits[i] = j
                break
    return Played(setting, replay.outcome_at(exits), paid)
