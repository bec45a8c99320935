"""SpecExit's framework-neutral core: what the method is, and the files that its parts exchange.

`signals`, `labels`, `splits` and `decision` define the method as small numpy references; `traces`, `packing` and
`draftdir` define the files; `schemas` holds the typed config of every command. Nothing here imports jax, torch or vllm.
"""

__version__ = "0.1.0"
