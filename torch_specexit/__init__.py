"""SpecExit on PyTorch: the draft module, trace collection, the vLLM plug-in and the benchmark.

`SpecExitDraft` is for programs of your own; it is imported when it is asked for, as this package is part of processes
that must not load torch before their environment is set.

Rooms: `plugin` is what runs inside of vLLM, `collecting` has a target write traces, `bench` measures. Read first
`draft`, the draft in plain PyTorch, and `generate`, speculation with exits. Commands: `serve`, `score`, and
`hidden_states`, which is ``specexit features``.

Engines are started by `engine`; on a CPU `kv_cache` says how much memory they take, `cpu_states` writes hidden states,
and `vllm_cpu` is vLLM's command line. `chat` makes token ids of a conversation, `features` reads a target's hidden
states with transformers, `unpickle` reads PyTorch's checkpoints. Of ``specexit verify``, `probe` and `engine_probe` are
PyTorch's and vLLM's sides, and `mistakes` names what a conversion got wrong; `speculators` is another trainer's draft,
to compare with.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_specexit.generate import SpecExitDraft as SpecExitDraft


def __getattr__(name: str) -> Any:
    if name == "SpecExitDraft":
        from torch_specexit.generate import SpecExitDraft

        return SpecExitDraft
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
