"""``specexit collect``: let a target write traces, and what it would have answered at step boundaries.

`run` is the command. `work` says what is to be done and how it is asked, `ledger` what has been done: a trace is the
unit that a kill can lose. `tracer` turns one prompt into one trace, with any engine: `local` is vLLM in a process of
its own (`worker`, started by `processes`) or in the actors of a Ray cluster (`cluster`), `endpoints` are servers that
speak OpenAI's protocol (`endpoint` is one), and `failed` what no server answers.

The folder is one run's, by its `claim`; `asked` says what its shards ask, `manifest` which files are finished, and
`parts` are splits of their own. `progress` is shown meanwhile, `summary` what came out.
"""

from torch_specexit.collecting.run import collect
from torch_specexit.collecting.work import CollectError

__all__ = ["CollectError", "collect"]
