"""What a step may take at the largest batch, counted on tensors that have a shape and no memory; and buffers that are
used again. No engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specexit.method.signals import NAMES
from torch_specexit.bench.step_cost import HIDDEN, WIDTH, Made, fc_temporary_bytes
from torch_specexit.plugin.worker import copies, logprobs
from torch_specexit.plugin.worker.copies import Copies
from torch_specexit.plugin.worker.model import WithSignals
from torch_specexit.plugin.worker.rule import REPORT

pytestmark = pytest.mark.vllm

MIB = 1 << 20
BATCH, VOCAB = 1024, 151_936


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_signals_of_the_target_take_less_than_64_mib_at_1024_requests_and_8192_channels():
    """All rows of all layers, put side by side in float32, used to be 400 MB in each step."""
    assert 1024 * HIDDEN * 4 < fc_temporary_bytes(BATCH) <= 64 * MIB  # there is something to bound


def test_signals_of_the_draft_take_less_than_64_mib_at_1024_requests_and_8192_channels():
    draft: Any = SimpleNamespace(
        first_pass=SimpleNamespace(requests=BATCH),
        last_rows=on_meta(BATCH, 1, dtype=torch.int64),
        back=on_meta(WIDTH, dtype=torch.int64),
        signals=on_meta(BATCH, WIDTH, len(NAMES), dtype=torch.float32),
        signal_weight=on_meta(len(NAMES), HIDDEN, dtype=torch.float32),
    )
    hidden = on_meta(BATCH * WIDTH, HIDDEN)
    with Made() as made:
        WithSignals.leave_signals(draft, hidden)
    assert max(made.bytes) >= 1024 * HIDDEN * 4
    assert max(a + b for a, b in pairwise(made.bytes)) <= 64 * MIB


def test_signals_of_the_draft_are_those_of_each_requests_last_tokens_the_newest_first():
    hidden = torch.arange(9).float()[:, None].expand(9, 2)
    draft: Any = SimpleNamespace(
        first_pass=SimpleNamespace(requests=2),
        last_rows=torch.tensor([[1], [7], [5]]),
        back=torch.arange(3),
        signals=torch.full((3, 3, len(NAMES)), -1.0),
        signal_weight=torch.full((len(NAMES), 2), 0.5),
    )
    WithSignals.leave_signals(draft, hidden)
    assert draft.signals[:, :, 0].tolist() == [[1, 0, 0], [7, 6, 5], [-1, -1, -1]]


def test_logprobs_of_forced_tokens_are_looked_at_64_mib_at_a_time():
    """A whole batch of logits in float32 used to be made, 600 MB."""
    tensors: Any = SimpleNamespace(
        logprob_token_ids=on_meta(BATCH, 2, dtype=torch.int32),
        logprobs=on_meta(BATCH, 2, dtype=torch.float32),
        selected_token_ranks=on_meta(BATCH, dtype=torch.int64),
    )
    asked = on_meta(BATCH, dtype=torch.int64)
    forced, logits = on_meta(BATCH, dtype=torch.bool), on_meta(BATCH * WIDTH, VOCAB)
    with Made() as made:
        logprobs.name_forced_tokens(tensors, asked, forced, asked, logits, asked)
    assert 32 * MIB < max(made.bytes) <= 64 * MIB


def test_where_v1_samples_in_place_logits_are_read_64_mib_at_a_time_and_not_copied():
    """All of them used to be cloned where one client asked: 620 MB in a step."""
    logits, rows = on_meta(BATCH, VOCAB, dtype=torch.float32), on_meta(BATCH, dtype=torch.int64)
    closing = on_meta(12, dtype=torch.int32)
    with Made() as made:
        read = logprobs.read_closing(logits, rows, closing)
    assert 32 * MIB < max(made.bytes) <= 64 * MIB
    assert read.logprobs.shape == (BATCH, 12)


class OnGpu(torch.Tensor):
    """A tensor that says so."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")

    def record_stream(self, s: Any) -> None:
        s.did.append("keeps its source")


class Stream:
    """Stands for a CUDA stream: what was asked of it, in order."""

    current: Stream

    def __init__(self) -> None:
        self.did: list[str] = []

    def wait_stream(self, other: Stream) -> None:
        self.did.append(f"waits for {len(other.did)}")

    def wait_event(self, event: Any) -> None:
        self.did.append(f"waits for event {event.recorded}")


class Event:
    """Stands for a CUDA event."""

    recorded = 0

    def record(self) -> None:
        Event.recorded += 1
        self.recorded = Event.recorded
        Stream.current.did.append(f"event {self.recorded}")

    def synchronize(self) -> None: ...


@pytest.fixture
def streams(monkeypatch) -> tuple[Stream, Stream]:
    """The main one, and the one that is made for copies."""
    main, side = Stream(), Stream()
    Stream.current, Event.recorded = main, 0

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, Stream.current = Stream.current, stream
        yield
        Stream.current = before

    monkeypatch.setattr(copies.torch.cuda, "Stream", lambda: side)
    monkeypatch.setattr(copies.torch.cuda, "current_stream", lambda: Stream.current)
    monkeypatch.setattr(copies.torch.cuda, "stream", on)
    monkeypatch.setattr(copies.torch.cuda, "Event", Event)
    return main, side


def test_a_report_is_copied_beside_drafting_and_not_in_front_of_it(monkeypatch, streams):
    """On the main stream, the draft's first pass would wait for the bus."""
    main, side = streams
    monkeypatch.setattr(copies.torch, "empty", lambda *shape, pin_memory=False: torch.zeros(*shape))
    taken, report = Copies(), torch.zeros(3, len(REPORT)).as_subclass(OnGpu)
    for _ in range(2):
        taken.wait()
        main.did.append("the rule")
        taken.start(report)
        main.did.append("drafting")
    assert main.did == ["the rule", "drafting", "waits for event 1", "the rule", "drafting"]
    kept = "keeps its source"
    assert side.did == ["waits for 1", "event 1", kept, "waits for 4", "event 2", kept]


@pytest.mark.parametrize(("read", "buffers"), [(True, 1), (False, Copies.IN_FLIGHT)])
@pytest.mark.usefixtures("streams")
def test_buffers_of_reports_are_used_again_whether_anybody_reads_them_or_not(monkeypatch, read, buffers):
    """On ranks whose output vLLM does not ask for, each step used to leave a pinned buffer and an event behind."""
    made = []
    empty = torch.empty

    def pinned(*shape: int, pin_memory: bool = False) -> torch.Tensor:
        made.extend([shape] if pin_memory else [])
        return empty(*shape)

    monkeypatch.setattr(copies.torch, "empty", pinned)
    taken = Copies()
    for number in range(100):
        report = torch.full((3, len(REPORT)), float(number)).as_subclass(OnGpu)
        reading = taken.start(report)
        if read:
            assert reading().tolist() == [[number] * len(REPORT)] * 3
    assert len(made) == buffers


def test_what_was_read_of_a_report_stays_and_one_still_in_flight_is_what_it_was(monkeypatch, streams):
    """Reports grow with the batch; those that were read too late are garbage, and spoil no other."""
    empty = torch.empty
    monkeypatch.setattr(copies.torch, "empty", lambda *shape, pin_memory=False: empty(*shape))
    taken, width = Copies(), len(REPORT)

    def start(rows: int, value: float):
        return taken.start(torch.full((rows, width), value).as_subclass(OnGpu))

    first = start(2, 1.0)()
    assert start(5, 2.0)().tolist() == [[2.0] * width] * 5
    assert first.tolist() == [[1.0] * width] * 2
    reads = [start(1, float(number)) for number in range(Copies.IN_FLIGHT + 3)]
    reads[0]()  # nobody should
    late = [start(1, 98.0), start(1, 99.0)]
    found = [read().item(0) for read in (*reads[5:], *late)]
    assert found == [*range(5, Copies.IN_FLIGHT + 3), 98, 99]


def test_on_a_cpu_a_report_is_copied_at_once():
    report = torch.zeros(1, len(REPORT))
    read = Copies().start(report)
    report.fill_(9.0)  # by the next step
    assert read().tolist() == [[0.0] * len(REPORT)]
