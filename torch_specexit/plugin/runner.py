"""What is done around one step of a model runner, V1 or V2: rewrite the rejection sampler's result, read the signals.

Everything here works on device tensors; the host learns nothing of a step before vLLM itself does, so asynchronous
scheduling stays asynchronous.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torch_specexit.plugin import outcome, rule
from torch_specexit.plugin.arguments import policy_or_default
from torch_specexit.plugin.fit import is_hooked
from torch_specexit.plugin.logprobs import name_forced_token
from torch_specexit.plugin.slots import Admission, Slots, opens_thinking

logger = logging.getLogger("vllm.specexit")


def draft_of(drafter: Any) -> Any | None:
    """The SpecExit draft model behind a V1 proposer or V2 speculator, or None where it drafts with another model."""
    model: Any = getattr(drafter, "model", None)
    model = model.unwrap() if hasattr(model, "unwrap") else model
    return model if hasattr(model, "think_tokens") else None


def exits_of(runner: Any) -> RunnerExits | None:
    """What a runner needs for exits; None where it has no SpecExit draft, or exits have failed in it."""
    if not hasattr(runner, "_specexit"):
        runner._specexit = None
        draft = draft_of(getattr(runner, "drafter", None) or getattr(runner, "speculator", None))
        if draft is not None:
            guarded(runner, lambda: _equip(runner, draft))
    return runner._specexit


def _equip(runner: Any, draft: Any) -> None:
    runner._specexit = RunnerExits(draft, runner.device, stops=_must_stop(runner))


def _must_stop(runner: Any) -> bool:
    """Whether acceptance has to stop at a split token, because a step's result leaves the runner before the draft's
    first pass has judged it. A V1 runner on a CPU keeps it until behind drafting."""
    waits = is_hooked(type(runner), "_bookkeeping_sync") and not runner.use_async_scheduling
    keeps = not runner.model_config.is_hybrid and not runner.speculative_config.disable_padded_drafter_batch
    return not (runner.device.type == "cpu" and waits and keeps)


def guarded(runner: Any, action: Callable[[], Any]) -> None:
    """Run an action; where it fails, this engine goes on as plain EAGLE-3: no request is failed for an exit."""
    try:
        action()
    except Exception:
        logger.exception("specexit failed; this engine goes on without exits")
        runner._specexit = None


class Sampled(NamedTuple):
    """A step's result, as the rejection sampler has left it."""

    requests: list[str]
    tokens: Int[Tensor, "batch step"]
    """Accepted and drawn tokens; anything behind the first ``n`` of a row."""
    n: Int[Tensor, " batch"]
    """Their number, 0 for a row whose prompt is not yet through."""
    logits_rows: Int[Tensor, " rows"]
    """Rows of the hidden states that were sampled from."""
    first_row: Int[Tensor, " batch"]
    """Where each request begins among these."""

    def of_tokens(self, raw: Float[Tensor, "rows signals"]) -> Float[Tensor, "batch step signals"]:
        """Signals by row to signals by token."""
        columns = torch.arange(self.tokens.shape[1], device=raw.device)
        return raw[(self.first_row[:, None] + columns).clamp(max=raw.shape[0] - 1).long()]


class RunnerExits:
    """Per-request state of one runner and the step in progress.

    Args:
      draft: the SpecExit draft model.
      device: of the runner.
      stops: whether acceptance stops at split tokens; see `torch_specexit.plugin.rule`.
    """

    def __init__(self, draft: Any, device: torch.device, *, stops: bool):
        self.draft, self.policy, self.source = draft, draft.block.policy, draft.block.source
        self.slots = Slots(device)
        self.ids = draft.think_tokens
        self.markers = rule.Markers.of(self.ids, draft.config.vocab_size, device)
        self.judges_late = self.source == "draft" and not stops
        draft.keeps_rows = self.judges_late
        self.step_state: Any = None
        """The runner's `execute_model_state` while it samples."""
        self.sampled: Sampled | None = None
        """The step in progress, rewritten so far."""

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
    def rewrite(self, sampled: Sampled) -> Sampled:
        """Apply to a step's result what is known before drafting."""
        self.draft.rows = None  # a verdict must never be read off an earlier step
        batch = self.slots.batch(sampled.requests)
        args = batch.state, batch.settings
        if self.judges_late and not batch.state.pending.any():
            self.sampled = sampled
            return sampled
        if self.judges_late:
            tokens, n, _ = rule.force_pending(batch.state, self.markers, sampled.tokens, sampled.n)
        elif self.source == "draft":
            tokens, n, batch.state = rule.cut_at_boundary(*args, self.markers, sampled.tokens, sampled.n)
        else:
            raw = sampled.of_tokens(
                self.draft.signals_of_target(self.step_state.aux_hidden_states, sampled.logits_rows)
            )
            smooth = self.policy.smoothing == "ewma"
            tokens, n, batch.state, batch.averages = rule.judge_rows(
                *args, batch.averages, self.markers, sampled.tokens, sampled.n, raw, smooth=smooth
            )
        self.sampled = sampled._replace(tokens=tokens, n=n)
        return self.sampled

    @torch.inference_mode()
    def rewrite_late(self) -> Sampled | None:
        """Apply to the step's result what is known behind drafting; None where that changes nothing.

        The host looks at the tokens here, which costs nothing where it shares their memory: most steps have no split
        token, and are done.
        """
        assert self.sampled is not None
        sampled = self.sampled
        batch = self.slots.batch(sampled.requests)
        if not self.markers.is_any[sampled.tokens].any():
            batch.state = rule.advance_plainly(batch.state, sampled.n)
            return None
        raw = sampled.of_tokens(self.draft.signals_of_rows(sampled.logits_rows))
        tokens, n, batch.state, verdict = rule.judge_drafted(
            batch.state, batch.settings, batch.averages.verdict, self.markers, sampled.tokens, sampled.n, raw
        )
        batch.averages = batch.averages._replace(verdict=verdict)
        self.sampled = sampled._replace(tokens=tokens, n=n)
        return None if torch.equal(n, sampled.n) and torch.equal(tokens, sampled.tokens) else self.sampled

    @torch.inference_mode()
    def close(self, output: Any) -> None:
        """End a step, drafting included: judge what is left to judge, and attach the snapshot to the output."""
        if self.sampled is None:
            return
        requests, n, self.sampled = self.sampled.requests, self.sampled.n, None
        batch = self.slots.batch(requests)
        if self.source == "draft" and not self.judges_late:
            raw = self.draft.signals[: len(requests)]
            batch.state, verdict = rule.judge_last(batch.state, batch.settings, batch.averages.verdict, raw, n)
            batch.averages = batch.averages._replace(verdict=verdict)
        if output is not None:
            _attach(output, requests, outcome.snapshot(batch.state, batch.settings.on, batch.averages.verdict))


def forced(
    old: Int[Tensor, "batch step"], new: Int[Tensor, "batch step"], n: Int[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Where the last token is not the one that was drawn. Nothing comes behind a forced one in its step."""
    columns = torch.arange(old.shape[1], device=old.device)
    return ((old != new) & (columns == n[:, None] - 1)).any(dim=1)


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
    """Apply the rule to V1's `SamplerOutput` before drafting, in place. Its rows are padded with -1."""
    size = runner.input_batch.num_reqs
    tokens = output.sampled_token_ids[:size]
    n = (tokens != -1).sum(dim=1) * ~runner.discard_request_mask.gpu[:size]
    if metadata is None:
        logits_rows = runner.query_start_loc.gpu[1 : size + 1] - 1
        first_row = torch.arange(size, device=tokens.device)
    else:
        logits_rows = metadata.logits_indices
        ends = metadata.cu_num_sampled_tokens
        first_row = torch.cat([ends.new_zeros(1), ends[:-1]])
    sampled = Sampled(runner.input_batch.req_ids[:size], tokens, n, logits_rows, first_row)
    after = exits.rewrite(sampled)
    if after is not sampled:
        _write_v1(runner, exits, output, sampled, after)


def rewrite_v1_late(runner: Any, exits: RunnerExits, output: Any) -> None:
    """Apply the rule to V1's `SamplerOutput` behind drafting, in place, before bookkeeping reads it.

    The draft has gone on from tokens that an exit takes back. What it proposes behind them is verified as ever, so this
    costs the acceptance of one step in the life of a request.
    """
    before = exits.sampled
    if not exits.judges_late or before is None:
        return
    after = exits.rewrite_late()
    if after is not None:
        _write_v1(runner, exits, output, before, after)


def _write_v1(runner: Any, exits: RunnerExits, output: Any, before: Sampled, after: Sampled) -> None:
    columns = torch.arange(before.tokens.shape[1], device=before.tokens.device)
    if output.logprobs_tensors is not None:
        last = (after.n - 1).clamp(min=0)
        entries = torch.arange(len(after.requests), device=last.device) * columns.shape[0] + last  # V1 pads these, too
        logits = runner.model.compute_logits(exits.step_state.sample_hidden_states[after.first_row + last])
        replaced = forced(before.tokens, after.tokens, after.n)
        name_forced_token(output.logprobs_tensors, entries, replaced, exits.ids.end, logits)
    # Rows of unfinished prompts keep their token: vLLM discards it by its own mask.
    behind = (columns >= after.n[:, None]) & (before.n > 0)[:, None]
    output.sampled_token_ids[: len(after.requests)] = torch.where(behind, -1, after.tokens)


def rewrite_v2(runner: Any, exits: RunnerExits, output: Any, n_sampled: Tensor, n_rejected: Tensor, batch: Any) -> None:
    """Apply the rule to V2's `SamplerOutput`, in place. Behind ``n_sampled`` tokens its rows hold garbage."""
    size = batch.num_reqs
    tokens, n, first_row = output.sampled_token_ids[:size], n_sampled[:size], batch.cu_num_logits[:size]
    after = exits.rewrite(Sampled(batch.req_ids, tokens, n, batch.logits_indices, first_row))
    if output.logprobs_tensors is not None:
        entries = first_row + (after.n - 1).clamp(min=0)
        hidden = exits.step_state.hidden_states[batch.logits_indices[entries]]
        replaced = forced(tokens, after.tokens, after.n)
        logits = runner.model.compute_logits(hidden)
        name_forced_token(output.logprobs_tensors, entries, replaced, exits.ids.end, logits)
    n_rejected[:size] += n - after.n
    tokens.copy_(after.tokens)
    n_sampled[:size] = after.n
