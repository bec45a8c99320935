"""SpecExit's framework-neutral core: what the method is, and the files that its parts exchange.

Rooms: `method` defines the method as small numpy references; `data` goes from prompts to training examples; `drafts` is
the draft directory; `bench` compares; `report` shows; `tiny` is the embedded reasoner; `schemas` holds the typed config
of every command, `cli` the table of commands. Nothing here imports jax, torch or vllm.
"""

__version__ = "0.1.0"
