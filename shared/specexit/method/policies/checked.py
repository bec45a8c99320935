"""Checks that a method in a file of its own is one and plays as one, with errors that name the file and the mistake."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from specexit.errors import InputError
from specexit.method.decision import Policy
from specexit.method.policies.method import Method, Played
from specexit.method.replay import Outcome, Replay
from specexit.schemas.simulate import SimulateConfig


class MethodError(InputError):
    """A file that holds no exit method, or one that cannot be played."""


def check_method(found: object, path: Path) -> Method:
    """What a file calls ``METHOD``, if it is one.

    Raises:
      MethodError: it is not, or one of its fields is not what `Method` says.
    """
    if not isinstance(found, Method):
        raise MethodError(f"{path}: METHOD is {found!r}, expected a specexit.method.policies.Method")
    wrong = {
        "name": not _is_text(found.name),
        "about": not _is_text(found.about),
        "play": not callable(found.play),
        "tuned": not isinstance(found.tuned, bool),
    }
    expected = {"play": "a function of a Replay and a SimulateConfig", "tuned": "true or false"}
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        said = expected.get(name, "a line of text")
        raise MethodError(f"{path}: {name} of METHOD is {getattr(found, name)!r}, expected {said}")
    return found


def play_checked(method: Method, replay: Replay, config: SimulateConfig) -> Iterator[Played]:
    """The settings of a method that comes from a file, played on a block of traces and looked at one by one.

    Raises:
      MethodError: it fails, and where; or what it gives is no `Played`, or not one of these traces.
    """
    try:
        for played in method.play(replay, config):
            yield _check_played(method.name, played, replay)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise MethodError(f"method {method.name}: play fails{_line_of(error, method)}: {error!r}") from error


def _line_of(error: BaseException, method: Method) -> str:
    """Where the method's own file has led to an error, be it raised elsewhere; nothing where it has not."""
    own = getattr(getattr(method.play, "__code__", None), "co_filename", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f" in {own}:{frames[-1].lineno}" if frames else ""


def _check_played(name: str, played: Any, replay: Replay) -> Played:
    n = len(replay.traces)
    if not isinstance(played, Played):
        raise MethodError(f"method {name}: play gives {played!r}, expected a specexit.method.policies.Played")
    if not _is_text(played.setting):
        raise MethodError(f"method {name}: setting is {played.setting!r}, expected a line of text")
    whose = f"method {name}, setting {played.setting}"
    if not isinstance(played.outcome, Outcome):
        raise MethodError(f"{whose}: outcome is {played.outcome!r}, expected what a Replay gives, such as outcome_at")
    for field in fields(Outcome):
        shape = np.shape(getattr(played.outcome, field.name))
        if shape != (n,):
            raise MethodError(f"{whose}: outcome.{field.name} has shape {shape}, expected ({n},), the traces")
    kept, probes = played.outcome.kept, played.probe_tokens
    if (kept < 0).any() or (kept > replay.n_think).any():
        raise MethodError(f"{whose}: outcome.kept has {kept.min()} to {kept.max()}, expected 0 to a trace's tokens")
    if probes is not None and (np.shape(probes) != (n,) or not np.issubdtype(np.asarray(probes).dtype, np.integer)):
        raise MethodError(f"{whose}: probe_tokens is {probes!r}, expected {n} whole numbers, or None")
    if probes is not None and (probes < 0).any():
        raise MethodError(f"{whose}: probe_tokens has {probes.min()}, expected no number below 0")
    if not (played.policy is None or isinstance(played.policy, Policy)):
        raise MethodError(f"{whose}: policy is {played.policy!r}, expected a Policy, or None")
    return played


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()
