"""Logprobs of forced tokens: named for those who ask, and no second LM head for others. No engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.serving.simulation import CPU, END, VOCAB, given_step
from tests.serving.stand_ins import stand_in
from tests.serving.worker import alone, boundary_and_more, new, ready, scheduled, text_of  # noqa: F401, a fixture for all
from torch_specexit.bench.step_cost import Made
from torch_specexit.plugin.compat import wraps
from torch_specexit.plugin.worker import requests
from torch_specexit.plugin.worker.interrupt import RESOLVED
from torch_specexit.plugin.worker.protocols import BufferV1, InputBatchV1, LogprobsTensors, RunnerV1, SamplerOutput
from torch_specexit.plugin.worker.runner_v2 import keep_logits

pytestmark = pytest.mark.vllm


class Model(torch.nn.Module):
    """Stands for a target: logits are four times the hidden states."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.computed += 1
        return 4 * hidden_states


def of_given_tokens(name: str) -> Any:
    """A request that asks for the logprobs of given tokens, beside those of the sampled ones."""
    from vllm import SamplingParams

    request = new(name)
    request.sampling_params = SamplingParams(logprob_token_ids=[5, 6])
    return request


def test_logits_are_kept_where_they_are_computed_anyway():
    model = Model()
    result, logits = keep_logits(model, lambda: model.compute_logits(torch.ones(2, 3)).argmax(dim=1).tolist())
    assert logits is not None
    assert (result, logits.tolist(), model.computed) == ([0, 0], [[4.0] * 3] * 2, 1)
    assert "compute_logits" not in vars(model)


@pytest.mark.parametrize(
    "served",
    [
        {"logprobs_mode": "processed_logprobs"},
        {"logprobs_mode": "processed_logits"},
        {"batch_sharder": object()},
    ],
)
def test_whom_nobody_could_tell_the_logprob_of_a_forced_token_has_no_exits(served):
    """They used to get one of the raw logits, on another scale than those around it; of a batch whose ranks sample each
    for a part of it, that of another token."""
    exits = ready(**served)
    exits.track(scheduled(new("a", num_logprobs=1), new("b"), of_given_tokens("c")))
    assert [exits.slots.admissions[name].policy is None for name in ("a", "b", "c")] == [True, False, True]
    assert text_of(exits, *boundary_and_more()) == [[2], [5]]


def test_where_tokens_come_with_those_they_were_drawn_among_nobody_has_exits():
    """A forced token is none of them, and whoever trains on it with this mask has an infinite loss."""
    exits = ready(return_sampling_mask=True)
    exits.track(scheduled(new("a")))
    assert exits.slots.admissions["a"].policy is None


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits"])
def test_forced_tokens_are_named_for_those_who_ask_and_nothing_is_looked_at_for_others(mode, given):
    """Who asked for those of given tokens was taken for one who does not ask."""
    exits = ready(logprobs_mode=mode)
    exits.track(scheduled(of_given_tokens("a") if given else new("a", num_logprobs=1), new("b")))
    names = ["b", "a"]
    exits.step(given_step(names, [[2], [2]]))
    step = given_step(names, [[5], [5]], at=[1, 1])
    tensors = stand_in(
        LogprobsTensors,
        logprob_token_ids=torch.tensor([[5, 6], [5, 6]]),
        logprobs=torch.zeros(2, 2),
        selected_token_ranks=torch.ones(2, dtype=torch.int64),
    )
    logits = torch.arange(2 * VOCAB).view(2, VOCAB).float()
    assert exits.step(step)
    output = stand_in(SamplerOutput, sampled_token_ids=step.tokens, logprobs_tensors=tensors)
    exits.name_forced(output, step, logits, by_request=True)
    assert tensors.logprob_token_ids.tolist() == [[5, 6], [END, 6]]
    assert tensors.selected_token_ranks.tolist() == [1, VOCAB - END]
    expected = logits[1] if mode == "raw_logits" else logits[1].log_softmax(0)
    assert tensors.logprobs[1, 0].item() == pytest.approx(expected[END].item())
    exits.track(scheduled(finished=["a"]))
    assert exits.requests.asking == set()


def test_what_an_interrupt_forces_is_named_though_exits_are_off(monkeypatch):
    off = SimpleNamespace(mode_under=lambda _: "off", splits=None)
    monkeypatch.setattr(requests, "request_policy_or_default", lambda *_: off)
    exits, told = ready(), {RESOLVED: {"caller": None, "response": "chat"}}
    exits.track(scheduled(new("a", num_logprobs=1, extra_args=told), new("b", extra_args=told)))
    exits.step(given_step(["a", "b"], [[5], [5]]))
    assert exits.requests.asking == set()
    assert exits.end_thinking("chat", None, now=True)
    assert exits.requests.asking == {"a"}


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits"])
def test_a_step_of_v1_without_drafts_names_forced_tokens_though_it_samples_in_place_and_reads_one_row(mode):
    exits, vocab = ready(logprobs_mode=mode), 1000
    exits.track(scheduled(new("a", num_logprobs=1), *(new(f"b{i}") for i in range(7))))
    names = [*(f"b{i}" for i in range(7)), "a"]
    exits.step(given_step(names, [[2]] * 8))
    logits = torch.randn(8, vocab, generator=torch.Generator().manual_seed(0))
    expected, read = (logits[7] if mode == "raw_logits" else logits[7].log_softmax(0))[END].item(), []

    def samples_in_place(self: Any, logits: torch.Tensor, metadata: Any) -> Any:
        read.extend(made.bytes)
        tensors = stand_in(
            LogprobsTensors,
            logprob_token_ids=torch.full((8, 2), 5),
            logprobs=torch.zeros(8, 2),
            selected_token_ranks=torch.ones(8, dtype=torch.int64),
        )
        logits.fill_(0.0)
        return stand_in(SamplerOutput, sampled_token_ids=torch.full((8, 1), 5), logprobs_tensors=tensors)

    def on_device(values: torch.Tensor) -> Any:
        return stand_in(BufferV1, gpu=values, np=values.numpy())

    served = stand_in(
        RunnerV1,
        _specexit=exits,
        input_batch=stand_in(
            InputBatchV1, req_ids=names, num_reqs=8, req_id_to_index={}, token_ids_cpu=torch.zeros(8, 1).numpy()
        ),
        execute_model_state=None,
        discard_request_mask=on_device(torch.zeros(8, dtype=torch.bool)),
        query_start_loc=on_device(torch.arange(9)),
        requests={},
        optimistic_seq_lens_cpu=torch.ones(8, dtype=torch.int32),
        positions=torch.ones(8, dtype=torch.int64),
        input_ids=on_device(torch.full((8,), 2)),
        device=CPU,
    )
    with Made() as made:
        output = wraps.sample_v1(samples_in_place)(served, logits, None)
    assert sum(read) < 4 * 4 * vocab
    assert output.sampled_token_ids[7].tolist() == [END]
    assert output.logprobs_tensors.logprob_token_ids[:, 0].tolist() == [5] * 7 + [END]
    assert output.logprobs_tensors.logprobs[7, 0].item() == pytest.approx(expected, rel=1e-6)  # float32
