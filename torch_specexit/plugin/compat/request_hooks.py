"""The part of the hook table that follows a request through the front end: its admission, its reports, readiness."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from specexit.schemas.sampling import NEUTRAL
from torch_specexit.plugin.compat.fit import Has, Hook, Method, Takes, Uses
from torch_specexit.plugin.compat.harmless import harmless
from torch_specexit.plugin.frontend import arguments, reports, sampling
from torch_specexit.plugin.frontend.protocols import (
    AsyncLLM,
    EngineCoreRequest,
    OutputProcessor,
    ParentRequest,
)
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import EngineCoreOutput, LoRARequest, SamplingParams

logger = logging.getLogger("vllm.specexit")

_ENGINE = "vllm.v1.engine"
_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
_COMPLETION = "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion"


def _process_outputs(original: Method) -> Method:
    def process_outputs(
        self: OutputProcessor,
        engine_core_outputs: Sequence[EngineCoreOutput],
        engine_core_timestamp: float | None = None,
        iteration_stats: object = None,
        *args: object,
        **kwargs: object,
    ) -> object:
        known = harmless(lambda: reports.attach(self, engine_core_outputs))
        result = original(self, engine_core_outputs, engine_core_timestamp, iteration_stats, *args, **kwargs)
        if known:
            harmless(lambda: reports.settle(self, known, iteration_stats))
        return result

    return process_outputs


def _add_request(original: Method) -> Method:
    def add_request(
        self: OutputProcessor,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: ParentRequest | None = None,
        request_index: int = 0,
        queue: object = None,
        *args: object,
        **kwargs: object,
    ) -> None:
        """vLLM's own, with what the server decides about the request in it."""
        front: FrontEnd | None = getattr(self, KEY, None)
        admitted = None if front is None else front.admit(request, choice=request_index)
        if front is None and queue is None:  # a server reads each request's outputs from a queue, `vllm.LLM` does not
            arguments.vouch(request)
        original(self, request, prompt, parent_req, request_index, queue, *args, **kwargs)
        state = self.request_states.get(request.request_id)
        if front is not None and admitted is not None and state is not None:
            harmless(lambda: front.keep(state, request, admitted))

    return add_request


def check_early(engine: AsyncLLM, params: SamplingParams, adapter: LoRARequest | None) -> None:
    """Refuse bad arguments as a server hands a request to its engine. Nothing of an answer has been sent by then, and
    all that decides the admission is known.

    Args:
      engine: vLLM's `AsyncLLM`.
      params: the request's `SamplingParams`.
      adapter: its `LoRARequest`, or None.

    Raises:
      ArgumentError: see `FrontEnd.check`.
    """
    front: FrontEnd | None = getattr(engine.output_processor, KEY, None)
    if front is not None:
        front.check(params.extra_args, None if adapter is None else adapter.lora_name)


def _generate(original: Method) -> Method:
    def generate(
        self: AsyncLLM, prompt: object, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> object:
        check_early(self, sampling_params, kwargs.get("lora_request"))
        return original(self, prompt, sampling_params, request_id, **kwargs)

    return generate


def _check_health(original: Method) -> Method:
    logged: str | None = None  # probes come every few seconds

    async def check_health(self: AsyncLLM) -> None:
        await original(self)
        front: FrontEnd | None = getattr(self.output_processor, KEY, None)
        if front is None:
            return
        await front.look_at_weights(self)
        nonlocal logged
        before, logged = logged, front.problem()
        if logged is not None:
            from vllm.v1.engine.exceptions import EngineDeadError

            if logged != before:
                logger.error("specexit.required is true, and exits are not served as certified: %s", logged)
            raise EngineDeadError  # what the server answers with 503

    return check_health


REQUEST_HOOKS = (
    Hook(
        f"{_ENGINE}.output_processor",
        "OutputProcessor",
        "process_outputs",
        ("engine_core_outputs", "engine_core_timestamp", "iteration_stats"),
        _process_outputs,
        why="every output says how its request stands; finished requests are counted, and audited",
        relies_on="request_states holds running requests, by EngineCoreOutput.request_id; nothing is awaited within",
        since="0.24",
        facts=(
            Has(f"{_ENGINE}.output_processor:OutputProcessor", ("request_states", "external_req_ids", "tokenizer")),
            Has(
                f"{_ENGINE}.output_processor:RequestState",
                ("request_id", "external_req_id", "parent_req", "request_index", "prompt_token_ids", "detokenizer"),
            ),
            Has(f"{_ENGINE}.output_processor:RequestState", ("max_tokens_param", "lora_request")),
            Has(f"{_ENGINE}.parallel_sampling:ParentRequest", ("n",)),
            Has(f"{_ENGINE}:EngineCoreOutput", ("finish_reason", "stop_reason")),
            Uses(
                f"{_ENGINE}.output_processor:OutputProcessor.process_outputs", ("request_states", "kv_transfer_params")
            ),
        ),
        upstream="none",
        until="when outputs have a field for plug-ins",
        without="progress, reports on each of n > 1 choices, metrics and audits",
    ),
    Hook(
        f"{_ENGINE}.output_processor",
        "OutputProcessor",
        "add_request",
        ("request", "prompt", "parent_req", "request_index", "queue"),
        _add_request,
        why="what a server decides about a request (its point, mode, audit) goes to the workers with it",
        relies_on="called before the engine core has the request, with parameters that nobody else changes; with a "
        "queue in a server, without one in vllm.LLM",
        since="0.24",
        facts=(
            Has(
                f"{_ENGINE}:EngineCoreRequest",
                ("request_id", "external_req_id", "sampling_params", "lora_request", "cache_salt", "priority"),
            ),
            Has(f"{_ENGINE}:EngineCoreRequest", ("reasoning_ended", "reasoning_parser_kwargs")),
            Has("vllm.sampling_params:SamplingParams", (*sampling.KEYS, *NEUTRAL)),
            Uses(f"{_ENGINE}.async_llm:AsyncLLM._add_request", ("output_processor", "engine_core")),
        ),
        upstream="vllm-project/vllm#56497 (logits processors are told of new requests, in the worker only)",
        until="when a plug-in may change a request as it is admitted",
    ),
    Hook(
        f"{_ENGINE}.async_llm",
        "AsyncLLM",
        "generate",
        ("prompt", "sampling_params", "request_id", "prompt_text", "lora_request"),
        _generate,
        why="bad arguments are refused before a stream has begun with a 200, whichever route it is of",
        relies_on="routes call it before they answer; what it returns, a generator, begins when it is read",
        since="0.24",
        facts=(
            Has(f"{_ENGINE}.async_llm:AsyncLLM", ("output_processor",)),
            Uses(f"{_CHAT}._create_chat_completion", ("to_sampling_params", "generate")),
            Uses(f"{_COMPLETION}._create_completion", ("to_sampling_params", "generate")),
        ),
        upstream="none",
        until="when streams check their request before they begin",
        without="HTTP 400 for bad arguments of a stream (an error in it instead)",
    ),
    Hook(
        f"{_ENGINE}.async_llm",
        "AsyncLLM",
        "check_health",
        (),
        _check_health,
        why="a server that must serve exits is not ready without them",
        relies_on="GET /health answers 503 on an EngineDeadError",
        since="0.24",
        facts=(
            Has(f"{_ENGINE}.async_llm:AsyncLLM", ("output_processor",)),
            Has(f"{_ENGINE}.async_llm:AsyncLLM", ("engine_core",)),
            Has(f"{_ENGINE}.core_client:AsyncMPClient", ("core_engines",)),
            Takes(f"{_ENGINE}.core_client:AsyncMPClient._call_utility_async", ("method", "args", "engine")),
        ),
        upstream="none",
        until="when a plug-in has a say in readiness",
        without="readiness that depends on exits (`required`)",
    ),
)
"""In every vLLM process."""
