"""The parts of the benchmarks that run on vLLM and torch; `specexit.bench` says what is compared, and how.

`run` is ``specexit bench``: `turns` asks the methods slice by slice, under `conditions` that are written down. Each
engine is a process of its own, `worker`, on which `driver` lets a method ask and ask again. `serving`, `labels` and
`full_size` are benchmarks of their own; `step` is the other trainer's side of ``bench-training``. `step_cost` counts
what exits cost in each decoding step, and `rule_cost` what the exit rule does of that.

This package imports none of them: a worker sets its environment before it loads torch.
"""
