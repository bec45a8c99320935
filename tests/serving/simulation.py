"""A batch of requests whose target would write fixed streams, decoded in random steps with a version of the exit rule.

What vLLM does around the rule is done here by hand: a random part of the requests runs in each step, in random order,
prompts in chunks included; steps are dropped, and requests go on from the tokens before them, after a preemption or at
once; what a request has written becomes part of its prompt, where that is continued; and everything that the rule must
not look at is garbage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from specexit.method.decision import Policy, exit_position
from specexit.method.loops import LoopGuard, loop_position
from specexit.method.signals import NAMES, activate
from specexit.method.splits import ThinkTokens
from torch_specexit.plugin.outcome import Record
from torch_specexit.plugin.worker.checking import Checker
from torch_specexit.plugin.worker.loops import LoopSearch
from torch_specexit.plugin.worker.reading import Reader
from torch_specexit.plugin.worker.rule import CAP, EXIT, LOOP, REPORT, STEPS_BACK, Admission, Markers, Sampled
from torch_specexit.plugin.worker.slots import Slots

START, END, VOCAB = 0, 1, 12
STRINGS = {"two": frozenset({2}), "three": frozenset({3}), "both": frozenset({2, 3})}
IDS = ThinkTokens(START, END, frozenset({2, 3}), STRINGS)
GARBAGE = 1 << 30
WIDEST = 11
"""Tokens of a step; more than a policy looks back."""
CPU = torch.device("cpu")


class Exit(NamedTuple):
    """Where the definition ends the thinking of a request: behind this position, and why."""

    position: int
    why: int


class Request(NamedTuple):
    """What one of the requests asks for."""

    policy: Policy | None
    strings: tuple[str, ...] = tuple(STRINGS)
    shadow: bool = False
    margin: int | None = None

    def exit(self, stream: list[int], raw: np.ndarray, guard: LoopGuard | None = None) -> Exit | None:
        """Where the definitions end its thinking."""
        if self.policy is None:
            return None
        ids, values, most = IDS.only(self.strings), activate(raw[1:]), self.policy.max_thinking_tokens
        position = exit_position(stream, values, self.policy, ids)
        hard = len(stream) if most is None or self.margin is None else most + self.margin
        natural = stream.index(END) if END in stream else len(stream)
        if hard - 1 < natural and (position is None or position > hard - 1):
            position = hard - 1
        loop = None if guard is None else loop_position(stream[:natural], guard)
        if loop is not None and (position is None or loop < position):
            return Exit(loop, LOOP)
        if position is None:
            return None
        by_signals = exit_position(stream, values, self.policy.model_copy(update={"max_thinking_tokens": None}), ids)
        return Exit(position, EXIT if by_signals == position else CAP)


class Simulation:
    """The batch.

    Args:
      make: makes the version of the rule: from slots, markers, source and ``smooth``.
      source: ``draft`` or ``fc``.
      requests: of the batch.
      rng: of everything that is random.
      smooth: whether moving averages are judged.
      transition: tokens that are forced before ``</think>``.
      guard: against loops; there are loops then.
      drops: how often steps are dropped.
      continues: how often a prompt is continued by what the request has written.
      device: of the rule.
    """

    def __init__(
        self,
        make: Callable,
        source: str,
        requests: list[Request],
        rng: np.random.Generator,
        *,
        smooth: bool = False,
        transition: tuple[int, ...] = (),
        guard: LoopGuard | None = None,
        drops: float = 0.15,
        continues: float = 0.0,
        device: torch.device = CPU,
    ):
        self.source, self.requests, self.rng, self.device, self.drops = source, requests, rng, device, drops
        self.continues, self.continued = continues, 0
        self.closing, self.guard = [*transition, END], guard
        self.streams = [self._stream() for _ in requests]
        self.raw = [rng.normal(0, 2, (len(stream) + 1, len(NAMES))).astype(np.float32) for stream in self.streams]
        self._spoil(rng.spawn(1)[0])
        self.exits = [
            request.exit(stream, raw, guard)
            for request, stream, raw in zip(requests, self.streams, self.raw, strict=True)
        ]
        """Where thinking ends by the definitions."""
        self.texts: list[list[int]] = [[] for _ in requests]
        self.began: list[list[int]] = [[] for _ in requests]
        """How long its text was as each of the last steps of a request began, which may still be dropped."""
        self.dropped = 0
        self.records: dict[int, Record] = {}
        loops = None if guard is None else LoopSearch.of(guard, STEPS_BACK * WIDEST)
        self.slots = Slots(device, capacity=1, ring=loops.ring if loops else 0)
        self.signals = torch.full((len(requests), WIDEST, len(NAMES)), 99.0, device=device)
        self.active = torch.zeros(1, device=device)
        markers = Markers.of(IDS, VOCAB, device, transition=transition, loops=loops)
        self.rule = make(self.slots, markers, source, smooth=smooth)
        self.checker, self.reader = Checker(self.slots, markers), Reader(markers)
        for i in range(len(requests)):
            self._admit(i, int(rng.integers(1, 9)))

    def _admit(self, i: int, prompt: int) -> None:
        request = self.requests[i]
        mask = IDS.mask(request.strings)
        admission = Admission(True, request.policy, mask, request.shadow, prompt=prompt, margin=request.margin)
        self.slots.add(f"r{i}", admission)

    def _spoil(self, rng: np.random.Generator) -> None:
        """Some requests have signals that no target should give."""
        for raw in self.raw:
            odd = rng.random(raw.shape) < rng.choice([0.0, 0.0, 0.03])
            raw[odd] = rng.choice([np.nan, np.inf, -np.inf], int(odd.sum()))

    def _stream(self) -> list[int]:
        # Splits are frequent and the end is rare, so that there is something to decide.
        tokens = self.rng.choice([START, END, 2, 3, *range(4, VOCAB)], 50, p=[0.01, 0.01, 0.15, 0.1, *[0.73 / 8] * 8])
        stream = tokens.tolist()
        if self.guard is None or self.rng.random() < 0.3:
            return stream
        at, size = (int(value) for value in self.rng.integers((0, 1), (30, 2 * self.guard.period)))
        loop = stream[at : at + size] * len(stream)
        return [*[*stream[:at], *loop][: int(self.rng.integers(at + 1, len(stream)))], *stream[at:]][: len(stream)]

    def expected(self, i: int) -> list[int]:
        """The text of a request by the definition."""
        stream, exit = self.streams[i], self.exits[i]
        if exit is None or self.requests[i].shadow:
            return stream
        behind = exit.position + 1
        if stream[behind : behind + len(self.closing)] == self.closing:
            return stream
        # With the very last token there is no next one that could be replaced.
        return [*stream[:behind], *self.closing][: len(stream)]

    def done(self, i: int) -> bool:
        return len(self.texts[i]) >= len(self.expected(i))

    def run(self) -> None:
        """Decode all requests to their end."""
        for _ in range(2000):
            batch = [int(i) for i in self.rng.permutation(len(self.texts)) if not self.done(int(i))]
            if not batch:
                return
            self.step([i for i in batch if self.rng.random() < 0.8])
            for i in batch:
                if self.rng.random() < self.drops:
                    self.drop(i)
                if self.continues and self.rng.random() < self.continues:
                    self.continue_(i)
        raise AssertionError("requests do not end")

    def drop(self, i: int) -> None:
        """vLLM has dropped the last steps of a request; now and then it was preempted for that."""
        steps = int(self.rng.integers(1, STEPS_BACK + 1))
        if len(self.began[i]) < steps:
            return
        size = self.began[i][-steps]
        del self.began[i][-steps:], self.texts[i][size:]
        self.dropped += 1
        if self.rng.random() < 0.5:
            self.checker.compare(f"r{i}", self.texts[i])
            self.slots.rebuild(f"r{i}", *self.reader.rebuild(self.slots.admissions[f"r{i}"], self.texts[i]))

    def continue_(self, i: int) -> None:
        """A request that thinks goes on as a new one, whose prompt has what it has written."""
        exit, size = self.exits[i], len(self.texts[i])
        if size == 0 or END in self.texts[i] or self.done(i) or (exit is not None and size > exit.position):
            return
        self.streams[i], self.raw[i] = self.streams[i][size:], self.raw[i][size:]
        self.exits[i] = self.requests[i].exit(self.streams[i], self.raw[i], self.guard)
        self.checker.forget([f"r{i}"])
        self._admit(i, self.slots.admissions[f"r{i}"].prompt + size)
        self.texts[i], self.began[i] = [], []
        self.records.pop(i, None)
        self.continued += 1

    def step(self, batch: list[int]) -> None:
        """One decoding step of some of the requests."""
        width = int(self.rng.integers(1, (WIDEST if self.rng.random() < 0.1 else 5) + 1))
        tokens, n = torch.full((len(batch), width), GARBAGE), torch.zeros(len(batch), dtype=torch.int32)
        for row, i in enumerate(batch):
            at = len(self.texts[i])
            n[row] = min(int(self.rng.integers(0, width + 1)), len(self.streams[i]) - at)
            tokens[row, : n[row]] = torch.tensor(self.streams[i][at : at + n[row]], dtype=torch.long)
        drawn, before = tokens.clone(), n.clone()
        sampled = self._sampled(batch, tokens, n)
        self.checker.before(sampled)
        self.rule.step(sampled, self.signals if self.source == "draft" else self._rows(batch, width), self.active)
        self.checker.after(sampled)
        tokens, n = sampled.tokens.cpu(), sampled.n.cpu()
        assert sampled.rejected is not None
        assert torch.equal(sampled.rejected.cpu(), 7 + before - n)
        self._take(batch, before, drawn, tokens, n)
        if self.source == "draft":
            self.signals.fill_(99.0)
            for row, i in enumerate(batch):
                for back in range(int(n[row])):
                    self.signals[row, back] = torch.tensor(self.raw[i][len(self.texts[i]) - back])

    def _take(self, batch: list[int], before, drawn, tokens, n) -> None:
        report, forced = self.rule.report.tolist(), self.rule.forced.tolist()
        for row, i in enumerate(batch):
            kept = tokens[row, : n[row]].tolist()
            assert (before[row] == 0) == (not kept)
            assert forced[row] == (kept != drawn[row, : n[row]].tolist())
            if kept:
                self.began[i] = [*self.began[i], len(self.texts[i])][-STEPS_BACK:]
            self.texts[i] += kept
            expected = self.expected(i)  # what has been drawn where it was to be forced may be followed by more
            assert self.texts[i][: len(expected)] == expected[: len(self.texts[i])]
            if report[row][REPORT.index("changed")]:
                self.records[i] = Record.from_row(report[row][:-1])

    def _sampled(self, batch: list[int], tokens: torch.Tensor, n: torch.Tensor) -> Sampled:
        """A step as a runner describes it; its hidden states are in another order than its rows."""
        width, size = tokens.shape[1], tokens.numel()
        ends = torch.arange(1, len(batch) + 1, dtype=torch.int32) * width
        rows = torch.from_numpy(self.rng.permutation(size))
        positions = torch.zeros(size, dtype=torch.int64)
        input_ids = torch.full((size,), GARBAGE)
        for row, i in enumerate(batch):
            at = self.slots.admissions[f"r{i}"].prompt + len(self.texts[i]) - 1
            positions[rows[row * width : (row + 1) * width]] = torch.arange(at, at + width)
            if self.texts[i]:
                input_ids[rows[row * width]] = self.texts[i][-1]
        given = (tokens, n, ends, rows, positions, torch.full_like(n, 7), input_ids)
        tokens, n, ends, rows, positions, rejected, input_ids = (x.to(self.device) for x in given)
        names = [f"r{i}" for i in batch]
        return Sampled(names, tokens, n, ends, rows, positions, rejected, input_ids=input_ids)

    def _rows(self, batch: list[int], width: int) -> torch.Tensor:
        """Source ``fc``: signals at the rows that were sampled from."""
        rows = torch.full((len(batch), width, len(NAMES)), 99.0)
        for row, i in enumerate(batch):
            values = self.raw[i][len(self.texts[i]) :][:width]
            rows[row, : len(values)] = torch.from_numpy(values)
        return rows.flatten(0, 1).to(self.device)

    def check(self) -> None:
        """Compare texts and outcomes with the definition."""
        for i, request in enumerate(self.requests):
            expected, record = self.expected(i), self.records[i]
            assert self.texts[i][: len(expected)] == expected
            self._check_record(request, expected, record, self.exits[i], i)

    def _check_record(self, request: Request, expected: list[int], record: Record, exit: Exit | None, i: int) -> None:
        thinking = expected[: expected.index(END)] if END in expected else expected
        assert (record.start, record.on) == (0, request.policy is not None)
        if END in expected:  # else the last tokens were no news
            assert record.thoughts == len(thinking)
        if exit is None or exit.position + 1 >= len(self.streams[i]):
            assert (record.exited, record.would_exit) == (0, 0)
            return
        assert (record.exited, record.would_exit) == ((0, exit.position + 1) if request.shadow else (exit.why, 0))
        if not request.shadow:
            assert record.kept == exit.position + 1
        if request.policy is not None and request.policy.smoothing == "none" and exit.why == EXIT:
            np.testing.assert_allclose(record.signals, activate(self.raw[i][exit.position + 1]), rtol=5e-7)


@st.composite
def policies(draw, smooth: bool):
    def limits(least: int) -> dict[str, float]:
        names = draw(st.lists(st.sampled_from(NAMES), min_size=least, max_size=2, unique=True))
        return {name: draw(st.floats(0.05, 0.95) if name != "remaining" else st.floats(0.1, 20)) for name in names}

    return Policy(
        thresholds=limits(1),
        early=limits(0),
        smoothing="ewma" if smooth else "none",
        alpha=draw(st.floats(0.05, 1.0)) if smooth else 0.1,
        patience=draw(st.integers(1, 3)),
        min_thinking_tokens=draw(st.integers(0, 20)),
        max_thinking_tokens=draw(st.none() | st.integers(20, 40)),
    )


def requests(smooth: bool):
    return st.builds(
        Request,
        st.none() | policies(smooth),
        st.lists(st.sampled_from(sorted(STRINGS)), min_size=1, unique=True).map(tuple),
        st.booleans(),
        st.none() | st.integers(0, 6),
    )


def given_step(names, tokens, n=None, at=None, *, padded=False) -> Sampled:
    """A step of requests whose prompts are one token long, behind ``at`` tokens of output each."""
    tokens = torch.tensor(tokens)
    n = torch.tensor(n if n is not None else [tokens.shape[1]] * len(names), dtype=torch.int32)
    rows = torch.arange(len(names)) * tokens.shape[1]
    positions = torch.zeros(tokens.numel(), dtype=torch.int64)
    positions[rows] = torch.tensor(at if at is not None else [0] * len(names))
    every = torch.arange(tokens.numel())
    return Sampled(names, tokens, n, (rows + tokens.shape[1]).int(), every, positions, padded=padded)
