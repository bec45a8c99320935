"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_hardware(accelerator: str | None = None) -> dict[str, str | int | float | None]:
    """Processor, usable cores and memory of this machine.

    Args:
      accelerator: its name, where one was used; the core cannot ask for it, since it imports neither jax nor torch.
    """
    return {
        "processor": _processor(),
        "cores": processors(),
        "memory_gib": _memory_gib(),
        "accelerator": accelerator,
        "system": f"{platform.system()} {platform.machine()}",
    }


def processors() -> int:
    """Processors that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux knows; elsewhere it is all there are
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
