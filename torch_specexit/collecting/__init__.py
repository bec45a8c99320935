"""``specexit collect``: let a target write traces, and what it would have answered at step boundaries.

`run` is the command. `work` says what is to be collected and how the target is asked; `ledger` keeps what is finished,
so that a kill loses a trace at most. `tracer` turns one prompt into one trace, with any engine: `local` is vLLM in a
process of its own (a `worker` that `processes` starts) or in an actor of a Ray `cluster`; `endpoints` are servers that
speak OpenAI's protocol, and `endpoint` is one of them. `failed` holds the prompts that no server answers.

`claim` makes the output folder one run's. `asked` records what its shards ask, and `manifest` which files are finished;
`parts` checks that several splits share no prompt. `progress` is the bar, and `summary` says what came out.
"""

from torch_specexit.collecting.run import collect
from torch_specexit.collecting.work import CollectError

__all__ = ["CollectError", "collect"]
