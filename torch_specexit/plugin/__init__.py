"""The vLLM plug-in: SpecExit in an unmodified vLLM.

`register` is the entry point. `rule` says what the exit rule works on, on the device, and `slots` which rows of it
belong to whom; `fused` and `kernel` are the rule in Triton, `twin` and `batch` in eager torch. `model` is the draft,
`checks` what must hold of it, `runner` what is done around a step, `hooks` the table of all places where vLLM is
wrapped, `wraps` with what, `fit` whether a version of vLLM has them as expected, `sources` how that is read, `outcome`
what the client gets back, `arguments` what it may ask for, `cost` what a step costs. On the other side of the engine:
`frontend_hooks` is the rest of that table, `frontend` keeps reports, `streaming` puts them into chunks, `metrics`
counts them, `routes` answers questions, `audit` compares answers, `settings` are those of the server.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("vllm.specexit")


def register() -> None:
    """Register the draft architecture and install the engine-side hooks.

    vLLM calls this in each of its processes, possibly more than once. Nothing is raised: a plug-in that does not fit
    must not keep an engine from starting that may not even use it.
    """
    try:
        from vllm import ModelRegistry

        from specexit.draftdir import ARCHITECTURE
        from torch_specexit.plugin.frontend_hooks import install_frontend_hooks
        from torch_specexit.plugin.hooks import install_engine_hooks

        if ARCHITECTURE not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(ARCHITECTURE, f"torch_specexit.plugin.model:{ARCHITECTURE}")
        install_engine_hooks()
        install_frontend_hooks()
    except Exception:
        logger.exception("specexit could not be registered; vLLM serves without it")
