"""What is done around one step of a model runner, V1 or V2: rewrite the rejection sampler's result, read the signals.

Everything here works on device tensors; the host learns nothing of a step before vLLM itself does, so asynchronous
scheduling stays asynchronous.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from specexit.method.splits import ALL_STRINGS
from torch_specexit.plugin import outcome
from torch_specexit.plugin.compat.fit import is_hooked
from torch_specexit.plugin.frontend.arguments import wish_or_default
from torch_specexit.plugin.frontend.audit import thinks_on
from torch_specexit.plugin.worker.late import Late
from torch_specexit.plugin.worker.logprobs import name_forced_token
from torch_specexit.plugin.worker.rule import Admission, Forced, Markers, Sampled
from torch_specexit.plugin.worker.slots import Slots, opens_thinking
from torch_specexit.plugin.worker.twin import Twin

logger = logging.getLogger("vllm.specexit")


def draft_of(drafter: Any) -> Any | None:
    """The SpecExit draft model behind a V1 proposer or V2 speculator, or None where it drafts with another model."""
    model: Any = getattr(drafter, "model", None)
    model = model.unwrap() if hasattr(type(model), "unwrap") else model  # a module is slow to say what it has not
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


class RunnerExits:
    """Per-request state of one runner and the step in progress.

    Args:
      draft: the SpecExit draft model.
      device: of the runner.
      stops: whether acceptance stops at split tokens; see `torch_specexit.plugin.worker.rule`.
    """

    def __init__(self, draft: Any, device: torch.device, *, stops: bool):
        self.draft, self.source = draft, draft.block.source
        self.slots = Slots(device)
        self.ids = draft.think_tokens
        self.judges_late = self.source == "draft" and not stops
        draft.first_pass.keeps_rows = self.judges_late
        version = Late if self.judges_late else _fused() if runs_triton(device) else Twin
        self.rule: Any = version(
            self.slots,
            Markers.of(self.ids, draft.config.vocab_size, device),
            self.source,
            signals=draft.signals if self.source == "draft" and stops else None,
            smooth=draft.block.policy.smoothing == "ewma",
        )
        self.copies = Copies()
        self.step_state: Any = None
        """The runner's `execute_model_state` while it samples."""
        self.sampled: Sampled | None = None
        """The step in progress, rewritten so far."""
        self.unread: tuple[Sequence[str], Any] | None = None
        """Its requests and vLLM's metadata of it, where nothing had to be done before drafting."""
        self.snapshot: Callable[[], list[list[float]]] | None = None
        """Reads what there is to report of it; see `Copies`."""

    def track(self, scheduler_output: Any) -> None:
        """Take in new requests and drop finished ones, before a step. Most steps have neither; they are left at once,
        because inference mode takes a while to enter."""
        if scheduler_output.finished_req_ids or scheduler_output.scheduled_new_reqs:
            self._track(scheduler_output)

    @torch.inference_mode()
    def _track(self, scheduler_output: Any) -> None:
        self.slots.remove(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            extra_args = new.sampling_params.extra_args if new.sampling_params else None
            wish = wish_or_default(extra_args, self.draft.block, new.req_id)
            thinking = opens_thinking(new.prompt_token_ids or (), self.ids.start, self.ids.end)
            strings = ALL_STRINGS if wish.splits is None else self.ids.mask(wish.splits)
            mode = wish.mode_under(self.draft.serving.mode)
            policy = None if mode == "off" else wish.policy
            shadow = thinks_on(new.req_id, mode, self.draft.serving.audit_rate)
            self.slots.add(new.req_id, Admission(thinking, policy, strings, shadow))

    @torch.inference_mode()
    def settle(self) -> None:
        """Take in what the draft has left, before a dummy run overwrites it."""
        self.rule.settle()

    def postpone(self, requests: Sequence[str], metadata: Any) -> None:
        """Leave a step for `rewrite_late`: nothing has to be done to it before drafting."""
        self.draft.first_pass.rows = None
        self.unread, self.snapshot = (requests, metadata), None

    @torch.inference_mode()
    def rewrite(self, sampled: Sampled, logits_rows: Int[Tensor, " rows"]) -> Forced:
        """Apply to a step's result, in place, what is known before drafting.

        Args:
          sampled: the step's result.
          logits_rows: rows of the hidden states that it was sampled from.
        """
        self.draft.first_pass.rows = None  # a verdict must never be read off an earlier step
        self.sampled, self.logits_rows, self.snapshot = sampled, logits_rows, None
        if self.judges_late:
            return self.rule.force(sampled)
        forced = self.rule.step(
            sampled, lambda: self.draft.signals_of_target(self.step_state.aux_hidden_states, logits_rows)
        )
        self.snapshot = self.copies.start(self.rule.records())  # in front of drafting, so that nobody waits for that
        return forced

    def rewrite_late(self) -> Forced:
        """Apply to the step's result, in place, what is known behind drafting."""
        assert self.sampled is not None
        return self.rule.step(self.sampled, self._signals_at)

    def _signals_at(self, rows: Int[np.ndarray, " rows"]) -> Float[Tensor, "rows signals"]:
        return self.draft.signals_of_rows(torch.from_numpy(self.logits_rows.numpy()[rows]))

    def close(self, output: Any) -> None:
        """End a step, drafting included: attach to the output what there is to report of it."""
        sampled, self.sampled, self.unread = self.sampled, None, None
        if sampled is None or output is None:
            return
        if self.judges_late:
            setattr(output, outcome.KEY, self.rule.news())
        else:
            attach(output, sampled.requests, self.snapshot or self.copies.start(self.rule.records()))


def runs_triton(device: torch.device) -> bool:
    """Whether the Triton kernel can run here: on a GPU, or on a CPU where Triton's interpreter is switched on."""
    return device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")


def _fused() -> type:
    from torch_specexit.plugin.worker.fused import Fused  # CPU builds of torch may come without Triton

    return Fused


class Copies:
    """Snapshots on their way to the host. Each copy has a pinned buffer and an event, which are used again once it has
    been read; there are as many as steps in flight."""

    def __init__(self) -> None:
        self._idle: list[tuple[Tensor, torch.cuda.Event]] = []

    def start(self, records: Float[Tensor, "batch record"]) -> Callable[[], list[list[float]]]:
        """Start a copy; returns what waits for it and reads it."""
        if records.device.type != "cuda":
            rows = records.tolist()
            return lambda: rows
        buffer, event = self._idle.pop() if self._idle else (torch.empty(0, records.shape[1]), torch.cuda.Event())
        if buffer.shape[0] < records.shape[0]:
            buffer = torch.empty(2 * records.shape[0], records.shape[1], pin_memory=True)
        buffer[: records.shape[0]].copy_(records, non_blocking=True)
        event.record()

        def read() -> list[list[float]]:
            event.synchronize()
            rows = buffer[: records.shape[0]].tolist()
            self._idle.append((buffer, event))
            return rows

        return read


def attach(output: Any, requests: Sequence[str], read: Callable[[], list[list[float]]]) -> None:
    """Hang a snapshot on a runner's output, as the extra attribute ``specexit``.

    The output of an asynchronous step gets it when it is waited for; overriding `get_output` on the instance survives
    vLLM versions that add abstract methods to the class.
    """
    from vllm.v1.outputs import AsyncModelRunnerOutput

    if not isinstance(output, AsyncModelRunnerOutput):
        setattr(output, outcome.KEY, dict(zip(requests, read(), strict=True)))
        return
    original = output.get_output

    def get_output() -> Any:
        result = original()
        setattr(result, outcome.KEY, dict(zip(requests, read(), strict=True)))
        return result

    output.get_output = get_output


def rewrite_v1(runner: Any, exits: RunnerExits, output: Any, metadata: Any) -> None:
    """Apply the rule to V1's `SamplerOutput` before drafting, in place. Its rows are padded with -1."""
    requests = runner.input_batch.req_ids[: runner.input_batch.num_reqs]
    if exits.judges_late and not exits.rule.owes(requests):
        exits.postpone(requests, metadata)
        return
    tokens = output.sampled_token_ids[: len(requests)]
    # Rows of unfinished prompts keep their token: vLLM discards it by its own mask.
    n = (tokens >= 0).sum(dim=1, dtype=torch.int32) * ~runner.discard_request_mask.gpu[: len(requests)]
    ends, logits_rows = _rows_v1(runner, len(requests), metadata)
    sampled = Sampled(requests, tokens, n, ends, padded=True)
    _name_forced(runner, exits, output, sampled, exits.rewrite(sampled, logits_rows))


def _drafted_v1(
    runner: Any, output: Any, requests: Sequence[str], metadata: Any
) -> tuple[Sampled, Int[Tensor, " rows"]]:
    """The same behind drafting, on a CPU, in less time: nobody will look at an unfinished prompt's row again."""
    tokens, discarded = output.sampled_token_ids, runner.discard_request_mask
    if len(tokens) > len(requests):
        tokens = tokens[: len(requests)]
    if np.count_nonzero(discarded.np[: len(requests)]):
        tokens.masked_fill_(discarded.cpu[: len(requests), None], -1)
    ends, logits_rows = _rows_v1(runner, len(requests), metadata)
    n = torch.from_numpy(np.add.reduce(tokens.numpy() >= 0, axis=1, dtype=np.float32))
    return Sampled(requests, tokens, n, ends, padded=True), logits_rows


def _rows_v1(runner: Any, size: int, metadata: Any) -> tuple[Int[Tensor, " batch"], Int[Tensor, " rows"]]:
    """Where each request's rows end among those that were sampled from, and which hidden states these belong to."""
    if metadata is not None:
        return metadata.cu_num_sampled_tokens, metadata.logits_indices
    ends = torch.arange(1, size + 1, dtype=torch.int32, device=runner.device)
    return ends, runner.query_start_loc.gpu[1 : size + 1] - 1


def rewrite_v1_late(runner: Any, exits: RunnerExits, output: Any) -> None:
    """Apply the rule to V1's `SamplerOutput` behind drafting, in place, before bookkeeping reads it.

    The draft has gone on from tokens that an exit takes back. What it proposes behind them is verified as ever, so this
    costs the acceptance of one step in the life of a request.
    """
    if exits.unread is not None:
        exits.sampled, exits.logits_rows = _drafted_v1(runner, output, *exits.unread)
        exits.unread = None
    if not exits.judges_late or exits.sampled is None:
        return
    forced = exits.rewrite_late()
    if forced is not None:
        assert exits.sampled is not None
        _name_forced(runner, exits, output, exits.sampled, forced)


def _name_forced(runner: Any, exits: RunnerExits, output: Any, sampled: Sampled, forced: Forced) -> None:
    if output.logprobs_tensors is None or forced is None:
        return
    last = (sampled.n.int() - 1).clamp(min=0)
    entries = torch.arange(len(last), device=last.device) * sampled.tokens.shape[1] + last  # V1 pads these, too
    logits = runner.model.compute_logits(exits.step_state.sample_hidden_states[sampled.first_row + last])
    name_forced_token(output.logprobs_tensors, entries, forced, exits.ids.end, logits)


def rewrite_v2(runner: Any, exits: RunnerExits, output: Any, n_sampled: Tensor, n_rejected: Tensor, batch: Any) -> None:
    """Apply the rule to V2's `SamplerOutput`, in place. Behind ``n_sampled`` tokens its rows hold garbage."""
    size = batch.num_reqs
    first_row, ends = batch.cu_num_logits[:size], batch.cu_num_logits[1 : size + 1]
    sampled = Sampled(batch.req_ids, output.sampled_token_ids[:size], n_sampled[:size], ends, n_rejected[:size])
    forced = exits.rewrite(sampled, batch.logits_indices)
    if output.logprobs_tensors is not None and forced is not None:
        entries = first_row + (sampled.n - 1).clamp(min=0)
        logits = runner.model.compute_logits(exits.step_state.hidden_states[batch.logits_indices[entries]])
        name_forced_token(output.logprobs_tensors, entries, forced, exits.ids.end, logits)
