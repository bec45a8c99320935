"""What is done around one step of a model runner, V1 or V2: rewrite the rejection sampler's result, read the signals.

Everything here works on device tensors; the host learns nothing of a step before vLLM itself does, so asynchronous
scheduling stays asynchronous.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_specexit.plugin import outcome
from torch_specexit.plugin.arguments import policy_or_default
from torch_specexit.plugin.logprobs import name_forced_token
from torch_specexit.plugin.rule import Averages, Markers, cut_at_boundary, judge_last, judge_rows
from torch_specexit.plugin.slots import Admission, Slots, opens_thinking

logger = logging.getLogger("vllm.specexit")


def draft_of(drafter: Any) -> Any | None:
    """The SpecExit draft model behind a V1 proposer or V2 speculator, or None where it drafts with another model."""
    model: Any = getattr(drafter, "model", None)
    model = model.unwrap() if hasattr(model, "unwrap") else model
    return model if hasattr(model, "target_signals") else None


def exits_of(runner: Any) -> RunnerExits | None:
    """What a runner needs for exits; None where it has no SpecExit draft, or exits have failed in it."""
    if not hasattr(runner, "_specexit"):
        draft = draft_of(getattr(runner, "drafter", None) or getattr(runner, "speculator", None))
        runner._specexit = None if draft is None else RunnerExits(draft, runner.device)
    return runner._specexit


def guarded(runner: Any, action: Callable[[], Any]) -> None:
    """Run an action; where it fails, this engine goes on as plain EAGLE-3: no request is failed for an exit."""
    try:
        action()
    except Exception:
        logger.exception("specexit failed; this engine goes on without exits")
        runner._specexit = None


class RunnerExits:
    """Per-request state of one runner and the step in progress.

    Args:
      draft: the SpecExit draft model.
      device: of the runner.
    """

    def __init__(self, draft: Any, device: torch.device):
        self.draft, self.policy = draft, draft.block.policy
        self.slots = Slots(device)
        self.ids = draft.think_tokens
        is_split = torch.zeros(draft.config.vocab_size, dtype=torch.bool)
        is_split[list(self.ids.split)] = True
        self.markers = Markers(self.ids.start, self.ids.end, is_split.to(device))
        self.step_state: Any = None
        """The runner's `execute_model_state` while it samples."""
        self._step: tuple[list[str], Int[Tensor, " batch"], Int[Tensor, " batch"]] | None = None

    @torch.inference_mode()
    def track(self, scheduler_output: Any) -> None:
        """Take in new requests and drop finished ones, before a step."""
        self.slots.remove(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            extra_args = new.sampling_params.extra_args if new.sampling_params else None
            thinking = opens_thinking(new.prompt_token_ids or (), self.ids.start, self.ids.end)
            self.slots.add(new.req_id, Admission(thinking, policy_or_default(extra_args, self.policy, new.req_id)))
        self.slots.flush()

    @torch.inference_mode()
    def rewrite(
        self,
        requests: Sequence[str],
        tokens: Int[Tensor, "batch step"],
        n: Int[Tensor, " batch"],
        logits_rows: Int[Tensor, " rows"],
        first_row: Int[Tensor, " batch"],
    ) -> tuple[Int[Tensor, "batch step"], Int[Tensor, " batch"]]:
        """Apply the exit rule to a step's result.

        Args:
          requests: ids of the batch.
          tokens: accepted and drawn tokens; anything behind the first ``n`` of a row.
          n: their number, 0 for a row whose prompt is not yet through.
          logits_rows: rows of the hidden states that were sampled from.
          first_row: where each request begins among these.
        """
        rows = self.slots.rows(requests)
        state, settings = self.slots.load(rows), self.slots.settings(rows)
        if self.draft.block.source == "draft":
            tokens, n, state = cut_at_boundary(state, settings, self.markers, tokens, n)
        else:
            raw = self.draft.target_signals(self.step_state.aux_hidden_states, logits_rows)
            columns = torch.arange(tokens.shape[1], device=tokens.device)
            raw = raw[(first_row[:, None] + columns).clamp(max=raw.shape[0] - 1).long()]
            averages = Averages(self.slots.verdict[rows], self.slots.moving[rows])
            smooth = self.policy.smoothing == "ewma"
            tokens, n, state, averages = judge_rows(
                state, settings, averages, self.markers, tokens, n, raw, smooth=smooth
            )
            self.slots.verdict[rows], self.slots.moving[rows] = averages
        self.slots.store(rows, state)
        self._step = list(requests), rows, n
        return tokens, n

    @staticmethod
    def forced(
        old: Int[Tensor, "batch step"], new: Int[Tensor, "batch step"], n: Int[Tensor, " batch"]
    ) -> Bool[Tensor, " batch"]:
        """Where the last token is not the one that was drawn. Nothing comes behind a forced one in its step."""
        columns = torch.arange(old.shape[1], device=old.device)
        return ((old != new) & (columns == n[:, None] - 1)).any(dim=1)

    @torch.inference_mode()
    def close(self, output: Any) -> None:
        """End a step, drafting included: judge by the draft's signals, and attach the snapshot to the output."""
        if self._step is None:
            return
        requests, rows, n = self._step
        self._step = None
        state, settings = self.slots.load(rows), self.slots.settings(rows)
        if self.draft.block.source == "draft":
            raw = self.draft.signals[: len(requests)]
            state, verdict = judge_last(state, settings, self.slots.verdict[rows], raw, n)
            self.slots.store(rows, state)
            self.slots.verdict[rows] = verdict
        if output is not None:
            _attach(output, requests, outcome.snapshot(state, settings.on, self.slots.verdict[rows]))


def _attach(output: Any, requests: list[str], records: Float[Tensor, "batch record"]) -> None:
    """Hang a snapshot on a runner's output, as the extra attribute ``specexit``.

    The output of an asynchronous step gets it when it is waited for; overriding `get_output` on the instance survives
    vLLM versions that add abstract methods to the class.
    """
    from vllm.v1.outputs import AsyncModelRunnerOutput

    if not isinstance(output, AsyncModelRunnerOutput):
        setattr(output, outcome.KEY, dict(zip(requests, records.tolist(), strict=True)))
        return
    host, copied = records, None
    if records.device.type == "cuda":
        host = torch.empty(records.shape, dtype=records.dtype, pin_memory=True)
        host.copy_(records, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
    original = output.get_output

    def get_output() -> Any:
        result = original()
        if copied is not None:
            copied.synchronize()
        setattr(result, outcome.KEY, dict(zip(requests, host.tolist(), strict=True)))
        return result

    output.get_output = get_output


def rewrite_v1(runner: Any, exits: RunnerExits, output: Any, metadata: Any) -> None:
    """Apply the rule to V1's `SamplerOutput`, in place. Its rows are padded with -1."""
    batch = runner.input_batch.num_reqs
    tokens = output.sampled_token_ids[:batch]
    n = (tokens != -1).sum(dim=1) * ~runner.discard_request_mask.gpu[:batch]
    if metadata is None:
        logits_rows = runner.query_start_loc.gpu[1 : batch + 1] - 1
        first_row = torch.arange(batch, device=tokens.device)
    else:
        logits_rows = metadata.logits_indices
        ends = metadata.cu_num_sampled_tokens
        first_row = torch.cat([ends.new_zeros(1), ends[:-1]])
    new, kept = exits.rewrite(runner.input_batch.req_ids[:batch], tokens, n, logits_rows, first_row)
    if output.logprobs_tensors is not None:
        last = (kept - 1).clamp(min=0)
        entries = torch.arange(batch, device=tokens.device) * tokens.shape[1] + last  # V1 pads these, too
        logits = runner.model.compute_logits(exits.step_state.sample_hidden_states[first_row + last])
        name_forced_token(output.logprobs_tensors, entries, exits.forced(tokens, new, kept), exits.ids.end, logits)
    behind = torch.arange(tokens.shape[1], device=tokens.device) >= kept[:, None]
    # Rows of unfinished prompts keep their token: vLLM discards it by its own mask.
    output.sampled_token_ids[:batch] = torch.where(behind & (n > 0)[:, None], -1, new)


def rewrite_v2(runner: Any, exits: RunnerExits, output: Any, n_sampled: Tensor, n_rejected: Tensor, batch: Any) -> None:
    """Apply the rule to V2's `SamplerOutput`, in place. Behind ``n_sampled`` tokens its rows hold garbage."""
    size = batch.num_reqs
    tokens, n, first_row = output.sampled_token_ids[:size], n_sampled[:size], batch.cu_num_logits[:size]
    new, kept = exits.rewrite(batch.req_ids, tokens, n, batch.logits_indices, first_row)
    if output.logprobs_tensors is not None:
        entries = first_row + (kept - 1).clamp(min=0)
        hidden = exits.step_state.hidden_states[batch.logits_indices[entries]]
        logits = runner.model.compute_logits(hidden)
        name_forced_token(output.logprobs_tensors, entries, exits.forced(tokens, new, kept), exits.ids.end, logits)
    n_rejected[:size] += n - kept
    tokens.copy_(new)
    n_sampled[:size] = kept
