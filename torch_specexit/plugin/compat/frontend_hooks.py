"""The part of the hook table that concerns the front end, put together; and how a server with exits opens.

Two of these hooks hold requests to what an operator permits: where an API server's engine opens, and where a request is
admitted. A vLLM that either does not fit is served without exits. The others decide about no exit, so one that does not
fit costs only its own feature. Servers without a SpecExit draft are left as they are.
"""

from __future__ import annotations

import logging
from typing import cast

from torch_specexit.plugin.compat.fit import Has, Hook, Method, Takes, install
from torch_specexit.plugin.compat.request_hooks import REQUEST_HOOKS
from torch_specexit.plugin.compat.server_hooks import SERVER_HOOKS
from torch_specexit.plugin.compat.telemetry_hooks import TELEMETRY_HOOKS
from torch_specexit.plugin.frontend import opening, starting
from torch_specexit.plugin.frontend.protocols import AsyncLLM
from torch_specexit.plugin.protocols import VllmConfig

logger = logging.getLogger("vllm.specexit")

_ENGINE, _LOGGERS = "vllm.v1.engine", "vllm.v1.metrics.loggers"


def _init_engine(original: Method) -> Method:
    def __init__(self: object, vllm_config: VllmConfig, *args: object, **kwargs: object) -> None:
        found = opening.settings_of(vllm_config)
        if found is None:
            original(self, vllm_config, *args, **kwargs)
            return
        with starting.heard_at_once():
            original(self, vllm_config, *args, **kwargs)
            opening.open_front_end(cast(AsyncLLM, self), found)
            misfit = install(FRONTEND_HOOKS)
            if misfit:
                logger.warning(misfit)

    return __init__


OPENING_HOOK = Hook(
    f"{_ENGINE}.async_llm",
    "AsyncLLM",
    "__init__",
    ("vllm_config", "executor_class", "log_stats"),
    _init_engine,
    why="settings of the server are checked before anything starts, and signals heard while it does; audits "
    "ask the engine",
    relies_on="output_processor, logger_manager.stat_loggers, generate(); try_get_generation_config() has eos_token_id",
    since="0.24",
    facts=(
        Has(f"{_ENGINE}.async_llm:AsyncLLM", ("output_processor", "input_processor", "logger_manager")),
        Has(f"{_ENGINE}.async_llm:AsyncLLM", ("vllm_config", "model_config")),
        Has(f"{_LOGGERS}:StatLoggerManager", ("stat_loggers",)),
        Takes(f"{_ENGINE}.async_llm:AsyncLLM.generate", ("prompt", "sampling_params", "request_id")),
        Has("vllm.config.vllm:VllmConfig", ("additional_config", "speculative_config", "parallel_config")),
        Has("vllm.config.parallel:ParallelConfig", ("_api_process_count",)),
        Has("vllm.config.model:ModelConfig", ("try_get_generation_config",)),
    ),
    upstream="none",
    until="when a plug-in is told of the engine of an API server",
)

PROCESS_HOOKS = (*REQUEST_HOOKS, OPENING_HOOK, *TELEMETRY_HOOKS)
"""In every vLLM process."""

FRONTEND_HOOKS = (*PROCESS_HOOKS, *SERVER_HOOKS)


def install_frontend_hooks() -> None:
    """Install the hooks that every process may need. Those of the HTTP server follow when it has its engine; what does
    not fit is logged as a warning then."""
    misfit = install(PROCESS_HOOKS)
    if misfit:
        logger.debug(misfit)
