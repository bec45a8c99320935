"""A training run, in the order in which it happens.

`train` is the loop around all of it. `run` looks whether the folder may be continued; `alone` keeps others out, in a
bucket by a `lease`, and `place` tries whether the run can be written there. `data` opens the packed rows; `start` makes
the target and the draft: `measure` says how large the target's states are, `warm` goes on from another draft. `step` is
one training step, of `losses` and an `optimizer`. `checkpoint` keeps its state, and `room` says when a disk is full;
`clock`, `watch` and `metrics` say how it is going, `profiling` why it is slow, and `nonfinite` stops it.
"""
