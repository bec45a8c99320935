"""The exit rule in plain Python against its definition, `specexit.method.decision`, without an engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.method.decision import OFF, Policy
from specexit.method.loops import LoopGuard, loop_position
from specexit.method.signals import NAMES
from specexit.method.splits import ALL_STRINGS
from tests.serving.simulation import (
    CPU,
    END,
    GARBAGE,
    IDS,
    START,
    VOCAB,
    Exit,
    Request,
    Simulation,
    given_step,
    requests,
)
from torch_specexit.plugin.outcome import Record
from torch_specexit.plugin.worker.checking import CheckError
from torch_specexit.plugin.worker.loops import Follower, LoopSearch
from torch_specexit.plugin.worker.reading import Reader
from torch_specexit.plugin.worker.rule import (
    BEGINS,
    CAP,
    KNOBS,
    NO_LIMIT,
    OVER,
    RECORD,
    STATE,
    STEPS_BACK,
    THINKING,
    Admission,
    Markers,
)
from torch_specexit.plugin.worker.slots import Slots
from torch_specexit.plugin.worker.twin import Row, Twin

sources = pytest.mark.parametrize("source", ["draft", "fc"])


@pytest.mark.parametrize(("source", "smooth"), [("draft", False), ("fc", False), ("fc", True)])
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_schedule_gives_the_text_and_the_outcome_of_the_definition(source, smooth, data):
    """Steps of any size, in any order; dropped ones, requests that come back from a preemption, and ones whose prompts
    are continued."""
    batch = data.draw(st.lists(requests(smooth), min_size=1, max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    transition = tuple(data.draw(st.lists(st.integers(4, VOCAB - 1), max_size=3)))
    guard = data.draw(st.none() | st.builds(LoopGuard, st.integers(1, 4), st.integers(2, 4)))
    continues = data.draw(st.sampled_from([0.0, 0.1]))
    simulation = Simulation(
        Twin, source, batch, rng, smooth=smooth, transition=transition, guard=guard, continues=continues
    )
    simulation.run()
    simulation.check()


@sources
def test_a_boundary_that_is_judged_for_the_cap_alone_ends_by_the_cap(source):
    """Its thresholds hold, and the early ones did not."""
    limits = {"confidence": 0.5, "progress": 0.5}
    policy = Policy(thresholds={"confidence": 0.5}, early=limits, min_thinking_tokens=4, max_thinking_tokens=21)
    simulation = Simulation(Twin, source, [Request(policy, ("both",))], np.random.default_rng(1))
    assert simulation.exits == [Exit(28, CAP)]
    simulation.run()
    simulation.check()


@sources
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_exits_off_and_shadow_mode_change_no_text(source, data):
    always = Policy(thresholds={})
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    simulation = Simulation(Twin, source, [Request(None), Request(always, shadow=True)], rng)
    simulation.run()
    simulation.check()
    assert simulation.texts == simulation.streams


def table() -> Markers:
    return Markers.of(IDS, VOCAB, CPU)


def rule_for(slots: Slots, source: str = "draft", markers: Markers | None = None) -> Twin:
    return Twin(slots, markers or table(), source)


WELL = torch.zeros(1)
EXITS = Admission(True, Policy(thresholds={}), prompt=1)
"""Exits at the first boundary."""


def state_of(slots: Slots, request: str) -> dict[str, float]:
    return dict(zip(STATE, slots.tables.state[slots.row_of[request]].tolist(), strict=True))


def test_tokens_mean_what_the_split_strings_say():
    bits = table().bits.tolist()
    assert (bits[START], bits[END]) == (BEGINS, 0)
    assert (bits[2], bits[3]) == (IDS.mask(["two", "both"]), IDS.mask(["three", "both"]))
    assert bits[4:] == [0] * (VOCAB + 1 - 4)  # the last is that of no token
    without_strings = Markers.of(type(IDS)(START, END, IDS.split), VOCAB, CPU)
    assert without_strings.bits[2] == ALL_STRINGS
    unwritten = Markers.of(replace(IDS, split=IDS.split | {VOCAB, VOCAB + 5}), VOCAB, CPU)
    assert unwritten.bits.equal(table().bits)


def test_a_request_without_exits_hears_the_markers_alone():
    knobs = dict(zip(KNOBS, Admission(True, None).knobs(), strict=True))
    assert knobs["wanted"] == BEGINS
    assert Admission(True, OFF, IDS.mask(["three"])).knobs()[0] == BEGINS | 0b010


@pytest.mark.parametrize("field", ["patience", "min_thinking_tokens", "max_thinking_tokens"])
def test_a_number_that_no_table_can_hold_touches_no_other_request(field):
    """2**31 used to take exits from the whole engine, until a restart."""
    slots = Slots(CPU)
    slots.add("huge", EXITS._replace(policy=Policy(thresholds={}).model_copy(update={field: 1 << 70})))
    slots.add("other", EXITS)
    rule = rule_for(slots)
    rule.step(given_step(["huge", "other"], [[2], [2]]), torch.zeros(0, 6, 4), WELL)
    rule.step(again := given_step(["huge", "other"], [[5], [5]], at=[1, 1]), torch.zeros(2, 6, 4), WELL)
    assert again.tokens.tolist() == [[END if field == "max_thinking_tokens" else 5], [END]]


def test_a_margin_beyond_all_limits_is_none():
    policy = Policy(thresholds={}).model_copy(update={"max_thinking_tokens": NO_LIMIT})
    assert Admission(True, policy, margin=5).knobs()[KNOBS.index("hard")] == NO_LIMIT


def test_a_step_goes_on_behind_a_boundary_that_is_passed_over_and_a_longer_one_waits_to_see():
    slots = Slots(CPU)
    for name, early in {"near": 0.5, "far": 0.6}.items():
        slots.add(name, EXITS._replace(policy=Policy(thresholds={}, early={"validity": early})))
    rule, signals = rule_for(slots), torch.zeros(2, 9, 4)  # raw 0 is a validity of 0.5
    rule.step(given_step(["near", "far"], [[5] * 4] * 2), torch.zeros(0, 9, 4), WELL)
    rule.step(step := given_step(["near", "far"], [[5] * 6 + [2, 5]] * 2, at=[4, 4]), signals, WELL)
    assert step.n.tolist() == [7, 8]  # eight tokens before the boundary is the third of the first step
    assert [state_of(slots, name)["streak"] for name in ("near", "far")] == [0, 0]
    long = [5] * 8 + [2, 5]
    rule.step(step := given_step(["near", "far"], [long] * 2, at=[11, 12]), signals, WELL)
    assert step.tokens.tolist()[0][0] == END
    assert step.n.tolist() == [1, 9]  # what is needed to pass it over is not known within one step
    rule.step(step := given_step(["far"], [[5]], at=[21]), torch.zeros(2, 9, 4), WELL)
    assert step.tokens.tolist() == [[5]]
    assert state_of(slots, "far")["judged"] == 0


def test_thinking_that_the_model_opens_itself_is_counted_from_there():
    slots = Slots(CPU)
    slots.add("r", Admission(False, Policy(thresholds={"validity": 0.0}), prompt=1))
    rule, step = rule_for(slots), given_step(["r"], [[2, 5, START, 7, 2, 9]])
    rule.step(step, torch.zeros(1, 6, len(NAMES)), WELL)
    assert step.n.item() == 5  # the split token before <think> is none; acceptance stops at the one behind it
    state = state_of(slots, "r")
    assert (state["start"], state["thoughts"], state["outputs"]) == (3, 2, 5)


def test_what_lies_behind_a_rows_tokens_becomes_padding_where_it_has_to():
    slots = Slots(CPU)
    for name in "ab":
        slots.add(name, Admission(True, Policy(thresholds={"validity": 0.0}), prompt=1))
    step = given_step(["a", "b"], [[5, 2, 7, -1], [GARBAGE, 6, 6, -1]], [3, 0], padded=True)
    rule_for(slots).step(step, torch.zeros(2, 6, len(NAMES)), WELL)
    assert step.tokens.tolist() == [[5, 2, -1, -1], [GARBAGE, 6, 6, -1]]


def test_a_dropped_end_marker_is_forced_again_and_a_dropped_boundary_is_forgotten():
    """What the rule used to do: no exit ever, with ``exited`` set; or the marker in the place of an ordinary token."""
    slots, signals = Slots(CPU), torch.zeros(2, 6, len(NAMES))
    for name in ("marker", "boundary"):
        slots.add(name, EXITS)
    rule, names = rule_for(slots), ["marker", "boundary"]
    rule.step(given_step(names, [[2], [5]]), signals, WELL)
    rule.step(lost := given_step(names, [[6], [2]], at=[1, 1]), signals, WELL)
    assert lost.tokens.tolist() == [[END], [2]]
    rule.step(anew := given_step(names, [[6], [7]], at=[1, 1]), signals, WELL)  # vLLM has dropped that step
    assert anew.tokens.tolist() == [[END], [7]]
    rule.step(behind := given_step(names, [[8], [8]], at=[2, 2]), signals, WELL)
    assert behind.tokens.tolist() == [[8], [8]]
    assert [state_of(slots, name)["exited"] for name in names] == [1, 0]


def test_a_row_that_knows_nothing_of_what_vllm_goes_on_from_leaves_its_request_alone():
    """More steps dropped than can be in flight. What the tokens say is known, if the request comes back."""
    slots, tokens = Slots(CPU), [[5]] * (STEPS_BACK + 2)
    for name in ("lost", "back"):
        slots.add(name, EXITS)
    rule = rule_for(slots)
    for at in range(len(tokens)):
        rule.step(given_step(["lost", "back"], [[5], [5]], at=[at, at]), torch.zeros(2, 6, 4), WELL)
    slots.rebuild("back", *Reader(table()).rebuild(EXITS, [5]))
    rule.step(given_step(["lost", "back"], [[2], [2]], at=[1, 1]), torch.zeros(2, 6, 4), WELL)
    rule.step(step := given_step(["lost", "back"], [[5], [5]], at=[2, 2]), torch.zeros(2, 6, 4), WELL)
    assert step.tokens.tolist() == [[5], [END]]
    assert rule.report[:, RECORD.index("on")].tolist() == [0, 1]


def test_a_verdict_that_was_due_is_not_carried_out_where_nobody_knows_what_has_been_written_since():
    slots = Slots(CPU)
    slots.add("r", EXITS)
    rule = rule_for(slots)
    rule.step(given_step(["r"], [[2]]), torch.zeros(1, 6, 4), WELL)
    rule.step(step := given_step(["r"], [[5]], at=[7]), torch.zeros(1, 6, 4), WELL)
    assert step.tokens.tolist() == [[5]]


def test_a_row_goes_back_to_no_copy_of_a_branch_that_was_dropped_before():
    """There it was thinking behind the same 5 tokens; in the text it has ended. A marker was forced into the answer."""
    slots = Slots(CPU)
    slots.add("r", EXITS)
    rule = rule_for(slots)
    for at, tokens in (
        (0, [5, 5]),
        (2, [5]),
        (3, [5]),
        (4, [5]),
        (5, [5]),
        (3, [5, END]),
        (5, [7]),
        (5, [2]),
        (6, [8]),
    ):
        rule.step(step := given_step(["r"], [tokens], at=[at]), torch.zeros(1, 6, 4), WELL)
        assert step.tokens.tolist() == [tokens]


def test_a_lost_row_takes_the_next_token_for_the_rest_of_no_marker():
    """Thinking is not over: a client can still end it."""
    slots = Slots(CPU)
    slots.add("r", EXITS)
    rule = rule_for(slots, markers=Markers.of(replace(IDS, marker=(6, 7)), VOCAB, CPU))
    rule.step(given_step(["r"], [[6]]), torch.zeros(1, 6, 4), WELL)
    rule.step(given_step(["r"], [[7]], at=[7]), torch.zeros(1, 6, 4), WELL)
    assert state_of(slots, "r")["phase"] == THINKING
    slots.interrupt("r", now=True)
    rule.step(step := given_step(["r"], [[5]], at=[8]), torch.zeros(1, 6, 4), WELL)
    assert step.tokens.tolist() == [[6]]


def test_nothing_is_decided_where_a_rank_has_failed():
    slots = Slots(CPU)
    slots.add("r", EXITS)
    rule = rule_for(slots)
    rule.step(step := given_step(["r"], [[5, 2, 5]]), torch.zeros(1, 6, 4), torch.ones(1))
    rule.step(after := given_step(["r"], [[5, 5]], at=[3]), torch.zeros(1, 6, 4), torch.ones(1))
    assert (step.n.tolist(), step.tokens.tolist(), after.tokens.tolist()) == ([3], [[5, 2, 5]], [[5, 5]])
    assert rule.report[0, -1] == -1


def test_there_is_news_of_a_new_request_a_verdict_and_an_end_and_of_nothing_else():
    slots, news = Slots(CPU), []
    slots.add("r", Admission(True, Policy(thresholds={"validity": 0.9}), prompt=1))
    rule = rule_for(slots)
    for at, token in enumerate([5, 5, 2, 5, 5, END, 5]):
        rule.step(given_step(["r"], [[token]], at=[at]), torch.zeros(1, 6, 4), WELL)
        news.append(bool(rule.report[0, -1]))
    assert news == [True, False, False, True, False, True, False]


def test_an_end_marker_of_several_tokens_is_heard_and_written():
    markers = Markers.of(replace(IDS, marker=(6, 7, 9)), VOCAB, CPU, transition=[8])
    slots = Slots(CPU)
    for name in ("hears", "writes"):
        slots.add(name, EXITS._replace(policy=EXITS.policy if name == "writes" else None))
    rule = rule_for(slots, markers=markers)
    texts: dict[str, list[int]] = {"hears": [], "writes": []}
    drawn = {"hears": [6, 6, 7, 6, 7, 9, 2, 5], "writes": [2, *[5] * 7]}
    for _ in range(8):
        at = [len(text) for text in texts.values()]
        step = given_step([*texts], [[drawn[name][i]] for name, i in zip(texts, at, strict=True)], at=at)
        rule.step(step, torch.zeros(2, 6, 4), WELL)
        for text, row in zip(texts.values(), step.tokens.tolist(), strict=True):
            text += row
    assert texts == {"hears": drawn["hears"], "writes": [2, 8, 6, 7, 9, 5, 5, 5]}
    hears, writes = state_of(slots, "hears"), state_of(slots, "writes")
    assert (hears["phase"], hears["thoughts"], hears["exited"]) == (2, 3, 0)
    assert (writes["phase"], writes["thoughts"], writes["exited"]) == (2, 2, 1)


THREE = Markers.of(replace(IDS, marker=(6, 7, 9)), VOCAB, CPU)
"""The end marker is three tokens."""


@pytest.mark.parametrize("interrupted", [False, True])
def test_no_second_end_marker_is_forced_into_the_one_that_the_model_writes(interrupted):
    slots = Slots(CPU)
    most = None if interrupted else 2  # reached behind the marker's first token
    slots.add("r", EXITS._replace(policy=Policy(thresholds={"validity": 1.0}, max_thinking_tokens=most), margin=0))
    rule, text = rule_for(slots, markers=THREE), []
    for at, token in enumerate([5, 6, 7, 9]):
        if interrupted and at == 2:
            slots.interrupt("r", now=True)
        rule.step(step := given_step(["r"], [[token]], at=[at]), torch.zeros(1, 6, 4), WELL)
        text += step.tokens[0].tolist()
    assert text == [5, 6, 7, 9]
    state = state_of(slots, "r")
    assert (state["phase"], state["thoughts"], state["exited"]) == (OVER, 1, 0)


def test_a_split_token_within_an_end_marker_is_no_boundary():
    markers = Markers.of(replace(IDS, marker=(6, 7, 9), split=IDS.split | {7}, by_string={}), VOCAB, CPU)
    slots, text = Slots(CPU), []
    slots.add("r", EXITS)
    rule = rule_for(slots, markers=markers)
    for at, token in enumerate([5, 6, 7, 9]):
        rule.step(step := given_step(["r"], [[token]], at=[at]), torch.zeros(1, 6, 4), WELL)
        text += step.tokens[0].tolist()
    assert text == [5, 6, 7, 9]
    assert state_of(slots, "r")["exited"] == 0


NEVER = Admission(True, OFF, prompt=1)


def test_thinking_that_goes_in_circles_is_ended_and_called_so():
    search = LoopSearch.of(LoopGuard(period=2, repeats=3), slack=STEPS_BACK * 4)
    markers = Markers.of(IDS, VOCAB, CPU, loops=search)
    slots = Slots(CPU, ring=search.ring)
    for name, admission in {"guarded": NEVER, "off": Admission(True, None, prompt=1)}.items():
        slots.add(name, admission)
    rule, drawn = rule_for(slots, markers=markers), [7, 8, 9, 8, 9, 8, 9, 8, 9, 8, 9, 8]
    for at in range(0, len(drawn), 4):
        step = given_step(["guarded", "off"], [drawn[at : at + 4]] * 2, at=[at, at])
        rule.step(step, torch.full((2, 4, 4), -9.0), WELL)
        if step.n[0] < 4:
            break
    position = loop_position(drawn, LoopGuard(period=2, repeats=3))
    assert position is not None
    assert step.tokens[0, : step.n[0]].tolist() == [*drawn[at : position + 1], END]
    assert step.tokens[1].tolist() == drawn[at : at + 4]
    report = Record.from_row(rule.report[0, :-1].tolist()).describe(position + 3, cut_off=False)
    assert (report["outcome"], report["thinking_tokens"]) == ("loop", position + 1)


def test_a_fingerprint_tells_texts_of_any_vocabulary_apart():
    """Equal texts always have equal ones; a text that differs in one token never has the same, whatever the token."""
    search = LoopSearch.of(LoopGuard(period=3, repeats=2), slack=0)
    rng = np.random.default_rng(0)
    text = rng.integers(0, 1 << 18, 3).tolist()
    prints = set()
    for first in [text[0], *range(text[0] + 1, text[0] + 500)]:
        follower = Follower(search)
        for token in [*rng.integers(0, 1 << 18, 5).tolist(), first, *text[1:]]:
            follower.push(token)
        prints.add(tuple(follower.rolling))
    assert len(prints) == 500
    again = Follower(search)
    for token in [1, *text]:
        again.push(token)
    assert tuple(again.rolling) in prints


def test_the_checking_mode_finds_a_row_that_is_not_what_its_tokens_say():
    rng = np.random.default_rng(0)
    simulation = Simulation(Twin, "draft", [Request(Policy(thresholds={"validity": 0.9}))], rng, drops=0.0)
    for _ in range(3):
        simulation.step([0])
    simulation.slots.tables.state[0, STATE.index("thoughts")] += 1
    with pytest.raises(CheckError, match=r"request r0: its row says .*'thoughts'"):
        simulation.step([0])


def test_the_checking_mode_finds_a_boundary_that_the_early_thresholds_pass_over(monkeypatch):
    policy = Policy(thresholds={"validity": 1.0}, early={"validity": 1.0})
    simulation = Simulation(Twin, "draft", [Request(policy)], np.random.default_rng(3), drops=0.0)
    monkeypatch.setattr(Row, "pass_over", lambda _: False)
    with pytest.raises(CheckError, match=r"its row says .*'last': 2.* say .*'last': 1"):
        simulation.run()


def thoughts(slots: Slots, *requests: str) -> list[float]:
    return [state_of(slots, request)["thoughts"] for request in requests]


def test_what_waits_for_a_row_and_what_it_held_go_with_its_request():
    slots = Slots(CPU, capacity=1, ring=2)
    slots.add("a", Admission(None, Policy(), prompt=1))
    slots.flush()
    slots.open("a", torch.tensor(True))
    slots.interrupt("a", now=True)
    slots.rebuild("a", [7.0] * len(STATE), [8, 9])
    slots.flush()
    assert slots.tables.past[0, STEPS_BACK].tolist() == [7.0] * len(STATE)
    assert slots.tables.recent.tolist() == [[8, 9]]
    slots.open("a", torch.tensor(True))
    slots.interrupt("a", now=True)
    slots.rebuild("a", [7.0] * len(STATE), [8, 9])
    slots.remove(["a"])
    slots.add("b", other := Admission(False, None, prompt=3))
    slots.flush()
    assert slots.row_of == {"b": 0}
    assert slots.tables.state.tolist() == [other.state()]
    assert slots.tables.knobs.tolist() == [other.knobs()]
    assert (slots.tables.past == -1).all()
    assert not slots.interrupted


def test_freed_rows_are_used_again_and_a_prompt_that_is_continued_begins_anew():
    slots = Slots(CPU, capacity=2)
    for name in "abc":
        slots.add(name, Admission(True, Policy()))
    slots.flush()
    assert slots.capacity == 4
    slots.tables.state[slots.row_of["b"], STATE.index("thoughts")] = 7
    slots.flush()
    assert thoughts(slots, "c", "b") == [0, 7]
    slots.add("b", Admission(True, Policy(), prompt=9))
    slots.flush()
    assert thoughts(slots, "c", "b") == [0, 0]
    slots.remove(["a", "b", "never seen"])
    slots.add("d", Admission(True, Policy()))
    slots.add("e", Admission(True, Policy()))
    slots.flush()
    assert thoughts(slots, "c", "d", "e") == [0, 0, 0]
    assert slots.capacity == 4
    slots.remove(["c", "d", "e"])
    assert len(slots) == 0
