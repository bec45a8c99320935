"""The Triton kernel of the exit rule, run by Triton's interpreter, against its twin in plain Python and the definition;
and that it compiles for GPUs, which needs none."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from specexit.method.decision import Policy, exit_position
from specexit.method.loops import LoopGuard
from specexit.method.signals import NAMES, activate
from specexit.method.splits import ThinkTokens
from tests.marks import SLOW
from tests.serving.conftest import run_program
from tests.serving.simulation import CPU, END, GARBAGE, IDS, START, VOCAB, WIDEST, Request, Simulation
from torch_specexit.bench.rule_cost import STEPS, Scene, launches
from torch_specexit.plugin.worker.loops import FINGERPRINT, LoopSearch
from torch_specexit.plugin.worker.ranks import INCOMPLETE
from torch_specexit.plugin.worker.reading import Reader
from torch_specexit.plugin.worker.rule import (
    CAP,
    EXIT,
    INTERRUPT,
    LOOP,
    OVER,
    STATE,
    STEPS_BACK,
    THINKING,
    Admission,
    Markers,
    Sampled,
)
from torch_specexit.plugin.worker.slots import Slots
from torch_specexit.plugin.worker.twin import Twin

triton = pytest.importorskip("triton", reason="the kernel needs Triton, which some CPU builds of torch lack")

modes = pytest.mark.parametrize(
    ("source", "smooth"), [("draft", False), pytest.param("fc", False, marks=SLOW), ("fc", True)]
)


def fused(*, interpreted: bool) -> type:
    """The kernel's class, interpreted or not: Triton decides on import. Later tests' engines must not inherit the
    switch. Without the type checks of the import hook, which wrap functions that Triton reads the source of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(interpreted)))
        finders = [finder for finder in sys.meta_path if "jaxtyping" not in type(finder).__module__]
        patch.setattr(sys, "meta_path", finders)
        for module in ("kernel_rows", "kernel", "fused"):
            patch.delitem(sys.modules, f"torch_specexit.plugin.worker.{module}", raising=False)
        from torch_specexit.plugin.worker.fused import Fused
    return Fused


@pytest.fixture(scope="module")
def kernel() -> type:
    return fused(interpreted=True)


POLICIES = [
    None,
    Policy(thresholds={"validity": 0.6}),
    Policy(thresholds={"confidence": 0.4, "remaining": 5.0}, patience=2, min_thinking_tokens=6),
    Policy(thresholds={"validity": 1.0}, max_thinking_tokens=25),
    Policy(thresholds={}),
    Policy(
        thresholds={"validity": 0.7}, early={"validity": 0.35, "remaining": 6.0}, patience=2, max_thinking_tokens=30
    ),
]


@modes
def test_texts_and_outcomes_are_those_of_the_definition(kernel, source, smooth):
    """With dropped steps, a margin, a transition text and loops."""
    change = {"smoothing": "ewma", "alpha": 0.4} if smooth else {}
    policies = [policy and policy.model_copy(update=change) for policy in POLICIES]
    strings = [("two", "three"), ("both",), ("three",)]
    batch = [
        Request(p, strings[i % 3], shadow=i >= len(POLICIES), margin=3 if i < len(POLICIES) else None)
        for i, p in enumerate([*policies, *policies])
    ]
    transition = () if source == "draft" else (5, 6)
    rng = np.random.default_rng(7)
    simulation = Simulation(kernel, source, batch, rng, smooth=smooth, transition=transition, guard=LoopGuard(2, 3))
    simulation.run()
    simulation.check()
    assert simulation.dropped > 10
    outcomes = [(record.exited, record.would_exit > 0) for record in simulation.records.values()]
    assert {(0, False), (1, False), (2, False), (LOOP, False), (0, True)} <= set(outcomes)


class Pair:
    """Kernel and twin on the same steps, whatever these are."""

    def __init__(self, kernel, source: str, smooth: bool, transition: tuple[int, ...] = (), ids: ThinkTokens = IDS):
        self.source, self.signals, self.active = source, torch.zeros(64, 5, len(NAMES)), torch.zeros(1)
        loops = LoopSearch.of(LoopGuard(2, 3), STEPS_BACK * WIDEST) if transition else None
        self.looks = loops is not None
        self.slots = tuple(Slots(CPU, capacity=1, ring=loops.ring if loops else 0) for _ in range(2))
        self.markers = Markers.of(ids, VOCAB, CPU, transition=transition, loops=loops)
        self.rules = [
            version(slots, self.markers, source, smooth=smooth)
            for version, slots in zip((kernel, Twin), self.slots, strict=True)
        ]

    def add(self, name: str, admission: Admission) -> None:
        for slots in self.slots:
            slots.add(name, admission)

    def remove(self, names) -> None:
        for slots in self.slots:
            slots.remove(names)

    def outputs(self, name: str) -> int:
        """How many tokens of output the rule knows of."""
        self.slots[1].flush()
        return int(self.slots[1].tables.state[self.slots[1].row_of[name], STATE.index("outputs")])

    def step(self, names: list[str], tokens, n, raw=None, *, padded: bool = False, back=None) -> Sampled:
        """One step, behind what the rule knows or ``back`` tokens before; returns what the kernel has made of it."""
        results = []
        width, every = tokens.shape[1], torch.arange(tokens.numel())
        positions = torch.zeros(tokens.numel(), dtype=torch.int64)
        known = torch.tensor([self.outputs(name) for name in names])
        positions[::width] = (known - (torch.zeros_like(known) if back is None else back)).clamp(min=0)
        for rule in self.rules:
            rejected = None if padded else torch.arange(len(names), dtype=torch.int32)
            ends = (torch.arange(len(names), dtype=torch.int32) + 1) * width
            sampled = Sampled(names, tokens.clone(), n.clone(), ends, every, positions, rejected, padded)
            rule.step(sampled, raw if raw is not None and self.source == "fc" else self.signals, self.active)
            results.append(sampled)
        ours, twins = results
        assert torch.equal(ours.n, twins.n)
        assert torch.equal(ours.tokens, twins.tokens)
        assert padded or torch.equal(ours.rejected, twins.rejected)
        fused, twin = self.rules
        assert torch.equal(fused.forced[: len(names)], twin.forced)
        # Exponentials of two libraries: a few units in the last place of float32.
        torch.testing.assert_close(fused.report[: len(names)], twin.report, rtol=1e-6, atol=0, equal_nan=True)
        return ours

    def _forget(self, state: torch.Tensor) -> None:
        """What says nothing: the row of a request that is left out; fingerprints where no loops are looked for."""
        state[..., STATE.index("row")] = 0
        if not self.looks:
            state[..., STATE.index(FINGERPRINT[0]) :] = 0

    def compare_tables(self) -> None:
        ours, twins = (slots.tables.state.clone() for slots in self.slots)
        assert self.slots[0].row_of == self.slots[1].row_of
        used = torch.tensor(sorted(self.slots[0].row_of.values()))
        ours, twins = ours[used], twins[used]
        for state in (ours, twins):
            self._forget(state)
        torch.testing.assert_close(ours, twins, rtol=1e-6, atol=0, equal_nan=True)
        pasts = [slots.tables.past[used].clone() for slots in self.slots]
        for past in pasts:
            past[past[..., STATE.index("outputs")] < 0] = 0  # nothing is in there
            self._forget(past)
        torch.testing.assert_close(*pasts, rtol=1e-6, atol=0, equal_nan=True)


@modes
@pytest.mark.parametrize("padded", [False, True])
def test_kernel_and_twin_agree_on_anything(kernel, source, smooth, padded):
    """Requests come, go, pause, come back under old names and go back to where they were; tokens are dense in markers
    and split tokens, none or all are accepted, rows are discarded, what lies behind is garbage; batches are smaller and
    larger than a block."""
    rng = np.random.default_rng([len(source), smooth, padded])
    pair = Pair(kernel, source, smooth, transition=(5, 6) if padded else ())
    for step in range(20):
        pair.remove([f"r{i}" for i in rng.integers(0, 50, 4)] if step % 3 == 0 else [])
        for name in (f"r{i}" for i in rng.integers(0, 50, 30 if step == 7 else 5)):
            policy, margin = POLICIES[rng.integers(len(POLICIES))], None if rng.random() < 0.5 else 2
            shadow, strings = bool(rng.random() < 0.3), int(rng.integers(1, 8))
            pair.add(name, Admission(bool(rng.random() < 0.7), policy, strings, shadow, prompt=1, margin=margin))
        known = list(pair.slots[0].row_of)
        names = [known[i] for i in rng.permutation(len(known))[: 1 if step % 5 == 4 else 40]]
        width = int(rng.integers(1, 6))
        n = torch.tensor(rng.integers(0, width + 1, len(names)), dtype=torch.int32)
        tokens = torch.tensor(rng.choice([START, END, 2, 3, 5], (len(names), width), p=[0.05, 0.05, 0.2, 0.2, 0.5]))
        tokens[torch.arange(width) >= n[:, None]] = -1 if padded else int(rng.choice([-1, GARBAGE, END]))
        tokens[n == 0] = END
        # Raw values of 0 lie on a threshold of one half, to the bit.
        raw = torch.tensor(rng.normal(0, 2, (len(names) * width, len(NAMES))) * (rng.random() < 0.8)).float()
        raw[-1:, step % len(NAMES)] = torch.nan if step % 3 else torch.inf
        back = torch.tensor(rng.integers(0, 9, len(names)) * (rng.random(len(names)) < 0.2))
        pair.active.fill_({6: INCOMPLETE, 11: 1.0, 14: 1.0 + INCOMPLETE, 17: 2 * INCOMPLETE}.get(step, 0.0))
        pair.step(names, tokens, n, raw, padded=padded, back=back)
        if source == "draft":
            pair.signals.copy_(torch.tensor(rng.normal(0, 2, pair.signals.shape)))
            pair.signals[0, :, step % len(NAMES)] = torch.nan if step % 3 else torch.inf
    assert pair.slots[0].capacity >= 32
    pair.compare_tables()
    pair.remove(list(pair.slots[0].row_of))
    assert len(pair.slots[0]) == 0


ALWAYS = Admission(True, Policy(thresholds={}), prompt=1)


@pytest.mark.parametrize(
    ("source", "tokens", "n", "expected", "is_forced"),
    [
        ("draft", [5, 2, END, 5], 4, [5, 2], False),  # acceptance stops at the split token
        ("draft", [5, END, 2, 5], 4, [5, END, 2, 5], False),  # behind the end there is no boundary
        ("fc", [5, 2, END, 5], 4, [5, 2, END, 5], False),  # to be forced where it was drawn anyway
        ("fc", [5, 2, 6, END], 4, [5, 2, END], True),
        ("fc", [5, END, 2, 6], 4, [5, END, 2, 6], False),
        ("fc", [5, 2, 6, END], 2, [5, 2], False),  # the row behind the split token was not accepted
    ],
)
def test_a_split_token_and_the_end_marker_in_one_step(kernel, source, tokens, n, expected, is_forced):
    pair = Pair(kernel, source, smooth=False)
    pair.add("r", ALWAYS)
    given = pair.step(["r"], torch.tensor([tokens]), torch.tensor([n], dtype=torch.int32), torch.zeros(4, 4))
    assert given.tokens[0, : given.n[0]].tolist() == expected
    assert bool(pair.rules[0].forced[0]) == is_forced


NAN = torch.nan
ODD = (
    (Policy(thresholds={"remaining": 5.0}), {"remaining": NAN}, False),  # used to be taken for none remaining
    (Policy(thresholds={"validity": 0.0}), {"validity": NAN}, False),
    (Policy(thresholds={"remaining": torch.inf}), {"remaining": NAN}, False),
    (Policy(thresholds={"validity": 0.5}), dict.fromkeys(NAMES[:3], NAN), True),
    (Policy(thresholds={}), dict.fromkeys(NAMES, NAN), True),
    (Policy(thresholds={}, early={"remaining": torch.inf}), {"remaining": NAN}, False),
    (Policy(thresholds={}, early={"validity": 0.5}), dict.fromkeys(NAMES[:3], NAN), True),
    (Policy(thresholds={"remaining": 1.0, "validity": 0.99}), {"remaining": -torch.inf, "validity": torch.inf}, True),
    (Policy(thresholds={"remaining": 1e6}), {"remaining": torch.inf}, False),
    (Policy(thresholds={"validity": 1.0}), {"validity": torch.inf}, False),
)
"""Policies, what the raw signals are beside 0, and whether they are passed."""


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_a_signal_that_is_no_number_passes_no_threshold_and_one_without_does_not_matter(kernel, source):
    pair, text, n = Pair(kernel, source, smooth=False), [5] * 8 + [2], len(ODD)
    names = [f"r{i}" for i in range(n)]
    for i, (policy, raw, exits) in enumerate(ODD):
        pair.add(names[i], ALWAYS._replace(policy=policy))
        pair.signals[i] = torch.tensor([raw.get(name, 0.0) for name in NAMES])
        values = activate(pair.signals[i, :1].repeat(len(text), 1).numpy())
        assert exit_position(text, values, policy, IDS) == (len(text) - 1 if exits else None)
    for part in (text[:3], text[3:6], text[6:], [7]):
        size = len(part)
        rows = pair.signals[:n, :1].repeat(1, size, 1).flatten(0, 1)
        given = pair.step(names, torch.tensor([part] * n), torch.full((n,), size, dtype=torch.int32), rows)
    assert given.tokens.flatten().tolist() == [END if exits else 7 for *_, exits in ODD]
    pair.compare_tables()


EARLY = [
    Policy(
        thresholds=limits, early={"validity": early}, patience=n, min_thinking_tokens=least, max_thinking_tokens=most
    )
    for limits, early, n in product(({}, {"validity": 0.4}), (0.5, 0.9), (1, 2))
    for least, most in ((0, None), (0, 9), (10, 14), (0, 18))
]


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_what_the_early_thresholds_pass_over_is_as_in_the_twin(kernel, source):
    """In steps longer than they look back, too; at the cap, and one token before; with patience. The last id of the
    vocabulary is a split token here, and those behind it, which some targets' heads are padded with, are none."""
    ids = ThinkTokens(START, END, frozenset({2, VOCAB - 1}))
    pair, rng = Pair(kernel, source, smooth=False, ids=ids), np.random.default_rng(3)
    names = [f"r{i}" for i in range(len(EARLY))]
    pair.signals = torch.zeros(len(names), WIDEST, len(NAMES))
    for name, policy in zip(names, EARLY, strict=True):
        pair.add(name, ALWAYS._replace(policy=policy))
    for width in (9, 4, 10, 1, 3, 2):
        tokens = torch.tensor(rng.choice([5, VOCAB, GARBAGE, 5, 5, 2, VOCAB - 1], (len(names), width)))
        raw = torch.tensor(rng.normal(0, 2, (len(names) * width, len(NAMES)))).float()
        pair.step(names, tokens, torch.full((len(names),), width, dtype=torch.int32), raw)
        pair.signals.copy_(torch.tensor(rng.normal(0, 2, pair.signals.shape)))
    pair.compare_tables()
    assert {0, CAP} < set(pair.slots[0].tables.state[:, STATE.index("exited")].tolist())


@modes
def test_a_step_is_one_launch(kernel, source, smooth):
    way = "fc, smoothed" if smooth else source
    threshold, drawn = STEPS["judged"]
    scene = Scene(kernel, way, threshold, CPU, batch=40, width=4)
    for token in drawn:
        assert launches(scene.step(token)) == 1
        scene.advance()


def test_requests_that_a_step_leaves_out_are_judged_with_it(kernel):
    pair = Pair(kernel, "draft", smooth=False)
    for name in "ab":
        pair.add(name, ALWAYS._replace(policy=Policy(thresholds={"validity": 0.5})))
    boundary, one = torch.tensor([[2], [2]]), torch.ones(2, dtype=torch.int32)
    pair.step(["a", "b"], boundary, one)
    pair.signals[:2] = torch.tensor([[[3.0]], [[-3.0]]])  # a exits, b does not
    pair.step(["b"], torch.tensor([[5]]), one[:1])
    pair.signals.fill_(-3.0)  # what a has left is overwritten
    given = pair.step(["b", "a"], torch.tensor([[6], [6]]), one)
    assert given.tokens.tolist() == [[6], [END]]
    assert pair.rules[0].forced[:2].tolist() == [False, True]


def test_what_changes_of_a_row_reaches_a_batch_that_stays_the_same(kernel):
    """The kernel's rows are placed anew only where something has changed."""
    pair, one = Pair(kernel, "draft", smooth=False), torch.ones(1, dtype=torch.int32)
    pair.add("a", ALWAYS._replace(thinking=None, policy=Policy(thresholds={"validity": 1.0})))

    def drawn(token: int, back: int = 0) -> int:
        return int(pair.step(["a"], torch.tensor([[token]]), one, back=torch.tensor([back])).tokens)

    pair.step(["a"], torch.tensor([[5]]), one * 0)
    for slots in pair.slots:
        slots.open("a", torch.tensor(True))
    assert [drawn(token) for token in [5] * (STEPS_BACK + 2)] == [5] * (STEPS_BACK + 2)
    for slots in pair.slots:
        slots.rebuild("a", *Reader(pair.markers).rebuild(slots.admissions["a"]._replace(thinking=True), [5]))
    assert drawn(6, back=STEPS_BACK + 1) == 6
    pair.compare_tables()  # neither has lost it
    for slots in pair.slots:
        slots.interrupt("a", now=True)
    assert drawn(7) == END


def test_a_step_of_no_request_judges_what_is_left_and_is_the_same_variant_of_the_kernel(kernel):
    """The first idle rank of a data-parallel server used to compile while its peers were waiting."""
    pair = Pair(kernel, "draft", smooth=False)
    pair.add("a", ALWAYS)
    one = torch.ones(1, dtype=torch.int32)
    sampled = pair.step(["a"], torch.tensor([[2]]), one)
    nobody = sampled.none()
    for field, other in zip(nobody[1:7], sampled[1:7], strict=True):
        assert isinstance(field, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        assert field.dtype == other.dtype
    for rule in pair.rules:
        rule.step(nobody, pair.signals, pair.active)
    pair.signals.fill_(-9.0)
    assert pair.step(["a"], torch.tensor([[5]]), one).tokens.tolist() == [[END]]


@pytest.mark.parametrize("ends", ["by itself", "by an exit"])
def test_a_final_channel_of_the_shape_of_gpt_oss_is_heard_and_opened_token_by_token(kernel, ends):
    """``<|end|><|start|>assistant<|channel|>final<|message|>``; that of another channel begins like it, and is none."""
    end, start, assistant, channel, final, message, commentary, word = range(4, 12)
    opener = (end, start, assistant, channel, final, message)
    pair = Pair(kernel, "draft", smooth=False, ids=replace(IDS, end=message, marker=opener))
    most = 11 if ends == "by an exit" else None
    pair.add("a", Admission(True, Policy(thresholds={"validity": 1.0}, max_thinking_tokens=most), prompt=1))
    one, text = torch.ones(1, dtype=torch.int32), []
    drawn = [word, word, end, start, assistant, channel, commentary, message, word]
    drawn += [word, 2, *opener] if ends == "by itself" else [word, 2, word, word, 2, word, 2, word, word]
    for token in drawn:
        text += pair.step(["a"], torch.tensor([[token]]), one).tokens.tolist()[0]
    state = dict(zip(STATE, pair.slots[0].tables.state[pair.slots[0].row_of["a"]].tolist(), strict=True))
    assert text[:11] == drawn[:11]
    assert tuple(text[11:17]) == opener
    assert (state["phase"], state["exited"]) == (OVER, CAP if ends == "by an exit" else 0)
    assert state["thoughts"] == 11
    assert text[17:] == drawn[17:]


def test_a_step_that_is_left_alone_in_the_midst_of_the_closing_tokens_writes_no_more_of_them(kernel):
    pair = Pair(kernel, "draft", smooth=False, transition=(5, 6))
    pair.add("a", ALWAYS)
    one = torch.ones(1, dtype=torch.int32)
    pair.signals.fill_(9.0)
    texts = []
    for token, failed in ((2, 0.0), (7, 0.0), (8, INCOMPLETE), (2, 0.0), (9, 0.0)):
        pair.active.fill_(failed)
        texts += pair.step(["a"], torch.tensor([[token]]), one).tokens.tolist()[0]
    assert texts == [2, 5, 8, 2, 9]
    pair.compare_tables()


def test_a_marker_is_heard_though_a_step_within_it_is_left_alone(kernel):
    """As while weights are updated. Unheard, an interrupt behind it wrote a second one, into the answer."""
    pair, one = Pair(kernel, "draft", smooth=False, ids=replace(IDS, marker=(5, END))), torch.ones(1, dtype=torch.int32)
    pair.add("a", ALWAYS)
    for token, failed in ((7, 0.0), (5, 0.0), (END, INCOMPLETE)):
        pair.active.fill_(failed)
        pair.step(["a"], torch.tensor([[token]]), one)
    for slots in pair.slots:
        slots.interrupt("a", now=True)
    pair.active.fill_(0.0)
    assert pair.step(["a"], torch.tensor([[8]]), one).tokens.tolist() == [[8]]
    pair.compare_tables()


@pytest.mark.parametrize("way", ["at the cap", "interrupted", "at a split token"])
def test_a_marker_that_the_model_writes_is_left_alone(kernel, way):
    ids = replace(IDS, marker=(6, 7, 9))
    ids = replace(ids, split=frozenset({7}), by_string={}) if way == "at a split token" else ids
    limits = {} if way == "at a split token" else {"validity": 1.0}
    pair, one, text = Pair(kernel, "draft", smooth=False, ids=ids), torch.ones(1, dtype=torch.int32), []
    most = 2 if way == "at the cap" else None
    pair.add("a", ALWAYS._replace(policy=Policy(thresholds=limits, max_thinking_tokens=most), margin=0))
    for at, token in enumerate([5, 6, 7, 9]):
        for slots in pair.slots if way == "interrupted" and at == 2 else ():
            slots.interrupt("a", now=True)
        text += pair.step(["a"], torch.tensor([[token]]), one).tokens[0].tolist()
    assert text == [5, 6, 7, 9]
    pair.compare_tables()


def test_a_lost_row_takes_the_next_token_for_the_rest_of_no_marker(kernel):
    pair, one = Pair(kernel, "draft", smooth=False, ids=replace(IDS, marker=(6, 7))), torch.ones(1, dtype=torch.int32)
    pair.add("a", ALWAYS)
    pair.step(["a"], torch.tensor([[6]]), one)
    pair.step(["a"], torch.tensor([[7]]), one, back=torch.tensor([-6]))
    assert pair.slots[0].tables.state[pair.slots[0].row_of["a"], STATE.index("phase")] == THINKING
    pair.compare_tables()


@pytest.mark.parametrize(("now", "lost", "expected"), [(False, 1, 7), (False, 5, 7), (False, 9, END), (True, 1, END)])
def test_an_interrupt_ends_thinking_at_the_margin_where_exits_were_not_lost_on_the_way(kernel, now, lost, expected):
    """A step that is left alone loses them, be it in front of the interrupt, behind 3 tokens, or behind it."""
    pair, one = Pair(kernel, "draft", smooth=False), torch.ones(1, dtype=torch.int32)
    never = Policy(thresholds={"validity": 1.0}, max_thinking_tokens=5)
    pair.add("a", ALWAYS._replace(policy=never, margin=2))
    for at in range(8):
        for slots in pair.slots if at == 3 else ():
            slots.interrupt("a", now=now)
        pair.active.fill_(INCOMPLETE if at == lost else 0.0)
        last = pair.step(["a"], torch.tensor([[7]]), one).tokens.item()
        if last == END:
            break
    assert last == expected
    pair.compare_tables()


@pytest.mark.parametrize("interrupted", [2, 10])  # before the loop is found, and behind it
def test_a_loop_ends_an_interrupted_thinking_only_where_exits_end_it_and_elsewhere_a_boundary_does(kernel, interrupted):
    """Where they are off, lost, or only noted, it ended in mid-sentence."""
    pair, one = Pair(kernel, "draft", smooth=False, transition=(6,)), torch.ones(4, dtype=torch.int32)
    never = ALWAYS._replace(policy=Policy(thresholds={"validity": 1.0}))
    admissions = {"lost": never, "off": never._replace(policy=None), "shadow": never._replace(shadow=True), "on": never}
    for name, admission in admissions.items():
        pair.add(name, admission)
    pair.active.fill_(INCOMPLETE)
    pair.step(["lost"], torch.tensor([[7]]), one[:1])
    pair.active.fill_(0.0)
    texts = []
    for at, token in enumerate([7] * 12 + [2, 7, 7]):
        for slots, name in product(pair.slots if at == interrupted else (), admissions):
            slots.interrupt(name, now=False)
        texts.append(pair.step([*admissions], torch.full((4, 1), token), one).tokens.flatten().tolist())
    lost, off, shadow, on = map(list, zip(*texts, strict=True))
    assert lost == off == shadow == [7] * 12 + [2, 6, END]
    assert END in on[:12]
    state = dict(zip(STATE, pair.slots[0].tables.state.T.tolist(), strict=True))
    rows = [pair.slots[0].row_of[name] for name in admissions]
    assert [state["exited"][row] for row in rows] == [INTERRUPT, INTERRUPT, INTERRUPT, LOOP]
    assert state["would_exit"][rows[2]] > 0
    pair.compare_tables()


def test_what_is_remembered_reaches_as_far_back_as_steps_can_be_dropped(kernel):
    pair = Pair(kernel, "draft", smooth=False)
    pair.add("a", ALWAYS._replace(policy=Policy(thresholds={"validity": 0.9}, patience=STEPS_BACK + 1)))
    pair.signals.fill_(9.0)
    one = torch.ones(1, dtype=torch.int32)
    for _ in range(STEPS_BACK + 1):
        pair.step(["a"], torch.tensor([[2]]), one)
    pair.step(["a"], torch.tensor([[2]]), one, back=torch.tensor([STEPS_BACK]))
    streak = pair.slots[0].tables.state[pair.slots[0].row_of["a"], STATE.index("streak")]
    assert streak == 1  # that of the one boundary that was kept


def test_thinking_is_ended_at_any_token_for_one_reason_and_that_is_news(kernel):
    """By the client, though it goes in circles, though it would have ended in shadow mode, and where exits are off; by
    the cap, of which nothing else tells; by the signals at the cap. A split token of the transition is no boundary, and
    a step in which nothing is decided writes none of it."""
    pair, one = Pair(kernel, "draft", smooth=False, transition=(2, 6)), torch.ones(5, dtype=torch.int32)
    never, always = Policy(thresholds={"validity": 1.0}, max_thinking_tokens=9), Policy(thresholds={})
    at_9 = Policy(thresholds={}, min_thinking_tokens=9, max_thinking_tokens=9)
    policies = {"off": None, "shadow": always, "cap": never, "noted": never, "signals": at_9}
    for name, policy in policies.items():
        pair.add(name, ALWAYS._replace(policy=policy, shadow=name in ("shadow", "noted"), margin=0))
    plain = [7, 8, 9, 7], [8, 9, 7, 8], [8]
    texts = ([5] * 4, [5] * 4, [5]), (plain[0], [8, 9, 7, 2], [7]), plain, plain, (*plain[:2], [2])
    for part in zip(*texts, strict=True):
        pair.step([*policies], torch.tensor(part), one * len(part[0]))
    for slots, name in product(pair.slots, ("off", "shadow")):
        slots.interrupt(name, now=True)

    def drawn(token: int, failed: float = 0.0) -> list[int]:
        pair.active.fill_(failed)
        return pair.step([*policies], torch.full((5, 1), token), one).tokens.flatten().tolist()

    assert drawn(9) == [2, 2, 2, 9, 2]
    report = pair.rules[0].report[:5]
    assert report[:, STATE.index("exited")].tolist() == [INTERRUPT, INTERRUPT, CAP, 0, EXIT]
    assert report[:, STATE.index("would_exit")].tolist() == [0, 8, 0, 9, 0]
    assert report[:, -1].tolist() == [1, 1, 1, 1, 1]
    assert [drawn(7), drawn(8, failed=1.0), drawn(7)] == [[6, 6, 6, 7, 6], [8] * 5, [END, END, END, 7, END]]
    assert drawn(9) == [9] * 5
    pair.compare_tables()


def test_a_row_falls_back_to_its_own_copy_before_a_rebuilt_one_and_is_lost_where_vllm_is_ahead(kernel):
    pair, one = Pair(kernel, "draft", smooth=False), torch.ones(1, dtype=torch.int32)
    pair.add("a", ALWAYS._replace(policy=Policy(thresholds={}, patience=2)))
    for token in (2, 5, 5):
        pair.step(["a"], torch.tensor([[token]]), one)
    for slots in pair.slots:
        slots.rebuild("a", *Reader(pair.markers).rebuild(slots.admissions["a"], [2, 5]))
    pair.step(["a"], torch.tensor([[2]]), one, back=torch.tensor([1]))
    state = pair.slots[0].tables.state[pair.slots[0].row_of["a"]]
    assert state[STATE.index("streak")] == 1  # the rebuilt one knows of no verdict
    assert pair.step(["a"], torch.tensor([[5]]), one, back=torch.tensor([-1])).tokens.tolist() == [[5]]
    assert state[STATE.index("on")] == 0
    pair.compare_tables()


def test_a_row_goes_back_to_no_copy_of_a_branch_that_was_dropped_before(kernel):
    pair = Pair(kernel, "draft", smooth=False)
    pair.add("a", ALWAYS)
    for back, tokens in ((0, [5, 5]), *[(0, [5])] * 4, (3, [5, END]), (0, [7]), (1, [2]), (0, [8])):
        n = torch.tensor([len(tokens)], dtype=torch.int32)
        assert pair.step(["a"], torch.tensor([tokens]), n, back=torch.tensor([back])).tokens.tolist() == [tokens]
    pair.compare_tables()


def test_it_compiles_for_gpus_without_one(tmp_path):
    """About 15 seconds: to machine code, by the assembler that comes with Triton."""
    run_program("compile_kernel.py", environment={"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"})
