"""What stands for a worker's surroundings in the tests of its exits: a draft, a runner, requests and steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from specexit.drafts.directory import Serving, SpecExitBlock
from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from tests.serving.simulation import CPU, IDS, START, VOCAB, given_step
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin.protocols import (
    ModelConfig,
    SamplingParams,
    SchedulerConfig,
    SpeculativeConfig,
    StructuredOutputsConfig,
    VllmConfig,
)
from torch_specexit.plugin.worker import exits as module
from torch_specexit.plugin.worker.exits import Exits
from torch_specexit.plugin.worker.protocols import (
    NewRequest,
    Runner,
    SchedulerOutput,
    Worker,
)
from torch_specexit.plugin.worker.weights import Weights


class Draft:
    """Stands for the draft model."""

    def __init__(self) -> None:
        block = SpecExitBlock(source="draft", target="t", policy=Policy(thresholds={}))
        self.block, self.serving, self.think_tokens, self.vocab_size = block, Serving(), IDS, VOCAB
        self.signals, self.transition = torch.zeros(8, 4, len(NAMES)), ()
        self.first_pass = SimpleNamespace(behind=None)
        self.weights, self.head = Weights(["a", "b", "d2t"]), nn.Linear(2, 2)
        for name in ("a", "b"):
            self.weights.arrived(name)

    def remember_weights(self) -> None:
        self.weights.remember(self.head.named_parameters())

    fall_asleep = remember_weights

    def awake(self) -> None:
        self.weights.check(self.head.named_parameters())

    def record(self, passes: int, last_rows: Any = None) -> None: ...

    def leave_signals(self, hidden_states: Any) -> None:
        self.left = hidden_states

    def signals_of_target(self, aux: Any, rows: Any) -> torch.Tensor:
        return torch.zeros(len(rows), len(NAMES))


class Group:
    """Stands for vLLM's group of ranks."""

    device_group: Any = None

    def __init__(self, world_size: int = 1, rank: int = 0):
        self.world_size, self.rank_in_group = world_size, rank

    def broadcast_object(self, obj: Any | None = None, src: int = 0) -> Any:
        return obj


def runner(
    logprobs_mode: str = "raw_logprobs",
    batch_sharder: object = None,
    return_sampling_mask: bool = False,
    kind: type = Runner,
    **structured: Any,
) -> Any:
    settings = {"reasoning_parser": "deepseek_r1", "enable_in_reasoning": False} | structured
    config = stand_in(
        VllmConfig,
        model_config=stand_in(ModelConfig, logprobs_mode=logprobs_mode, return_sampling_mask=return_sampling_mask),
        scheduler_config=stand_in(SchedulerConfig, max_num_seqs=8),
        speculative_config=stand_in(SpeculativeConfig, num_speculative_tokens=3),
        structured_outputs_config=stand_in(StructuredOutputsConfig, **settings),
    )
    return stand_in(kind, device=CPU, vllm_config=config, execute_model_state=None, batch_sharder=batch_sharder)


def worker_with(exits: Any) -> Any:
    """A worker whose runner has exits, or (None) no SpecExit draft."""
    return stand_in(Worker, model_runner=stand_in(Runner, **{module.EXITS: exits}))


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(module, "_ranks_of_model", Group)
    monkeypatch.setenv("SPECEXIT_CHECK", "0")


def ready(**settings: Any) -> Exits:
    draft: Any = Draft()
    found = Exits(draft, runner(**settings))
    found.prepare(given_step(["x"], [[5]]).none())
    return found


def new(name: str, prompt=(START,), prefill=None, **params: Any) -> Any:
    wanted = {"extra_args": None, "num_logprobs": None, "structured_outputs": None} | params
    return stand_in(
        NewRequest,
        req_id=name,
        prompt_token_ids=list(prompt),
        prompt_embeds=None,
        prefill_token_ids=prefill,
        sampling_params=stand_in(SamplingParams, **wanted),
    )


def scheduled(*requests: Any, finished=(), resumed: dict[str, list[int]] | None = None) -> Any:
    cached = SimpleNamespace(resumed_req_ids=set(resumed or ()), all_token_ids=resumed or {})
    return stand_in(
        SchedulerOutput,
        scheduled_new_reqs=list(requests),
        finished_req_ids=set(finished),
        num_scheduled_tokens={},
        scheduled_cached_reqs=cached,
    )


def text_of(exits: Exits, *steps: Any) -> list[list[int]]:
    return [step.tokens[0, : step.n[0]].tolist() for step in steps if exits.step(step) or True]


def boundary_and_more() -> tuple[Any, Any]:
    return given_step(["a"], [[2]]), given_step(["a"], [[5]], at=[1])
