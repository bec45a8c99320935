"""Compile the Triton kernel of the exit rule for GPUs, which needs none: ``compile_kernel.py``.

A program of its own, because Triton decides on import whether its kernels are interpreted.
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torch_specexit.plugin.worker.fused import BLOCK
from torch_specexit.plugin.worker.kernel import step


def source(draft: bool, smooth: bool, v1: bool) -> ASTSource:
    types = {
        "tables": ("*fp32", "*i32", "*fp32"),
        "places": ("*i32", "*i32", "*fp32", "*i32"),
        "sampled": ("*i32" if v1 else "*i64", "*i32", "*i32"),
        "written": ("*fp32", "*i1"),
    }
    types |= dict.fromkeys(("stride", "n_batch", "n_rows", "width", "vocabulary"), "i32")
    values = {"END": 151668, "DRAFT": draft, "SMOOTH": smooth, "COUNTS": not v1, "PADDED": v1, "BLOCK": BLOCK}
    constants = {(step.arg_names.index(name),): value for name, value in values.items()}
    return ASTSource(fn=step, signature=types | dict.fromkeys(values, "constexpr"), constexprs=constants)


def main() -> None:
    for draft, smooth, v1 in ((True, False, False), (True, False, True), (False, False, False), (False, True, True)):
        capability = 80 if v1 else 90
        kernel = triton.compile(source(draft, smooth, v1), GPUTarget("cuda", capability, 32))
        print(f"draft {draft}, smooth {smooth}, V1 {v1}, sm_{capability}: {len(kernel.asm['cubin'])} bytes")


if __name__ == "__main__":
    main()
