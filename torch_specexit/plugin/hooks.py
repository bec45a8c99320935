"""Every place where vLLM is wrapped, as one table: what, why, what it relies on, since when.

None of these methods is public, so each is checked before anything is wrapped: if one is gone or takes other
parameters, one line says so and the engine serves plain EAGLE-3. Methods are wrapped on their classes, once a process.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_specexit.plugin import arguments, outcome, runner
from torch_specexit.plugin.runner import draft_of, exits_of, guarded

logger = logging.getLogger("vllm.specexit")

Method = Callable[..., Any]


@dataclass(frozen=True)
class Hook:
    """One wrapped method."""

    module: str
    owner: str
    method: str
    parameters: tuple[str, ...]
    """Its first parameters behind self; others may follow."""
    wrap: Callable[[Method], Method]
    why: str
    relies_on: str
    since: str
    """First vLLM version in which the method was found to be as described."""

    def __str__(self) -> str:
        return f"{self.module}.{self.owner}.{self.method}"

    def misfit(self) -> str | None:
        """Why the installed vLLM does not fit, or None."""
        try:
            method = getattr(getattr(importlib.import_module(self.module), self.owner), self.method)
        except (ImportError, AttributeError) as error:
            return f"{self} does not exist ({error})"
        found = tuple(inspect.signature(method).parameters)[1 : len(self.parameters) + 1]
        return None if found == self.parameters else f"{self} takes {found}, expected {self.parameters}"

    def install(self) -> None:
        """Wrap the method; nothing happens the second time."""
        if self in _installed:
            return
        owner = getattr(importlib.import_module(self.module), self.owner)
        original = getattr(owner, self.method)
        setattr(owner, self.method, functools.wraps(original)(self.wrap(original)))
        _installed.add(self)


_installed: set[Hook] = set()


def _execute_model(original: Method) -> Method:
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        exits = exits_of(self)
        if exits is not None:
            guarded(self, exits.settle if kwargs.get("dummy_run") else lambda: exits.track(scheduler_output))
        return original(self, scheduler_output, *args, **kwargs)

    return execute_model


def _sample_tokens(original: Method) -> Method:
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        exits = exits_of(self)
        if exits is not None:
            exits.step_state = self.execute_model_state
        output = original(self, *args, **kwargs)
        if exits is not None:
            exits.step_state = None
            guarded(self, lambda: exits.close(output))
        return output

    return sample_tokens


def _sample_v1(original: Method) -> Method:
    def _sample(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        output = original(self, logits, spec_decode_metadata)
        exits = exits_of(self)
        if exits is not None:
            guarded(self, lambda: runner.rewrite_v1(self, exits, output, spec_decode_metadata))
        return output

    return _sample


def _sample_v2(original: Method) -> Method:
    def sample(self: Any, hidden_states: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        output, n_sampled, n_rejected = original(self, hidden_states, input_batch, *args, **kwargs)
        exits = exits_of(self)
        if exits is not None:
            guarded(self, lambda: runner.rewrite_v2(self, exits, output, n_sampled, n_rejected, input_batch))
        return output, n_sampled, n_rejected

    return sample


def _bookkeeping_sync(original: Method) -> Method:
    def _bookkeeping_sync(self: Any, scheduler_output: Any, sampler_output: Any, *args: Any, **kwargs: Any) -> Any:
        exits = exits_of(self)
        if exits is not None:
            guarded(self, lambda: runner.rewrite_v1_late(self, exits, sampler_output))
        return original(self, scheduler_output, sampler_output, *args, **kwargs)

    return _bookkeeping_sync


def _input_fits_in_drafter(original: Method) -> Method:
    def _input_fits_in_drafter(self: Any, common_attn_metadata: Any) -> bool:
        fits = original(self, common_attn_metadata)
        exits = exits_of(self)
        if exits is None or fits or common_attn_metadata is None:
            return fits
        exits.draft.first_pass_only = common_attn_metadata.max_seq_len <= self.effective_drafter_max_model_len
        return exits.draft.first_pass_only

    return _input_fits_in_drafter


def _propose_v1(original: Method) -> Method:
    def propose(self: Any, num_speculative_tokens: int, *args: Any, **kwargs: Any) -> Any:
        draft = draft_of(self)
        if draft is None:
            return original(self, num_speculative_tokens, *args, **kwargs)
        draft.record(1)
        if draft.first_pass_only:
            draft.first_pass_only = False
            drafts = original(self, 1, *args, **kwargs)
            return drafts.new_zeros(drafts.shape[0], num_speculative_tokens)
        return original(self, max(num_speculative_tokens, 1), *args, **kwargs)[:, :num_speculative_tokens]

    return propose


def _on_prefill_begin(original: Method) -> Method:
    def on_prefill_begin(self: Any, num_reqs: int) -> None:
        original(self, num_reqs)
        draft = draft_of(self)
        if draft is not None:
            draft.record(sys.maxsize)

    return on_prefill_begin


def _on_prefill_end(original: Method) -> Method:
    def on_prefill_end(self: Any, num_reqs: int) -> None:
        original(self, num_reqs)
        draft = draft_of(self)
        if draft is not None:
            draft.record(0)

    return on_prefill_end


def _update_from_output(original: Method) -> Method:
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        records = getattr(model_runner_output, "specexit", None) or {}
        requests = {request: self.requests[request] for request in records if request in self.requests}
        outputs = original(self, scheduler_output, model_runner_output)
        if records:
            outcome.report(requests, records, outputs)
        return outputs

    return update_from_output


def _validate_params(original: Method) -> Method:
    def _validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        arguments.check(getattr(params, "extra_args", None), self.vllm_config)
        return original(self, params, *args, **kwargs)

    return _validate_params


_V1, _V2 = "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"
_PROPOSER = "vllm.v1.spec_decode.llm_base_proposer"
_SPECULATOR = "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator"


def _runner_hooks(module: str) -> tuple[Hook, ...]:
    return (
        Hook(
            module,
            "GPUModelRunner",
            "execute_model",
            ("scheduler_output", "intermediate_tensors"),
            _execute_model,
            why="a slot for each new request, before its first step",
            relies_on="scheduler_output.scheduled_new_reqs and finished_req_ids",
            since="0.16",
        ),
        Hook(
            module,
            "GPUModelRunner",
            "sample_tokens",
            ("grammar_output",),
            _sample_tokens,
            why="the target's hidden states before they are consumed; the draft's verdicts behind drafting",
            relies_on="execute_model_state with aux_hidden_states; sampling and drafting happen within this call",
            since="0.20",
        ),
    )


V1_HOOKS = (
    *_runner_hooks(_V1),
    Hook(
        _V1,
        "GPUModelRunner",
        "_sample",
        ("logits", "spec_decode_metadata"),
        _sample_v1,
        why="the one place that yields the rejection sampler's result, before bookkeeping, drafting and copies read it",
        relies_on="sampled_token_ids padded with -1, logits_indices, cu_num_sampled_tokens, discard_request_mask",
        since="0.16",
    ),
    Hook(
        _V1,
        "GPUModelRunner",
        "_bookkeeping_sync",
        ("scheduler_output", "sampler_output"),
        _bookkeeping_sync,
        why="without asynchronous scheduling nobody has seen the result by then, so no acceptance has to stop for it",
        relies_on="called behind drafting, with the result that is sent; drafting keeps no count of accepted tokens",
        since="0.32",
    ),
    Hook(
        _V1,
        "GPUModelRunner",
        "_input_fits_in_drafter",
        ("common_attn_metadata",),
        _input_fits_in_drafter,
        why="one request at the end of the context must not silence the signals of all others in its batch",
        relies_on="only max_seq_len against effective_drafter_max_model_len is looked at",
        since="0.32",
    ),
    Hook(
        _PROPOSER,
        "SpecDecodeBaseProposer",
        "propose",
        ("num_speculative_tokens", "target_token_ids"),
        _propose_v1,
        why="marks the draft's first pass, and makes sure that there is one",
        relies_on="the first compute_logits of a call gets the last accepted row of each request, in batch order",
        since="0.32",
    ),
)
"""For the V1 runner, which CPUs use."""

V2_HOOKS = (
    *_runner_hooks(_V2),
    Hook(
        _V2,
        "GPUModelRunner",
        "sample",
        ("hidden_states", "input_batch", "grammar_output"),
        _sample_v2,
        why="the one place that yields the rejection sampler's result, before broadcast, copies and drafting read it",
        relies_on="(SamplerOutput, num_sampled, num_rejected) on the device, input_batch.cu_num_logits",
        since="0.24",
    ),
    Hook(
        _SPECULATOR,
        "TargetDependentARSpeculator",
        "on_prefill_begin",
        ("num_reqs",),
        _on_prefill_begin,
        why="marks the draft's first pass, when it runs and when it is captured as a CUDA graph",
        relies_on="the compute_logits of a prefill gets the last accepted row of each request, in batch order",
        since="0.32",
    ),
    Hook(
        _SPECULATOR,
        "TargetDependentARSpeculator",
        "on_prefill_end",
        ("num_reqs",),
        _on_prefill_end,
        why="later draft passes must not overwrite the signals",
        relies_on="called behind every prefill and its capture",
        since="0.32",
    ),
)
"""For the V2 runner, which GPUs use."""

ENGINE_HOOKS = (
    Hook(
        "vllm.v1.core.sched.scheduler",
        "Scheduler",
        "update_from_output",
        ("scheduler_output", "model_runner_output"),
        _update_from_output,
        why="the outcome of a finished request, to the client",
        relies_on="EngineCoreOutput.kv_transfer_params reaches RequestOutput and the server's JSON",
        since="0.16",
    ),
    Hook(
        "vllm.v1.engine.input_processor",
        "InputProcessor",
        "_validate_params",
        ("params",),
        _validate_params,
        why="bad specexit arguments are refused at admission (a ValueError; HTTP 400 from the server)",
        relies_on="called for every request before it reaches the engine core; self.vllm_config",
        since="0.32",
    ),
)
"""For engine core and front end; installed in every vLLM process."""

HOOKS = (*V1_HOOKS, *V2_HOOKS, *ENGINE_HOOKS)


def install(hooks: Sequence[Hook]) -> bool:
    """Install hooks, all of them or none.

    Returns:
      Whether they fit the installed vLLM.
    """
    misfits = [misfit for misfit in (hook.misfit() for hook in hooks) if misfit]
    if misfits:
        logger.warning("specexit does not fit this vLLM and stays off: %s", "; ".join(misfits))
        return False
    for hook in hooks:
        hook.install()
    return True


def install_engine_hooks() -> bool:
    """Install the hooks of engine core and front end."""
    return install(ENGINE_HOOKS)


def install_worker_hooks() -> bool:
    """Install the hooks of the runner that this process has loaded; called when a SpecExit draft is constructed, so
    that no other engine is touched."""
    return all([install(hooks) for module, hooks in ((_V1, V1_HOOKS), (_V2, V2_HOOKS)) if module in sys.modules])
