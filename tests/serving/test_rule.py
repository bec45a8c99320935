"""The device version of the exit rule against its definition, `specexit.decision`, without an engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.decision import Policy, exit_position
from specexit.signals import NAMES, activate
from specexit.splits import ThinkTokens
from torch_specexit.plugin import rule
from torch_specexit.plugin.slots import Admission, Slots, opens_thinking

START, END, SPLITS, VOCAB = 0, 1, frozenset({2, 3}), 12
IDS = ThinkTokens(START, END, SPLITS)
GARBAGE = 1 << 30


def markers() -> rule.Markers:
    return rule.Markers.of(IDS, VOCAB, torch.device("cpu"))


class Engine:
    """A batch of requests whose target would write fixed streams, decoded in steps of any size by either source."""

    def __init__(self, source: str, policies: list[Policy | None], smooth: bool, rng: np.random.Generator):
        self.source, self.policies, self.smooth, self.rng = source, policies, smooth, rng
        self.streams = [self._stream() for _ in policies]
        self.raw = [rng.normal(0, 2, (len(stream) + 1, len(NAMES))).astype(np.float32) for stream in self.streams]
        self.texts: list[list[int]] = [[] for _ in policies]
        self.slots = Slots(torch.device("cpu"), capacity=1)
        for i, policy in enumerate(policies):
            self.slots.add(f"r{i}", Admission(True, policy))
        self.slots.flush()

    def _stream(self) -> list[int]:
        # Splits are frequent and the end is rare, so that there is something to decide.
        tokens = self.rng.choice([START, END, 2, 3, *range(4, VOCAB)], 50, p=[0.01, 0.01, 0.15, 0.1, *[0.73 / 8] * 8])
        return tokens.tolist()

    def expected(self, i: int) -> list[int]:
        policy, stream = self.policies[i], self.streams[i]
        position = None if policy is None else exit_position(stream, activate(self.raw[i][1:]), policy, IDS)
        if position is None or stream[position + 1 : position + 2] == [END]:  # forced where it would come anyway
            return stream
        return [*stream[: position + 1], END]

    def done(self, i: int) -> bool:
        text = self.texts[i]
        return len(text) == len(self.streams[i]) or (bool(text) and text != self.streams[i][: len(text)])

    def step(self) -> None:
        """One decoding step of a random part of the batch, in random order."""
        batch = [i for i in self.rng.permutation(len(self.texts)) if not self.done(i) and self.rng.random() < 0.8]
        if not batch:
            return
        width = int(self.rng.integers(1, 6))
        tokens = torch.full((len(batch), width), GARBAGE)
        raw = torch.full((len(batch), width, len(NAMES)), 99.0)
        n = torch.zeros(len(batch), dtype=torch.int32)
        for row, i in enumerate(batch):
            at = len(self.texts[i])
            n[row] = min(int(self.rng.integers(0, width + 1)), len(self.streams[i]) - at)
            tokens[row, : n[row]] = torch.tensor(self.streams[i][at : at + n[row]])
            raw[row, : n[row]] = torch.tensor(self.raw[i][at : at + n[row]])  # of the input tokens
        new, kept = self._decide(tokens, n, raw, batch)
        for row, i in enumerate(batch):
            assert (n[row] == 0) == (kept[row] == 0)
            self.texts[i] += new[row, : kept[row]].tolist()

    def _decide(self, tokens, n, raw, requests):
        batch = self.slots.batch([f"r{i}" for i in requests])
        args = batch.state, batch.settings
        if self.source == "fc":
            new, kept, batch.state, batch.averages = rule.judge_rows(
                *args, batch.averages, markers(), tokens, n, raw, smooth=self.smooth
            )
        elif self.source == "draft":
            new, kept, batch.state = rule.cut_at_boundary(*args, markers(), tokens, n)
            last = self._own_raw(requests, kept, 1)[torch.arange(len(requests)), (kept - 1).clamp(min=0).long()]
            batch.state, _ = rule.judge_last(batch.state, batch.settings, batch.averages.verdict, last, kept)
        else:
            new, kept, _ = rule.force_pending(batch.state, markers(), tokens, n)
            own = self._own_raw(requests, kept, tokens.shape[1])
            new, kept, batch.state, _ = rule.judge_drafted(*args, batch.averages.verdict, markers(), new, kept, own)
        return new, kept

    def _own_raw(self, requests, n, width):
        """The signals of each token itself, garbage behind the first n."""
        width = max(width, int(n.max()))
        raw = torch.full((len(requests), width, len(NAMES)), 99.0)
        for row, i in enumerate(requests):
            at = len(self.texts[i]) + 1
            raw[row, : n[row]] = torch.tensor(self.raw[i][at : at + n[row]])
        return raw


@st.composite
def policies(draw, alpha: bool):
    thresholds = {
        name: draw(st.floats(0.05, 0.95) if name != "remaining" else st.floats(0.1, 20))
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True))
    }
    return Policy(
        thresholds=thresholds,
        smoothing="ewma" if alpha else "none",
        alpha=draw(st.floats(0.05, 1.0)) if alpha else 0.1,
        patience=draw(st.integers(1, 3)),
        min_thinking_tokens=draw(st.integers(0, 20)),
    )


@pytest.mark.parametrize(("source", "smooth"), [("draft", False), ("drafted", False), ("fc", False), ("fc", True)])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_grouping_gives_the_text_of_the_definition(source, smooth, data):
    chosen = data.draw(st.lists(st.none() | policies(alpha=smooth), min_size=1, max_size=5))
    engine = Engine(source, chosen, smooth, np.random.default_rng(data.draw(st.integers(0, 2**32))))
    for _ in range(2000):
        engine.step()
        if all(engine.done(i) for i in range(len(chosen))):
            break
    for i in range(len(chosen)):
        # With fc the verdict on a stream's very last token would come with a row that no longer exists.
        assert engine.texts[i] == engine.expected(i)[: len(engine.streams[i])]


@pytest.mark.parametrize("source", ["draft", "drafted", "fc"])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_exits_off_change_nothing(source, data):
    engine = Engine(source, [None], False, np.random.default_rng(data.draw(st.integers(0, 2**32))))
    for _ in range(200):
        engine.step()
    assert engine.texts == engine.streams


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_plain_tokens_need_no_reading(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    slots = Slots(torch.device("cpu"))
    for i in range(4):
        slots.add(f"r{i}", Admission(data.draw(st.booleans()), Policy()))
    slots.flush()
    batch = slots.batch([f"r{i}" for i in range(4)])
    phase = torch.tensor(rng.integers(0, 3, 4), dtype=torch.int32)
    state = batch.state._replace(phase=phase)
    tokens, n = torch.tensor(rng.integers(4, VOCAB, (4, 5))), torch.tensor(rng.integers(0, 6, 4))
    nothing = torch.zeros(4, dtype=torch.bool)
    read = rule.advance(state, rule.read(state, batch.settings, markers(), tokens, n), n, nothing)
    plain = rule.advance_plainly(state, n)
    for name in ("phase", "thoughts", "outputs", "start", "exited", "streak"):
        assert torch.equal(getattr(read, name), getattr(plain, name)), name


def test_padding_is_no_token():
    assert not markers().is_any[torch.tensor([[5, -1, -1]])].any()
    assert markers().is_any[torch.tensor([[5, END, -1]])].any()


def test_activation_equals_the_reference():
    raw = np.random.default_rng(0).normal(0, 20, (500, len(NAMES))).astype(np.float32)
    ours = rule.activate(torch.from_numpy(raw)).numpy()
    # The two sigmoids may round differently: a few units in the last place of float32.
    np.testing.assert_allclose(ours, activate(raw), rtol=5e-7)


def test_thinking_that_the_model_opens_itself_is_counted_from_there():
    slots = Slots(torch.device("cpu"))
    slots.add("r", Admission(False, Policy(thresholds={"validity": 0.0})))
    slots.flush()
    batch = slots.batch(["r"])
    state, policy = batch.state, batch.settings
    tokens, n = torch.tensor([[2, 5, START, 7, 2, 9]]), torch.tensor([6])
    _, kept, state = rule.cut_at_boundary(state, policy, markers(), tokens, n)
    assert kept.item() == 5  # the split token before <think> is none; acceptance stops at the one behind it
    assert (state.start.item(), state.thoughts.item(), state.outputs.item()) == (3, 2, 5)


def test_slots_keep_a_preempted_request_and_reuse_freed_rows():
    slots = Slots(torch.device("cpu"), capacity=2)
    for name in "abc":
        slots.add(name, Admission(True, Policy()))
    slots.flush()
    batch = slots.batch(["b"])
    batch.state = batch.state._replace(thoughts=torch.tensor([7], dtype=torch.int32))
    slots.add("b", Admission(True, Policy()))
    slots.flush()
    assert slots.batch(["c", "b"]).state.thoughts.tolist() == [0, 7]
    slots.remove(["a", "b", "never seen"])
    slots.add("d", Admission(True, Policy()))
    slots.add("e", Admission(True, Policy()))
    slots.flush()
    assert slots.batch(["c", "d", "e"]).state.thoughts.tolist() == [0, 0, 0]
    slots.remove(["c", "d", "e"])
    assert len(slots) == 0


def test_the_last_marker_of_a_prompt_decides():
    assert opens_thinking([5, START, 6], START, END)
    assert not opens_thinking([START, 5, END, 6], START, END)
    assert not opens_thinking([5, 6], START, END)
    assert opens_thinking([START, END, START], START, END)
