"""Every place where vLLM is wrapped, as one table: what, why, what it relies on, since when, until when.

Methods that are replaced on single objects are rows of it as well, without a wrap.

None of these methods is public, so each is checked before anything is wrapped; see `torch_specexit.plugin.compat.fit`.
``specexit serve --check`` prints the table, for the installed vLLM or for the sources of another version.
"""

from __future__ import annotations

import importlib
import logging

from specexit.config import ConfigError
from torch_specexit.plugin.compat import wraps
from torch_specexit.plugin.compat.fit import V1_RUNNER, Either, Has, Hook, Takes, Uses, install, misfits
from torch_specexit.plugin.worker import interrupt, runner_v1, runner_v2, weights
from torch_specexit.plugin.worker.protocols import Empty

logger = logging.getLogger("vllm.specexit")


_GPU, _WORKER = "vllm.v1.worker.gpu", "vllm.v1.worker.gpu_worker"
_V1, _V2 = "vllm.v1.worker.gpu_model_runner", f"{_GPU}.model_runner"
_PROPOSER, _SPECULATOR = "vllm.v1.spec_decode.llm_base_proposer", f"{_GPU}.spec_decode.eagle.speculator"
_DRAFT = "vllm.model_executor.models.llama_eagle3:Eagle3LlamaForCausalLM"
_SCHEDULED = "vllm.v1.core.sched.output"
_ENGINE = "vllm.v1.engine"

_NEVER_PUBLIC = "when vLLM lets a plug-in see a step's result and the hidden states behind it; no such plan is known"
_PR = "vllm-project/vllm#27192 (early exit in the core; closed)"

_LOGPROBS = (
    Has("vllm.v1.outputs:LogprobsTensors", ("logprob_token_ids", "logprobs", "selected_token_ranks")),
    Has("vllm.config.model:ModelConfig", ("logprobs_mode",)),
)
_PROPOSES = (
    *("num_speculative_tokens", "target_token_ids", "target_positions", "target_hidden_states", "next_token_ids"),
    *("token_indices_to_sample", "common_attn_metadata"),
)
_READS_SIGNALS = (
    Takes(f"{_DRAFT}.forward", ("input_ids", "positions", "hidden_states")),
    Takes(f"{_DRAFT}.load_weights", ("weights",)),
)


def _runner_hooks(
    module: str,
    drafter: str,
    state: tuple[str, ...],
    steps: tuple[str, ...],
    empty: Empty,
    resumed: Has | None = None,
    only_with: str | None = None,
) -> tuple[Hook, ...]:
    """Hooks that are the same for both runners, but for the names of what they rely on."""
    runner_class = f"{module}:GPUModelRunner"
    return (
        Hook(
            module,
            "GPUModelRunner",
            "get_kv_cache_spec",
            (),
            wraps.get_kv_cache_spec(empty),
            why="exits are made ready, or keep a server from starting that is required to have them",
            relies_on="called on all ranks behind the loading of models, outside of memory that a sleep discards",
            since="0.24",
            facts=(
                Uses(
                    f"{_ENGINE}.core:EngineCore._initialize_kv_caches",
                    ("get_kv_cache_specs", "determine_available_memory", "initialize_from_config"),
                ),
                Uses(f"{_WORKER}:Worker.get_kv_cache_spec", ("model_runner", "get_kv_cache_spec")),
            ),
            upstream="none",
            until="when a draft model is told that all of its engine is loaded",
            only_with=only_with,
        ),
        Hook(
            module,
            "GPUModelRunner",
            "execute_model",
            ("scheduler_output", "intermediate_tensors"),
            wraps.execute_model,
            why="a row for each new request, before its first step; where one that comes back goes on",
            relies_on="scheduled_new_reqs, finished_req_ids; prefill_token_ids, or resumed_req_ids and all_token_ids",
            since="0.24",
            facts=(
                Has(
                    f"{_SCHEDULED}:SchedulerOutput", ("scheduled_new_reqs", "finished_req_ids", "num_scheduled_tokens")
                ),
                Has(f"{_SCHEDULED}:SchedulerOutput", ("scheduled_cached_reqs",)),
                Has(f"{_SCHEDULED}:NewRequestData", ("req_id", "prompt_token_ids", "prompt_embeds", "sampling_params")),
                Has(f"{_SCHEDULED}:NewRequestData", ("prefill_token_ids",)),
                *([] if resumed is None else [resumed]),
                Has("vllm.sampling_params:SamplingParams", ("extra_args", "num_logprobs", "structured_outputs")),
                Has("vllm.config.structured_outputs:StructuredOutputsConfig", ("reasoning_parser",)),
                Has("vllm.config.structured_outputs:StructuredOutputsConfig", ("enable_in_reasoning",)),
                Has(f"{_WORKER}:Worker", ("model_runner",)),
                Has(
                    "vllm.distributed.parallel_state:GroupCoordinator",
                    ("rank_in_group", "device_group", "broadcast_object"),
                ),
            ),
            upstream="vllm-project/vllm#56497 (logits processors are told of new requests, V2 only, since 0.32)",
            until="when V2 alone is served, and its logits processors may read hidden states",
            only_with=only_with,
        ),
        Hook(
            module,
            "GPUModelRunner",
            "sample_tokens",
            ("grammar_output",),
            wraps.sample_tokens,
            why="the target's hidden states before they are consumed; the step's report behind drafting",
            relies_on="execute_model_state with aux_hidden_states; sampling and drafting happen within this call",
            since="0.24",
            facts=(
                Has(runner_class, ("execute_model_state", drafter, "device", "vllm_config")),
                Has(f"{module}:ExecuteModelState", state),
                Uses(f"{runner_class}.sample_tokens", steps),
            ),
            upstream=_PR,
            until=_NEVER_PUBLIC,
            only_with=only_with,
        ),
    )


_WITHOUT_SLEEP = "exits that end where a deep sleep has left the draft's weights behind"
_UNTIL_TOLD = "when a draft model is told that its weights were discarded"

SLEEP_HOOKS = (
    Hook(
        _WORKER,
        "Worker",
        "sleep",
        ("level",),
        wraps.sleep,
        why="an update may have ended since the last step, and its weights are to be known again behind the sleep",
        relies_on="weights are in place when it is called",
        since="0.24",
        facts=(Has(f"{_WORKER}:Worker", ("model_runner",)),),
        upstream="none",
        until=_UNTIL_TOLD,
        without=_WITHOUT_SLEEP,
    ),
    Hook(
        _WORKER,
        "Worker",
        "wake_up",
        ("tags",),
        wraps.wake_up,
        why="a deep sleep leaves the draft's weights behind: harmless for its tokens, not for its verdicts",
        relies_on="weights are back, or lost, when it returns",
        since="0.24",
        facts=(Has(f"{_WORKER}:Worker", ("model_runner", "sleep")),),
        upstream="none",
        until=_UNTIL_TOLD,
        without=_WITHOUT_SLEEP,
    ),
)

OUTPUT_HOOK = Hook(
    "vllm.v1.outputs",
    "AsyncModelRunnerOutput",
    "get_output",
    (),
    None,
    why="the report of an asynchronous step is put into its output when that is waited for",
    relies_on="called once, on the object that sample_tokens has returned; its ModelRunnerOutput takes more attributes",
    since="0.24",
    facts=(Has("vllm.v1.outputs:ModelRunnerOutput", ("req_ids",)),),
    upstream="none",
    until="when outputs of a runner have a field for plug-ins",
)

_BOTH = (*SLEEP_HOOKS, OUTPUT_HOOK)

V1_HOOKS = (
    *_BOTH,
    *_runner_hooks(
        _V1,
        "drafter",
        ("sample_hidden_states", "aux_hidden_states"),
        ("execute_model_state", "_sample", "_input_fits_in_drafter", "propose_draft_token_ids", "_bookkeeping_sync"),
        runner_v1.empty,
        resumed=Has(f"{_SCHEDULED}:CachedRequestData", ("resumed_req_ids", "all_token_ids")),
        only_with=V1_RUNNER,
    ),
    Hook(
        _V1,
        "GPUModelRunner",
        "_sample",
        ("logits", "spec_decode_metadata"),
        wraps.sample_v1,
        why="the one place that yields the rejection sampler's result, before bookkeeping, drafting and copies read it",
        relies_on="sampled_token_ids padded with -1, logits_indices, cu_num_sampled_tokens, discard_request_mask",
        since="0.24",
        facts=(
            Has(f"{_V1}:GPUModelRunner", ("input_batch", "query_start_loc", "discard_request_mask")),
            Has(f"{_V1}:GPUModelRunner", ("positions", "input_ids")),
            Has("vllm.v1.worker.gpu_input_batch:InputBatch", ("num_reqs", "req_ids")),
            Has("vllm.v1.worker.gpu_input_batch:InputBatch", ("req_id_to_index", "token_ids_cpu")),
            Has("vllm.v1.spec_decode.metadata:SpecDecodeMetadata", ("logits_indices", "cu_num_sampled_tokens")),
            Has("vllm.v1.outputs:SamplerOutput", ("sampled_token_ids", "logprobs_tensors")),
            *_LOGPROBS,
        ),
        upstream=_PR,
        until="when no vLLM before 0.34 is served, which has V1 no more",
        only_with=V1_RUNNER,
    ),
    Hook(
        _V1,
        "GPUModelRunner",
        "_input_fits_in_drafter",
        ("common_attn_metadata",),
        wraps.input_fits_in_drafter,
        why="one request at the end of the context, or longer than speculative_config.max_model_len, must not silence "
        "the signals of all in its batch",
        relies_on="only max_seq_len against effective_drafter_max_model_len is looked at",
        since="0.24",
        facts=(
            Has(f"{_V1}:GPUModelRunner", ("effective_drafter_max_model_len",)),
            Uses(
                f"{_V1}:GPUModelRunner._input_fits_in_drafter",
                ("common_attn_metadata", "max_seq_len", "effective_drafter_max_model_len"),
            ),
        ),
        upstream="none",
        until="when no vLLM before 0.34 is served; V2 drafts for the others of the batch",
        only_with=V1_RUNNER,
    ),
    Hook(
        _PROPOSER,
        "SpecDecodeBaseProposer",
        "propose",
        ("num_speculative_tokens", "target_token_ids"),
        wraps.propose_v1,
        why="marks the draft's first pass, makes sure that there is one, and has it read the next token of a prompt in "
        "chunks, where V1 has it read the prompt's last",
        relies_on="the first pass of a call reads the step's tokens, the last accepted at token_indices_to_sample, or "
        "at the end of each request's rows, and next_token_ids behind these; data-parallel ranks wait for each other "
        "before the first and second pass",
        since="0.24",
        facts=(
            Has(f"{_V1}:GPUModelRunner", ("requests", "optimistic_seq_lens_cpu")),
            Takes("vllm.v1.worker.gpu_input_batch:CachedRequestState.get_token_id", ("idx",)),
            Has("vllm.v1.worker.gpu_input_batch:CachedRequestState", ("prompt_token_ids",)),
            Has(f"{_PROPOSER}:SpecDecodeBaseProposer", ("model", "_last_draft_probs", "num_speculative_tokens")),
            Takes(f"{_PROPOSER}:SpecDecodeBaseProposer._determine_batch_execution_and_padding", ("num_tokens",)),
            Uses(
                f"{_PROPOSER}:SpecDecodeBaseProposer.propose",
                ("model", "set_inputs_first_pass", "last_hidden_states", "_sample_draft_tokens"),
            ),
            Takes(f"{_PROPOSER}:SpecDecodeBaseProposer.propose", _PROPOSES),
            Uses(
                f"{_PROPOSER}:SpecDecodeBaseProposer.set_inputs_first_pass",
                ("token_indices_to_sample", "query_start_loc"),
            ),
            *_READS_SIGNALS,
        ),
        upstream=_PR,
        until="when no vLLM before 0.34 is served",
        only_with=V1_RUNNER,
    ),
)
"""For the V1 runner, which CPUs use up to 0.33; 0.34 has none."""

_COMPUTES_LOGITS = Either(
    (Uses(f"{_V2}:GPUModelRunner.sample", ("model", "compute_logits", "rejection_sampler")),),
    (
        Uses(f"{_V2}:GPUModelRunner.sample", ("model_state", "compute_sample_logits", "rejection_sampler")),
        Uses(f"{_GPU}.model_states.interface:ModelState.compute_sample_logits", ("model", "compute_logits")),
    ),
)
_PCP = f"{_GPU}.pcp_manager"
_WITHOUT_PCP = "exits under prefill context parallel, with which vLLM up to 0.34 starts no EAGLE-3 draft"

V2_HOOKS = (
    *_BOTH,
    *_runner_hooks(
        _V2,
        "speculator",
        ("hidden_states", "aux_hidden_states"),
        ("execute_model_state", "sample", "AsyncOutput", "postprocess_sampled", "propose"),
        runner_v2.empty,
    ),
    Hook(
        _V2,
        "GPUModelRunner",
        "sample",
        ("hidden_states", "input_batch", "grammar_output"),
        wraps.sample_v2,
        why="the one place that yields the rejection sampler's result, before broadcast, copies and drafting read it",
        relies_on="(SamplerOutput, num_sampled, num_rejected) on the device, input_batch.cu_num_logits",
        since="0.24",
        facts=(
            Has(f"{_V2}:GPUModelRunner", ("model", "req_states")),
            Has(f"{_GPU}.states:RequestState", ("req_id_to_index", "all_token_ids")),
            Has(f"{_GPU}.buffer_utils:StagedWriteTensor", ("gpu",)),
            Has(f"{_GPU}.input_batch:InputBatch", ("num_reqs", "req_ids", "logits_indices", "cu_num_logits")),
            Has(f"{_GPU}.input_batch:InputBatch", ("positions", "input_ids")),
            Uses(f"{_V2}:GPUModelRunner.sample", ("rejection_sampler", "num_sampled")),
            _COMPUTES_LOGITS,
            Has(f"{_GPU}.sample.output:SamplerOutput", ("sampled_token_ids", "logprobs_tensors")),
            *_LOGPROBS,
        ),
        upstream=_PR,
        until=_NEVER_PUBLIC,
    ),
    Hook(
        _SPECULATOR,
        "EagleSpeculator",
        "_prefill",
        ("num_reqs", "num_tokens"),
        wraps.prefill,
        why="marks the draft's first pass, when it runs and when it is captured as a CUDA graph",
        relies_on="it reads the step's tokens, of each request the last accepted one at last_token_indices",
        since="0.24",
        facts=(
            Has(f"{_SPECULATOR}:EagleSpeculator", ("model", "last_token_indices")),
            Uses(f"{_SPECULATOR}:EagleSpeculator._prefill", ("last_token_indices", "_run_model", "sample_draft")),
            Either(
                (
                    Uses(f"{_SPECULATOR}:EagleSpeculator.propose", ("_prefill", "prepare_decode_inputs")),
                    Uses(f"{_SPECULATOR}:EagleSpeculator.capture", ("_prefill", "_generate_draft")),
                ),
                (
                    Uses(f"{_SPECULATOR}:EagleSpeculator.propose", ("_prefill", "_run_multi_step_decode")),
                    Uses(f"{_SPECULATOR}:EagleSpeculator.capture", ("_prefill", "_decode")),
                ),
            ),
            *_READS_SIGNALS,
        ),
        upstream="vllm-project/vllm#27192; on_prefill_begin and on_prefill_end, since 0.28, are for subclasses",
        until="when a draft model is told which of its passes is the first",
    ),
    Hook(
        "vllm.model_executor.models.interfaces_base",
        "VllmModelForTextGeneration",
        "compute_logits",
        ("hidden_states",),
        None,
        why="the raw logits of a step in which a request asks for logprobs, which V2 computes within sample",
        relies_on="called within GPUModelRunner.sample on its `model`, whose attributes go before its class's",
        since="0.24",
        facts=(_COMPUTES_LOGITS,),
        upstream="vllm-project/vllm#56497 (logits processors see them, V2 only, since 0.32)",
        until="when a step's raw logits can be had behind sampling",
    ),
    Hook(
        _PCP,
        "PCPManager",
        "restore_for_sampling",
        ("hidden_states", "aux_hidden_states"),
        None,
        why="source fc: the target's hidden states of the whole batch, of which a rank holds a part until it samples",
        relies_on="called on the runner's pcp_manager in each step; the second that it returns is what is looked for",
        since="0.32",
        facts=(Uses(f"{_V2}:GPUModelRunner.sample_tokens", ("pcp_manager", "restore_for_sampling")),),
        upstream="none",
        until="when hidden states are handed on whole",
        without=_WITHOUT_PCP,
    ),
    Hook(
        _PCP,
        "PCPManager",
        "restore_draft_prefill",
        ("last_hidden_states", "hidden_states"),
        None,
        why="source draft: the draft's hidden states of the whole batch, likewise",
        relies_on="called on the speculator's pcp_manager behind the draft's first pass",
        since="0.32",
        facts=(Has(f"{_V2}:GPUModelRunner", ("pcp_manager",)),),
        upstream="none",
        until="when hidden states are handed on whole",
        without=_WITHOUT_PCP,
    ),
)
"""For the V2 runner, which GPUs use, and all machines since 0.34."""

ENGINE_HOOKS = (
    Hook(
        "vllm.v1.core.sched.scheduler",
        "Scheduler",
        "update_from_output",
        ("scheduler_output", "model_runner_output"),
        wraps.update_from_output,
        why="the outcome of a finished request, to the client",
        relies_on="EngineCoreOutput.kv_transfer_params reaches RequestOutput and the server's JSON",
        since="0.24",
        facts=(
            Has("vllm.v1.core.sched.scheduler:Scheduler", ("requests",)),
            Has("vllm.v1.request:Request", ("sampling_params", "num_output_tokens")),
            Has(f"{_ENGINE}:EngineCoreOutputs", ("outputs",)),
            Has(f"{_ENGINE}:EngineCoreOutput", ("request_id", "finish_reason", "kv_transfer_params")),
            Has("vllm.outputs:RequestOutput", ("kv_transfer_params",)),
        ),
        upstream="vllm-project/vllm#36308 (kv_transfer_params in streamed answers, too; the servers of 0.33 do)",
        until="when outputs have a field for plug-ins",
    ),
    Hook(
        f"{_ENGINE}.input_processor",
        "InputProcessor",
        "_validate_params",
        ("params",),
        wraps.validate_params,
        why="bad specexit arguments are refused at admission, with a ValueError; a server's front end checks its own",
        relies_on="called for every request before it reaches the engine core; self.vllm_config",
        since="0.24",
        facts=(Uses(f"{_ENGINE}.input_processor:InputProcessor.process_inputs", ("_validate_params",)),),
        upstream="vllm-project/vllm#56497 (validate_params of logits processors, V2 only, since 0.32)",
        until="when V2 alone is served, and its logits processors may read hidden states",
    ),
)
"""For engine core and front end; installed in every vLLM process."""

HOOKS = (*V1_HOOKS, *V2_HOOKS[len(_BOTH) :], *ENGINE_HOOKS)


def install_engine_hooks() -> None:
    """Install the hooks of engine core and front end. What does not fit is logged where a SpecExit draft is loaded."""
    misfit = install(ENGINE_HOOKS)
    if misfit:
        logger.debug(misfit)


def needed(*, v2: bool) -> tuple[Hook, ...]:
    """The hooks of an engine with exits. None is installed where one that exits depend on does not fit.

    Hooks of the front end are among them: exits that nobody can ask for or hear of are not served, nor exits that a
    server could not withhold from those whom its operator grants none.
    """
    from torch_specexit.plugin.compat.frontend_hooks import PROCESS_HOOKS  # which imports this module

    front = (hook for hook in PROCESS_HOOKS if hook.without is None)
    return (*ENGINE_HOOKS, *(V2_HOOKS if v2 else V1_HOOKS), *front)


def install_worker_hooks(*, v2: bool, required: bool = False) -> None:
    """Install the hooks of a runner; called when a SpecExit draft is constructed, so that no other engine is touched.

    Args:
      v2: whether the runner is V2's.
      required: whether the engine must serve exits.

    Raises:
      ConfigError: the engine must serve exits, and this vLLM does not fit.
    """
    hooks = needed(v2=v2)
    misfit = install(hooks)
    if misfit:
        logger.error(misfit)
    if required and (reason := misfits(hooks)) is not None:
        raise ConfigError(f"specexit.required is true, but exits would not be served: {reason}")
    for asked in (interrupt, weights):
        asked.install(importlib.import_module(_WORKER).Worker)
