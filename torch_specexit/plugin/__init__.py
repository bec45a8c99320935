"""The vLLM plug-in: SpecExit in an unmodified vLLM.

`register` is the entry point. `worker` is what runs beside the model, `frontend` what runs beside the API server,
`compat` the table of all places where vLLM is wrapped and whether an installed version has them as expected. `outcome`
is what passes from one side to the other, `settings` what an operator may set, `certified` what of it certificates are
held against; `step_cost` counts what exits cost in each decoding step.
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
