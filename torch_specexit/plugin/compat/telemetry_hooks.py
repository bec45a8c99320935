"""The part of the hook table that serves an operator: metrics for Prometheus, spans for OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch_specexit.plugin import settings
from torch_specexit.plugin.compat.fit import Has, Hook, Method, Takes, Uses
from torch_specexit.plugin.compat.harmless import harmless
from torch_specexit.plugin.frontend import metrics, reports, tracing
from torch_specexit.plugin.frontend.protocols import OutputProcessor, RequestState, StatLogger
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import VllmConfig

_PROCESSOR, _LOGGERS = "vllm.v1.engine.output_processor", "vllm.v1.metrics.loggers"
_METRICS = "when stat logger plug-ins see single requests, and do not switch statistics on that were switched off"


def _do_tracing(original: Method) -> Method:
    def do_tracing(
        self: OutputProcessor, engine_core_output: object, req_state: RequestState, *args: object, **kwargs: object
    ) -> None:
        harmless(lambda: reports.cut(self, req_state))
        with tracing.of_request(getattr(req_state, KEY, None)):
            original(self, engine_core_output, req_state, *args, **kwargs)

    return do_tracing


def _instrument_manual(original: Method) -> Method:
    def instrument_manual(
        span_name: str,
        start_time: int,
        end_time: int | None = None,
        attributes: Mapping[str, Any] | None = None,
        *args: object,
        **kwargs: object,
    ) -> object:
        return original(span_name, start_time, end_time, tracing.with_ours(attributes), *args, **kwargs)

    return instrument_manual


def _init_stat_logger(original: Method) -> Method:
    def __init__(self: object, vllm_config: VllmConfig, *args: object, **kwargs: object) -> None:
        original(self, vllm_config, *args, **kwargs)
        if settings.draft_config(vllm_config) is not None:
            setattr(self, KEY, metrics.ExitMetrics(cast(StatLogger, self)))

    return __init__


def _record(original: Method) -> Method:
    def record(
        self: StatLogger,
        scheduler_stats: object,
        iteration_stats: object,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
        *args: object,
        **kwargs: object,
    ) -> None:
        original(self, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx, *args, **kwargs)
        harmless(lambda: metrics.record(self, scheduler_stats, iteration_stats, engine_idx))

    return record


TELEMETRY_HOOKS = (
    Hook(
        _PROCESSOR,
        "OutputProcessor",
        "do_tracing",
        ("engine_core_output", "req_state"),
        _do_tracing,
        why="the report of a request on vLLM's own OpenTelemetry span",
        relies_on="makes the span of the request whose state it is given, through instrument_manual",
        since="0.24",
        facts=(Uses(f"{_PROCESSOR}:OutputProcessor.do_tracing", ("attributes", "instrument_manual")),),
        upstream="none",
        until="when a plug-in may add attributes to a request's span",
        without="OpenTelemetry attributes",
    ),
    Hook(
        _PROCESSOR,
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
        _LOGGERS,
        "PrometheusStatLogger",
        "__init__",
        ("vllm_config", "engine_indexes"),
        _init_stat_logger,
        why="exits on /metrics, from the start",
        relies_on="_counter_cls, _gauge_cls, _histogram_cls, per_engine_labelvalues; vllm: metrics are cleared before; "
        "a server that gets more engines makes another of the same config",
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
