"""SpecExit on JAX: target and draft in Flax, and all that trains them.

Rooms: `model` is target and draft, `training` a run, `evaluation` says how good a draft is, `planning` what a run needs
of a TPU slice. `sharding` says where every parameter lives, and `cluster` how the processes of a job find one another.

Files: `weights` reads a target's, `stored` the parameters of a checkpoint, `export` puts them under the names of a
draft directory; `convert` is the command. `probe` is JAX's side of ``specexit verify``, `bench_step` that of
``bench-training``; `tiny_reasoner` trains the embedded targets.
"""
