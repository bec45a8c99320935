"""The vLLM plug-in: SpecExit in an unmodified vLLM.

`register` is the entry point. `worker` runs beside the model, `frontend` beside the API server. `compat` has the table
of all places where vLLM is wrapped, and checks whether an installed version has them as expected. `outcome` carries
what the worker knows of a request to the front end, `settings` holds what an operator may set, and `certified` says
what is served, for comparison with a draft's certificates. `protocols` has what is used of vLLM's configuration and of
a request; what one side alone uses of vLLM stands in the ``protocols`` of that side.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("vllm.specexit")


def register() -> None:
    """Register the draft architecture and install the engine-side hooks.

    vLLM calls this in each of its processes, possibly more than once. It raises nothing: a plug-in that does not fit
    must not stop an engine that may not even use it.
    """
    try:
        from vllm import ModelRegistry

        from specexit.drafts.config import ARCHITECTURES
        from torch_specexit.plugin.compat.frontend_hooks import install_frontend_hooks
        from torch_specexit.plugin.compat.hooks import install_engine_hooks
        from torch_specexit.plugin.compat.repairs import install_repairs

        for model_type, name in ARCHITECTURES.items():
            if name not in ModelRegistry.get_supported_archs():
                ModelRegistry.register_model(name, f"torch_specexit.plugin.worker.{model_type}:{name}")
        install_engine_hooks()
        install_frontend_hooks()
        install_repairs()
    except Exception:
        logger.exception("specexit could not be registered; vLLM serves without it")
