"""What a step reports, on its way from the device to vLLM's output, without the host waiting for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torch_specexit.plugin.worker.rule import CHANGED, REPORT

News = dict[str, list[float]]
"""Columns of `rule.RECORD` by request, for the requests that have more news than tokens."""

_CHANGED = REPORT.index(CHANGED)


class Copies:
    """Snapshots on their way to the host. Each copy has a pinned buffer and an event, which are used again once it has
    been read or, on ranks whose output nobody reads, once it is out of date.

    Copies run on a stream of their own, as vLLM's copies of tokens do: on the main one, drafts would wait for the bus.
    """

    IN_FLIGHT = 16
    """How many copies may wait to be read; nobody reads an older one."""

    def __init__(self) -> None:
        self._idle: list[tuple[Tensor, torch.cuda.Event]] = []
        self._busy: dict[int, tuple[Tensor, torch.cuda.Event]] = {}
        self._started = 0
        self._stream: torch.cuda.Stream | None = None
        self._last: torch.cuda.Event | None = None
        """Marks the end of the latest copy."""

    def wait(self) -> None:
        """Have the device, not the host, wait for the latest copy: what that reads is about to be overwritten."""
        if self._last is not None:
            torch.cuda.current_stream().wait_event(self._last)

    def start(self, report: Float[Tensor, "batch report"]) -> Callable[[], Float[np.ndarray, "batch report"]]:
        """Start a copy; returns a function that waits for it and gives its rows."""
        if report.device.type != "cuda":
            rows = report.numpy().copy()
            return lambda: rows
        if len(self._busy) >= self.IN_FLIGHT:
            self._idle.append(self._busy.pop(min(self._busy)))
        buffer, event = self._idle.pop() if self._idle else (torch.empty(0, report.shape[1]), torch.cuda.Event())
        if buffer.shape[0] < report.shape[0]:
            buffer = torch.empty(2 * report.shape[0], report.shape[1], pin_memory=True)
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            buffer[: report.shape[0]].copy_(report, non_blocking=True)
            event.record()
        report.record_stream(self._stream)  # where the tables grow, it may be freed before it is copied
        self._last = event
        self._started += 1
        number, size = self._started, report.shape[0]
        self._busy[number] = (buffer, event)

        def read() -> np.ndarray:
            event.synchronize()
            rows = buffer[:size].numpy().copy()
            if self._busy.pop(number, None) is not None:
                self._idle.append((buffer, event))
            return rows

        return read


def news_of(requests: Sequence[str], report: Float[np.ndarray, "batch report"]) -> News:
    """The requests of which there is news."""
    changed = report[:, _CHANGED].nonzero()[0]
    places: list[int] = changed.tolist()
    return {requests[i]: report[i, :_CHANGED].tolist() for i in places}


def failed_elsewhere(report: Float[np.ndarray, "batch report"]) -> bool:
    """Whether a step was not judged, because exits have failed on some rank."""
    return bool((report[:1, _CHANGED] <= -1).any())


def incomplete(report: Float[np.ndarray, "batch report"]) -> bool:
    """Whether a step was left alone, because the draft of some rank is not whole."""
    return bool(((report[:1, _CHANGED] > -1) & (report[:1, _CHANGED] < 0)).any())


def attach(output: object, attributes: Callable[[], Mapping[str, Any]]) -> None:
    """Set attributes of a runner's output, which travel with it to the engine core.

    The output of an asynchronous step gets them when it is waited for; overriding `get_output` on the instance survives
    vLLM versions that add abstract methods to the class.
    """
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

    if not isinstance(output, AsyncModelRunnerOutput):
        vars(output).update(attributes())
        return
    original = output.get_output

    def get_output(*args: Any, **kwargs: Any) -> ModelRunnerOutput:
        result = original(*args, **kwargs)
        vars(result).update(attributes())
        return result

    output.get_output = get_output
