"""What exits cost a server in each decoding step, apart from the model: counted, at batches of 1 to 1,024 requests.

``python -m torch_specexit.bench.step_cost`` prints it as JSON, together with what `torch_specexit.bench.rule_cost`
counts. All but the times is the same on any machine; these are CPU times of one thread, each the best of some
repetitions, and belong to three processes: worker, engine core and front end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from time import process_time_ns
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import PolicyFile, Serving
from specexit.method.signals import NAMES
from torch_specexit.bench import rule_cost
from torch_specexit.bench.rule_cost import WIDTH
from torch_specexit.plugin.frontend import reports
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.outcome import KEY, UNCUT, Record, Reporter
from torch_specexit.plugin.worker.copies import news_of
from torch_specexit.plugin.worker.exits import runs_triton
from torch_specexit.plugin.worker.rule import RECORD, STATE, THINKING
from torch_specexit.plugin.worker.twin import Twin

BATCHES = (1, 32, 1024)
NEWS = 20
"""Requests of a batch, if it has so many, that there is news of in a step with news."""
HIDDEN, LAYERS = 8192, 3
"""Hidden size of a large target, and how many of its layers source ``fc`` reads."""


class Made(TorchDispatchMode):
    """Bytes of each tensor that operations have made, in order; views and writes in place make none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and take note of a new tensor."""
        result = func(*args, **kwargs or {})
        is_new = not any(returned.alias_info for returned in func._schema.returns)
        if is_new and isinstance(result, Tensor):
            self.bytes.append(result.numel() * result.element_size())
        return result


def quiet_step(batch: int) -> dict[str, int | None]:
    """Count a step of thinking requests without a boundary, on the device: launches, tensors made, and rows sent on to
    the engine core. The first two are None where there is no Triton."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    version: Any = Twin
    if triton := runs_triton(device):
        from torch_specexit.plugin.worker.fused import Fused as version
    scene = rule_cost.Scene(version, "draft", 1.0, device, batch, WIDTH)
    scene.step(rule_cost.PLAIN)()  # the first step reports the new requests
    scene.advance()
    step = scene.step(rule_cost.PLAIN)
    launches, made = None, None
    if triton:
        launches = rule_cost.launches(step)
    else:
        step()
    sent = news_of(scene.names, scene.rule.report[:batch].cpu().numpy())
    if triton:
        scene.advance()
        made = allocations(scene.step(rule_cost.PLAIN))
    return {"launches": launches, "allocations": made, "rows_sent": len(sent)}


def allocations(action: Callable[[], object]) -> int:
    """Tensors that a step makes: on a GPU, allocations by its allocator; in Triton's interpreter, which makes tensors
    of its own, those around the launch."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        action()
        return torch.cuda.memory_stats()["allocation.all.allocated"] - before
    from triton.runtime.interpreter import GridExecutor

    run = GridExecutor.__call__
    GridExecutor.__call__ = lambda *args, **kwargs: None
    try:
        with Made() as made:
            action()
    finally:
        GridExecutor.__call__ = run
    return len(made.bytes)


def fc_temporary_bytes(batch: int) -> int:
    """The most that reading the signals off the target (source ``fc``) holds at a time, on tensors without memory."""
    from torch_specexit.plugin.worker.model import WithSignals

    rows = torch.empty(batch * WIDTH, dtype=torch.int64, device="meta")
    aux = [torch.empty(batch * WIDTH, HIDDEN, dtype=torch.bfloat16, device="meta") for _ in range(LAYERS)]
    weight = torch.empty(len(NAMES), LAYERS * HIDDEN, device="meta")
    draft: Any = SimpleNamespace(signal_weight=weight)
    with Made() as made:
        WithSignals.signals_of_target(draft, aux, rows)
    return max(a + b for a, b in pairwise([0, *made.bytes]))  # what is gathered, and the same in float32


def milliseconds(prepare: Callable[[], Callable[[], object]]) -> float:
    """CPU time of the action that ``prepare`` makes ready, in ms: the least of some repetitions."""
    taken = []
    for _ in range(rule_cost.REPETITIONS):
        action = prepare()
        begun = process_time_ns()
        action()
        taken.append(process_time_ns() - begun)
    return min(taken) / 1e6


def _row(judged: int = 1) -> list[float]:
    """The record of a request that thinks and has been judged so many times."""
    values = {"phase": THINKING, "thoughts": 50, "judged": judged, "on": 1}
    return [float(values.get(column, 0)) for column in STATE[: len(RECORD)]]


def _outputs(names: list[str]) -> list[Any]:
    from vllm.v1.engine import EngineCoreOutput

    return [EngineCoreOutput(name, [0]) for name in names]


def engine_core(
    names: list[str], news: Sequence[str] = (), stop: Sequence[str] = ()
) -> Callable[[], Callable[[], object]]:
    """What the engine core does in a step with news of some requests, or of none; ``stop`` are stop strings of all."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreOutputs

    request: dict[str, Any] = {"sampling_params": SamplingParams(stop=list(stop)), "num_output_tokens": 60}
    requests: dict[str, Any] = {name: SimpleNamespace(**request) for name in names}
    reporter, judged = Reporter(), count(1)

    def step(told: Sequence[str]) -> Callable[[], object]:
        records = dict.fromkeys(told, _row(judged=next(judged)))
        outputs = {0: EngineCoreOutputs(outputs=_outputs(names))}

        def take() -> None:
            reporter.take(records, requests)
            reporter.report(records, outputs, None)

        return take

    step(names)()
    return lambda: step(news)


def _state(name: str) -> Any:
    """What stands for vLLM's `RequestState` of a running request."""
    made: dict[str, Any] = {"request_id": name, "external_req_id": name, "parent_req": None, "request_index": 0}
    made |= {"prompt_token_ids": [0], "detokenizer": None, "max_tokens_param": None, "lora_request": None}
    return SimpleNamespace(**made)


def front_end(
    names: list[str], news: Sequence[str] = (), stop: Sequence[str] = ()
) -> Callable[[], Callable[[], object]]:
    """What the front end of a server does in a step with news of some requests, or of none."""
    front = FrontEnd(Operation(SpecExitBlock(target="a target"), PolicyFile(), Serving()), Activity())
    states = {name: _state(name) for name in names}
    processor: Any = SimpleNamespace(request_states=states, external_req_ids={}, tokenizer=None, **{KEY: front})
    for state in states.values():
        setattr(state, reports.ADMITTED, front.operation.resolve(None))
    uncut = {UNCUT: (None, Record.from_row(_row()))} if stop else {}

    def step(told: Sequence[str]) -> Callable[[], object]:
        outputs = _outputs(names)
        for output in outputs[: len(told)]:
            report = {"outcome": "thinking", "thinking_tokens": 50, "signals": {}} | uncut
            output.kv_transfer_params = {KEY: report}
        return lambda: reports.settle(processor, reports.attach(processor, outputs), None)

    step(names)()
    return lambda: step(news)


def by_batch(batch: int) -> dict[str, Any]:
    """What is counted and timed at one batch size."""
    names = [f"request {i}" for i in range(batch)]
    report = torch.zeros(batch, len(RECORD) + 1).numpy()
    timed: dict[str, Any] = {"worker_ms": milliseconds(lambda: lambda: news_of(names, report))}
    for process, of in (("engine_core", engine_core), ("front_end", front_end)):
        timed[f"{process}_ms"] = milliseconds(of(names))
        timed[f"{process}_news_ms"] = milliseconds(of(names, news=names[:NEWS]))
        timed[f"{process}_stop_ms"] = milliseconds(of(names, stop=["a stop string"]))
    return quiet_step(batch) | timed | {"fc_temporary_bytes": fc_temporary_bytes(batch)}


if __name__ == "__main__":
    print(json.dumps(rule_cost.measure() | {"by_batch": {str(batch): by_batch(batch) for batch in BATCHES}}, indent=2))
