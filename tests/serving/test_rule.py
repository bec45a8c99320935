"""The eager version of the exit rule against its definition, `specexit.method.decision`, without an engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.method.decision import OFF, Policy
from specexit.method.signals import NAMES, activate
from specexit.method.splits import ALL_STRINGS
from tests.serving.simulation import CPU, END, GARBAGE, IDS, START, VOCAB, Request, Simulation, requests
from torch_specexit.plugin.worker.cost import eager_ops
from torch_specexit.plugin.worker.late import Late
from torch_specexit.plugin.worker.rule import BEGINS, ENDS, KNOBS, STATE, Admission, Markers, Sampled
from torch_specexit.plugin.worker.slots import Slots, opens_thinking
from torch_specexit.plugin.worker.twin import Twin
from torch_specexit.plugin.worker.twin import activate as activate_in_torch

sources = pytest.mark.parametrize("source", ["draft", "late", "fc"])


@pytest.mark.parametrize(("source", "smooth"), [("draft", False), ("late", False), ("fc", False), ("fc", True)])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_grouping_gives_the_text_and_the_outcome_of_the_definition(source, smooth, data):
    batch = data.draw(st.lists(requests(smooth), min_size=1, max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    simulation = Simulation(Late if source == "late" else Twin, source, batch, rng, smooth=smooth)
    simulation.run()
    simulation.check()


@sources
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_exits_off_and_shadow_mode_change_no_text(source, data):
    always = Policy(thresholds={})
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    simulation = Simulation(
        Late if source == "late" else Twin, source, [Request(None), Request(always, shadow=True)], rng
    )
    simulation.run()
    simulation.check()
    assert simulation.texts == simulation.streams


def table() -> Markers:
    return Markers.of(IDS, VOCAB, CPU)


def test_tokens_mean_what_the_split_strings_say():
    bits = table().bits.tolist()
    assert (bits[START], bits[END]) == (BEGINS, ENDS)
    assert (bits[2], bits[3]) == (IDS.mask(["two", "both"]), IDS.mask(["three", "both"]))
    assert bits[4:] == [0] * (VOCAB + 1 - 4)  # the last is that of no token
    without_strings = Markers.of(type(IDS)(START, END, IDS.split), VOCAB, CPU)
    assert without_strings.bits[2] == ALL_STRINGS


def test_a_request_without_exits_hears_the_markers_alone():
    knobs = dict(zip(KNOBS, Admission(True, None).knobs(), strict=True))
    assert knobs["wanted"] == BEGINS | ENDS
    assert Admission(True, OFF, IDS.mask(["three"])).knobs()[0] == BEGINS | ENDS | 0b010


def test_activation_equals_the_reference():
    raw = np.random.default_rng(0).normal(0, 20, (500, len(NAMES))).astype(np.float32)
    ours = activate_in_torch(torch.from_numpy(raw)).numpy()
    # The two sigmoids may round differently: a few units in the last place of float32.
    np.testing.assert_allclose(ours, activate(raw), rtol=5e-7)


def test_thinking_that_the_model_opens_itself_is_counted_from_there():
    slots = Slots(CPU)
    slots.add("r", Admission(False, Policy(thresholds={"validity": 0.0})))
    rule = Twin(slots, table(), "draft", signals=torch.zeros(1, len(NAMES)))
    tokens, n = torch.tensor([[2, 5, START, 7, 2, 9]]), torch.tensor([6], dtype=torch.int32)
    rule.step(Sampled(["r"], tokens, n, torch.zeros(1)), list)
    assert n.item() == 5  # the split token before <think> is none; acceptance stops at the one behind it
    state = dict(zip(STATE, rule.slots.tables.state[0].tolist(), strict=True))
    assert state["thoughts"] == 0  # the batch is out of the tables ...
    rule.settle()
    state = dict(zip(STATE, rule.slots.tables.state[0].tolist(), strict=True))
    assert (state["start"], state["thoughts"], state["outputs"], state["pending"]) == (3, 2, 5, 1)  # ... and back


def test_what_lies_behind_a_rows_tokens_becomes_padding_where_it_has_to():
    slots = Slots(CPU)
    for name in "ab":
        slots.add(name, Admission(True, Policy(thresholds={"validity": 0.0})))
    rule = Twin(slots, table(), "draft", signals=torch.zeros(2, len(NAMES)))
    tokens = torch.tensor([[5, 2, 7, -1], [GARBAGE, 6, 6, -1]], dtype=torch.int32)
    n = torch.tensor([3, 0], dtype=torch.int32)
    rule.step(Sampled(["a", "b"], tokens, n, torch.zeros(2), padded=True), list)
    assert tokens.tolist() == [[5, 2, -1, -1], [GARBAGE, 6, 6, -1]]


@pytest.mark.parametrize("way", ["draft", "draft, judged behind drafting", "fc"])
def test_a_step_takes_few_operations(way):
    # A third of the 428 of the study's prototype, nested ones included; a step without a boundary far fewer.
    assert eager_ops(way, "judged") <= 142
    assert eager_ops(way, "plain") <= 60


def test_a_step_that_is_judged_behind_drafting_takes_fewer():
    # On a CPU, where each of them costs. What is done in numpy, on the tensors' memory, is not counted.
    assert eager_ops("draft, judged behind drafting", "judged") <= 30
    assert eager_ops("draft, judged behind drafting", "plain") <= 15


def thoughts(slots: Slots, *requests: str) -> list[float]:
    return [slots.tables.state[slots.row_of[request], STATE.index("thoughts")].item() for request in requests]


def test_slots_keep_a_preempted_request_and_reuse_freed_rows():
    slots = Slots(CPU, capacity=2)
    for name in "abc":
        slots.add(name, Admission(True, Policy()))
    slots.flush()
    assert slots.capacity == 4
    slots.tables.state[slots.row_of["b"], STATE.index("thoughts")] = 7
    slots.add("b", Admission(True, Policy()))
    slots.flush()
    assert thoughts(slots, "c", "b") == [0, 7]
    slots.remove(["a", "b", "never seen"])
    slots.add("d", Admission(True, Policy()))
    slots.add("e", Admission(True, Policy()))
    slots.flush()
    assert thoughts(slots, "c", "d", "e") == [0, 0, 0]
    assert slots.capacity == 4
    slots.remove(["c", "d", "e"])
    assert len(slots) == 0


def test_the_last_marker_of_a_prompt_decides():
    assert opens_thinking([5, START, 6], START, END)
    assert not opens_thinking([START, 5, END, 6], START, END)
    assert not opens_thinking([5, 6], START, END)
    assert opens_thinking([START, END, START], START, END)
