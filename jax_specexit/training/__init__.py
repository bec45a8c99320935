"""A training run: `train` is the command, `run` what it starts from, `step` one update of `losses` by `optimizer`.

`data` feeds it, `checkpoint` keeps it, `metrics`, `nonfinite` and `profiling` watch it.
"""
