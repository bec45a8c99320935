"""SpecExit on JAX: target and draft in Flax, and all that trains them.

Packages: `model` holds the target and the draft, `training` runs a training, `evaluation` says how good a draft is, and
`planning` says what a run needs of a TPU slice.

Modules: `sharding` says where every parameter lives, and `cluster` how the processes of a job find one another.
`weights` reads a target's weights, `stored` reads and writes the parameters of a checkpoint, `export` turns them into
the tensors of a draft directory and back; `convert` is the command. `probe` is JAX's side of ``specexit verify``,
`bench_step` that of ``bench-training``; `tiny_reasoner` trains the embedded targets.
"""
