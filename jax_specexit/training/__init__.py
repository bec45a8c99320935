"""A training run, in the order in which it happens.

`train` is the loop around all of it. `run` checks whether the folder may be continued; `alone` keeps other processes
out, in a bucket by a `lease`, and `place` tries whether the run can be written there. `data` opens the packed rows;
`start` loads the target and makes the draft: `measure` measures how large the target's states are, `warm` starts from
an existing draft. `step` is one training step, made of `losses` and an `optimizer`. `checkpoint` saves its state, and
`room` reports a full disk; `clock`, `watch` and `metrics` show how the run is going, `profiling` shows why it is slow,
and `nonfinite` stops it at a NaN.
"""
