"""What a decoding step of the exit rule costs: operations of PyTorch on a CPU, launches of the Triton kernel.

``python -m torch_specexit.bench.rule_cost`` prints both as JSON. Operations are all ``aten`` calls that PyTorch's
profiler records, those within others included; what `torch_specexit.plugin.worker.twin` does in Python and numpy is
none. Without a GPU the launches are counted in Triton's interpreter, for which ``TRITON_INTERPRET=1`` has to be set;
where there is no Triton either, they are null.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from time import process_time_ns
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from specexit.method.splits import ThinkTokens
from torch_specexit.plugin.worker.exits import runs_triton
from torch_specexit.plugin.worker.openings import opens_at_end, opens_in, opens_on_device
from torch_specexit.plugin.worker.rule import STATE, Admission, Markers, Rule, Sampled
from torch_specexit.plugin.worker.slots import Slots
from torch_specexit.plugin.worker.twin import Twin

START, END, SPLIT, PLAIN, VOCAB = range(5)
_OUTPUTS = STATE.index("outputs")
WAYS = {"draft": ("draft", False), "fc": ("fc", False), "fc, smoothed": ("fc", True)}
"""Source, and whether averages are judged."""

STEPS = {
    "plain": (1.0, (PLAIN, PLAIN)),
    "judged": (1.0, (SPLIT, SPLIT)),
    "exit": (0.0, (SPLIT, PLAIN)),
}
"""Threshold of validity, and the tokens drawn in the step before and in the step that is counted. plain: no boundary;
judged: a verdict to go on, and with source ``draft`` the next boundary, too; exit: the one exit of a request."""

BATCH = 8
"""Requests of a step."""
WIDTH = 4
"""Tokens of each request in a step: three drafted ones, and the target's own."""

PROMPT = 131_072
"""Tokens of a long prompt."""
REPETITIONS = 30


class Scene:
    """A batch of thinking requests, and the rule for them.

    Args:
      version: of the rule: `Twin`, or `torch_specexit.plugin.worker.fused.Fused`.
      way: a name of `WAYS`.
      threshold: smallest validity at which they exit.
      device: of the rule.
      batch: number of requests.
      width: tokens of a step: one more than are drafted.
    """

    def __init__(
        self, version: Callable[..., Rule], way: str, threshold: float, device: torch.device, batch: int, width: int
    ):
        source, smooth = WAYS[way]
        self.device, self.batch, self.width = device, batch, width
        self.slots, ids = Slots(device), ThinkTokens(START, END, frozenset({SPLIT}))
        self.names = [f"request {i}" for i in range(batch)]
        for name in self.names:
            self.slots.add(name, Admission(True, Policy(thresholds={"validity": threshold}), prompt=1))
        shape = (batch, width) if source == "draft" else (batch * width,)
        self.raw = torch.zeros(*shape, len(NAMES), device=device)
        self.active = torch.zeros(1, device=device)
        self.rule = version(self.slots, Markers.of(ids, VOCAB, device), source, smooth=smooth)
        self.rows = torch.arange(batch * width, device=device)
        self.positions = torch.zeros_like(self.rows)

    def step(self, drawn: int) -> Callable[[], object]:
        """Prepare a step in which the first request draws a token in the middle; returns what takes it.

        Steps are prepared and taken one after the other. Where one is taken twice, the second time goes on as if the
        first had been dropped.
        """
        tokens = torch.full((self.batch, self.width), PLAIN, device=self.device)
        tokens[0, self.width // 2] = drawn
        n = torch.full((self.batch,), self.width, dtype=torch.int32, device=self.device)
        ends = n.cumsum(0, dtype=torch.int32)
        sampled = Sampled(self.names, tokens, n, ends, self.rows, self.positions.clone(), torch.zeros_like(n))

        def take() -> object:
            self.rule.step(sampled, self.raw, self.active)
            return self.rule.report

        return take

    def advance(self) -> None:
        """Have the next step go on where the last one ended."""
        outputs = self.slots.tables.state[self.slots.rows(self.names).long(), _OUTPUTS]
        self.positions[:: self.width] = outputs.long()


def steps_of(scene: Scene, drawn: tuple[int, int]) -> Callable[[], object]:
    """Take a few steps; returns the one that is to be counted."""
    for token in (PLAIN, PLAIN, drawn[0]):
        scene.step(token)()
        scene.advance()
    return scene.step(drawn[1])


def eager_ops(way: str, step: str) -> int:
    """Operations of PyTorch in one step on a CPU.

    Args:
      way: a name of `WAYS`.
      step: a name of `STEPS`.
    """
    threshold, drawn = STEPS[step]
    return aten_calls(steps_of(Scene(Twin, way, threshold, torch.device("cpu"), BATCH, WIDTH), drawn))


def aten_calls(action: Callable[[], object]) -> int:
    """Calls of ``aten`` operators, nested ones included."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        action()
    return sum(event.name.startswith("aten::") for event in recorded.events() or ())


def triton_launches(way: str, step: str) -> int | None:
    """Launches of Triton kernels in one step; None where none can run. Arguments are those of `eager_ops`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not runs_triton(device):
        return None
    from torch_specexit.plugin.worker.fused import Fused

    threshold, drawn = STEPS[step]
    return launches(steps_of(Scene(Fused, way, threshold, device, BATCH, WIDTH), drawn))


def launches(action: Callable[[], object]) -> int:
    """Launches of Triton kernels, on a GPU or in the interpreter."""
    from triton import knobs
    from triton.runtime.interpreter import GridExecutor

    counter, run = count(), GridExecutor.__call__

    def counted(*args: Any, **kwargs: Any) -> Any:
        next(counter)
        return run(*args, **kwargs)

    def launched(metadata: Any) -> None:
        next(counter)

    GridExecutor.__call__ = counted
    knobs.runtime.launch_enter_hook.add(launched)
    try:
        action()
    finally:
        GridExecutor.__call__ = run
        knobs.runtime.launch_enter_hook.remove(launched)
    return next(counter)


def prompt_milliseconds() -> dict[str, float]:
    """CPU time of the process, in ms, to find out whether a prompt of `PROMPT` tokens opens the thinking: the least of
    some repetitions.

    The end of the list is looked at and, where that holds no marker, vLLM's own array of the prompt; on a GPU, without
    waiting for it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = {"no marker": None, "marker at the beginning": 0, "marker at the end": -2}
    return {name: _prompt_milliseconds(at, device) for name, at in prompts.items()}


def _prompt_milliseconds(at: int | None, device: torch.device) -> float:
    prompt = [PLAIN + i for i in range(PROMPT)]  # each an object of its own, as vLLM's are
    if at is not None:
        prompt[at] = START
    kept = torch.tensor(prompt, dtype=torch.int32, device=device)
    taken = []
    for _ in range(REPETITIONS):
        begun = process_time_ns()
        if opens_at_end(prompt, START, [END]) is None:
            _ = opens_on_device(kept, START, [END]) if device.type == "cuda" else opens_in(kept.numpy(), START, [END])
        taken.append(process_time_ns() - begun)
    return min(taken) / 1e6


def measure() -> dict[str, Any]:
    """Operations and launches for every way and every step, and the times of a long prompt. Keys ``..._per_step`` hold
    those of a step whose verdict is to go on, with source ``draft``."""
    ops = {way: {step: eager_ops(way, step) for step in STEPS} for way in WAYS}
    launched = {way: {step: triton_launches(way, step) for step in STEPS} for way in WAYS}
    return {
        "eager_ops_per_step": ops["draft"]["judged"],
        "triton_launches_per_step": launched["draft"]["judged"],
        "eager_ops": ops,
        "triton_launches": launched,
        "prompt_ms": prompt_milliseconds(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
