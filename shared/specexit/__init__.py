"""SpecExit's framework-neutral core: what the method is, and the files that its parts exchange.

Rooms: `method` defines the method as small numpy references; `data` goes from prompts to training examples; `drafts` is
the draft directory; `bench` compares; `report` shows; `tiny` is the embedded reasoner, and `stand_in` a model of a real
target's size; `schemas` holds the typed config of every command. Nothing here imports jax, torch or vllm.

In this folder lies what all rooms use. The command line: `cli` is the table of commands, `config` what makes YAML,
flags and ``run.yaml`` of a schema (`yaml_text` reads the first), `help` and `completion` what a user is told,
`errors` what one can get wrong, `interrupted` what Ctrl-C leaves, `processes` starts others of Python. Files:
`outputs` appear whole or not at all, `locks` keep others out, `buckets` are ``gs://``, `differences` tells whether a
run may go on. Machines: `hardware` is the one at hand, `chips` are TPUs, `trainable` the targets that training knows.
Commands that need no more than this: `demo`, `status`, and `chat` with its `keys`.
"""

__version__ = "0.1.0"
