"""Whether a prompt opens the thinking, however it is looked through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.simulation import CPU, END, START, given_step
from tests.serving.worker import Group, new, ready, scheduled, text_of
from torch_specexit.plugin.worker import exits as module
from torch_specexit.plugin.worker import openings
from torch_specexit.plugin.worker.openings import opens_at_end, opens_in, opens_on_device, opens_thinking
from torch_specexit.plugin.worker.rule import BEFORE, STATE, THINKING, Admission
from torch_specexit.plugin.worker.slots import Slots

pytestmark = pytest.mark.vllm


def every_way(prompt: list[int], end: list[int]) -> set[bool]:
    """What each of the ways says, and the end of the prompt if that says anything."""
    array = np.array(prompt, np.int32)
    ways = [opens_thinking(prompt, START, end), opens_in(array, START, end)]
    ways.append(bool(opens_on_device(torch.from_numpy(array), START, end)))
    known = opens_at_end(prompt, START, end)
    return {*ways, *([] if known is None else [known])}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([5, START, 6], True),
        ([START, 5, END, 6], False),
        ([5, 6], False),
        ([], False),
        ([START, END, START], True),
        ([END, START, *[5] * 10_000], True),
        ([START, END, *[5] * 10_000], False),
        ([5] * 10_000, False),
    ],
)
def test_the_last_marker_of_a_prompt_decides(prompt, expected):
    assert every_way(prompt, [END]) == {expected}


@given(
    st.lists(st.sampled_from([START, END, 5]), max_size=9), st.integers(0, 2000), st.sampled_from([(END,), (5, END)])
)
@settings(max_examples=60, deadline=None)
def test_the_last_marker_is_found_wherever_it_is(tokens, behind, end):
    size = len(end)
    ends = [at + size for at in range(len(tokens) - size + 1) if tuple(tokens[at : at + size]) == end]
    starts = [at + 1 for at, token in enumerate(tokens) if token == START]
    expected = max(starts, default=-1) > max(ends, default=-1)
    assert every_way([*tokens, *[7] * behind], list(end)) == {expected}


def test_only_the_end_of_a_list_is_looked_at(monkeypatch):
    monkeypatch.setattr(openings, "TAIL", 4)
    assert opens_at_end([START, 5, 5, 5, 5], START, [END]) is None
    assert opens_at_end([END, START, 5, 5, 5], START, [END]) is True
    assert opens_at_end([5, END, 5, 5, 5], START, [5, END]) is None  # half of it is further in front
    assert opens_at_end([5, 5, 5, 5], START, [END]) is False  # there is no more


def test_what_is_found_later_is_in_the_row_of_the_request():
    slots = Slots(CPU, capacity=2)
    for name in "ab":
        slots.add(name, Admission(None, None, prompt=3))
    slots.open("a", torch.tensor(True))
    slots.open("b", torch.tensor(False))
    slots.flush()
    columns = [STATE.index(name) for name in ("phase", "start")]
    rows = slots.tables.state[slots.rows("ab").long()][:, columns]
    assert rows.tolist() == [[THINKING, 0], [BEFORE, -1]]
    assert slots.tables.state[slots.rows("a").long()].tolist() == [Admission(True, None, prompt=3).state()]


def exits_of_a_prompt(monkeypatch, prompt):
    """Whose last marker is not at the end, and whose row has not been asked for anything yet."""
    monkeypatch.setattr(module, "_ranks_of_model", Group)
    monkeypatch.setenv("SPECEXIT_CHECK", "0")
    monkeypatch.setattr(openings, "TAIL", 1)
    exits = ready()
    exits.track(scheduled(new("a", prompt)))
    assert exits.slots.admissions["a"].thinking is None
    return exits


@pytest.mark.parametrize(("marker", "text"), [(START, [[2], [END]]), (END, [[2], [5]])])
def test_a_request_exits_by_what_vllm_s_array_says_of_its_prompt(monkeypatch, marker, text):
    prompt = [marker, 5, 5]
    exits = exits_of_a_prompt(monkeypatch, prompt)
    exits.look_through(["a"], lambda name, size: torch.tensor(opens_in(np.array(prompt[:size]), START, [END])))
    assert exits.requests.unread == set()
    exits.look_through(["a"], lambda name, size: pytest.fail("it is known"))
    steps = [given_step(["a"], [[2]], at=[2]), given_step(["a"], [[5]], at=[3])]
    assert text_of(exits, *steps) == text


@pytest.mark.parametrize("v2", [True, False])
def test_one_that_comes_back_is_read_from_its_tokens(monkeypatch, v2):
    prompt, tokens = [START, 5, 5], [START, 5, 5, 2, 6]
    exits = exits_of_a_prompt(monkeypatch, prompt)
    exits.look_through(["a"], lambda name, size: torch.tensor(True))
    text_of(exits, given_step(["a"], [[2]], at=[2]))
    back = scheduled(new("a", prompt, prefill=tokens)) if v2 else scheduled(resumed={"a": tokens})
    exits.track(back)
    assert exits.slots.admissions["a"].thinking is True
    assert text_of(exits, given_step(["a"], [[6]], at=[4])) == [[6]]
    row = exits.slots.tables.state[exits.slots.row_of["a"]]
    assert row[STATE.index("phase")] == THINKING
    assert row[STATE.index("thoughts")] == 3


def test_a_request_that_is_finished_is_not_looked_at(monkeypatch):
    exits = exits_of_a_prompt(monkeypatch, [START, 5, 5])
    exits.track(scheduled(finished=["a"]))
    assert exits.requests.unread == set()
