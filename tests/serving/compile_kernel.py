"""Compile the Triton kernel of the exit rule for GPUs, which needs none: ``compile_kernel.py`` prints how often.

A program of its own, because Triton decides on import whether its kernels are interpreted.
"""

from __future__ import annotations

from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torch_specexit.plugin.fused import BLOCK
from torch_specexit.plugin.kernel import step


def source(tokens: str, draft: bool, smooth: bool, v1: bool) -> ASTSource:
    types = {
        "tables": ("*fp32", "*i32", "*fp32"),
        "places": ("*i32", "*i32", "*fp32", "*i32"),
        "sampled": (tokens, "*i32", "*i32"),
        "written": ("*fp32", "*i1"),
    }
    types |= dict.fromkeys(("stride", "n_batch", "n_rows", "width", "vocabulary"), "i32")
    values = {"END": 151668, "DRAFT": draft, "SMOOTH": smooth, "COUNTS": not v1, "PADDED": v1, "BLOCK": BLOCK}
    constants = {(step.arg_names.index(name),): value for name, value in values.items()}
    return ASTSource(fn=step, signature=types | dict.fromkeys(values, "constexpr"), constexprs=constants)


def main() -> None:
    compiled = 0
    modes = ((True, False), (False, False), (False, True))
    for (draft, smooth), (tokens, v1) in product(modes, (("*i64", False), ("*i32", True))):
        capability = 80 if v1 else 90
        kernel = triton.compile(source(tokens, draft, smooth, v1), GPUTarget("cuda", capability, 32))
        assert len(kernel.asm["cubin"]) > 0
        compiled += 1
    print(f"compiled {compiled} kernels")


if __name__ == "__main__":
    main()
