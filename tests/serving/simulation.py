"""A batch of requests whose target would write fixed streams, decoded in random steps with a version of the exit rule.

What a runner and a draft do around the rule is done here by hand: a random part of the requests runs in each step, in
random order, prompts in chunks included, and everything that the rule must not look at is garbage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from specexit.method.decision import Policy, exit_position
from specexit.method.signals import NAMES, activate
from specexit.method.splits import ThinkTokens
from torch_specexit.plugin.outcome import Record
from torch_specexit.plugin.worker.rule import Admission, Markers, Sampled
from torch_specexit.plugin.worker.slots import Slots

START, END, VOCAB = 0, 1, 12
STRINGS = {"two": frozenset({2}), "three": frozenset({3}), "both": frozenset({2, 3})}
IDS = ThinkTokens(START, END, frozenset({2, 3}), STRINGS)
GARBAGE = 1 << 30
CPU = torch.device("cpu")


class Request(NamedTuple):
    """What one of the requests asks for."""

    policy: Policy | None
    strings: tuple[str, ...] = tuple(STRINGS)
    shadow: bool = False

    def exit(self, stream: list[int], raw: np.ndarray) -> int | None:
        """Where the definition ends its thinking."""
        if self.policy is None:
            return None
        return exit_position(stream, activate(raw[1:]), self.policy, IDS.only(self.strings))


class Simulation:
    """The batch.

    Args:
      make: makes the version of the rule: from slots, markers, source, ``signals`` and ``smooth``.
      source: ``draft``, ``late`` (``draft`` without stopping, for `Late`) or ``fc``.
      requests: of the batch.
      rng: of everything that is random.
      smooth: whether moving averages are judged.
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
        device: torch.device = CPU,
    ):
        self.source, self.requests, self.rng, self.device = source, requests, rng, device
        self.streams = [self._stream() for _ in requests]
        self.raw = [rng.normal(0, 2, (len(stream) + 1, len(NAMES))).astype(np.float32) for stream in self.streams]
        self.texts: list[list[int]] = [[] for _ in requests]
        self.records: dict[int, Record] = {}
        self.slots = Slots(device, capacity=1)
        self.signals = torch.full((len(requests), len(NAMES)), 99.0, device=device)
        markers = Markers.of(IDS, VOCAB, device)
        self.rule = make(self.slots, markers, source.replace("late", "draft"), signals=self._signals(), smooth=smooth)
        for i, request in enumerate(requests):
            self.slots.add(f"r{i}", Admission(True, request.policy, IDS.mask(request.strings), request.shadow))
        self.slots.flush()

    def _signals(self):
        return self.signals if self.source == "draft" else None

    def _stream(self) -> list[int]:
        # Splits are frequent and the end is rare, so that there is something to decide.
        tokens = self.rng.choice([START, END, 2, 3, *range(4, VOCAB)], 50, p=[0.01, 0.01, 0.15, 0.1, *[0.73 / 8] * 8])
        return tokens.tolist()

    def expected(self, i: int) -> list[int]:
        """The text of a request by the definition."""
        stream, position = self.streams[i], self.requests[i].exit(self.streams[i], self.raw[i])
        if position is None or self.requests[i].shadow or stream[position + 1 : position + 2] == [END]:
            return stream
        # With the very last token there is no next one that ``</think>`` could replace.
        return [*stream[: position + 1], END][: len(stream)]

    def done(self, i: int) -> bool:
        text = self.texts[i]
        return len(text) == len(self.streams[i]) or (bool(text) and text != self.streams[i][: len(text)])

    def run(self) -> None:
        """Decode all requests to their end."""
        for _ in range(2000):
            batch = [int(i) for i in self.rng.permutation(len(self.texts)) if not self.done(int(i))]
            if not batch:
                return
            self.step([i for i in batch if self.rng.random() < 0.8])
        raise AssertionError("requests do not end")

    def step(self, batch: list[int]) -> None:
        """One decoding step of some of the requests."""
        width = int(self.rng.integers(1, 6))
        rest = -1 if self.source == "late" else GARBAGE
        tokens, n = torch.full((len(batch), width), rest), torch.zeros(len(batch), dtype=torch.int32)
        for row, i in enumerate(batch):
            at = len(self.texts[i])
            n[row] = min(int(self.rng.integers(0, width + 1)), len(self.streams[i]) - at)
            tokens[row, : n[row]] = torch.tensor(self.streams[i][at : at + n[row]], dtype=torch.long)
        drawn, rejected = tokens.clone(), None if self.source == "late" else torch.full_like(n, 7)
        ends = torch.arange(1, len(batch) + 1, dtype=torch.int32) * width
        before = n.clone()
        given = [x if x is None else x.to(self.device) for x in (tokens, n, ends, rejected)]
        sampled = Sampled([f"r{i}" for i in batch], *given)
        forced = self._decide(sampled, batch)
        tokens, n = sampled.tokens.cpu(), sampled.n.cpu()
        assert sampled.rejected is None or torch.equal(sampled.rejected.cpu(), 7 + before - n)
        for row, i in enumerate(batch):
            kept = tokens[row, : n[row]].tolist()
            assert (before[row] == 0) == (not kept)
            assert (forced is not None and bool(forced[row])) == (kept != drawn[row, : n[row]].tolist())
            self.texts[i] += kept
            self.records[i] = Record.from_row(self.rule.records()[row].tolist())
        if self.source == "draft":
            self.signals.fill_(99.0)
            for row, i in enumerate(batch):
                if n[row]:
                    self.signals[row] = torch.tensor(self.raw[i][len(self.texts[i])])

    def _decide(self, sampled: Sampled, batch: list[int]):
        if self.source != "late":
            return self.rule.step(sampled, lambda: self._rows(batch, sampled.tokens.shape[1], 0))
        before = self.rule.force(sampled) if self.rule.owes(sampled.requests) else None
        after = self.rule.step(sampled, lambda rows: self._rows(batch, sampled.tokens.shape[1], 1)[rows])
        found = [forced for forced in (before, after) if forced is not None]
        return torch.stack(found).any(dim=0) if found else None

    def _rows(self, batch: list[int], width: int, shift: int) -> torch.Tensor:
        """Signals at the rows that were sampled from: of their inputs, or of what they have drawn."""
        rows = torch.full((len(batch), width, len(NAMES)), 99.0)
        for row, i in enumerate(batch):
            values = self.raw[i][len(self.texts[i]) + shift :][:width]
            rows[row, : len(values)] = torch.from_numpy(values)
        return rows.flatten(0, 1).to(self.device)

    def check(self) -> None:
        """Compare texts and outcomes with the definition."""
        for i, request in enumerate(self.requests):
            expected, record = self.expected(i), self.records[i]
            assert self.texts[i] == expected[: len(self.texts[i])]
            assert len(self.texts[i]) == len(expected)
            thinking = expected[: expected.index(END)] if END in expected else expected
            assert (record.thoughts, record.start, record.on) == (len(thinking), 0, request.policy is not None)
            position = request.exit(self.streams[i], self.raw[i])
            if position is not None and position + 1 < len(self.streams[i]):
                assert (record.exited, record.would_exit) == ((0, position + 1) if request.shadow else (1, 0))
                if request.policy.smoothing == "none":
                    values = activate(self.raw[i][position + 1])
                    np.testing.assert_allclose(record.signals, values, rtol=5e-7)
            else:
                assert (record.exited, record.would_exit) == (0, 0)


@st.composite
def policies(draw, smooth: bool):
    thresholds = {
        name: draw(st.floats(0.05, 0.95) if name != "remaining" else st.floats(0.1, 20))
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True))
    }
    return Policy(
        thresholds=thresholds,
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
    )
