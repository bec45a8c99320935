"""The part of the hook table that concerns the OpenAI server: streams, arguments of requests, routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from torch_specexit.plugin.compat.fit import Has, Hook, Method, Takes, Uses
from torch_specexit.plugin.compat.request_hooks import check_early
from torch_specexit.plugin.frontend import arguments, efforts
from torch_specexit.plugin.frontend.inner import inner
from torch_specexit.plugin.frontend.protocols import ChatRequest, CompletionRequest, ResponsesServing
from torch_specexit.plugin.frontend.routes import Endpoints
from torch_specexit.plugin.frontend.streaming import Reports, Result
from torch_specexit.plugin.protocols import SamplingParams

_CHAT, _COMPLETION = "vllm.entrypoints.openai.chat_completion", "vllm.entrypoints.openai.completion"
_RESPONSES, _ENGINE = "vllm.entrypoints.openai.responses", "vllm.v1.engine"


def _to_sampling_params(original: Method) -> Method:
    def to_sampling_params(self: object, *args: object, **kwargs: object) -> SamplingParams:
        params = original(self, *args, **kwargs)
        params.extra_args = efforts.with_effort(params.extra_args, self)
        return params

    return to_sampling_params


def _to_beam_search_params(original: Method) -> Method:
    def to_beam_search_params(self: CompletionRequest, *args: object, **kwargs: object) -> object:
        arguments.admit_beams(self.vllm_xargs)
        inner.set(True)  # for the rest of this HTTP request, or for the part that makes a chat's stream: `_as_inner`
        return original(self, *args, **kwargs)

    return to_beam_search_params


async def _as_inner(results: AsyncIterator[Result]) -> AsyncIterator[Result]:
    """vLLM makes the parameters of a chat's stream in a task of its own, and runs the stream in another."""
    inner.set(True)
    async for result in results:
        yield result


def _stream_chat(original: Method) -> Method:
    def chat_completion_stream_generator(
        self: object, request: ChatRequest, result_generator: AsyncIterator[Result], *args: object, **kwargs: object
    ) -> AsyncIterator[str]:
        told = Reports(request.n or 1)
        if request.use_beam_search:
            result_generator = _as_inner(result_generator)
        return told.through(original(self, request, told.watch(result_generator), *args, **kwargs))

    return chat_completion_stream_generator


def _stream_completion(original: Method) -> Method:
    def completion_stream_generator(
        self: object,
        request: CompletionRequest,
        engine_inputs: object,
        result_generator: AsyncIterator[Result],
        *args: object,
        **kwargs: object,
    ) -> AsyncIterator[str]:
        told = Reports(request.n or 1)
        chunks = original(self, request, engine_inputs, told.watch(result_generator), *args, **kwargs)
        return told.through(chunks)

    return completion_stream_generator


def _generate_response(original: Method) -> Method:
    def _generate_with_builtin_tools(self: ResponsesServing, *args: object, **kwargs: Any) -> object:
        check_early(self.engine_client, kwargs["sampling_params"], kwargs.get("lora_request"))
        return original(self, *args, **kwargs)

    return _generate_with_builtin_tools


def _load_endpoint_plugins(original: Method) -> Method:
    def load_endpoint_plugins(*args: object, **kwargs: object) -> list[object]:
        return [*original(*args, **kwargs), Endpoints()]

    return load_endpoint_plugins


SERVER_HOOKS = (
    Hook(
        f"{_CHAT}.serving",
        "OpenAIServingChat",
        "chat_completion_stream_generator",
        ("request", "result_generator"),
        _stream_chat,
        why="outcome and progress in streamed chat chunks",
        relies_on="yields 'data: ' and JSON with one choice",
        since="0.24",
        facts=(Has(f"{_CHAT}.protocol:ChatCompletionRequest", ("n", "use_beam_search")),),
        upstream="vllm-project/vllm#36308 (kv_transfer_params in last chunks, since 0.33)",
        until="when vLLM puts it into every chunk",
        without="reports in streamed chat chunks",
    ),
    Hook(
        f"{_COMPLETION}.serving",
        "OpenAIServingCompletion",
        "completion_stream_generator",
        ("request", "engine_inputs", "result_generator"),
        _stream_completion,
        why="outcome and progress in streamed completion chunks",
        relies_on="yields 'data: ' and JSON with one choice; index = prompt * n + choice",
        since="0.24",
        facts=(Has(f"{_COMPLETION}.protocol:CompletionRequest", ("n",)),),
        upstream="vllm-project/vllm#36308 (kv_transfer_params in last chunks, since 0.33)",
        until="when vLLM puts it into every chunk",
        without="reports in streamed completion chunks",
    ),
    Hook(
        f"{_RESPONSES}.serving",
        "OpenAIServingResponses",
        "_generate_with_builtin_tools",
        ("request_id", "engine_input", "sampling_params", "context"),
        _generate_response,
        why="bad arguments are refused before a stream, or a response in the background, has begun with a 200",
        relies_on="called with names, before the first event is sent; what it returns begins when it is read",
        since="0.24",
        facts=(
            Uses(
                f"{_RESPONSES}.serving:OpenAIServingResponses._create_responses",
                ("to_sampling_params", "_generate_with_builtin_tools", "responses_stream_generator"),
            ),
        ),
        upstream="none",
        until="when streams check their request before they begin",
        without="HTTP 400 for bad arguments of a streamed response (an error event instead)",
    ),
    *(
        Hook(
            f"{module}.protocol",
            owner,
            "to_sampling_params",
            (parameter, "default_sampling_params"),
            _to_sampling_params,
            why="reasoning_effort, which ends in the prompt's template, chooses an operating point, too",
            relies_on="makes the parameters of one request, which nobody else has",
            since="0.24",
            facts=(Has(f"{module}.protocol:{owner}", (field,)),),
            upstream="vllm-project/vllm#55382 (a budget for each effort; open)",
            until="when the effort of a request reaches its sampling parameters",
            without="operating points by reasoning_effort",
        )
        for module, owner, parameter, field in (
            (_CHAT, "ChatCompletionRequest", "max_tokens", "reasoning_effort"),
            (_RESPONSES, "ResponsesRequest", "default_max_tokens", "reasoning"),
        )
    ),
    *(
        Hook(
            f"{module}.protocol",
            owner,
            "to_beam_search_params",
            ("max_tokens", "default_sampling_params"),
            _to_beam_search_params,
            why="bad arguments of a beam search are refused, and its steps are not counted as requests",
            relies_on="called once for each prompt, before the engine has anything of it, in the HTTP request's task",
            since="0.24",
            facts=(Has(f"{module}.protocol:{owner}", ("vllm_xargs",)),),
            upstream="none",
            until="when beam search passes vllm_xargs on",
            without="HTTP 400 for bad arguments of a beam search; each of its steps is counted as a request",
        )
        for module, owner in ((_CHAT, "ChatCompletionRequest"), (_COMPLETION, "CompletionRequest"))
    ),
    Hook(
        "vllm.plugins",
        "",
        "load_endpoint_plugins",
        ("supported_tasks",),
        _load_endpoint_plugins,
        why="GET /v1/specexit without VLLM_PLUGINS; it shows no request, and what does is opened by the operator, as "
        "are interrupts, which ask the engines",
        relies_on="looked up in vllm.plugins when the app is built, before its middleware; attach_router, init_state",
        since="0.28",
        facts=(
            Has(
                "vllm.plugins.endpoint_plugins.interface:EndpointPlugin",
                ("name", "required_tasks", "attach_router", "init_state"),
            ),
            Has(f"{_ENGINE}.async_llm:AsyncLLM", ("engine_core",)),
            Has(f"{_ENGINE}.core_client:AsyncMPClient", ("core_engines",)),
            Takes(f"{_ENGINE}.core_client:AsyncMPClient._call_utility_async", ("method", "args", "engine")),
            Takes(f"{_ENGINE}.core:EngineCore.collective_rpc", ("method", "timeout", "args", "kwargs")),
        ),
        upstream="endpoint plug-ins are vLLM's own since 0.28; their documentation asks for a name in VLLM_PLUGINS",
        until="when endpoint plug-ins of an installed package are loaded without being named",
        without="GET /v1/specexit and all other routes",
    ),
)
"""In the front end of a server with a SpecExit draft."""
