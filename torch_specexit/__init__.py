"""SpecExit on PyTorch: the draft module, trace collection, the vLLM plug-in and the benchmark.

`SpecExitDraft` is for programs of your own; it is imported when it is asked for, as this package is part of processes
that must not load torch before their environment is set.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_specexit.generate import SpecExitDraft as SpecExitDraft


def __getattr__(name: str) -> Any:
    if name == "SpecExitDraft":
        from torch_specexit.generate import SpecExitDraft

        return SpecExitDraft
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
