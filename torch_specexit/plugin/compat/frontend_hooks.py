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
from torch_specexit.plugin.frontend import arguments, efforts, metrics, opening, reports, starting, tracing
from torch_specexit.plugin.frontend.inner import inner
from torch_specexit.plugin.frontend.routes import Endpoints
from torch_specexit.plugin.frontend.server import FrontEnd
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
        known = _harmless(lambda: reports.attach(self, engine_core_outputs))
        result = original(self, engine_core_outputs, engine_core_timestamp, iteration_stats, *args, **kwargs)
        if known:
            _harmless(lambda: reports.settle(self, known, iteration_stats))
        return result

    return process_outputs


def _add_request(original: Method) -> Method:
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        front: FrontEnd | None = getattr(self, KEY, None)
        admitted = None if front is None else front.admit(request)
        original(self, request, *args, **kwargs)
        state = self.request_states.get(request.request_id)
        if front is not None and admitted is not None and state is not None:
            front.keep(state, request, admitted)

    return add_request


def _do_tracing(original: Method) -> Method:
    def do_tracing(self: Any, engine_core_output: Any, req_state: Any, *args: Any, **kwargs: Any) -> None:
        with tracing.of_request(getattr(req_state, KEY, None)):
            original(self, engine_core_output, req_state, *args, **kwargs)

    return do_tracing


def _instrument_manual(original: Method) -> Method:
    def instrument_manual(
        span_name: str, start_time: int, end_time: Any = None, attributes: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return original(span_name, start_time, end_time, tracing.with_ours(attributes), *args, **kwargs)

    return instrument_manual


def _check_health(original: Method) -> Method:
    async def check_health(self: Any) -> None:
        await original(self)
        front: FrontEnd | None = getattr(self.output_processor, KEY, None)
        problem = None if front is None else front.problem()
        if problem is not None:
            from vllm.v1.engine.exceptions import EngineDeadError

            logger.error("specexit.required is true, and exits are not served as certified: %s", problem)
            raise EngineDeadError  # what the server answers with 503

    return check_health


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
        _harmless(lambda: metrics.record(self, scheduler_stats, iteration_stats, engine_idx))

    return record


def _init_engine(original: Method) -> Method:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        found = opening.settings_of(vllm_config)
        if found is None:
            original(self, vllm_config, *args, **kwargs)
            return
        with starting.heard_at_once():
            original(self, vllm_config, *args, **kwargs)
            opening.open_front_end(self, found)
            misfit = install(FRONTEND_HOOKS)
            if misfit:
                logger.warning(misfit)

    return __init__


def _check(serving: Any, request: Any) -> None:
    """Refuse bad arguments of a stream, before it has begun with a 200."""
    front: FrontEnd | None = getattr(serving.engine_client.output_processor, KEY, None)
    if front is not None:
        front.check(request.vllm_xargs)


def _to_sampling_params(original: Method) -> Method:
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = original(self, *args, **kwargs)
        params.extra_args = efforts.with_effort(params.extra_args, self)
        return params

    return to_sampling_params


def _to_beam_search_params(original: Method) -> Method:
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments.admit_beams(self.vllm_xargs)
        inner.set(True)  # for the rest of this HTTP request
        return original(self, *args, **kwargs)

    return to_beam_search_params


def _stream_chat(original: Method) -> Method:
    def chat_completion_stream_generator(
        self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[str]:
        _check(self, request)
        told = Reports(request.n or 1)
        return told.through(original(self, request, told.watch(result_generator), *args, **kwargs))

    return chat_completion_stream_generator


def _stream_completion(original: Method) -> Method:
    def completion_stream_generator(
        self: Any, request: Any, engine_inputs: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[str]:
        _check(self, request)
        told = Reports(request.n or 1)
        chunks = original(self, request, engine_inputs, told.watch(result_generator), *args, **kwargs)
        return told.through(chunks)

    return completion_stream_generator


def _stream_response(original: Method) -> Method:
    def responses_stream_generator(self: Any, request: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        _check(self, request)
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
        f"{_ENGINE}.output_processor",
        "OutputProcessor",
        "add_request",
        ("request", "prompt"),
        _add_request,
        why="what a server decides about a request (its point, mode, audit) goes to the workers with it",
        relies_on="called before the engine core has the request, with parameters that nobody else changes",
        since="0.24",
        facts=(
            Has(
                f"{_ENGINE}:EngineCoreRequest",
                ("request_id", "external_req_id", "sampling_params", "lora_request", "cache_salt", "priority"),
            ),
            Uses(f"{_ENGINE}.async_llm:AsyncLLM._add_request", ("output_processor", "engine_core")),
        ),
        upstream="vllm-project/vllm#56497 (logits processors are told of new requests, in the worker only)",
        until="when a plug-in may change a request as it is admitted",
        without="operating points, switching without a restart, audits",
    ),
    Hook(
        f"{_ENGINE}.output_processor",
        "OutputProcessor",
        "do_tracing",
        ("engine_core_output", "req_state"),
        _do_tracing,
        why="the report of a request on vLLM's own OpenTelemetry span",
        relies_on="makes the span of the request whose state it is given, through instrument_manual",
        since="0.24",
        facts=(Uses(f"{_ENGINE}.output_processor:OutputProcessor.do_tracing", ("attributes", "instrument_manual")),),
        upstream="none",
        until="when a plug-in may add attributes to a request's span",
        without="OpenTelemetry attributes",
    ),
    Hook(
        f"{_ENGINE}.output_processor",
        "",
        "instrument_manual",
        ("span_name", "start_time", "end_time", "attributes"),
        _instrument_manual,
        why="see do_tracing",
        relies_on="the name under which do_tracing finds it",
        since="0.24",
        facts=(Takes("vllm.tracing:.instrument_manual", ("span_name", "start_time", "end_time", "attributes")),),
        upstream="none",
        until="when a plug-in may add attributes to a request's span",
        without="OpenTelemetry attributes",
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
        facts=(Has(f"{_ENGINE}.async_llm:AsyncLLM", ("output_processor",)),),
        upstream="none",
        until="when a plug-in has a say in readiness",
        without="readiness that depends on exits (`required`)",
    ),
    Hook(
        f"{_ENGINE}.async_llm",
        "AsyncLLM",
        "__init__",
        ("vllm_config", "executor_class", "log_stats"),
        _init_engine,
        why="settings of the server are checked before anything starts, and signals heard while it does; audits "
        "generate through the engine",
        relies_on="output_processor, logger_manager.stat_loggers, generate()",
        since="0.24",
        facts=(
            Has(f"{_ENGINE}.async_llm:AsyncLLM", ("output_processor", "input_processor", "logger_manager")),
            Has(f"{_ENGINE}.async_llm:AsyncLLM", ("vllm_config", "model_config")),
            Takes(f"{_ENGINE}.async_llm:AsyncLLM.collective_rpc", ("method", "timeout", "args")),
            Has(f"{_LOGGERS}:StatLoggerManager", ("stat_loggers",)),
            Takes(f"{_ENGINE}.async_llm:AsyncLLM.generate", ("prompt", "sampling_params", "request_id")),
            Has("vllm.config.vllm:VllmConfig", ("additional_config", "speculative_config")),
        ),
        upstream="none",
        until="when a plug-in is told of the engine of an API server",
        without="streamed reports, routes and audits; a start that a signal ends at once",
    ),
    Hook(
        _LOGGERS,
        "PrometheusStatLogger",
        "__init__",
        ("vllm_config", "engine_indexes"),
        _init_stat_logger,
        why="exits on /metrics, from the start",
        relies_on="_counter_cls, _gauge_cls, _histogram_cls, per_engine_labelvalues; vllm: metrics are cleared before",
        since="0.24",
        facts=(
            Has(
                f"{_LOGGERS}:PrometheusStatLogger",
                ("_counter_cls", "_gauge_cls", "_histogram_cls", "per_engine_labelvalues", "vllm_config"),
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
        why="counts finished requests with the engine that has run them, and the drafts that were accepted",
        relies_on="iteration_stats is the object that process_outputs was given",
        since="0.24",
        facts=(
            Has("vllm.v1.metrics.stats:IterationStats", ("finished_requests",)),
            Has("vllm.v1.spec_decode.metrics:SpecDecodingStats", ("num_drafts", "num_accepted_tokens")),
        ),
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
        why="GET /v1/specexit without VLLM_PLUGINS; it shows no request, and what does is opened by the operator",
        relies_on="looked up in vllm.plugins when the app is built, before its middleware; attach_router, init_state",
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
