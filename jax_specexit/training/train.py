"""The training run: read a recipe, build the step, loop, checkpoint; the same code on a laptop and on a pod.

Every process of a job runs this file. All see the same steps, decide the same and read their own rows of each batch;
the first one also prints and writes what is written once.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from jax_specexit.cluster import Preemption, is_first, join, told_by_first
from jax_specexit.evaluation.evaluate import show
from jax_specexit.evaluation.held_out import HeldOut
from jax_specexit.model.target import Target
from jax_specexit.planning.aot import Shapes
from jax_specexit.planning.hbm import fitting
from jax_specexit.sharding import make_mesh
from jax_specexit.training.alone import alone_in
from jax_specexit.training.checkpoint import Checkpoints
from jax_specexit.training.data import Batches, check_data, first_rows, open_features, trained_on
from jax_specexit.training.metrics import Metrics, check_wandb
from jax_specexit.training.nonfinite import NonFiniteStop, NotFiniteError
from jax_specexit.training.place import check_place
from jax_specexit.training.profiling import Profiler, check_profile, listening
from jax_specexit.training.run import check_folder, read_began, save_start, write_status
from jax_specexit.training.start import check_start, chosen_before, start
from jax_specexit.training.step import Frozen, Step, TrainState, make_step
from jax_specexit.training.watch import Watch, steps_of
from specexit.config import save_run
from specexit.data.overlap import join_prompts
from specexit.data.written_by import doubt_weights
from specexit.schemas.target import load_target_config, save_target
from specexit.schemas.train import TrainConfig
from specexit.status import Status


@listening()
def train(config: TrainConfig) -> None:
    """Train a draft; goes on from the newest checkpoint where the run folder has one.

    Returns when the run is finished, or saved behind a preemption notice: ``status.json`` says which.

    Raises:
      ConfigError: the run folder belongs to another recipe, another run holds it or has taken it away, the mesh or the
        HBM does not fit, or the data is for another target.
      BucketError: a bucket that cannot be read or written.
      PackError, OverlapError, TraceError, FeatureError: packed data, traces or stored features that cannot be used.
      DiskFullError: there is no room for a checkpoint.
      NotFiniteError: the emergency stop, see `jax_specexit.training.nonfinite`.
    """
    target_config = load_target_config(config.target)
    check_folder(config)
    check_place(config.out)
    check_wandb(config.wandb)
    check_profile(config)
    started = read_began(config.out)  # before what takes minutes: goodput counts them
    meta = check_data(config, target_config)
    features = open_features(config, target_config, meta)
    before = check_start(config, target_config, meta)
    held_out = None if config.eval_traces is None else HeldOut(config, target_config, meta)
    selection = None
    if held_out is not None:  # before anything is loaded
        selection = held_out.chooses(before and before.selection, chosen_before(config, before))
    join(config.cluster)

    mesh = _mesh(config)
    rows = first_rows(config.data, meta, features=features)
    fixed, draft, target = start(config, target_config, meta, rows, mesh, before)
    if is_first():  # only here, as a look of each process at weights in a bucket is thousands of requests
        doubt_weights(config.data / "meta.json", meta.target_sha256, target_config, fixed.target_sha256)
        if held_out is not None and config.eval_traces is not None:
            doubt_weights(config.eval_traces, held_out.wrote, target_config, fixed.target_sha256)
    if selection is not None:
        fixed = fixed._replace(selection=selection)
    step = make_step(config, draft, target, mesh)
    batches = Batches(config, meta, step.batch_sharding, features)
    weight = np.ones(target.shape.vocab_size, np.float32)
    weight[list(target_config.think_tokens().within(len(weight)).split)] = config.signals.boundary_weight
    frozen = _to_mesh(
        Frozen(nnx.to_pure_dict(nnx.state(target)), np.asarray(fixed.vocab, np.int32), weight), step.frozen_shardings
    )
    if held_out is not None:
        assert isinstance(target, Target), "the recipe's schema says so: evaluations run the target"
        held_out.compile(step, draft, target)
    with alone_in(config.out) as check, Preemption() as preemption:
        if is_first():
            save_run(config, config.out)
            save_target(config.out, target_config)
            join_prompts(trained_on(config), config.out)
            save_start(config.out, fixed)
        with Checkpoints(config.out, config.checkpoint, held_out and held_out.measure, check) as checkpoints:
            begin, state = _first_state(step, nnx.to_pure_dict(nnx.state(draft)), checkpoints)
            del draft  # it lies whole on the first chip of each process
            write_status(config.out, "running", begin, config.steps, started)
            try:
                stored = features and features.manifest.dtype
                shapes = Shapes(target.shape, fixed.shape, config.batch_size, meta.length, stored)
                watch = Watch(config, shapes, mesh, jax.devices()[0].device_kind)
                loop = Loop(config, step, frozen, batches, checkpoints, held_out, watch, preemption)
                status, last = loop.run(begin, state)
            except NotFiniteError:
                _say_stopped(config, checkpoints.manager.latest_step() or 0)
                raise
        write_status(config.out, status, last, config.steps)


def _say_stopped(config: TrainConfig, step: int) -> None:
    """Write that a NaN has stopped the run; on a disk that is full a line says that it could not be."""
    try:
        write_status(config.out, "stopped", step, config.steps)
    except OSError as error:  # the NaN is why the run ends
        said = f"{config.out / 'status.json'}: does not say that the run was stopped: {error}"
        Console(stderr=True).print(said, soft_wrap=True, markup=False)


def _mesh(config: TrainConfig) -> jax.sharding.Mesh:
    """The mesh; prints its devices, as a JAX that is installed without support for the accelerator takes the CPU."""
    if is_first():
        n, kind = jax.device_count(), jax.devices()[0].device_kind
        said = f"{config.out}: JAX's backend is {jax.default_backend()}, with {n} device{'s' * (n > 1)} ({kind})"
        Console(stderr=True).print(said, soft_wrap=True, markup=False, highlight=False)
    return make_mesh(config.mesh)


def _to_mesh(tree: Any, shardings: Any) -> Any:
    """Put arrays where the shardings say; each is the same in every process, or on the mesh already."""

    def one(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding.device_set == sharding.device_set:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def _first_state(step: Step, params: Any, checkpoints: Checkpoints) -> tuple[int, TrainState]:
    """(last step done, state): of the newest checkpoint, or (0, a fresh one)."""
    shapes = jax.eval_shape(step.init, params)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, step.state_shardings)
    restored = checkpoints.restore(like)
    if restored is not None:
        return restored
    with fitting("begin"):
        return 0, step.init(_to_mesh(params, step.state_shardings.params))


class Loop:
    """The steps of a run.

    Python runs one step ahead of the devices: the numbers of a step are looked at while the next one is computed,
    except where something is saved, judged or ended behind it.
    """

    def __init__(
        self,
        config: TrainConfig,
        step: Step,
        frozen: Frozen,
        batches: Batches,
        checkpoints: Checkpoints,
        held_out: HeldOut | None,
        watch: Watch,
        preemption: Preemption,
    ):
        self.config, self.step, self.frozen, self.batches = config, step, frozen, batches
        self.checkpoints, self.held_out, self.watch, self.preemption = checkpoints, held_out, watch, preemption
        self.guard = NonFiniteStop(
            config.out, config.max_nonfinite, batches.whole, batches.check_features, frozen.target
        )

    def run(self, begin: int, state: TrainState) -> tuple[Status, int]:
        """Train from the step after ``begin`` to the end or a preemption notice; returns which, and the last step done.

        Raises:
          NotFiniteError: the emergency stop.
        """
        c, waiting, compiled = self.config, None, set()
        with (
            Metrics(
                c.out, total=c.steps, start=begin, silent=not is_first(), wandb=c.wandb, watch=self.watch
            ) as metrics,
            Profiler(c.out, c.profile_steps, begin) as profiler,
        ):
            self.metrics, clock = metrics, metrics.clock
            if not self._catch_up(begin, state):
                return "preempted", begin
            for i, batch in self.batches.steps(begin + 1, c.steps):
                clock.lap("data")
                ttt_steps = steps_of(c, i)
                if waiting is not None and ttt_steps not in compiled:
                    self._settle(*waiting)  # or its time would pass for compiling
                    waiting = None
                profiler.begin(i)
                with fitting(f"step of {ttt_steps} TTT steps"):
                    state, values = self.step.update[ttt_steps](state, self.frozen, batch)
                profiler.end(i, values)
                if ttt_steps not in compiled:
                    compiled.add(ttt_steps)
                    metrics.untimed.add(i)
                    jax.block_until_ready(values)
                    clock.lap("compile")
                if waiting is not None:
                    self._settle(*waiting)
                waiting = (i, values)
                clock.lap("step")
                preempted = self.preemption.reached() and i < c.steps
                judged = self._judges(i) and not preempted  # there is time to save, not to evaluate
                if preempted or judged or self.checkpoints.due(i) or i == c.steps:
                    preempted |= not self._settle(i, values, state, judged=judged)
                    waiting = None
                if preempted:
                    return "preempted", i
        return "finished", c.steps

    def _catch_up(self, begin: int, state: TrainState) -> bool:
        """Evaluate the step that the run resumes from, if a kill or a preemption came before its evaluation; the last
        step in any case, as the evaluation may be another one by now.

        Returns False where a preemption notice came before the end of it.
        """
        if self.held_out is None or not begin:
            return True
        # As the first process says: the others' disks may hold no metrics.
        missed = self._judges(begin) and told_by_first("" if self.metrics.has_evaluation(begin) else "missed")
        if missed or begin == self.config.steps:
            evaluation = self._judge(begin, state)
            if evaluation is None:
                return False
            if missed:
                self.metrics.write({"step": begin, "evaluation": evaluation})
            self.metrics.clock.lap("evaluate")
        return True

    def _settle(self, i: int, values: dict[str, Any], state: TrainState | None = None, *, judged: bool = False) -> bool:
        """Look at the numbers of step i and log them; save its ``state`` where given, and evaluate it.

        Returns False where a preemption notice came before the end of the evaluation.
        """
        evaluation = None
        good = self.guard.check(i, float(values["loss"]), float(values["gradient_norm"]))
        self.metrics.clock.lap("step")
        if state is not None:
            self.checkpoints.save(i, state)
            self._say_how_far(i)
            self.metrics.clock.lap("save")
            if judged:
                if good:
                    self.metrics.keep(i, values)
                evaluation = self._judge(i, state)
                self.metrics.clock.lap("evaluate")
        if evaluation is not None:
            values = values | {"evaluation": evaluation}
        if good and (i % self.config.log_every == 0 or state is not None):  # a saved step's line has its time
            self.metrics.advance(i, values)
        else:
            self.metrics.count(i, int(values["tokens"]))
            if evaluation is not None:  # of a skipped step, which has no numbers of its own
                self.metrics.write({"step": i, "evaluation": evaluation})
        return evaluation is not None or not judged

    def _say_how_far(self, i: int) -> None:
        """Write the step of the newest checkpoint where `specexit status` and the report look for it."""
        try:
            write_status(self.config.out, "running", i, self.config.steps, self.metrics.began)
        except OSError as error:  # not worth ending a run
            said = f"{self.config.out / 'status.json'}: is behind until the next checkpoint: {error}"
            Console(stderr=True).print(said, soft_wrap=True, markup=False)

    def _judges(self, i: int) -> bool:
        every = self.config.evaluate_every
        return self.held_out is not None and (i == self.config.steps or (every is not None and i % every == 0))

    def _judge(self, i: int, state: TrainState) -> dict[str, Any] | None:
        """Evaluate the parameters of step i, and keep them if they are the best so far; None where a preemption notice
        came before the end."""
        assert self.held_out is not None
        evaluation = self.held_out(state.params, self.frozen, i, self.preemption.reached)
        if evaluation is None:
            return None
        self.checkpoints.save_if_best(i, state.params, evaluation.score(self.config.best_by))
        if i == self.config.steps and is_first():
            show(evaluation, self.config.out / "evaluation.json")
        return evaluation.to_json()
