"""What is done around each wrapped method of vLLM. Where they are, and why: `torch_specexit.plugin.compat.hooks`.

A wrap calls the original once and hands on its result. Our own part of it is guarded, so that no request fails of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from torch_specexit.plugin import outcome
from torch_specexit.plugin.compat.fit import Method
from torch_specexit.plugin.compat.harmless import harmless
from torch_specexit.plugin.compat.repairs import cannot_read, cannot_sample
from torch_specexit.plugin.frontend import arguments
from torch_specexit.plugin.protocols import InputProcessor, Scheduler
from torch_specexit.plugin.worker import runner_v1, runner_v2
from torch_specexit.plugin.worker.exits import draft_of, exits_of
from torch_specexit.plugin.worker.protocols import (
    AttentionMetadata,
    Empty,
    InputBatchV2,
    ProposerV1,
    Runner,
    RunnerV1,
    RunnerV2,
    SchedulerOutput,
    SpecDecodeMetadata,
    SpeculatorV2,
    Worker,
)


def get_kv_cache_spec(empty: Empty) -> Callable[[Method], Method]:
    """Make exits ready, once everything is loaded.

    Args:
      empty: gives a step without requests, as this runner makes its steps.
    """

    def wrap(original: Method) -> Method:
        def get_kv_cache_spec(self: Runner, *args: object, **kwargs: object) -> object:
            exits_of(self, empty)
            return original(self, *args, **kwargs)

        return get_kv_cache_spec

    return wrap


def execute_model(original: Method) -> Method:
    """Take in new requests and drop finished ones, before a step."""

    def execute_model(self: Runner, scheduler_output: SchedulerOutput, *args: object, **kwargs: object) -> object:
        exits = exits_of(self)
        if exits is not None:
            runner_v2.keep_restored(exits, getattr(self, "pcp_manager", None))
        if exits is not None and kwargs.get("dummy_run"):
            exits.settle()
        elif exits is not None:
            exits.track(scheduler_output)
        return original(self, scheduler_output, *args, **kwargs)

    return execute_model


def sample_tokens(original: Method) -> Method:
    """Keep the hidden states of a step at hand while it is sampled, and close the step after drafting."""

    def sample_tokens(self: Runner, *args: object, **kwargs: object) -> object:
        exits, state = exits_of(self), self.execute_model_state
        if exits is not None and state is not None:
            exits.aux = state.aux_hidden_states
        output = original(self, *args, **kwargs)
        if exits is not None:
            exits.close(output)
        return output

    return sample_tokens


def sample_v1(original: Method) -> Method:
    """Apply the rule to V1's result, before anyone has seen it."""

    def _sample(self: RunnerV1, logits: Tensor, spec_decode_metadata: SpecDecodeMetadata | None) -> object:
        exits = exits_of(self)
        if exits is None:
            return original(self, logits, spec_decode_metadata)
        # Without drafts V1 samples in place, where its logits are float32 already.
        raw = runner_v1.read_closing(self, exits, logits) if spec_decode_metadata is None else logits
        output = original(self, logits, spec_decode_metadata)
        runner_v1.rewrite(self, exits, output, raw, spec_decode_metadata)
        return output

    return _sample


def sample_v2(original: Method) -> Method:
    """Apply the rule to V2's result, before anyone has seen it."""

    def sample(
        self: RunnerV2, hidden_states: Tensor, input_batch: InputBatchV2, *args: object, **kwargs: object
    ) -> object:
        exits = exits_of(self)

        def sampled() -> Any:
            return original(self, hidden_states, input_batch, *args, **kwargs)

        if exits is None:
            return sampled()
        result, logits = runner_v2.keep_logits(self.model, sampled) if exits.requests.asking else (sampled(), None)
        output, n_sampled, n_rejected = result
        runner_v2.rewrite(self, exits, output, n_sampled, n_rejected, input_batch, logits)
        return result

    return sample


def input_fits_in_drafter(original: Method) -> Method:
    """Have the draft's first pass run where vLLM would skip it. A served draft is no shorter than its engine's context,
    and without the pass requests would be judged by the signals of an earlier step."""

    def _input_fits_in_drafter(self: RunnerV1, common_attn_metadata: object | None) -> bool:
        fits = original(self, common_attn_metadata)
        exits = exits_of(self)
        if exits is None or fits or common_attn_metadata is None:
            return fits
        exits.draft.first_pass.alone = True
        return True

    return _input_fits_in_drafter


def propose_v1(original: Method) -> Method:
    """Mark the first pass of V1's draft, and make sure that there is one."""

    def propose(self: ProposerV1, num_speculative_tokens: int, *args: object, **kwargs: Any) -> object:
        draft = draft_of(self)
        if draft is None:
            return original(self, num_speculative_tokens, *args, **kwargs)
        draft.record(1, _last_rows(**kwargs))
        if draft.first_pass.behind is not None:
            kwargs["next_token_ids"] = _next_of_prompts(kwargs["next_token_ids"], *draft.first_pass.behind)
            draft.first_pass.behind = None
        alone, draft.first_pass.alone = draft.first_pass.alone, False
        try:
            drafts = original(self, 1 if alone else max(num_speculative_tokens, 1), *args, **kwargs)
        finally:
            self.num_speculative_tokens = num_speculative_tokens  # vLLM keeps it for its dummy runs
        if not alone:
            return drafts if num_speculative_tokens else drafts[:, :0]
        if num_speculative_tokens > 1:  # data-parallel peers wait here for this rank, before their second pass
            self._determine_batch_execution_and_padding(len(drafts))
        self._last_draft_probs = None  # they have one column; without any, vLLM verifies by the tokens alone
        return drafts.new_zeros(drafts.shape[0], num_speculative_tokens)

    return propose


def _next_of_prompts(
    next_token_ids: Int[Tensor, " requests"], places: Int[Tensor, " some"], tokens: Int[Tensor, " some"]
) -> Int[Tensor, " requests"]:
    """What the draft reads at the end of each request's rows, with the right tokens for those with more prompt to come;
    a copy, as vLLM keeps its own for the next step."""
    return next_token_ids.index_copy(0, places, tokens.to(next_token_ids.dtype))


def _last_rows(
    token_indices_to_sample: Int[Tensor, " requests"] | None, common_attn_metadata: AttentionMetadata, **others: object
) -> Int[Tensor, " requests"]:
    """Row of the last accepted token of each request, among those of the first pass of V1's draft."""
    if token_indices_to_sample is not None:
        return token_indices_to_sample
    return common_attn_metadata.query_start_loc[1:] - 1


def prefill(original: Method) -> Method:
    """Mark the first pass of V2's draft, and say where the last accepted tokens are in it."""

    def _prefill(self: SpeculatorV2, num_reqs: int, *args: object, **kwargs: object) -> object:
        draft = draft_of(self)
        if draft is None:
            return original(self, num_reqs, *args, **kwargs)
        # Under context parallel, signals are read where the whole batch is put together: `runner_v2.keep_restored`.
        whole = getattr(self, "pcp_manager", None) is None
        draft.record(sys.maxsize if whole else 0, self.last_token_indices[:num_reqs])
        try:
            return original(self, num_reqs, *args, **kwargs)
        finally:
            draft.record(0)

    return _prefill


def sleep(original: Method) -> Method:
    """Have the draft remember its weights, which may have been replaced since the last step, and keep its buffers."""

    def sleep(self: Worker, *args: object, **kwargs: object) -> None:
        exits = exits_of(self.model_runner)
        if exits is not None:
            exits.draft.fall_asleep()
        original(self, *args, **kwargs)

    return sleep


def wake_up(original: Method) -> Method:
    """Check whether a sleep has left the draft's weights as they were."""

    def wake_up(self: Worker, tags: Sequence[str] | None = None, *args: object, **kwargs: object) -> None:
        original(self, tags, *args, **kwargs)
        exits = exits_of(self.model_runner)
        if exits is not None and (tags is None or "weights" in tags):
            exits.draft.awake()

    return wake_up


def update_from_output(original: Method) -> Method:
    """Put what is new about requests into the outputs."""

    def update_from_output(self: Scheduler, scheduler_output: object, model_runner_output: object) -> object:
        reporter: outcome.Reporter = vars(self).setdefault("_specexit_reporter", outcome.Reporter())
        records = getattr(model_runner_output, outcome.KEY, None) or {}
        inactive = getattr(model_runner_output, outcome.INACTIVE_KEY, None)
        awaiting = getattr(model_runner_output, outcome.AWAITING_KEY, None)
        reporter.replaced |= hasattr(model_runner_output, outcome.REPLACED_KEY)
        harmless(lambda: reporter.take(records, self.requests))
        outputs = original(self, scheduler_output, model_runner_output)
        harmless(lambda: reporter.report(records, outputs, inactive, awaiting))
        return outputs

    return update_from_output


def validate_params(original: Method) -> Method:
    """Refuse bad arguments at admission, and requests that this vLLM would answer wrongly."""

    def _validate_params(self: InputProcessor, params: object, *args: object, **kwargs: object) -> object:
        # A server's front end checks by itself, where it knows the request's adapter.
        if getattr(self, outcome.KEY, None) is None:
            arguments.admit(getattr(params, "extra_args", None), self.vllm_config)
        arguments.admit_sampling(getattr(params, "temperature", 0.0), cannot_sample(self.vllm_config))
        arguments.admit_reading(getattr(params, "logprob_token_ids", None), cannot_read(self.vllm_config))
        return original(self, params, *args, **kwargs)

    return _validate_params
