"""The part of the hook table that concerns the front end: reports to the client, metrics, routes.

Nothing here decides about an exit, so a vLLM that one of these does not fit is served with exits, and without what that
one gives. Servers without a SpecExit draft are left as they are.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from torch_specexit.plugin import settings
from torch_specexit.plugin.compat.fit import Has, Hook, Method, Takes, Uses, install
from torch_specexit.plugin.frontend import arguments, metrics
from torch_specexit.plugin.frontend import reports as frontend
from torch_specexit.plugin.frontend.routes import Endpoints
from torch_specexit.plugin.frontend.streaming import Reports
from torch_specexit.plugin.outcome import KEY

logger = logging.getLogger("vllm.specexit")


_complaints: set[str] = set()


def _harmless(action: Callable[[], Any]) -> Any:
    """Run an action; where it fails, requests go on without it. The same failure is logged once, not at every step."""
    try:
        return action()
    except Exception as error:
        if repr(error) not in _complaints:
            _complaints.add(repr(error))
            logger.exception("specexit could not report on a request")
        return None


def _process_outputs(original: Method) -> Method:
    def process_outputs(
        self: Any,
        engine_core_outputs: Any,
        engine_core_timestamp: Any = None,
        iteration_stats: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        known = _harmless(lambda: frontend.attach(self, engine_core_outputs))
        result = original(self, engine_core_outputs, engine_core_timestamp, iteration_stats, *args, **kwargs)
        if known:
            _harmless(lambda: frontend.settle(self, known, iteration_stats))
        return result

    return process_outputs


def _init_stat_logger(original: Method) -> Method:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        if settings.draft_config(vllm_config) is not None:
            setattr(self, KEY, metrics.ExitMetrics(self))

    return __init__


def _record(original: Method) -> Method:
    def record(
        self: Any,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        original(self, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx, *args, **kwargs)
        _harmless(lambda: metrics.record(self, iteration_stats, engine_idx))

    return record


def _init_engine(original: Method) -> Method:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        found = frontend.settings_of(vllm_config)
        original(self, vllm_config, *args, **kwargs)
        if found is not None:
            frontend.open_front_end(self, *found)
            misfit = install(FRONTEND_HOOKS)
            if misfit:
                logger.warning(misfit)

    return __init__


def _stream_chat(original: Method) -> Method:
    def chat_completion_stream_generator(
        self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[str]:
        arguments.admit(request.vllm_xargs, self.engine_client.vllm_config)
        reports = Reports(request.n or 1)
        return reports.through(original(self, request, reports.watch(result_generator), *args, **kwargs))

    return chat_completion_stream_generator


def _stream_completion(original: Method) -> Method:
    def completion_stream_generator(
        self: Any, request: Any, engine_inputs: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[str]:
        arguments.admit(request.vllm_xargs, self.engine_client.vllm_config)
        reports = Reports(request.n or 1)
        chunks = original(self, request, engine_inputs, reports.watch(result_generator), *args, **kwargs)
        return reports.through(chunks)

    return completion_stream_generator


def _stream_response(original: Method) -> Method:
    def responses_stream_generator(self: Any, request: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        arguments.admit(request.vllm_xargs, self.engine_client.vllm_config)
        return original(self, request, *args, **kwargs)

    return responses_stream_generator


def _load_endpoint_plugins(original: Method) -> Method:
    def load_endpoint_plugins(*args: Any, **kwargs: Any) -> list[Any]:
        return [*original(*args, **kwargs), Endpoints()]

    return load_endpoint_plugins


_ENGINE, _LOGGERS = "vllm.v1.engine", "vllm.v1.metrics.loggers"
_CHAT, _COMPLETION = "vllm.entrypoints.openai.chat_completion", "vllm.entrypoints.openai.completion"
_RESPONSES = "vllm.entrypoints.openai.responses"
_METRICS = "when stat logger plug-ins see single requests, and do not switch statistics on that were switched off"

PROCESS_HOOKS = (
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
            Uses(
                f"{_ENGINE}.output_processor:OutputProcessor.process_outputs", ("request_states", "kv_transfer_params")
            ),
        ),
        upstream="none",
        until="when outputs have a field for plug-ins",
        without="progress, reports on each of n > 1 choices, metrics and audits",
    ),
    Hook(
        f"{_ENGINE}.async_llm",
        "AsyncLLM",
        "__init__",
        ("vllm_config", "executor_class", "log_stats"),
        _init_engine,
        why="settings of the server are checked before anything starts; audits generate through the engine",
        relies_on="output_processor, logger_manager.stat_loggers, generate()",
        since="0.24",
        facts=(
            Has(f"{_ENGINE}.async_llm:AsyncLLM", ("output_processor", "logger_manager", "vllm_config", "model_config")),
            Has(f"{_LOGGERS}:StatLoggerManager", ("stat_loggers",)),
            Takes(f"{_ENGINE}.async_llm:AsyncLLM.generate", ("prompt", "sampling_params", "request_id")),
            Has("vllm.config.vllm:VllmConfig", ("additional_config", "speculative_config")),
        ),
        upstream="none",
        until="when a plug-in is told of the engine of an API server",
        without="streamed reports, routes and audits",
    ),
    Hook(
        _LOGGERS,
        "PrometheusStatLogger",
        "__init__",
        ("vllm_config", "engine_indexes"),
        _init_stat_logger,
        why="exits on /metrics, from the start",
        relies_on="_counter_cls, _histogram_cls, per_engine_labelvalues; vllm: metrics are cleared before",
        since="0.24",
        facts=(
            Has(
                f"{_LOGGERS}:PrometheusStatLogger",
                ("_counter_cls", "_histogram_cls", "per_engine_labelvalues", "vllm_config"),
            ),
            Uses(f"{_LOGGERS}:PrometheusStatLogger.__init__", ("unregister_vllm_metrics", "per_engine_labelvalues")),
        ),
        upstream="none; vllm.stat_logger_plugins see no single request",
        until=_METRICS,
        without="metrics",
    ),
    Hook(
        _LOGGERS,
        "PrometheusStatLogger",
        "record",
        ("scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"),
        _record,
        why="counts finished requests with the engine that has run them",
        relies_on="iteration_stats is the object that process_outputs was given",
        since="0.24",
        facts=(Has("vllm.v1.metrics.stats:IterationStats", ("finished_requests",)),),
        upstream="none; vllm.stat_logger_plugins see no single request",
        until=_METRICS,
        without="metrics",
    ),
)
"""In every vLLM process."""

SERVER_HOOKS = (
    Hook(
        f"{_CHAT}.serving",
        "OpenAIServingChat",
        "chat_completion_stream_generator",
        ("request", "result_generator"),
        _stream_chat,
        why="outcome and progress in streamed chat chunks; bad arguments are refused before a 200",
        relies_on="yields 'data: ' and JSON with one choice",
        since="0.24",
        facts=(Has(f"{_CHAT}.protocol:ChatCompletionRequest", ("n", "vllm_xargs")),),
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
        why="outcome and progress in streamed completion chunks; bad arguments are refused before a 200",
        relies_on="yields 'data: ' and JSON with one choice; index = prompt * n + choice",
        since="0.24",
        facts=(Has(f"{_COMPLETION}.protocol:CompletionRequest", ("n", "vllm_xargs")),),
        upstream="vllm-project/vllm#36308 (kv_transfer_params in last chunks, since 0.33)",
        until="when vLLM puts it into every chunk",
        without="reports in streamed completion chunks",
    ),
    Hook(
        f"{_RESPONSES}.serving",
        "OpenAIServingResponses",
        "responses_stream_generator",
        ("request",),
        _stream_response,
        why="bad arguments are refused before a stream has begun with a 200",
        relies_on="called before the first event is sent, and before the engine has the request",
        since="0.24",
        facts=(Has(f"{_RESPONSES}.protocol:ResponsesRequest", ("vllm_xargs",)),),
        upstream="none",
        until="when streams check their request before they begin",
        without="HTTP 400 for bad arguments of a streamed response (an error event instead)",
    ),
    Hook(
        "vllm.plugins",
        "",
        "load_endpoint_plugins",
        ("supported_tasks",),
        _load_endpoint_plugins,
        why="GET /v1/specexit without VLLM_PLUGINS; the routes only read, and only where a SpecExit draft is served",
        relies_on="looked up in vllm.plugins when the app is built; attach_router, then init_state",
        since="0.28",
        facts=(
            Has(
                "vllm.plugins.endpoint_plugins.interface:EndpointPlugin",
                ("name", "required_tasks", "attach_router", "init_state"),
            ),
        ),
        upstream="endpoint plug-ins are vLLM's own since 0.28; their documentation asks for a name in VLLM_PLUGINS",
        until="when endpoint plug-ins of an installed package are loaded without being named",
        without="GET /v1/specexit",
    ),
)
"""In the front end of a server with a SpecExit draft."""

FRONTEND_HOOKS = (*PROCESS_HOOKS, *SERVER_HOOKS)


def install_frontend_hooks() -> None:
    """Install the hooks that every process may need. Those of the HTTP server follow when it has its engine, and what
    does not fit is said then."""
    misfit = install(PROCESS_HOOKS)
    if misfit:
        logger.debug(misfit)
