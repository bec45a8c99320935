"""What a pod owner watches, on a clock and on chips of the test's own."""

import errno
import io
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from rich.console import Console

from jax_specexit.cluster import Preemption
from jax_specexit.evaluation.held_out import HeldOut
from jax_specexit.evaluation.judging import Evaluation
from jax_specexit.model.target import TargetShape
from jax_specexit.planning.aot import Shapes
from jax_specexit.planning.work import step_work
from jax_specexit.sharding import make_mesh
from jax_specexit.training import metrics as metrics_module
from jax_specexit.training.checkpoint import Checkpoints
from jax_specexit.training.clock import Clock
from jax_specexit.training.data import Batches
from jax_specexit.training.metrics import Metrics, note
from jax_specexit.training.optimizer import schedule
from jax_specexit.training.run import write_status
from jax_specexit.training.step import Frozen, Step, TrainState
from jax_specexit.training.train import Loop
from jax_specexit.training.watch import Watch
from specexit.buckets import BucketError
from specexit.config import ConfigError
from specexit.drafts.config import DraftConfig
from specexit.errors import lasts
from specexit.schemas.train import MeshConfig, OptimizerConfig, TrainConfig
from specexit.status import read_status


def test_a_clock_gives_every_second_to_one_thing() -> None:
    now = iter([0.0, 1.0, 3.0, 3.5, 10.0])
    clock = Clock(lambda: next(now))
    for kind in ("data", "step", "data"):
        clock.lap(kind)
    assert clock.take() == {"compile": 0.0, "data": 1.5, "step": 2.0, "save": 0.0, "evaluate": 0.0}
    clock.lap("save")
    assert clock.take()["save"] == 6.5


@pytest.fixture
def shapes() -> Shapes:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    target = TargetShape(
        **sizes,
        vocab_size=1024,
        num_hidden_layers=8,
        head_dim=64,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )
    draft = DraftConfig(
        **sizes,
        head_dim=64,
        vocab_size=1024,
        draft_vocab_size=512,
        target_hidden_size=256,
        eagle_aux_hidden_state_layer_ids=(1, 4, 8),
        num_aux_hidden_states=3,
        target_num_hidden_layers=8,
    )
    return Shapes(target, draft, 8, 512)


@pytest.fixture
def mesh() -> Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


def recipe(base: TrainConfig) -> TrainConfig:
    return base.model_copy(update={"steps": 100, "ttt_steps": 3, "first_step_share": 0.5, "loss_chunk": 128})


def test_mfu_is_the_useful_work_over_the_peak(base_recipe: TrainConfig, shapes: Shapes, mesh: Mesh) -> None:
    config = recipe(base_recipe)
    watch = Watch(config, shapes, mesh, "TPU v5 lite")
    useful = sum(w.useful for w in step_work(config, shapes, mesh))
    # A step that takes as long as its useful work does at v5e's 197 TFLOP/s has an MFU of 1.
    assert watch(51, [51], useful / 197e12)["mfu"] == pytest.approx(1)
    assert watch(52, [51, 52], 4 * useful / 197e12)["mfu"] == pytest.approx(0.5)
    # JAX shows a chip of 2,307 TFLOP/s as two devices, each with a part of the work.
    assert Watch(config, shapes, mesh, "TPU7x")(51, [51], 2 * useful / 2307e12)["mfu"] == pytest.approx(1)
    assert "mfu" not in watch(51, [], 1.0)
    assert "mfu" not in Watch(config, shapes, mesh, "cpu")(51, [51], 1.0)


def test_mfu_is_of_the_steps_that_were_timed(base_recipe: TrainConfig, shapes: Shapes, mesh: Mesh) -> None:
    """Whatever the step of the line itself did: 51 is the first of three TTT steps, and compiled."""
    config = recipe(base_recipe)
    watch = Watch(config, shapes, mesh, "TPU v5 lite")
    one, three = (
        sum(w.useful for w in step_work(config.model_copy(update={"ttt_steps": k}), shapes, mesh)) for k in (1, 3)
    )
    assert one < 0.9 * three
    assert watch(51, [49, 50], 2 * one / 197e12)["mfu"] == pytest.approx(1)
    assert watch(52, [50, 52], (one + three) / 197e12)["mfu"] == pytest.approx(1)


def test_rates_are_those_of_the_schedule(base_recipe: TrainConfig, shapes: Shapes, mesh: Mesh) -> None:
    config = recipe(base_recipe)
    watch = Watch(config, shapes, mesh, "cpu")
    rates = [watch(step, [], 0.0)["learning_rate"] for step in (1, 40, 100)]
    peak = config.optimizer.muon_rate
    assert rates[0]["muon"] == pytest.approx(peak / 4)  # 4 % of 100 steps of warm-up, of which this is the first
    assert rates[1]["muon"] == pytest.approx(peak)
    assert rates[2]["muon"] < 0.1 * peak


def test_rates_are_known_without_the_device(base_recipe: TrainConfig, shapes: Shapes, mesh: Mesh) -> None:
    """Asked of it behind a step that it computes, they came when that was done, and the host stood still till then."""
    config = recipe(base_recipe)
    watch, rates = Watch(config, shapes, mesh, "cpu"), config.optimizer
    with jax.transfer_guard("disallow"):
        told = [watch(update, [], 0.0)["learning_rate"] for update in range(1, config.steps + 1)]
    for name, peak in (("muon", rates.muon_rate), ("adam", rates.adam_rate), ("head", rates.head_rate)):
        rate = schedule(rates, peak, config.steps)
        assert [line[name] for line in told] == pytest.approx([float(rate(i)) for i in range(config.steps)], rel=1e-5)


@pytest.mark.parametrize(("warmup", "decay", "falling"), [(0.04, 0.5, 50), (0.6, 0.6, 40), (0.04, 1.0, 96)])
def test_the_last_rate_is_the_floor(warmup: float, decay: float, falling: int) -> None:
    """Also where warm-up and decay together are more than the run: the decay begins behind the warm-up."""
    rate = schedule(OptimizerConfig(warmup=warmup, decay=decay, floor=0.02), 1.0, 100)
    assert float(rate(100)) == pytest.approx(0.02)
    assert float(rate(99)) == pytest.approx(0.02 + 0.98 / falling, rel=1e-5)  # float32
    assert float(rate(100 - falling)) == pytest.approx(1.0)


def numbers() -> dict[str, Any]:
    four, one = jnp.ones(4), jnp.ones(())
    names = ("loss", "gradient_norm", "tokens")
    four_each = dict.fromkeys(("token_loss", "top1", "signal_loss", "weights"), four)
    return four_each | dict.fromkeys(names, one) | {"skipped": jnp.zeros((), jnp.int32)}


class Machine:
    """A host that takes ten seconds to compile a step, and a device beside it that takes a second a TTT step."""

    def __init__(self) -> None:
        self.now = self.done = 0.0
        self.compiled: set[int] = set()

    def run(self, ttt_steps: int, state: TrainState, *_: object) -> tuple[TrainState, dict[str, Any]]:
        if ttt_steps not in self.compiled:
            self.compiled.add(ttt_steps)
            self.now += 10
        self.done = max(self.done, self.now) + ttt_steps
        return state, numbers() | {"loss": Pending(self, self.done), "tokens": 100}


class Pending:
    """A number that is there when the device has come to it."""

    def __init__(self, machine: Machine, done: float):
        self.machine, self.done = machine, done

    def block_until_ready(self) -> None:
        self.machine.now = max(self.machine.now, self.done)

    def __float__(self) -> float:
        self.block_until_ready()
        return 1.0


def driven(
    config: TrainConfig, begin: int, monkeypatch: pytest.MonkeyPatch, kill_behind: int | None = None
) -> list[dict[str, Any]]:
    """The metric lines of a folder whose run a machine has gone on with."""
    machine = Machine()
    monkeypatch.setattr(metrics_module, "Clock", lambda: Clock(lambda: machine.now))

    def steps(first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from ((i, {}) for i in range(first, (kill_behind or last) + 1))
        if kill_behind is not None:
            raise KeyboardInterrupt

    checkpoints = Mock(spec=Checkpoints, due=lambda i: i % config.checkpoint.every == 0)
    step = Mock(spec=Step, update={k: partial(machine.run, k) for k in (1, 2)})
    watch = Mock(spec=Watch, return_value={})
    loop = Loop(
        config, step, Mock(spec=Frozen), Mock(spec=Batches, steps=steps), checkpoints, None, watch, Preemption()
    )
    with pytest.raises(KeyboardInterrupt) if kill_behind else nullcontext():
        assert loop.run(begin, Mock(spec=TrainState)) == ("finished", config.steps)
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def test_the_step_before_one_that_compiles_is_timed(
    base_recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is at step 4, the last of one TTT step, when the host comes to compile step 5."""
    config = base_recipe.model_copy(update={"out": tmp_path, "first_step_share": 0.5})
    lines = driven(config, 0, monkeypatch)
    assert [line["tokens_per_second"] for line in lines] == [None, 100, 100, 100, None, 50, 50, 50]
    assert sum(line["seconds"]["compile"] for line in lines) == 10 + 1 + 10 + 2  # each with its first step
    assert lines[-1]["trained_seconds"] == 3 * 1 + 3 * 2


def test_the_time_of_what_was_saved_is_kept(
    base_recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the checkpoint of step 6, in front of the first line that `log_every` asks for."""
    config = base_recipe.model_copy(update={"out": tmp_path, "first_step_share": 0.5, "log_every": 8})
    before = driven(config, 0, monkeypatch, kill_behind=7)
    assert [line["step"] for line in before] == [3, 6]
    assert read_status(tmp_path) == ("running", 6, 8)
    assert before[-1]["trained_seconds"] == 3 * 1 + 1 * 2
    lines = driven(config, 6, monkeypatch)
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert lines[-1]["trained_seconds"] == before[-1]["trained_seconds"] + 1 * 2  # step 7 compiles


def test_a_status_that_cannot_be_written_ends_no_run(
    base_recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It is of who looks on; the checkpoints that it is about are there."""
    config = base_recipe.model_copy(update={"out": tmp_path})
    monkeypatch.setattr("jax_specexit.training.train.write_status", Mock(side_effect=BucketError("no connection")))
    assert [line["step"] for line in driven(config, 0, monkeypatch)] == list(range(1, 9))
    said = f"{tmp_path / 'status.json'}: is behind until the next checkpoint: no connection\n"
    assert capsys.readouterr().err.count(said) == 3  # behind steps 3, 6 and 8


def test_the_evaluation_behind_a_skipped_step_is_on_record(
    base_recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes were spent on it, and the best checkpoint may be by it; the NaN itself has no line."""
    config = base_recipe.model_copy(update={"out": tmp_path, "max_nonfinite": 1, "evaluate_every": 4})
    done = itertools.count(1)

    def update(state: TrainState, *_: object) -> tuple[TrainState, dict[str, Any]]:
        return state, numbers() | {"loss": jnp.asarray(float("nan") if next(done) == 4 else 1.0)}

    found = {"score": Mock(return_value=0.9), "to_json": Mock(return_value={"top1": [0.5]})}
    held_out = Mock(spec=HeldOut, return_value=Mock(spec=Evaluation, **found))
    every = {"steps": lambda first, last: ((i, {}) for i in range(first, last + 1)), "whole": lambda step: {}}
    checkpoints = Mock(spec=Checkpoints, due=lambda i: False)
    step, watch = Mock(spec=Step, update={2: update}), Mock(spec=Watch, return_value={})
    monkeypatch.setattr("jax_specexit.training.train.show", Mock())
    loop = Loop(
        config,
        step,
        Mock(spec=Frozen, target={}),
        Mock(spec=Batches, **every),
        checkpoints,
        held_out,
        watch,
        Preemption(),
    )
    assert loop.run(0, Mock(spec=TrainState)) == ("finished", 8)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[3] == {"step": 4, "evaluation": {"top1": [0.5]}}
    assert [line["step"] for line in lines if "evaluation" in line] == [4, 8]


def test_a_kill_during_an_evaluation_loses_no_line(
    base_recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step is saved, and is not done again: what was trained for it counts, and so does its loss."""
    config = base_recipe.model_copy(update={"out": tmp_path, "evaluate_every": 4, "log_every": 8})
    found = Mock(spec=Evaluation, score=Mock(return_value=0.9), to_json=Mock(return_value={"top1": [0.5]}))
    held_out, machine = Mock(spec=HeldOut, side_effect=KeyboardInterrupt), Machine()
    every = {"steps": lambda first, last: ((i, {}) for i in range(first, last + 1))}
    monkeypatch.setattr(metrics_module, "Clock", lambda: Clock(lambda: machine.now))
    monkeypatch.setattr("jax_specexit.training.train.show", Mock())

    def run(begin: int) -> list[dict[str, Any]]:
        step, watch = Mock(spec=Step, update={2: partial(machine.run, 2)}), Mock(spec=Watch, return_value={})
        checkpoints = Mock(spec=Checkpoints, due=lambda i: False)
        batches, frozen = Mock(spec=Batches, **every), Mock(spec=Frozen)
        loop = Loop(config, step, frozen, batches, checkpoints, held_out, watch, Preemption())
        with pytest.raises(KeyboardInterrupt) if begin < 4 else nullcontext():
            loop.run(begin, Mock(spec=TrainState))
        path = tmp_path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    assert run(0) == []
    held_out.side_effect, held_out.return_value = None, found
    first, evaluated, last = run(4)
    assert (first["step"], first["loss"], first["trained_seconds"]) == (4, 1.0, 3 * 2)  # step 1 compiles
    assert evaluated == {"step": 4, "evaluation": {"top1": [0.5]}}
    assert (last["step"], last["evaluation"]) == (8, {"top1": [0.5]})
    assert last["trained_seconds"] == 3 * 2 + 3 * 2  # step 5 as well
    run(8)
    assert [file.name for file in tmp_path.iterdir() if "metrics" in file.name] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("start", "known", "steps"), [(4, "", [4]), (3, "", []), (4, '{"step": 4}\n', [4])], ids=["it", "before", "known"]
)
def test_a_line_put_aside_is_written_once_and_of_a_saved_step_alone(
    tmp_path: Path, start: int, known: str, steps: list[int]
) -> None:
    """A kill may come before its checkpoint was whole, or behind the line itself."""
    (tmp_path / "metrics.jsonl").write_text(known)
    with Metrics(tmp_path, total=8, start=3) as metrics:
        metrics.clock.spent["step"] = 4.0
        metrics.keep(4, numbers())
    (tmp_path / "metrics.jsonl").write_text(known)
    for _ in range(2):
        with Metrics(tmp_path, total=8, start=start):
            pass
        assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == steps


def test_a_step_that_does_not_fit_the_memory_ends_a_job_for_good(base_recipe: TrainConfig, tmp_path: Path) -> None:
    """A restart would compile the same, and hear the same. Of another failure of JAX's nothing is known."""
    config = base_recipe.model_copy(update={"out": tmp_path})
    every = {"steps": lambda first, last: ((i, {}) for i in range(first, last + 1))}

    def run(said: str) -> None:
        step = Mock(spec=Step, update={2: Mock(side_effect=jax.errors.JaxRuntimeError(said))})
        checkpoints, watch = Mock(spec=Checkpoints), Mock(spec=Watch, return_value={})
        loop = Loop(
            config, step, Mock(spec=Frozen), Mock(spec=Batches, **every), checkpoints, None, watch, Preemption()
        )
        loop.run(0, Mock(spec=TrainState))

    expected = (
        r"^step of 2 TTT steps needs at least 24\.0 GiB .* can have 15\.75: choose remat=true, a smaller loss_chunk"
    )
    with pytest.raises(ConfigError, match=expected) as refused:
        run("RESOURCE_EXHAUSTED: Used 24.00G of 15.75G hbm. Exceeded hbm capacity by 8.25G.")
    assert lasts(refused.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a link is down"):
        run("INTERNAL: a link is down")


def shown(metrics: Metrics, width: int) -> list[str]:
    """The progress as a terminal of so many columns has it."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(metrics.progress.get_renderable())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_the_progress_tells_time_rate_and_memory_on_100_columns(tmp_path: Path) -> None:
    """All of it, with numbers as long as they get on a pod, and nothing cut off."""
    told = {"mfu": 0.451, "hbm_peak_gib": 93.25, "learning_rate": {"muon": 0.0056789, "adam": 1e-3, "head": 0.01}}
    write_status(tmp_path, "running", 0, 20_000)
    with Metrics(tmp_path, total=20_000, start=0, watch=lambda *_: told) as metrics:
        metrics.clock.spent |= {"compile": 10.0, "data": 2.0, "step": 78.0, "save": 4.0, "evaluate": 6.0}
        metrics.advance(12_345, numbers() | {"loss": 12.3456, "tokens": 98_765_432})
        lines = shown(metrics, 100)
        assert not [line for line in lines if len(line) > 100 or "…" in line]
        text = "\n".join(lines)
        for item in (
            "12345/20000",
            "loss 12.346  acceptance ~5.00  muon rate 0.0057",
            "1,234,568 tok/s  goodput 100%  MFU 45%  HBM 93.2 GiB",
            "compile 10%  data 2%  compute 78%  save 4%  evaluate 6%",
        ):
            assert item in text, item
        assert len(lines) == 3
        metrics.clock.spent |= {"data": 0.02, "step": 99.98}
        metrics.advance(12_346, numbers() | {"top1": jnp.zeros(0), "token_loss": jnp.zeros(0)})
        text = "\n".join(shown(metrics, 100))
        assert "head rate 0.01" in text  # of a frozen trunk, whose other rates move nothing
        assert "acceptance" not in text
        assert "data 0%  compute 100%\n" in text + "\n"


def test_a_mean_over_nothing_is_null(tmp_path: Path) -> None:
    """As the loss of a signal in a batch without a label of it; a zero would be the best that there is."""
    of_no_row = jnp.full(4, 0.5).at[2].set(jnp.nan)
    with Metrics(tmp_path, total=20, start=0) as metrics:
        metrics.clock.spent["step"] = 4.0
        metrics.advance(10, numbers() | dict.fromkeys(("token_loss", "top1", "signal_loss"), of_no_row))
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text)
    assert line["token_loss"] == line["top1"] == [*line["signal_loss"].values()] == [0.5, 0.5, None, 0.5]
    assert "NaN" not in text
    assert "acceptance" not in note(line)


def test_a_log_has_each_line_of_metrics_when_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Without a terminal a bar is drawn once, when all is over: days later, or never where a pod is killed."""
    with Metrics(tmp_path, total=20, start=0) as metrics:
        metrics.clock.spent["step"] = 4.0
        metrics.advance(10, numbers())
        [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
        assert said.startswith("step 10/20: loss 1.000  acceptance ~5.00  0 tok/s  goodput ")
        assert said.endswith("  data 0%  compute 100%")
    capsys.readouterr()
    with Metrics(tmp_path, total=20, start=10, silent=True) as metrics:  # as all processes of a job but the first
        metrics.clock.spent["step"] = 4.0
        metrics.advance(20, numbers())
    assert capsys.readouterr().err == ""


def test_a_metric_line_that_a_disk_refuses_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a mounted bucket does when it is synced: what is in the file then may be all of it, or a part."""
    path, sync = tmp_path / "metrics.jsonl", os.fsync

    def refused(file: int) -> None:
        sync(file)
        if Path(os.readlink(f"/proc/self/fd/{file}")).name == path.name:  # and not TensorBoard's
            raise OSError(errno.EIO, "Input/output error")

    path.write_text('{"step": 1}\n{"step": 9}\n')
    with Metrics(tmp_path, total=8, start=1) as metrics:
        metrics.write({"step": 2})
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refused)
            metrics.write({"step": 3})
            metrics.write({"step": 4})
        metrics.write({"step": 5})
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    said = capsys.readouterr().err
    assert said.count(f"{path}: cannot be written: [Errno 5] Input/output error; it is tried again with the next") == 2
    assert "lacks the last lines" not in said


def test_a_damaged_line_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As a power failure leaves them; neither a restart nor a report could read the file."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\n{"loss": 1.0}\n\xff\n{"step": 2}\n{"step": 3}\n{"st')
    with Metrics(tmp_path, total=8, start=2):
        pass
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    said = capsys.readouterr().err
    assert [f"{path}: line {i} is left out" in said for i in range(1, 8)] == [False, True, True, True, *[False] * 3]


def test_goodput_counts_what_was_lost_by_a_restart(tmp_path: Path) -> None:
    """Ten seconds trained, of which a kill takes six, then four again: eight of all that has passed since the start."""
    write_status(tmp_path, "running", 0, 8)
    began = json.loads((tmp_path / "status.json").read_text())["began"]
    for start, steps in ((0, {2: 4.0, 4: 6.0}), (2, {4: 4.0})):
        write_status(tmp_path, "running", start, 8)
        assert json.loads((tmp_path / "status.json").read_text())["began"] == began
        with Metrics(tmp_path, total=8, start=start) as metrics:
            for step, seconds in steps.items():
                metrics.clock.spent["step"] = seconds
                metrics.advance(step, numbers())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["trained_seconds"] for line in lines] == [4.0, 8.0]
    assert lines[1]["tokens_per_second"] == pytest.approx(1 / 4, abs=0.1)  # rounded to a tenth


@pytest.mark.parametrize("said", ["3.1", float("nan"), float("inf"), -1, [3.1], None])
def test_a_line_whose_time_is_no_number_ends_no_restart(tmp_path: Path, said: object) -> None:
    """A text was compared with a number, behind minutes of loading, at every restart."""
    lines = [{"step": 1, "trained_seconds": 4.0}, {"step": 2, "trained_seconds": said}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Metrics(tmp_path, total=8, start=2) as metrics:
        assert metrics.trained == 4.0


def test_goodput_does_not_go_by_a_clock_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set back, it made each line 0 or 100 %."""
    clock = SimpleNamespace(time=lambda: 1000.0, monotonic=lambda: clock.now, now=50.0)
    monkeypatch.setattr(metrics_module, "time", clock)
    write_status(tmp_path, "running", 0, 8, started=900.0)
    for start, seconds in ((0, 5.0), (2, 4.0)):
        with Metrics(tmp_path, total=8, start=start) as metrics:
            clock.now, clock.time = clock.now + 10, lambda: 500.0
            metrics.clock.spent["step"] = seconds
            metrics.advance(start + 2, numbers())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # The second start does not know how long it stood still, but that it had trained for five seconds.
    assert [line["goodput"] for line in lines] == [round(5 / 110, 4), round(9 / 15, 4)]


def test_goodput_goes_on_behind_an_evaluation_that_was_made_up_for(tmp_path: Path) -> None:
    """Its line says nothing of training, and is the last one where a kill comes before the next checkpoint."""
    with Metrics(tmp_path, total=8, start=0) as metrics:
        metrics.clock.spent["step"] = 4.0
        metrics.advance(2, numbers())
    with Metrics(tmp_path, total=8, start=2) as metrics:
        metrics.write({"step": 2, "evaluation": {"top1": [0.5]}})
    with Metrics(tmp_path, total=8, start=2) as metrics:
        metrics.clock.spent["step"] = 4.0
        metrics.advance(4, numbers())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("trained_seconds") for line in lines] == [4.0, None, 8.0]
