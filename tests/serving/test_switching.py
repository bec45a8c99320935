"""Words of an operator to several API servers with one policy file: the newest is in force in all that it reaches."""

from __future__ import annotations

import pytest

from tests.serving.points import POINTS
from tests.serving.test_watch import api_servers, served_by, written
from tests.serving.test_watch import draft as draft
from torch_specexit.plugin.frontend import watch as watching


def say_alone(front, monkeypatch, **word):
    """A word to an API server that cannot write the policy file."""

    def read_only(*_args):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as m:
        m.setattr(watching, "write_policy", read_only)
        assert front.switch(**word)["api_servers"] == 1


@pytest.mark.parametrize(
    ("alone", "then", "served"),
    [
        ({"mode": "exit"}, {"mode": "off"}, [("off", "usual")] * 2),
        ({"mode": "shadow"}, {"mode": "off"}, [("off", "usual")] * 2),
        ({"point": "bold"}, {"point": "usual"}, [("off", "usual")] * 2),
        ({"mode": "exit", "point": "bold"}, {"mode": "off"}, [("off", "bold"), ("off", "usual")]),
        ({"mode": "exit", "point": "bold"}, {"point": "usual"}, [("exit", "usual"), ("off", "usual")]),
    ],
    ids=str,
)
def test_a_word_that_is_said_to_reach_all_reaches_one_that_has_a_word_of_its_own(
    alone, then, served, draft, monkeypatch
):
    """A kill switch to one said that it reached 2 of 2, while the other went on exiting by a word that it alone had
    got: the mode in the file was `off` before, and so had not changed."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    written(draft, serving={"mode": "off"})
    first, second = api_servers(draft)
    say_alone(first, monkeypatch, **alone)
    assert second.switch(**then)["api_servers"] == 2
    assert [served_by(front) for front in (first, second)] == served


@pytest.mark.parametrize("n", [1, 2])
def test_a_word_goes_over_those_that_were_in_the_file_before(n, draft, monkeypatch):
    """Read after it, within a second, they would undo a kill switch."""
    written(draft, serving={"mode": "shadow"})
    first, second = api_servers(draft)
    first.api_servers = n
    second.switch(mode="exit")
    say = {1: lambda: first.switch(mode="off"), 2: lambda: say_alone(first, monkeypatch, mode="off")}
    say[n]()
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    assert served_by(first) == ("off", "usual")


def test_a_word_outlives_a_calibration_and_any_other_edit_of_the_file(draft, monkeypatch):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    first, second = api_servers(draft)
    second.switch(mode="exit", point="usual")
    say_alone(first, monkeypatch, mode="off", point="careful")
    history = [event.model_dump() for event in second.operation.file.history]
    calibrated = {"when": "2026-01-01T00:00:00+00:00", "what": "calibrate"}
    written(draft, points=POINTS[:3], history=[*history, calibrated], serving={"share": 0.5})
    assert (served_by(first), first.operation.serving.share) == (("off", "careful"), 0.5)
