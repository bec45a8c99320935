"""What the plug-in uses of vLLM's configuration, of a request's parameters, and of what the engine core hands on, with
vLLM's names and types: nothing else of these objects may be touched.

What one side alone uses stands in `torch_specexit.plugin.worker.protocols` and
`torch_specexit.plugin.frontend.protocols`. What only some versions of vLLM have is in none of them: it is asked for by
`getattr`, with a default, as `runs_v2` does. Of a configuration everything is read and nothing written; what vLLM has a
narrower type for is a property here, so that its own objects fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class DraftModelConfig(Protocol):
    """`vllm.config.ModelConfig`, of a draft."""

    model: str
    revision: str | None


@runtime_checkable
class ModelConfig(DraftModelConfig, Protocol):
    """`vllm.config.ModelConfig`, of a target."""

    tokenizer: str
    tokenizer_revision: str | None
    max_model_len: int

    @property
    def served_model_name(self) -> object:
        """Its name in the API, in metrics and in logs."""
        ...

    @property
    def dtype(self) -> object:
        """A `torch.dtype`."""
        ...

    @property
    def quantization(self) -> str | None:
        """The method; None for weights as they are."""
        ...

    @property
    def logprobs_mode(self) -> str:
        """Of which logits logprobs are, ``raw_logprobs`` by default."""
        ...

    @property
    def hf_text_config(self) -> object:
        """Of transformers."""
        ...

    @property
    def is_multimodal_model(self) -> bool:
        """Whether it reads more than text."""
        ...

    def try_get_generation_config(self) -> dict[str, Any]:
        """``generation_config.json``, empty where there is none."""
        ...


@runtime_checkable
class SpeculativeConfig(Protocol):
    """`vllm.config.SpeculativeConfig`."""

    num_speculative_tokens: int

    @property
    def draft_model_config(self) -> DraftModelConfig | None:
        """Of the draft; None where it is no model, such as n-grams."""
        ...


@runtime_checkable
class LoadConfig(Protocol):
    """`vllm.config.LoadConfig`."""

    download_dir: str | None


@runtime_checkable
class CacheConfig(Protocol):
    """`vllm.config.CacheConfig`."""

    @property
    def cache_dtype(self) -> str:
        """Of keys and values, ``auto`` by default."""
        ...


@runtime_checkable
class DeviceConfig(Protocol):
    """`vllm.config.DeviceConfig`."""

    device_type: str


@runtime_checkable
class ParallelConfig(Protocol):
    """`vllm.config.ParallelConfig`."""

    pipeline_parallel_size: int
    _api_process_count: int


@runtime_checkable
class SchedulerConfig(Protocol):
    """`vllm.config.SchedulerConfig`."""

    max_num_seqs: int

    @property
    def policy(self) -> str:
        """``fcfs`` or ``priority``."""
        ...


@runtime_checkable
class StructuredOutputsConfig(Protocol):
    """`vllm.config.StructuredOutputsConfig`."""

    reasoning_parser: str
    """Its name; empty where there is none."""
    enable_in_reasoning: bool


@runtime_checkable
class VllmConfig(Protocol):
    """`vllm.config.VllmConfig`."""

    @property
    def model_config(self) -> ModelConfig: ...

    @property
    def speculative_config(self) -> SpeculativeConfig | None: ...

    @property
    def load_config(self) -> LoadConfig: ...

    @property
    def cache_config(self) -> CacheConfig: ...

    @property
    def device_config(self) -> DeviceConfig: ...

    @property
    def parallel_config(self) -> ParallelConfig: ...

    @property
    def scheduler_config(self) -> SchedulerConfig: ...

    @property
    def structured_outputs_config(self) -> StructuredOutputsConfig: ...

    @property
    def additional_config(self) -> object:
        """An operator's settings for plug-ins, by name: a dict, or an object that vLLM can hash."""
        ...


def runs_v2(vllm_config: VllmConfig) -> bool:
    """Whether an engine has vLLM's V2 model runner; since 0.34 it has no other, and its configuration does not say."""
    return getattr(vllm_config, "use_v2_model_runner", True)


@runtime_checkable
class LoRARequest(Protocol):
    """`vllm.lora.request.LoRARequest`."""

    lora_name: str
    lora_int_id: int


@runtime_checkable
class SamplingParams(Protocol):
    """`vllm.sampling_params.SamplingParams`."""

    extra_args: dict[str, Any] | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    max_tokens: int | None
    num_logprobs: int | None
    """None where no logprobs are wanted, neither of the most likely tokens nor of given ones."""
    structured_outputs: object | None
    stop: list[str]


@runtime_checkable
class EngineCoreOutput(Protocol):
    """`vllm.v1.engine.EngineCoreOutput`: what a step has brought a request."""

    request_id: str
    stop_reason: int | str | None
    kv_transfer_params: dict[str, Any] | None
    """The one field that reaches both offline callers and the JSON of the OpenAI server."""

    @property
    def finish_reason(self) -> object | None:
        """A `FinishReason`, whose string is ``stop``, ``length`` or ``abort``; None while the request runs."""
        ...


@runtime_checkable
class EngineCoreOutputs(Protocol):
    """`vllm.v1.engine.EngineCoreOutputs`, of one client of the engine core."""

    finished_requests: set[str] | None

    @property
    def outputs(self) -> Sequence[EngineCoreOutput]:
        """Of the step."""
        ...


@runtime_checkable
class SchedulerRequest(Protocol):
    """`vllm.v1.request.Request`: the scheduler's."""

    sampling_params: SamplingParams

    @property
    def num_output_tokens(self) -> int:
        """Tokens that it has written."""
        ...


@runtime_checkable
class Scheduler(Protocol):
    """`vllm.v1.core.sched.scheduler.Scheduler`."""

    requests: Mapping[str, SchedulerRequest]


@runtime_checkable
class InputProcessor(Protocol):
    """`vllm.v1.engine.input_processor.InputProcessor`."""

    vllm_config: VllmConfig
