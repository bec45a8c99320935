"""``gs://`` from traces to a draft, against a storage server that the tests start.

About a minute of CPU time: a very small draft is trained twice, and compiled once.
"""

import asyncio
import errno
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from jax_specexit.convert import convert
from jax_specexit.sharding import make_mesh
from jax_specexit.training import place
from jax_specexit.training import train as module
from jax_specexit.training.metrics import Metrics
from jax_specexit.training.nonfinite import NonFiniteStop, NotFiniteError
from jax_specexit.training.profiling import Profiler
from jax_specexit.training.train import train
from jax_specexit.weights import _Ranged, load_target
from specexit import buckets, cli
from specexit.buckets import BucketError, BucketPath, upload
from specexit.config import ConfigError, load, write_text
from specexit.data.packed import PackError, read_meta
from specexit.data.packing import pack
from specexit.drafts.directory import read_draft
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.tensors import read_header
from specexit.errors import lasts
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.pack import PackConfig
from specexit.schemas.target import load_target_config
from specexit.schemas.train import MeshConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("storage_server")


def refused(*_: object, **__: object) -> NoReturn:
    raise BucketError("no connection")


def test_a_targets_fingerprint_reads_its_blocks_alone(
    bucket: BucketPath, small_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open object fetches five megabytes behind each of 65 blocks a file, on every host and at every start."""
    folder = load_target_config(str(small_target)).folder
    upload(folder, bucket / "model")
    monkeypatch.setattr(BucketPath, "open", refused)
    filesystem = type(buckets.filesystem())
    going, most, cat = 0, 0, filesystem._cat_file

    async def watched(self: Any, *asked: Any, **how: Any) -> bytes:
        nonlocal going, most
        going, most = going + 1, max(most, going + 1)
        try:
            await asyncio.sleep(0.001)
            return await cat(self, *asked, **how)
        finally:
            going -= 1

    monkeypatch.setattr(filesystem, "_cat_file", watched)
    assert target_fingerprint(bucket / "model") == target_fingerprint(folder)
    assert most == buckets.AT_ONCE, "side by side: one behind the other, 150 files are ten minutes"


def test_the_shards_of_packed_data_are_looked_at_together(
    bucket: BucketPath, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them was asked for twice, minutes at some thousand, while the other hosts waited."""
    upload(packed, bucket / "packed")
    more = {f"more-{i}": 3 for i in range(20)}
    for name in more:
        (bucket / "packed" / name).write_bytes(b"abc")
    fields = json.loads((packed / "meta.json").read_text())
    write_text(bucket / "packed" / "meta.json", json.dumps(fields | {"shards": fields["shards"] | more}))
    filesystem, calls = type(buckets.filesystem()), []
    call = filesystem._call
    monkeypatch.setattr(filesystem, "_call", lambda self, *what, **how: calls.append(what) or call(self, *what, **how))
    assert len(read_meta(bucket / "packed").shards) > 20
    assert len(calls) < 5, "the file, and a listing"
    (bucket / "packed" / "more-7").write_bytes(b"ab")
    with pytest.raises(PackError, match=r"packed/more-7: has 2 bytes, expected 3 bytes"):
        read_meta(bucket / "packed")
    (bucket / "packed" / "more-7").unlink()
    with pytest.raises(PackError, match=r"packed/more-7: is missing, expected 3 bytes"):
        read_meta(bucket / "packed")


def test_a_metric_line_that_a_bucket_refuses_goes_with_the_next(
    bucket: BucketPath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nor is one sent twice of which only a leftover could not be deleted."""

    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in (bucket / "metrics.jsonl").read_text().splitlines()]

    with module.Metrics(bucket, total=8, start=0) as metrics:
        for step, method in enumerate(("", "append", "", "unlink", "append"), 1):
            with monkeypatch.context() as patch:
                if method:
                    patch.setattr(BucketPath, method, refused)
                metrics.write({"step": step})
        assert steps() == [1, 2, 3, 4]
    assert steps() == [1, 2, 3, 4, 5]
    said = capsys.readouterr().err
    assert "no connection; it is tried again with the next line" in said
    assert "lacks" not in said

    with monkeypatch.context() as patch, module.Metrics(bucket, total=8, start=5) as metrics:
        patch.setattr(BucketPath, "append", refused)
        metrics.write({"step": 6})
    said = capsys.readouterr().err
    assert said.count("it is tried again with the next line") == 1  # and not at the end, where none is next
    assert f"{bucket / 'metrics.jsonl'}: lacks the last lines: 1" in said


def test_a_trace_that_a_bucket_refuses_stays_on_the_disk(
    bucket: BucketPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It ends no run, and does not take the place of what has ended one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda to: write_text(Path(to) / "host.xplane.pb", "a trace"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)

    def stopped(profiler: Profiler) -> NoReturn:
        profiler.begin(1)
        raise NotFiniteError("a NaN")

    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "write_bytes", refused)
        with Profiler(bucket, (1, 2)) as profiler:
            profiler.begin(1)
            profiler.end(2, None)
        with pytest.raises(NotFiniteError, match="a NaN"), Profiler(bucket, (1, 2)) as profiler:
            stopped(profiler)
    said = capsys.readouterr().err.splitlines()
    kept = [path for path in tmp_path.iterdir() if (path / "host.xplane.pb").read_text() == "a trace"]
    assert len(kept) == 2
    words = {f"{bucket / 'profile'}: lacks a trace, which stays in {path}: no connection" for path in kept}
    assert {*said} == words

    with Profiler(bucket, (1, 2)) as profiler:
        profiler.begin(1)
        profiler.end(2, None)
    assert list(bucket.objects()) == [bucket / "profile" / "host.xplane.pb"]
    assert sorted(tmp_path.iterdir()) == sorted(kept)  # what was sent is not


def test_a_nan_is_said_where_its_batch_cannot_be_written(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"signal_labels": np.array([[0.5], [np.nan]])}
    monkeypatch.setattr(BucketPath, "write_bytes", refused)
    guard = NonFiniteStop(bucket, 0, lambda step: batch, Mock(), target={})
    said = r"its batch could not be read or written \(no connection\), in which signal_labels of row 1 is not finite"
    with pytest.raises(NotFiniteError, match=said):
        guard.check(5, float("nan"), 1.0)


@pytest.mark.parametrize("error", [PackError("row 7 is damaged"), BucketError("row 7 is damaged")])
def test_a_nan_whose_batch_cannot_be_read_may_be_let_pass(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The first process ended alone, by what only other hosts had read, and the second NaN was never said."""
    guard = NonFiniteStop(tmp_path, 1, Mock(side_effect=error), Mock(), target={})
    assert not guard.check(5, float("nan"), 1.0)
    assert "its batch could not be read or written (row 7 is damaged)\n" in capsys.readouterr().err
    with pytest.raises(NotFiniteError, match=r"step 6: loss nan, .*\(row 7 is damaged\)\. Stopped behind 2 such steps"):
        guard.check(6, float("nan"), 1.0)


@pytest.fixture(scope="module")
def stored(storage_server: None, small_target: Path, packed: Path) -> BucketPath:
    """The small target and its labelled traces, in the bucket."""
    home = BucketPath("gs://open/stored")
    upload(small_target.parent / "model", home / "model")
    upload(packed.parent / "trained", home / "traces")
    target = yaml.safe_load(small_target.read_text()) | {"path": str(home / "model")}
    write_text(home / "small.yaml", yaml.safe_dump(target))
    return home


def test_a_target_is_read_by_ranges(stored: BucketPath, small_target: Path) -> None:
    """Onto a mesh, and the part of a tensor that a shard asks for, against the same files on disk."""
    there, here = (load_target_config(str(path)) for path in (stored / "small.yaml", small_target))
    assert there.tokenizer().encode("3 + 4") == here.tokenizer().encode("3 + 4")
    assert there.hf_config() == here.hf_config()
    mesh = make_mesh(MeshConfig())
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(load_target(there.folder, mesh=mesh))),
        jax.tree.leaves(nnx.state(load_target(here.folder))),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    name, part = "model.layers.1.mlp.down_proj.weight", (slice(3, 9), slice(2, 30))
    far, near = (read_header(next(folder.glob("*.safetensors")))[name] for folder in (there.folder, here.folder))
    assert far.shape == near.shape
    np.testing.assert_array_equal(_Ranged(far)[part], near.read()[part])


@pytest.fixture(scope="module")
def compiled(storage_server: None) -> Iterator[BucketPath]:
    """What has been compiled is kept in the bucket as well."""
    before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    folder = BucketPath("gs://open/compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    compilation_cache.reset_cache()


def recipe_of(base: TrainConfig, folder: Path, **changes: object) -> TrainConfig:
    places = {"out": str(folder / "run"), "data": str(folder / "packed")}
    return TrainConfig.model_validate(base.model_dump() | places | changes)


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def test_from_traces_to_a_draft_in_a_bucket(
    stored: BucketPath,
    compiled: BucketPath,
    small_target: Path,
    packed: Path,
    base_recipe: TrainConfig,
    bucket: BucketPath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pack, train, a preemption, resume, convert: bit by bit what comes of it on disk, of which nothing is used."""
    for folder in ("here", "disk", "temporary"):
        (tmp_path / folder).mkdir()
    here = tmp_path / "disk"
    train(recipe_of(base_recipe, here, data=str(packed), target=str(small_target)))
    convert(ConvertConfig(run=here / "run", out=here / "draft"))

    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    target = str(stored / "small.yaml")
    keys = [f"traces={stored / 'traces'}", f"out={bucket / 'packed'}", f"target={target}", "length=128"]
    pack(load(PackConfig, None, keys))
    ours, theirs = (read_meta(folder).model_dump(exclude={"config_sha256"}) for folder in (bucket / "packed", packed))
    assert ours == theirs
    recipe = recipe_of(base_recipe, bucket, target=target)

    advance = module.Metrics.advance

    def terminated(self: module.Metrics, step: int, metrics: dict) -> None:
        advance(self, step, metrics)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module.Metrics, "advance", terminated)
    train(recipe)
    with pytest.raises(SystemExit) as exit_:
        cli.run("status", [str(recipe.out)])
    assert exit_.value.code == 75
    assert max(losses(recipe.out)) < recipe.steps
    monkeypatch.setattr(module.Metrics, "advance", advance)
    train(recipe)
    cli.run("status", [str(recipe.out)])  # of what is finished, it returns
    assert losses(recipe.out) == losses(here / "run")
    convert(load(ConvertConfig, None, [f"run={recipe.out}", f"out={bucket / 'draft'}"]))

    assert not [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()]
    (_, ours), (_, theirs) = read_draft(bucket / "draft"), read_draft(here / "draft")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    events = [path.read_bytes() for path in recipe.out.glob("tensorboard/events*")]
    assert len(events) == 2  # before the preemption, and behind it
    assert all(b"signal_loss/remaining" in data for data in events)
    assert any(compiled.iterdir())

    # The draft, in the bucket, is what another run starts from, and what a run folder is made of.
    convert(load(ConvertConfig, None, [f"draft={bucket / 'draft'}", f"out={bucket / 'again'}"]))
    assert (bucket / "again" / "checkpoints" / "0" / "commit_success.txt").exists()
    convert(load(ConvertConfig, None, [f"run={bucket / 'again'}", f"out={bucket / 'back'}"]))
    for file in ("config.json", "model.safetensors", "policy.json"):
        assert (bucket / "back" / file).read_bytes() == (bucket / "draft" / file).read_bytes()
    warm = recipe_of(base_recipe, bucket, target=target, init_from=str(bucket / "draft"), out=str(bucket / "warm"))
    fixed, *_ = module.start(
        warm, load_target_config(target), read_meta(warm.data), module.first_rows(warm.data, read_meta(warm.data)),
        make_mesh(warm.mesh),
    )  # fmt: skip
    np.testing.assert_array_equal(fixed.vocab, theirs["d2t"] + np.arange(len(theirs["d2t"])))


def test_tensorboard_s_file_on_a_disk_has_a_line_long_before_the_run_ends(tmp_path: Path) -> None:
    """Or a kill would leave a gap there: steps that are saved are not made again."""
    deadline = time.monotonic() + 60  # half of what tensorboardX waits unless it is told otherwise
    with Metrics(tmp_path, total=2, start=0) as metrics:
        metrics.write({"step": 1, "a-number": 1.0})
        while not any(b"a-number" in path.read_bytes() for path in tmp_path.glob("tensorboard/events*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_flush_of_tensorboard_s_file_that_fails_is_made_up_for(
    bucket: BucketPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In the thread that writes it, which no run may wait for; the same file in a bucket and on a disk."""
    from tensorboardX import SummaryWriter

    class Quick(SummaryWriter):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options | {"flush_secs": 0.01})

    write, sync = BucketPath.write_bytes, os.fsync
    failing, failed = threading.Event(), threading.Event()

    def fail(name: str) -> None:
        if name.startswith("events") and failing.is_set():
            failed.set()
            raise BucketError("no connection")

    def written(self: BucketPath, data: Any) -> int:
        fail(self.name)
        return write(self, data)

    def synced(file: int) -> None:  # what is on a disk then may be a part, or all of it
        sync(file)
        fail(Path(os.readlink(f"/proc/self/fd/{file}")).name)

    monkeypatch.setattr("tensorboardX.SummaryWriter", Quick)
    monkeypatch.setattr(BucketPath, "write_bytes", written)
    monkeypatch.setattr(os, "fsync", synced)
    tags = [f"number-{i:02}" for i in range(100)]

    def log(run: Path) -> None:
        with Metrics(run, total=2, start=0) as metrics:
            metrics.write({"step": 1} | dict.fromkeys(tags[:50], 1.0))
            assert failed.wait(300)
            failing.clear()
            metrics.write({"step": 2} | dict.fromkeys(tags[50:], 1.0))

    sizes = set()
    for run in (bucket, tmp_path):
        failing.set()
        failed.clear()
        thread = threading.Thread(target=log, args=(run,), daemon=True)
        thread.start()
        thread.join(300)
        assert not thread.is_alive()
        [events] = run.glob("tensorboard/events*")
        data = events.read_bytes()
        assert [data.count(tag.encode()) for tag in tags] == [1] * 100
        sizes.add(len(data))
        said = capsys.readouterr().err
        assert f"{events}: is behind, and written later: no connection" in said
        assert "lacks" not in said
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("gs://locked/run", "gs://locked/run/.*: cannot be written: .*storage.objects.create access to the bucket"),
        ("gs://absent/run", "gs://absent/run: there is no such bucket, or no permission to see it"),
    ],
)
def test_a_bucket_that_refuses_is_one_line_before_anything_is_loaded(
    base_recipe: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    out: str,
    message: str,
) -> None:
    def loaded(*_: object) -> NoReturn:
        raise AssertionError("the target was loaded")

    monkeypatch.setattr(module, "start", loaded)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(base_recipe.model_dump(mode="json")))
    with pytest.raises(SystemExit):
        cli.run("train", [str(path), f"out={out}"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(BucketError, match=message):
        load(TrainConfig, path, [f"out={out}"]).out.check_writable()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("field", ["data", "eval_traces", "target", "init_from"])
def test_what_nobody_may_read_is_one_line_that_names_it(
    base_recipe: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture, field: str
) -> None:
    path, place = tmp_path / "recipe.yaml", f"gs://sealed/{field}"
    path.write_text(yaml.safe_dump(base_recipe.model_dump(mode="json")))
    if field == "target":
        target = load_target_config(base_recipe.target).model_dump(mode="json")
        (tmp_path / "target.yaml").write_text(yaml.safe_dump(target | {"path": place}))
        place = str(tmp_path / "target.yaml")
    given = [f"out={tmp_path / 'run'}", "eval_traces=null", f"{field}={place}"]
    with pytest.raises(SystemExit):
        cli.run("train", [str(path), *given])
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(f"error: gs://sealed/{field}.*does not have storage.objects.get access", line)
    assert not (tmp_path / "run").exists()


def test_a_mounted_bucket_in_which_no_folder_can_be_renamed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nbucket {tmp_path}/a\\040b fuse.gcsfuse rw,nosuid 0 0\n")
    monkeypatch.setattr(place, "MOUNTS", mounts)
    out = tmp_path / "a b" / "run"
    assert place.kind_of_mount(out) == "fuse.gcsfuse"
    assert place.kind_of_mount(tmp_path) == "ext4"
    place.check_place(out)
    assert list(out.iterdir()) == []
    (tmp_path / "runs").symlink_to("a b")  # a link from a home folder

    def refused(self: Path, target: Path) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")  # gcsfuse's answer

    monkeypatch.setattr(Path, "rename", refused)
    place.check_place(tmp_path / "run")  # a disk is not asked
    for there in (out, tmp_path / "runs" / "run"):
        with pytest.raises(ConfigError, match=r"a folder cannot be renamed.*gcsfuse's --rename-dir-limit") as told:
            place.check_place(there)
        assert lasts(told.value)  # a restart mounts it no other way
    assert list(out.iterdir()) == []
