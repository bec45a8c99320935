"""Compile the Triton kernel of the exit rule for GPUs, which needs none: ``compile_kernel.py``.

A program of its own, because Triton decides on import whether its kernels are interpreted.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specexit.method.loops import LoopGuard
from torch_specexit.plugin.worker.fused import BLOCK, NO_SEARCH
from torch_specexit.plugin.worker.kernel import NUMBERS, POINTERS, step
from torch_specexit.plugin.worker.loops import LoopSearch

FLOATS = ("state_ptr", "weights_ptr", "past_ptr", "signals_ptr", "failed_ptr", "report_ptr")


def source(draft: bool, smooth: bool, v1: bool) -> ASTSource:
    types = dict.fromkeys(POINTERS, "*i32") | dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(NUMBERS, "i32")
    types |= {"positions_ptr": "*i64", "forced_ptr": "*i1"}
    if not v1:
        types |= {"tokens_ptr": "*i64", "logits_rows_ptr": "*i64"}
    values = {"DRAFT": draft, "SMOOTH": smooth, "COUNTS": not v1, "PADDED": v1, "BLOCK": BLOCK}
    values["CLOSING"] = (3, 2) if v1 else (1, 1)
    loops = LoopSearch.of(LoopGuard(256, 4), slack=16)
    values["SEARCH"] = (loops.period, loops.span, loops.ring, *loops.leaving) if v1 else NO_SEARCH
    constants = {(step.arg_names.index(name),): value for name, value in values.items()}
    return ASTSource(fn=step, signature=types | dict.fromkeys(values, "constexpr"), constexprs=constants)


def main() -> None:
    for draft, smooth, v1 in ((True, False, False), (True, False, True), (False, False, False), (False, True, True)):
        capability = 80 if v1 else 90
        kernel = triton.compile(source(draft, smooth, v1), GPUTarget("cuda", capability, 32))
        print(f"draft {draft}, smooth {smooth}, V1 {v1}, sm_{capability}: {len(kernel.asm['cubin'])} bytes")


if __name__ == "__main__":
    main()
