"""The Triton kernel of the exit rule, run by Triton's interpreter, against its eager twin and the definition; and that
it compiles for GPUs, which needs none."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from tests.serving.conftest import run_program
from tests.serving.simulation import CPU, END, GARBAGE, IDS, START, VOCAB, Request, Simulation
from torch_specexit.plugin.worker.cost import STEPS, Scene, launches
from torch_specexit.plugin.worker.rule import STATE, Admission, Markers, Sampled
from torch_specexit.plugin.worker.slots import Slots
from torch_specexit.plugin.worker.twin import Twin

triton = pytest.importorskip("triton", reason="the kernel needs Triton, which some CPU builds of torch lack")

modes = pytest.mark.parametrize(("source", "smooth"), [("draft", False), ("fc", False), ("fc", True)])


def fused(*, interpreted: bool) -> type:
    """The kernel's class, interpreted or not: Triton decides on import. Later tests' engines must not inherit the
    switch. Without the type checks of the import hook, which wrap functions that Triton reads the source of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(interpreted)))
        finders = [finder for finder in sys.meta_path if "jaxtyping" not in type(finder).__module__]
        patch.setattr(sys, "meta_path", finders)
        for module in ("kernel", "fused"):
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
]


@modes
def test_texts_and_outcomes_are_those_of_the_definition(kernel, source, smooth):
    """About 15 seconds for the three together."""
    change = {"smoothing": "ewma", "alpha": 0.4} if smooth else {}
    policies = [policy and policy.model_copy(update=change) for policy in POLICIES]
    strings = [("two", "three"), ("both",), ("three",)]
    batch = [Request(p, strings[i % 3], shadow=i >= 5) for i, p in enumerate([*policies, *policies])]
    simulation = Simulation(kernel, source, batch, np.random.default_rng(5), smooth=smooth)
    simulation.run()
    simulation.check()
    outcomes = [(record.exited, record.would_exit > 0) for record in simulation.records.values()]
    assert {(0, False), (1, False), (0, True)} <= set(outcomes)


class Pair:
    """Kernel and twin on the same steps, whatever these are."""

    def __init__(self, kernel, source: str, smooth: bool):
        self.source, self.signals = source, torch.zeros(64, len(NAMES))
        self.slots = Slots(CPU, capacity=1), Slots(CPU, capacity=1)
        of_draft = self.signals if source == "draft" else None
        self.rules = [
            version(slots, Markers.of(IDS, VOCAB, CPU), source, signals=of_draft, smooth=smooth)
            for version, slots in zip((kernel, Twin), self.slots, strict=True)
        ]

    def add(self, name: str, admission: Admission) -> None:
        for slots in self.slots:
            slots.add(name, admission)

    def remove(self, names) -> None:
        for slots in self.slots:
            slots.remove(names)

    def step(self, names: list[str], tokens, n, raw, *, padded: bool) -> None:
        results = []
        for rule in self.rules:
            rejected = None if padded else torch.arange(len(names), dtype=torch.int32)
            ends = (torch.arange(len(names)) + 1) * tokens.shape[1]
            sampled = Sampled(names, tokens.clone(), n.clone(), ends, rejected, padded)
            forced = rule.step(sampled, lambda: raw)
            results.append((sampled, torch.zeros(len(names), dtype=torch.bool) if forced is None else forced))
        (ours, forced), (twins, twin_forced) = results
        assert torch.equal(ours.n, twins.n)
        assert torch.equal(ours.tokens, twins.tokens)
        assert torch.equal(forced[: len(names)], twin_forced)
        assert padded or torch.equal(ours.rejected, twins.rejected)
        # Exponentials of two libraries: a few units in the last place of float32.
        torch.testing.assert_close(self.rules[0].records(), self.rules[1].records(), rtol=1e-6, atol=0)

    def compare_tables(self) -> None:
        for rule in self.rules:
            rule.settle()
        ours, twins = (slots.tables.state.clone() for slots in self.slots)
        assert self.slots[0].row_of == self.slots[1].row_of
        for state in (ours, twins):
            state[:, STATE.index("row")] = 0  # the twin knows its rows from elsewhere
            over = state[:, STATE.index("phase")] == 2
            state[over, STATE.index("smoothed") :] = 0  # nobody will read it any more
        torch.testing.assert_close(ours, twins, rtol=1e-6, atol=0)


@modes
@pytest.mark.parametrize("padded", [False, True])
def test_kernel_and_twin_agree_on_anything(kernel, source, smooth, padded):
    """Requests come, go, pause and come back under old names; tokens are dense in markers and split tokens, none or all
    are accepted, rows are discarded, what lies behind is garbage; batches are smaller and larger than a block. About 20
    seconds for the six together."""
    rng, pair = np.random.default_rng([len(source), smooth, padded]), Pair(kernel, source, smooth)
    for step in range(20):
        pair.remove([f"r{i}" for i in rng.integers(0, 50, 4)] if step % 3 == 0 else [])
        for name in (f"r{i}" for i in rng.integers(0, 50, 30 if step == 7 else 5)):
            policy = POLICIES[rng.integers(len(POLICIES))]
            admission = Admission(bool(rng.random() < 0.7), policy, int(rng.integers(1, 8)), bool(rng.random() < 0.3))
            pair.add(name, admission)
        known = list(pair.slots[0].row_of)
        names = [known[i] for i in rng.permutation(len(known))[: 1 if step % 5 == 4 else 40]]
        width = int(rng.integers(1, 6))
        n = torch.tensor(rng.integers(0, width + 1, len(names)), dtype=torch.int32)
        tokens = torch.tensor(rng.choice([START, END, 2, 3, 5], (len(names), width), p=[0.05, 0.05, 0.2, 0.2, 0.5]))
        tokens[torch.arange(width) >= n[:, None]] = -1 if padded else int(rng.choice([-1, GARBAGE, END]))
        tokens[n == 0] = END
        # Raw values of 0 lie on a threshold of one half, to the bit.
        raw = torch.tensor(rng.normal(0, 2, (len(names) * width, len(NAMES))) * (rng.random() < 0.8)).float()
        pair.step(names, tokens, n, raw, padded=padded)
        if source == "draft":
            pair.signals.copy_(torch.tensor(rng.normal(0, 2, pair.signals.shape)))
    assert pair.slots[0].capacity >= 32
    pair.compare_tables()
    pair.remove(list(pair.slots[0].row_of))
    assert len(pair.slots[0]) == 0


def test_a_split_token_and_the_end_marker_in_one_step(kernel):
    for source, tokens, n, expected in (
        ("draft", [5, 2, END, 5], 4, [5, 2]),  # acceptance stops at the split token
        ("draft", [5, END, 2, 5], 4, [5, END, 2, 5]),  # behind the end there is no boundary
        ("fc", [5, 2, END, 5], 4, [5, 2, END]),  # forced where it was drawn anyway
        ("fc", [5, 2, 6, END], 4, [5, 2, END]),
        ("fc", [5, END, 2, 6], 4, [5, END, 2, 6]),
        ("fc", [5, 2, 6, END], 2, [5, 2]),  # the row behind the split token was not accepted
    ):
        pair = Pair(kernel, source, smooth=False)
        pair.add("r", Admission(True, Policy(thresholds={})))
        pair.step(["r"], torch.tensor([tokens]), torch.tensor([n], dtype=torch.int32), torch.zeros(4, 4), padded=False)
        given = Sampled(["s"], torch.tensor([tokens]), torch.tensor([n], dtype=torch.int32), torch.zeros(1).long())
        pair.add("s", Admission(True, Policy(thresholds={})))
        forced = pair.rules[0].step(given, lambda: torch.zeros(4, 4))
        assert given.tokens[0, : given.n[0]].tolist() == expected
        assert bool(forced[0]) == (expected != tokens[: len(expected)])


@modes
def test_a_step_is_one_launch(kernel, source, smooth):
    way = "fc, smoothed" if smooth else source
    threshold, drawn = STEPS["judged"]
    scene = Scene(kernel, way, threshold, CPU, batch=40, width=4)
    assert [launches(scene.step(token)) for token in drawn] == [1, 1]


def test_requests_that_a_step_leaves_out_are_judged_with_it(kernel):
    pair = Pair(kernel, "draft", smooth=False)
    for name in "ab":
        pair.add(name, Admission(True, Policy(thresholds={"validity": 0.5})))
    boundary, one = torch.tensor([[2], [2]]), torch.ones(2, dtype=torch.int32)
    pair.step(["a", "b"], boundary, one, torch.zeros(0, 4), padded=False)
    pair.signals[:2] = torch.tensor([[3.0], [-3.0]])  # a exits, b does not
    pair.step(["b"], torch.tensor([[5]]), one[:1], torch.zeros(0, 4), padded=False)
    pair.signals.fill_(-3.0)  # what a has left is overwritten
    given = Sampled(["b", "a"], torch.tensor([[6], [6]]), one.clone(), torch.zeros(2).long())
    assert pair.rules[0].step(given, list).tolist() == [False, True]
    assert given.tokens.tolist() == [[6], [END]]


def test_it_compiles_for_gpus_without_one(tmp_path):
    """About 15 seconds: to machine code, by the assembler that comes with Triton."""
    run_program("compile_kernel.py", environment={"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"})
