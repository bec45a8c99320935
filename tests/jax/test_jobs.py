"""Jobs of several processes over loopback, as a pod owner meets them: killed, preempted, continued on other hosts.

About two and a half minutes on two cores: thirteen processes that train a very small draft.
"""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from jax_specexit.convert import convert
from jax_specexit.training.checkpoint import restore_params
from specexit.data.packed import read_meta
from specexit.drafts.directory import read_draft
from specexit.drafts.tensors import WEIGHTS
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.train import TrainConfig
from tests.jax.devices import simulated
from tests.ports import hold_port

STEPS, BATCH, KILLED_AT, TERMINATED_AT = 16, 8, 5, 9
ACROSS, WITHIN = {"data": 1, "fsdp": 4, "tensor": 2}, {"data": 1, "fsdp": 2, "context": 2}
"""Meshes of two processes and of one. Neither process of the first has all of the parameters."""

SLICES = {"dcn_data": 2, "data": 1, "fsdp": 2, "context": 2}
"""Of two processes that are a slice each, every row on two of its devices."""

# The command itself, with two things added: it notes which examples reach the devices, and sends itself a signal.
PROGRAM = """
import collections, hashlib, json, os, sys, time
from jax_specexit.training import train as module
from specexit import cli

notes, signal, at = open(sys.argv[1], "a"), int(sys.argv[2]), int(sys.argv[3])
advance, steps = module.Metrics.advance, module.Batches.steps

def signalled(self, step, metrics):
    advance(self, step, metrics)
    if step == at and signal:
        os.kill(os.getpid(), signal)
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

module.Metrics.advance, module.Batches.steps = signalled, noted
cli.run("train", sys.argv[4:])
""".replace("BATCH", str(BATCH)).replace("LAST", str(STEPS - 2))


@dataclasses.dataclass
class Job:
    """A run folder, and what every process that worked in it did."""

    config: TrainConfig
    exits: list[list[int]] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.config.out

    def launch(self, *, processes: int = 2, send: signal.Signals | None = None, at: int = 0) -> None:
        """Start all processes with four devices each; the last one sends itself a signal behind a step."""
        recipe = self.out.with_suffix(".yaml")
        recipe.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))
        held, port = hold_port()
        environment = simulated(4, self.out.parent / "compiled")
        running = []
        for i in range(processes):
            signalled = send if i == processes - 1 else None
            arguments = [str(self.out.with_suffix(f".{i}.notes")), str(int(signalled or 0)), str(at), str(recipe)]
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
        for file in sorted(self.out.parent.glob(f"{self.out.name}.*.notes")):
            for step, row, example in map(json.loads, file.read_text().splitlines()):
                notes[step, row] = example
        return notes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


def new_job(base: TrainConfig, out: Path, **changes: object) -> Job:
    changes = {"out": out, "steps": STEPS, "mesh": ACROSS, **changes}
    return Job(TrainConfig.model_validate(base.model_dump() | changes))


@pytest.fixture(scope="module")
def whole(base_recipe: TrainConfig, packed: Path, folder: Path) -> Job:
    """An uninterrupted run on two processes, evaluated twice on the way."""
    traces = packed.parent / "traces.parquet"
    job = new_job(base_recipe, folder / "whole", eval_traces=traces, evaluate_every=8, best_by="brier")
    job.launch()
    assert job.exits == [[0, 0]], job.errors
    return job


@pytest.fixture(scope="module")
def killed(base_recipe: TrainConfig, folder: Path) -> Job:
    """A run of which one process was killed."""
    job = new_job(base_recipe, folder / "killed")
    job.launch(send=signal.SIGKILL, at=KILLED_AT)
    return job


@pytest.fixture(scope="module")
def alone(killed: Job, folder: Path) -> Job:
    """What was left of it, continued on one process of four devices."""
    out = folder / "alone"
    shutil.copytree(killed.out, out)
    for i in range(2):
        shutil.copy(killed.out.with_suffix(f".{i}.notes"), out.with_suffix(f".{i}.notes"))
    job = new_job(killed.config, out, mesh=WITHIN)
    job.launch(processes=1)
    return job


@pytest.fixture(scope="module")
def continued(killed: Job, alone: Job) -> Job:
    """And continued on two, with a preemption notice on the way."""
    killed.launch(send=signal.SIGTERM, at=TERMINATED_AT)
    saved = killed.status()
    assert saved["status"] == "preempted", killed.errors
    assert TERMINATED_AT <= saved["step"] < STEPS
    assert restore_params(killed.out)[0] == saved["step"]
    killed.launch()
    return killed


@pytest.fixture(scope="module")
def on_slices(base_recipe: TrainConfig, folder: Path) -> tuple[Job, dict[int, float], dict[tuple[int, int], str]]:
    """A run of two slices of which one was killed, started again; and what it had lost and been fed until then."""
    job = new_job(base_recipe, folder / "slices", mesh=SLICES)
    job.launch(send=signal.SIGKILL, at=KILLED_AT)
    before, fed = job.losses(), job.fed()
    job.launch()
    return job, before, fed


def test_no_process_survives_one_that_was_killed(killed: Job) -> None:
    survivor, victim = killed.exits[0]
    assert victim == -signal.SIGKILL
    assert survivor != 0


def test_preempted_processes_leave_with_zero_and_the_next_ones_finish(continued: Job) -> None:
    assert continued.exits[1:] == [[0, 0], [0, 0]], continued.errors
    last = continued.status()
    assert (last["status"], last["step"], last["steps"]) == ("finished", STEPS, STEPS)


def test_killed_preempted_and_continued_is_bit_equal(whole: Job, continued: Job) -> None:
    assert sorted(whole.losses()) == list(range(1, STEPS + 1))
    assert continued.losses() == whole.losses()


def test_one_process_goes_on_where_two_were(whole: Job, alone: Job) -> None:
    assert alone.exits == [[0]], alone.errors
    ours, theirs = alone.losses(), whole.losses()
    assert ours.keys() == theirs.keys()
    # Four devices add up in another order than eight, and training amplifies that.
    for step in range(4, 9):
        assert ours[step] == pytest.approx(theirs[step], rel=1e-5), step


def test_slices_with_rows_on_several_chips_go_on_bit_equal(whole: Job, on_slices: tuple) -> None:
    job, before, fed = on_slices
    assert job.exits[0][1] == -signal.SIGKILL
    assert job.exits[1] == [0, 0], job.errors
    assert max(before) > job.config.checkpoint.every  # so steps were lost, and are done again
    after = job.losses()
    assert sorted(after) == list(range(1, STEPS + 1))
    assert {step: after[step] for step in before} == before
    assert job.fed() == whole.fed()
    assert fed.items() <= job.fed().items()
    for step in range(1, 4):  # the same run on another mesh, until what differs in rounding has been amplified
        assert after[step] == pytest.approx(whole.losses()[step], rel=1e-5), step


def test_no_example_is_repeated_or_skipped(whole: Job, alone: Job, continued: Job) -> None:
    n = read_meta(whole.config.data).n
    epochs = STEPS * BATCH // n
    assert epochs >= 2
    for job in (whole, alone, continued):
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
