"""Simulated devices for a process of its own."""

import os
from pathlib import Path

PATIENCE = 600
"""Seconds that devices wait for each other in a collective. XLA gives up after 40, which eight devices on a shared core
may need to come to the same one; a program that really hangs still fails."""


QUICK_COMPILATION = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""The programs of these tests run for milliseconds and compile for seconds, three times as many with all that LLVM can
do to them. What XLA does (sharding, fusion, memory) is the same."""


WARNINGS = {"TF_CPP_MIN_LOG_LEVEL": "1"}
"""What the compiler says is tested, and many a shell says 3, with which it says nothing."""


CACHE_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def simulated(devices: int, compiled: Path | None = None) -> dict[str, str]:
    """Environment of a process that has so many; what one has ``compiled``, the next one loads from that folder."""
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        f"--xla_cpu_collective_call_terminate_timeout_seconds={PATIENCE}",
        f"--xla_cpu_collective_timeout_seconds={PATIENCE}",
    )
    cache = {} if compiled is None else {"JAX_COMPILATION_CACHE_DIR": str(compiled)} | CACHE_ALL
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)} | QUICK_COMPILATION | WARNINGS | cache
