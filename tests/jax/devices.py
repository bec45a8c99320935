"""Simulated devices for a process of its own."""

import os

PATIENCE = 600
"""Seconds that devices wait for each other in a collective. XLA gives up after 40, which eight devices on a shared core
may need to come to the same one; a program that really hangs still fails."""


QUICK_COMPILATION = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""The programs of these tests run for milliseconds and compile for seconds, three times as many with all that LLVM can
do to them. What XLA does (sharding, fusion, memory) is the same."""


def simulated(devices: int) -> dict[str, str]:
    """Environment of a process that has so many."""
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        f"--xla_cpu_collective_call_terminate_timeout_seconds={PATIENCE}",
        f"--xla_cpu_collective_timeout_seconds={PATIENCE}",
    )
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)} | QUICK_COMPILATION
