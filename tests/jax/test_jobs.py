"""Jobs of several processes over loopback, as a pod owner meets them: killed, preempted, continued on other hosts.

About three minutes on two cores: sixteen processes that train a very small draft.
"""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from jax_specexit.convert import convert
from jax_specexit.training.checkpoint import restore_params
from specexit.buckets import BucketPath, upload
from specexit.data.packed import read_meta
from specexit.drafts.directory import read_draft
from specexit.drafts.tensors import WEIGHTS
from specexit.errors import LASTING
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.train import TrainConfig
from tests.jax.devices import simulated
from tests.marks import SLOW
from tests.ports import hold_port

pytestmark = pytest.mark.slow

STEPS, BATCH, EVERY, TERMINATED_AT = 12, 8, 3, 5
"""``EVERY``: the recipe's steps between checkpoints."""
ACROSS, WITHIN = {"data": 1, "fsdp": 4, "tensor": 2}, {"data": 1, "fsdp": 1, "context": 4}
"""Meshes of two processes and of one. Neither process of the first has all of the parameters, and the second cuts rows
into stretches that are shorter than the first's ``loss_chunk``."""

SLICES = {"dcn_data": -1, "data": 1, "fsdp": 2, "context": 2}
"""As many slices as processes, each row on two devices of one."""

# The command itself, with three things added: it notes which examples reach the devices, sends itself a signal, and
# watches the lock that a killed run has left in a bucket for no whole minute.
PROGRAM = """
import collections, hashlib, json, os, signal, sys, time
from jax_specexit.training import lease, train as module
from specexit import cli

notes, sent, at = open(sys.argv[1], "a"), int(sys.argv[2]), int(sys.argv[3])
advance, steps, save = module.Metrics.advance, module.Batches.steps, module.Checkpoints.save
lease.BEAT, lease.SILENCE = 0.2, 3

def saved(self, step, state):
    save(self, step, state)
    if step == at and sent == signal.SIGKILL:
        os.kill(os.getpid(), sent)

def signalled(self, step, metrics):
    advance(self, step, metrics)
    if step == at and sent == signal.SIGTERM:
        os.kill(os.getpid(), sent)
    if step >= at > 0:
        # JAX's preemption service looks for SIGTERM once in a while; on a busy machine the last but one waits for it.
        time.sleep(0.5 if step < LAST else 30)

def noted(self, first, last):
    for step, batch in steps(self, first, last):
        whole = collections.defaultdict(dict)
        for shard in batch["tokens"].addressable_shards:
            for row, tokens in zip(range(BATCH)[shard.index[0]], shard.data, strict=True):
                whole[row][shard.index[1].start or 0] = bytes(tokens)
        for row, stretches in whole.items():
            example = b"".join(stretches[begin] for begin in sorted(stretches))
            notes.write(json.dumps([step, row, hashlib.sha256(example).hexdigest()]) + "\\n")
        notes.flush()
        yield step, batch

module.Metrics.advance, module.Batches.steps, module.Checkpoints.save = signalled, noted, saved
cli.run("train", sys.argv[4:])
""".replace("BATCH", str(BATCH)).replace("LAST", str(STEPS - 2))


@dataclasses.dataclass
class Job:
    """A run folder, and what every process that worked in it did."""

    config: TrainConfig
    home: Path
    """On disk, beside which it is noted what was done; the run folder, but for a run in a bucket."""
    exits: list[list[int]] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.config.out

    def launch(self, *, processes: int = 2, send: signal.Signals | None = None, at: int = 0) -> None:
        """Start all processes with four devices each; the last one sends itself a signal: SIGTERM behind a step, or
        SIGKILL while it is being saved."""
        recipe = self.home.with_suffix(".yaml")
        recipe.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))
        held, port = hold_port()
        environment = simulated(4, self.home.parent / "compiled")
        running = []
        for i in range(processes):
            signalled = send if i == processes - 1 else None
            arguments = [str(self.home.with_suffix(f".{i}.notes")), str(int(signalled or 0)), str(at), str(recipe)]
            if processes > 1:
                arguments += [f"cluster.coordinator=127.0.0.1:{port}", f"cluster.num_processes={processes}"]
                # Where one is killed, the others wait so long for it; a busy machine may be silent for ten seconds.
                heartbeat = 30 if send == signal.SIGKILL else 300
                arguments += [f"cluster.process_id={i}", f"cluster.heartbeat={heartbeat}"]
            command = [sys.executable, "-c", PROGRAM, *arguments]
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        try:
            self.errors = [process.communicate(timeout=900)[1] for process in running]
        finally:
            held.close()
            for process in running:
                process.kill()
        self.exits.append([process.returncode for process in running])

    def losses(self) -> dict[int, float]:
        lines = map(json.loads, (self.out / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines}

    def status(self) -> dict:
        return json.loads((self.out / "status.json").read_text())

    def fed(self) -> dict[tuple[int, int], str]:
        """(step, row) -> the example that it was last trained on."""
        notes = {}
        for file in sorted(self.home.parent.glob(f"{self.home.name}.*.notes")):
            for step, row, example in map(json.loads, file.read_text().splitlines()):
                notes[step, row] = example
        return notes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


Places = Callable[[str], dict[str, object]]


def new_job(base: TrainConfig, home: Path, **changes: object) -> Job:
    changes = {"out": home, "steps": STEPS, "mesh": ACROSS, **changes}
    return Job(TrainConfig.model_validate(base.model_dump() | changes), home)


@pytest.fixture(scope="module")
def whole(base_recipe: TrainConfig, packed: Path, folder: Path) -> Job:
    """An uninterrupted run on two processes, evaluated twice on the way."""
    traces = packed.parent / "traces.parquet"
    job = new_job(base_recipe, folder / "whole", eval_traces=traces, evaluate_every=6, best_by="brier")
    job.launch()
    assert job.exits == [[0, 0]], job.errors
    return job


def on_one_process(left: Job, home: Path, out: Path, **changes: object) -> Job:
    """What was left of a run, copied to ``out``, continued on one process of four devices."""
    for i in range(2):
        shutil.copy(left.home.with_suffix(f".{i}.notes"), home.with_suffix(f".{i}.notes"))
    job = new_job(left.config, home, **({"mesh": left.config.mesh.model_dump(), "out": out} | changes))
    job.launch(processes=1)
    return job


@pytest.fixture(scope="module")
def preempted(base_recipe: TrainConfig, folder: Path) -> Job:
    """A run of which one process had a preemption notice."""
    job = new_job(base_recipe, folder / "preempted")
    job.launch(send=signal.SIGTERM, at=TERMINATED_AT)
    saved = job.status()
    assert saved["status"] == "preempted", job.errors
    assert TERMINATED_AT <= saved["step"] < STEPS
    assert restore_params(job.out)[0] == saved["step"]
    return job


@pytest.fixture(scope="module")
def alone(preempted: Job, folder: Path) -> Job:
    """What was saved of it, continued on one process and another mesh."""
    shutil.copytree(preempted.out, folder / "alone")
    return on_one_process(preempted, folder / "alone", folder / "alone", mesh=WITHIN, loss_chunk=32)


@pytest.fixture(scope="module")
def continued(preempted: Job, alone: Job) -> Job:
    """And continued on two."""
    preempted.launch()
    return preempted


@pytest.fixture(scope="module")
def from_features(base_recipe: TrainConfig, unknown: Path, stored: Path, folder: Path) -> Job:
    """A run that learns from stored features of a target none of whose layers there is, on two processes."""
    mesh = {"data": 2, "fsdp": 2, "context": 2}
    job = new_job(base_recipe, folder / "features", target=str(unknown), features=stored, mesh=mesh)
    job.launch()
    return job


@pytest.fixture(scope="module")
def in_bucket(storage_server: None, packed: Path) -> Places:
    """Name of a run -> where it lies and finds its data, in a bucket."""
    home = BucketPath("gs://open/jobs")
    upload(packed, home / "packed")
    return lambda name: {"out": home / name, "data": home / "packed"}


@pytest.fixture(scope="module")
def on_slices(base_recipe: TrainConfig, folder: Path, in_bucket: Places) -> Job:
    """An uninterrupted run on two slices."""
    job = new_job(base_recipe, folder / "slices", mesh=SLICES | {"dcn_data": 2}, **in_bucket("slices"))
    job.launch()
    return job


@dataclasses.dataclass
class Lost:
    """A run of which one process was killed, and how far it was."""

    job: Job
    losses: dict[int, float]
    fed: dict[tuple[int, int], str]
    kept: int
    """Step of its newest checkpoint."""


@pytest.fixture(scope="module")
def slice_lost(base_recipe: TrainConfig, folder: Path, in_bucket: Places) -> Lost:
    """The same, of which one slice was killed when a checkpoint was half in the bucket."""
    job = new_job(base_recipe, folder / "slice-lost", mesh=SLICES, **in_bucket("slice-lost"))
    job.launch(send=signal.SIGKILL, at=2 * EVERY)
    return Lost(job, job.losses(), job.fed(), restore_params(job.out)[0])


@pytest.fixture(scope="module")
def one_slice(slice_lost: Lost, folder: Path, in_bucket: Places) -> Job:
    """What was left of it, continued by the same recipe on the slice that is there."""
    left = slice_lost.job.out
    assert isinstance(left, BucketPath)
    to = left.with_name("one-slice")
    for path in left.objects():
        (to / path.relative_to(left)).write_bytes(path.read_bytes())
    return on_one_process(slice_lost.job, folder / "one-slice", to)


@pytest.fixture(scope="module")
def both_slices(slice_lost: Lost, one_slice: Job) -> Job:
    """And continued on two again."""
    slice_lost.job.launch()
    return slice_lost.job


def test_no_process_survives_one_that_was_killed(slice_lost: Lost) -> None:
    survivor, victim = slice_lost.job.exits[0]
    assert victim == -signal.SIGKILL
    assert survivor not in (0, LASTING)  # or jobset.yaml would end the job


def test_preempted_processes_leave_with_zero_and_the_next_ones_finish(continued: Job) -> None:
    assert continued.exits == [[0, 0], [0, 0]], continued.errors
    last = continued.status()
    assert (last["status"], last["step"], last["steps"]) == ("finished", STEPS, STEPS)


def test_preempted_and_continued_is_bit_equal(whole: Job, continued: Job) -> None:
    assert sorted(whole.losses()) == list(range(1, STEPS + 1))
    assert continued.losses() == whole.losses()


def test_one_process_goes_on_where_two_were(whole: Job, alone: Job) -> None:
    assert alone.exits == [[0]], alone.errors
    ours, theirs = alone.losses(), whole.losses()
    assert ours.keys() == theirs.keys()
    for step in theirs:
        assert ours[step] == pytest.approx(theirs[step], rel=1e-5), step


@SLOW
def test_two_processes_learn_from_stored_features_what_they_learn_from_computed_ones(
    whole: Job, from_features: Job
) -> None:
    """Each reads the rows of its own devices, and the stretches of them."""
    assert from_features.exits == [[0, 0]], from_features.errors
    ours, theirs = from_features.losses(), whole.losses()
    assert list(ours) == list(theirs)
    for step, loss in theirs.items():  # on another mesh sums are taken in another order
        assert ours[step] == pytest.approx(loss, rel=1e-5), step
    assert from_features.fed() == whole.fed()


def test_slices_with_rows_on_several_chips_are_the_same_run(whole: Job, on_slices: Job) -> None:
    assert on_slices.exits == [[0, 0]], on_slices.errors
    ours, theirs = on_slices.losses(), whole.losses()
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    for step, loss in theirs.items():  # on another mesh sums are taken in another order
        assert ours[step] == pytest.approx(loss, rel=1e-5), step


def test_a_lost_slice_that_comes_back_leaves_no_trace(on_slices: Job, slice_lost: Lost, both_slices: Job) -> None:
    """Bit by bit: the steps before the kill, those that it lost, and all behind them."""
    assert both_slices.exits[0][1] == -signal.SIGKILL
    assert both_slices.exits[1] == [0, 0], both_slices.errors
    assert slice_lost.kept == EVERY  # what was being saved is not there, half of it or not
    assert max(slice_lost.losses) > EVERY  # so steps were lost, and are done again
    assert slice_lost.losses.items() <= on_slices.losses().items()
    assert both_slices.losses() == on_slices.losses()
    assert slice_lost.fed.items() <= both_slices.fed().items()


def test_a_run_goes_on_with_another_number_of_slices(on_slices: Job, slice_lost: Lost, one_slice: Job) -> None:
    assert one_slice.exits == [[0]], one_slice.errors
    ours, theirs, kept = one_slice.losses(), on_slices.losses(), slice_lost.kept
    assert list(ours) == list(range(1, STEPS + 1))
    assert {step: ours[step] for step in range(1, kept + 1)} == {step: theirs[step] for step in range(1, kept + 1)}
    for step in range(kept + 1, STEPS + 1):  # half as many addends, in another order
        assert ours[step] == pytest.approx(theirs[step], rel=1e-5), step
    assert theirs[kept] - theirs[STEPS] > 50 * 1e-5 * theirs[STEPS]  # a run that had not learned would be told apart


def test_no_example_is_repeated_or_skipped(
    whole: Job, alone: Job, continued: Job, on_slices: Job, one_slice: Job, both_slices: Job
) -> None:
    n = read_meta(whole.config.data).n
    epochs = STEPS * BATCH // n
    assert epochs >= 2
    for job in (whole, alone, continued, on_slices, one_slice, both_slices):
        fed = job.fed()
        order = [fed[step, row] for step in range(1, STEPS + 1) for row in range(BATCH)]
        assert len(fed) == len(order)
        for epoch in range(epochs):
            assert len(set(order[epoch * n : (epoch + 1) * n])) == n
        assert set(Counter(order[: epochs * n]).values()) == {epochs}
        assert fed == whole.fed()


def test_a_checkpoint_of_two_hosts_becomes_a_draft_directory(whole: Job, folder: Path) -> None:
    """What two processes wrote, each its shards, and what one writes of the same parameters: the same bytes."""
    written = {path.name for path in whole.out.rglob("ocdbt.process_*")}
    assert written == {"ocdbt.process_0", "ocdbt.process_1"}
    convert(ConvertConfig(run=whole.out, out=folder / "draft", dtype="float32"))
    convert(ConvertConfig(draft=folder / "draft", out=folder / "one-process"))
    convert(ConvertConfig(run=folder / "one-process", out=folder / "again", dtype="float32"))
    for file in (WEIGHTS, "config.json"):
        assert (folder / "draft" / file).read_bytes() == (folder / "again" / file).read_bytes(), file
    hashes = [json.loads((folder / name / "convert.json").read_text()) for name in ("draft", "one-process", "again")]
    assert len({found["parameters_blake3"] for found in hashes}) == 1
    head = restore_params(whole.out)[1]["lm_head"]["kernel"]
    np.testing.assert_array_equal(read_draft(folder / "draft")[1]["lm_head.weight"], np.asarray(head).T)


def test_only_the_first_process_prints(whole: Job) -> None:
    first, second = whole.errors
    assert f"{STEPS}/{STEPS}" in first
    assert f"{STEPS}/{STEPS}" not in second
    assert "held-out traces" not in second
