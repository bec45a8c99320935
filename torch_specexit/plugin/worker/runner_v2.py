"""What is done around a step of vLLM's V2 runner, which GPUs use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_specexit.plugin.worker.exits import Exits
from torch_specexit.plugin.worker.openings import opens_on_device
from torch_specexit.plugin.worker.protocols import ContextParallel, InputBatchV2, RunnerV2, SamplerOutput, TargetV2
from torch_specexit.plugin.worker.rule import Sampled

_KEPT = "_specexit"
"""Attribute that marks a manager whose methods have been replaced."""


def rewrite(
    runner: RunnerV2,
    exits: Exits,
    output: SamplerOutput,
    n_sampled: Int[Tensor, " batch"],
    n_rejected: Int[Tensor, " batch"],
    batch: InputBatchV2,
    logits: Float[Tensor, "rows vocab"] | None,
) -> None:
    """Apply the rule to a `SamplerOutput`, in place. After ``n_sampled`` tokens its rows hold garbage."""
    size = batch.num_reqs
    sampled = Sampled(
        batch.req_ids,
        output.sampled_token_ids[:size],
        n_sampled[:size],
        batch.cu_num_logits[1 : size + 1],
        batch.logits_indices,
        batch.positions,
        n_rejected[:size],
        input_ids=batch.input_ids,
    )
    exits.look_through(batch.req_ids, lambda name, size: _opens(runner, exits, name, size))
    if exits.step(sampled):
        exits.name_forced(output, sampled, logits, by_request=False)


def _opens(runner: RunnerV2, exits: Exits, name: str, size: int) -> Bool[Tensor, ""]:
    requests = runner.req_states
    prompt = requests.all_token_ids.gpu[requests.req_id_to_index[name], :size]
    return opens_on_device(prompt, exits.ids.start, exits.ids.end_marker)


def empty(runner: RunnerV2) -> Sampled:
    """A step without requests, with the types that steps of this runner have."""
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=runner.device)
    column = torch.zeros(1, dtype=torch.int32, device=runner.device)
    return Sampled([], tokens, column, column, tokens[:, 0], tokens[:, 0], column).none()


def keep_logits(model: TargetV2, sample: Callable[[], Any]) -> tuple[Any, Tensor | None]:
    """Sample, and keep the logits that are sampled from: V2 computes them within.

    Returns:
      What ``sample`` returns, and the logits; None where they were not computed, see `RunnerV2.batch_sharder`.
    """
    kept: list[Tensor | None] = []
    compute = model.compute_logits

    def compute_logits(hidden_states: Tensor) -> Tensor | None:
        kept.append(compute(hidden_states))
        return kept[-1]

    vars(model)["compute_logits"] = compute_logits
    try:
        result = sample()
    finally:
        del vars(model)["compute_logits"]
    return result, kept[0] if kept else None


def keep_restored(exits: Exits, manager: object | None) -> None:
    """Have a manager hand on the hidden states of the whole batch wherever it puts them together: under prefill context
    parallel, a rank holds only a part of them until it samples or drafts.

    Args:
      exits: of the runner.
      manager: its `ContextParallel`, None without context parallel. Nothing happens the second time.
    """
    if manager is None or exits.failure is not None or hasattr(manager, _KEPT):
        return
    if not isinstance(manager, ContextParallel):
        exits.fail("this vLLM hands no hidden states on under prefill context parallel, expected 0.32 or newer")
        return
    restore, restore_draft = manager.restore_for_sampling, manager.restore_draft_prefill

    def restore_for_sampling(
        hidden_states: Tensor, aux_hidden_states: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor] | None, object]:
        restored = restore(hidden_states, aux_hidden_states)
        exits.aux = restored[1]
        return restored

    def restore_draft_prefill(last_hidden_states: Tensor, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        restored = restore_draft(last_hidden_states, hidden_states)
        if exits.source == "draft":
            exits.draft.leave_signals(restored[0])
        return restored

    kept = {"restore_for_sampling": restore_for_sampling, "restore_draft_prefill": restore_draft_prefill}
    vars(manager).update(kept | {_KEPT: True})
