"""What the front end uses of vLLM's own objects, with vLLM's names and types: nothing else of them may be touched.

The tables of hooks hold the same as facts that are checked against the installed vLLM before anything is wrapped; this
is for the reader and the type checker. Configuration and parameters of requests: `torch_specexit.plugin.protocols`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch_specexit.plugin.protocols import LoRARequest, ModelConfig, SamplingParams, VllmConfig


@runtime_checkable
class EngineCoreRequest(Protocol):
    """`vllm.v1.engine.EngineCoreRequest`: a request on its way to the engine core."""

    request_id: str
    """vLLM's own."""
    external_req_id: str | None
    """What the client knows it by, with what vLLM's routes put around that."""
    prompt_token_ids: list[int] | None
    """None of a prompt in embeddings."""
    sampling_params: SamplingParams | None
    """None of a request that writes nothing."""
    lora_request: LoRARequest | None
    cache_salt: str | None
    priority: int
    reasoning_ended: bool | None
    """None where no route has looked."""
    reasoning_parser_kwargs: dict[str, Any] | None


@runtime_checkable
class ParentRequest(Protocol):
    """`vllm.v1.engine.parallel_sampling.ParentRequest`: what the choices of a request have in common."""

    n: int


@runtime_checkable
class Detokenizer(Protocol):
    """`vllm.v1.engine.detokenizer.IncrementalDetokenizer`."""

    @property
    def output_token_ids(self) -> Sequence[int]:
        """What the client gets."""
        ...


@runtime_checkable
class RequestState(Protocol):
    """`vllm.v1.engine.output_processor.RequestState`: a running request, or one of its choices where n > 1."""

    request_id: str
    external_req_id: str
    parent_req: ParentRequest | None
    """None where n is 1."""
    request_index: int
    """Its place among the choices."""
    prompt_token_ids: list[int] | None
    detokenizer: Detokenizer
    max_tokens_param: int | None
    lora_request: LoRARequest | None


@runtime_checkable
class OutputProcessor(Protocol):
    """`vllm.v1.engine.output_processor.OutputProcessor`."""

    request_states: Mapping[str, RequestState]
    """Running requests, by vLLM's own ids."""
    external_req_ids: Mapping[str, list[str]]
    """These ids, by the one that the client knows."""
    tokenizer: Any
    """Of transformers, or of a vLLM plug-in; None where the server was told to have none."""


@runtime_checkable
class EngineCoreClient(Protocol):
    """`vllm.v1.engine.core_client.AsyncMPClient`."""

    core_engines: Sequence[bytes]

    async def _call_utility_async(self, method: str, *args: object, engine: bytes) -> Any:
        """Call a method of one engine core."""
        ...


@runtime_checkable
class LoggerManager(Protocol):
    """`vllm.v1.metrics.loggers.StatLoggerManager`."""

    stat_loggers: Iterable[object]


@runtime_checkable
class AsyncLLM(Protocol):
    """`vllm.v1.engine.async_llm.AsyncLLM`."""

    vllm_config: VllmConfig
    model_config: ModelConfig
    input_processor: object
    output_processor: OutputProcessor
    engine_core: EngineCoreClient
    logger_manager: LoggerManager | None
    """None where statistics are switched off."""

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncIterator[Any]:
        """The outputs of a request, as they come."""
        ...


@runtime_checkable
class RequestOutput(Protocol):
    """`vllm.outputs.RequestOutput`: what the front end hands to a route, of all choices of a request or of some."""

    kv_transfer_params: dict[str, Any] | None


@runtime_checkable
class CompletionRequest(Protocol):
    """`vllm.entrypoints.openai.completion.protocol.CompletionRequest`: what a client has sent."""

    n: int | None
    vllm_xargs: dict[str, Any] | None


@runtime_checkable
class ChatRequest(CompletionRequest, Protocol):
    """`vllm.entrypoints.openai.chat_completion.protocol.ChatCompletionRequest`."""

    use_beam_search: bool


@runtime_checkable
class ResponsesServing(Protocol):
    """`vllm.entrypoints.openai.responses.serving.OpenAIServingResponses`."""

    engine_client: AsyncLLM


@runtime_checkable
class SpecDecodingStats(Protocol):
    """`vllm.v1.spec_decode.metrics.SpecDecodingStats`, of one step."""

    num_drafts: int
    num_accepted_tokens: int


@runtime_checkable
class StatLogger(Protocol):
    """`vllm.v1.metrics.loggers.PrometheusStatLogger`."""

    vllm_config: VllmConfig
    per_engine_labelvalues: Mapping[int, Sequence[str]]
    _counter_cls: Any
    """Classes of metrics, Prometheus' or Ray's."""
    _gauge_cls: Any
    _histogram_cls: Any
