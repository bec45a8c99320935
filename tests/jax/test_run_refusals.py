"""Recipes and data that a run refuses before anything is compiled; its folder is as it was."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import yaml

from jax_specexit.cluster import join
from jax_specexit.convert import convert
from jax_specexit.planning.aot import shapes_of
from jax_specexit.training import start
from jax_specexit.training.data import check_data
from jax_specexit.training.nonfinite import NotFiniteError
from jax_specexit.training.profiling import Profiler
from jax_specexit.training.run import MAY_CHANGE, MAY_MOVE, Start, save_start
from jax_specexit.training.train import train
from specexit.config import REPOSITORY, ConfigError, PassingError, load, save_run
from specexit.data.features import read_manifest
from specexit.data.overlap import OverlapError, write_prompts
from specexit.data.packed import PackError, open_rows, read_meta
from specexit.data.traces import WEIGHTS, read_labelled, write_traces
from specexit.drafts.config import DraftError
from specexit.errors import InputError, lasts
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.target import load_target_config
from specexit.schemas.train import ClusterConfig, TrainConfig


def changed(recipe: TrainConfig, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate(recipe.model_dump() | changes)


def copy_of(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "packed"))


def test_a_truncated_shard_is_refused(recipe: TrainConfig, packed: Path, tmp_path: Path) -> None:
    data = copy_of(packed, tmp_path)
    shard = min(data.glob("*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(PackError, match=rf"{shard.name}: has \d+ bytes, expected \d+ bytes as meta.json says"):
        train(changed(recipe, data=data))
    meta = json.loads((data / "meta.json").read_text())
    meta["shards"][shard.name] = shard.stat().st_size
    (data / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(PackError, match="cannot be read as ArrayRecord"):
        train(changed(recipe, data=data))
    assert not recipe.out.exists()


def test_a_shard_that_was_damaged_in_place_is_named(recipe: TrainConfig, packed: Path, tmp_path: Path) -> None:
    """When the run starts, and when one of Grain's threads comes to it later."""
    from jax.sharding import NamedSharding

    from jax_specexit.sharding import BATCH, make_mesh
    from jax_specexit.training.data import Batches

    config = changed(recipe, data=copy_of(packed, tmp_path))
    shard = min(config.data.glob("*.array_record"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 255
    shard.write_bytes(content)
    named = rf"{shard.name}: row 0 cannot be read, as the file is damaged .*: pack again"
    with pytest.raises(PackError, match=named):
        train(config)
    assert not config.out.exists()
    batches = Batches(config, read_meta(config.data), NamedSharding(make_mesh(config.mesh), BATCH))
    with pytest.raises(PackError, match=named):
        list(batches.steps(1, read_meta(config.data).n))


def test_the_weights_of_the_target_are_looked_through_once(
    recipe: TrainConfig, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bucket that takes minutes, which a resumed run took twice, with its chips idle."""
    target, meta = load_target_config(recipe.target), read_meta(packed)
    begun = Start(start.draft_config(recipe, target, meta.exit_point), np.arange(320), (1.0, 1.0, 1.0))
    save_run(recipe, recipe.out)
    save_start(recipe.out, begun)
    looked = Mock(wraps=start.target_fingerprint)
    monkeypatch.setattr(start, "target_fingerprint", looked)
    monkeypatch.setattr(start, "load_target", Mock(side_effect=LookupError("loading")))
    with pytest.raises(LookupError, match="loading"):
        train(recipe)
    assert looked.call_count == 1


@pytest.mark.parametrize("first", [True, False])
def test_one_process_says_that_other_weights_wrote_the_texts_and_looks_at_no_weights_for_it(
    recipe: TrainConfig,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    first: bool,
) -> None:
    """Each host of a pod said it, and looked through the bucket once more for either of data and held-out traces."""
    data, traces = copy_of(packed, tmp_path), tmp_path / "held-out.parquet"
    meta = json.loads((data / "meta.json").read_text()) | {"target_sha256": "0" * 64}
    (data / "meta.json").write_text(json.dumps(meta))
    write_traces(traces, read_labelled(packed.parent / "traces.parquet"), said={WEIGHTS: "0" * 64})
    looked = Mock(side_effect=AssertionError("the fingerprint is at hand"))
    monkeypatch.setattr("specexit.data.written_by.target_fingerprint", looked)
    fixed = Mock(target_sha256="1" * 64)
    monkeypatch.setattr("jax_specexit.training.train.start", lambda *_: (fixed, Mock(), Mock()))
    monkeypatch.setattr("jax_specexit.training.train.make_step", Mock(side_effect=LookupError("the step")))
    monkeypatch.setattr("jax_specexit.training.train.is_first", lambda: first)
    with pytest.raises(LookupError, match="the step"):
        train(changed(recipe, data=data, eval_traces=traces, evaluate_n=4))
    said = capsys.readouterr().err
    for path in (data / "meta.json", traces):
        assert said.count(f"warning: {path}: written by weights with the fingerprint 000000000000") == first


def test_a_shard_that_is_gone_since_the_start_is_named(packed: Path, tmp_path: Path) -> None:
    """As one that somebody deletes in the bucket of a run; the run may go on where it is brought back."""
    data = copy_of(packed, tmp_path)
    rows = open_rows(data, read_meta(data))
    shard = min(data.glob("*.array_record"))
    shard.unlink()
    with pytest.raises(PackError, match=rf"{shard}: cannot be opened any more .*: bring it back") as refusal:
        rows[0]
    assert not lasts(refusal.value)


def test_a_damaged_list_of_prompts_is_refused(recipe: TrainConfig, packed: Path, tmp_path: Path) -> None:
    """The run would hand it on, and nothing could judge what was trained."""
    data = copy_of(packed, tmp_path)
    (data / "prompts.npy").write_bytes((data / "prompts.npy").read_bytes()[:100])
    with pytest.raises(OverlapError, match=r"prompts\.npy: cannot be read as the hashes of prompts"):
        train(changed(recipe, data=data))
    assert not recipe.out.exists()


@pytest.mark.parametrize(("prompts", "has"), [(None, "is missing"), ([1], "lists 1 prompts")])
def test_rows_without_the_list_of_their_prompts_are_refused(
    recipe: TrainConfig, packed: Path, tmp_path: Path, prompts: list[int] | None, has: str
) -> None:
    """As a copy of `meta.json` and the shards alone: nothing could tell what the draft was trained on."""
    data = copy_of(packed, tmp_path)
    (data / "prompts.npy").unlink()
    if prompts:
        write_prompts(data, prompts)
    with pytest.raises(PackError, match=rf"prompts\.npy: {has}, expected \d+ prompts as meta\.json says: .*copy it"):
        train(changed(recipe, data=data))
    assert not recipe.out.exists()
    meta = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps({key: meta[key] for key in meta if key != "prompts"}))  # an older one
    assert check_data(changed(recipe, data=data), load_target_config(recipe.target)).prompts is None


def test_another_tokenizer_is_refused(recipe: TrainConfig, small_target: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(small_target.read_text())
    model = Path(shutil.copytree(config["path"], tmp_path / "model"))
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + " ")
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config | {"path": str(model)}))
    with pytest.raises(PackError, match=r"tokenizer_sha256 is \w+..., expected \w+... of .*tokenizer.json"):
        train(changed(recipe, target=str(path)))
    assert not recipe.out.exists()


@pytest.mark.parametrize(
    ("field", "value"), [("split_endings", ["\n"]), ("split_connectors", ["Wait"]), ("think_start", "<answer>")]
)
def test_rows_with_labels_at_other_boundaries_are_refused(
    recipe: TrainConfig, small_target: Path, packed: Path, tmp_path: Path, field: str, value: object
) -> None:
    """Of a target whose YAML was edited behind `pack`: the draft would name boundaries that it has not learnt."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(small_target.read_text()) | {field: value}))
    said = rf"^{packed}/target\.yaml: packed with {field}=.*, not .* as target small says now: collect and pack again"
    with pytest.raises(PackError, match=said):
        train(changed(recipe, target=str(path)))
    assert not recipe.out.exists()
    data = copy_of(packed, tmp_path)
    (data / "target.yaml").unlink()  # of older versions
    check_data(changed(recipe, target=str(path), data=data), load_target_config(str(path)))


@pytest.mark.parametrize("size", [600, 768])
def test_data_of_another_size_of_the_vocabulary_is_refused(
    recipe: TrainConfig, small_target: Path, tmp_path: Path, size: int
) -> None:
    """Other weights under the same name, with the same tokenizer: JAX would have read another row for a token beyond
    the embedding."""
    before = load_target_config(str(small_target))
    shutil.copytree(before.folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": size}))
    moved = before.model_copy(update={"path": str(tmp_path / "model")})
    (tmp_path / "target.yaml").write_text(yaml.safe_dump(moved.model_dump(mode="json")))
    said = rf"meta\.json: token_counts is of 640 token ids, but .*config\.json says vocab_size={size}: expected rows"
    with pytest.raises(PackError, match=said):
        train(changed(recipe, target=str(tmp_path / "target.yaml")))
    assert not recipe.out.exists()


def test_layers_that_the_target_does_not_have_are_refused(
    recipe: TrainConfig, small_target: Path, tmp_path: Path
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(small_target.read_text()) | {"aux_layers": [1, 2, 9]}))
    for changes in ({"aux_layers": [1, 2, 9]}, {"target": str(path)}):
        with pytest.raises(
            ConfigError, match=r"aux_layers=\[1, 2, 9\]: expected ids from 0 \(the embedding\) to \d, the"
        ):
            train(changed(recipe, **changes))
    assert not recipe.out.exists()


def without(target: Path, fields: tuple[str, ...], folder: Path) -> Path:
    """A copy of a target whose ``config.json`` lacks some fields."""
    said = yaml.safe_load(target.read_text())
    model = Path(shutil.copytree(said["path"], folder / "model"))
    path = model / "config.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in fields}
    path.write_text(json.dumps(kept))
    (folder / "target.yaml").write_text(yaml.safe_dump(said | {"path": str(model)}))
    return folder / "target.yaml"


@pytest.mark.parametrize("cache", [False, True], ids=["computed features", "stored features"])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (("hidden_size",), "hidden_size"),
        (("vocab_size",), "vocab_size"),
        (("num_hidden_layers",), "num_hidden_layers"),
        (("rms_norm_eps",), "rms_norm_eps"),
        (("max_position_embeddings",), "max_position_embeddings"),
        (("rope_theta", "rope_parameters"), "rope_theta"),
        (("max_position_embeddings", "rope_theta", "rope_parameters"), "rope_theta, max_position_embeddings"),
    ],
    ids=str,
)
def test_a_target_that_does_not_say_its_sizes_is_refused(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: bool,
    fields: tuple[str, ...],
    named: str,
) -> None:
    """By a run and by a plan. Where features are stored, a draft without the target's theta would have some other."""
    config = request.getfixturevalue("cached" if cache else "recipe")
    target = without(Path(config.target), fields, tmp_path)
    config = changed(config, target=str(target), length=128)
    if config.features is not None:  # they are of this very target
        fingerprint = read_manifest(config.features).target_sha256
        monkeypatch.setattr("jax_specexit.training.data.target_fingerprint", lambda folder: fingerprint)
    said = rf"^{tmp_path / 'model' / 'config.json'}: no value for {named}(,|$)"
    with pytest.raises(InputError, match=said):
        train(config)
    assert not config.out.exists()
    with pytest.raises(InputError, match=said):
        shapes_of(config, load_target_config(str(target)))


def test_a_published_draft_with_a_key_that_nobody_knows_is_refused(
    recipe: TrainConfig, write_random_draft: Callable[..., Path], tmp_path: Path
) -> None:
    """As `import` refuses it, which a folder with all fields of a draft directory gets by without."""
    layers = {"eagle_aux_hidden_state_layer_ids": (1, 2, 3), "target_num_hidden_layers": 3}
    sizes = recipe.draft.model_dump() | layers | {"target_hidden_size": 32, "vocab_size": 640}
    draft = write_random_draft(tmp_path / "draft", None, **sizes)
    known = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(known | {"gated_fusion": True}))
    with pytest.raises(DraftError, match=r"draft/config\.json: gated_fusion is True, which is unknown"):
        train(recipe.model_copy(update={"init_from": draft}))
    assert not recipe.out.exists()


@pytest.mark.parametrize(("key", "value"), [("draft_vocab_size", 5000), ("num_key_value_heads", 3), ("head_dim", 63)])
def test_sizes_that_do_not_go_together_are_refused(recipe: TrainConfig, key: str, value: int) -> None:
    sizes = recipe.draft.model_copy(update={key: value})
    with pytest.raises(ConfigError, match=rf"^draft\.\*: .*'{key}': {value}"):
        train(recipe.model_copy(update={"draft": sizes}))
    assert not recipe.out.exists()


def test_heads_that_no_engine_reads_are_refused(recipe: TrainConfig) -> None:
    """A run was trained and converted, and the first engine ended in a traceback of transformers."""
    sizes = recipe.draft.model_copy(update={"num_attention_heads": 6})
    with pytest.raises(ConfigError, match=r"^draft\.num_attention_heads=6, expected a divisor of .*hidden_size=32: "):
        train(recipe.model_copy(update={"draft": sizes}))
    assert not recipe.out.exists()


def test_a_fresh_draft_of_another_width_than_its_target_is_refused(recipe: TrainConfig, tmp_path: Path) -> None:
    """By a run and by a plan. It has no embeddings but its target's; one that is elsewhere may have some."""
    sizes = recipe.draft.model_copy(update={"hidden_size": 48})
    wide = recipe.model_copy(update={"draft": sizes, "length": 128})
    said = r"^draft\.hidden_size=48, expected the target's 32: "
    with pytest.raises(ConfigError, match=said):
        train(wide)
    assert not recipe.out.exists()
    with pytest.raises(ConfigError, match=said):
        shapes_of(wide, load_target_config(wide.target))
    gone = wide.model_copy(update={"init_from": tmp_path / "gone"})
    said = rf"^init_from={tmp_path}/gone: is not there, and only it says .*draft\.hidden_size=48, the target's is 32$"
    with pytest.raises(ConfigError, match=said):
        shapes_of(gone, load_target_config(gone.target))


def test_a_tpu_takes_only_the_jax_that_its_attention_was_checked_with(
    recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so before anything is loaded; on a CPU any one trains."""
    monkeypatch.setattr("jax_specexit.training.start.load_target", Mock(side_effect=LookupError("loading")))
    monkeypatch.setattr("jax_specexit.model.splash.CHECKED_WITH", (0, 9))
    with pytest.raises(LookupError, match="loading"):
        train(recipe)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(InputError, match=r"checked with 0\.9\.x, found"):
        train(recipe)
    assert not recipe.out.exists()


def test_a_run_folder_that_cannot_be_is_refused_before_anything_is_loaded(
    recipe: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place lasts, and no job is to be restarted for it; a disk may be mounted otherwise next time."""
    monkeypatch.setattr("jax_specexit.training.start.load_target", Mock(side_effect=LookupError("loading")))
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "run"):
        with pytest.raises(ConfigError, match=rf"^out={out}: {file} is no folder, expected a new folder or") as refused:
            train(changed(recipe, out=out))
        assert lasts(refused.value)
    readonly = Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr("jax_specexit.training.place.tempfile.TemporaryFile", readonly)
    with pytest.raises(ConfigError, match=r"cannot be written to: Read-only file system$") as refused:
        train(recipe)
    assert not lasts(refused.value)
    assert not recipe.out.exists()


@pytest.mark.parametrize("name", ["draft[v2]", "of [mine]/run"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused(recipe: TrainConfig, tmp_path: Path, name: str) -> None:
    """Runs used to end well, with checkpoints that nothing could read, and conversions likewise."""
    out = tmp_path / name
    with pytest.raises(ConfigError, match=r"^out=.*: has a '\[' in its path .*, expected none: orbax takes it for"):
        train(recipe.model_copy(update={"out": out}))
    with pytest.raises(ConfigError, match=r"^out=.*: has a '\[' in its path"):
        convert(ConvertConfig(draft=tmp_path / "draft", out=out))
    assert not out.parent.exists() or not [*out.parent.iterdir()]


def test_a_trace_may_be_asked_for_before_the_first_step(recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal that otherwise ends a process, and all others with it; nothing says outside when loading is over."""
    begun, others = Mock(), []
    monkeypatch.setattr(jax.profiler, "start_trace", begun)
    monkeypatch.setattr(jax.profiler, "stop_trace", Mock())

    def first_step(_: Path) -> NoReturn:
        with Profiler(recipe.out, None) as profiler:
            profiler.begin(1)
        os.kill(os.getpid(), signal.SIGUSR1)  # as while the last checkpoint is saved
        raise LookupError("no more than that")

    monkeypatch.setattr("jax_specexit.training.train.check_folder", lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    monkeypatch.setattr("jax_specexit.training.train.check_place", first_step)
    before = signal.signal(signal.SIGUSR1, lambda *_: others.append("heard"))
    try:
        with pytest.raises(LookupError, match="no more than that"):
            train(recipe)
        assert others == []
        os.kill(os.getpid(), signal.SIGUSR1)
        assert others == ["heard"]
    finally:
        signal.signal(signal.SIGUSR1, before)
    begun.assert_called_once_with(str(recipe.out / "profile"))


def test_held_out_traces_of_another_target_are_refused(recipe: TrainConfig, packed: Path, tmp_path: Path) -> None:
    import dataclasses

    traces = read_labelled(packed.parent / "traces.parquet")[:2]
    path = tmp_path / "traces.parquet"
    write_traces(path, [dataclasses.replace(trace, target="tiny-reasoner") for trace in traces])
    with pytest.raises(ConfigError, match=r"'small', but .*traces\.parquet belongs to 'tiny-reasoner'"):
        train(changed(recipe, eval_traces=path))
    assert not recipe.out.exists()


def test_held_out_traces_of_trained_prompts_are_refused(recipe: TrainConfig, packed: Path) -> None:
    with pytest.raises(OverlapError, match=r"40 of 40 prompts were trained on according to .*packed/prompts\.npy"):
        train(changed(recipe, eval_traces=packed.parent / "trained"))
    assert not recipe.out.exists()


def test_a_batch_that_does_not_divide_is_refused() -> None:
    from jax.sharding import AbstractMesh, NamedSharding

    from jax_specexit.sharding import AXES, BATCH
    from jax_specexit.training.data import rows_of_process

    mesh = AbstractMesh((3, 2, 1, 1, 1), AXES)
    with pytest.raises(ConfigError, match="batch_size=8 does not divide over data x fsdp x expert = 6 shards"):
        rows_of_process(8, NamedSharding(mesh, BATCH))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["cluster.coordinator=localhost:1234"], "expected all three, or none"),
        (["cluster.coordinator=host", "cluster.num_processes=2", "cluster.process_id=0"], "'host': expected HOST:PORT"),
        (["cluster.coordinator=h:70000", "cluster.num_processes=2", "cluster.process_id=0"], "expected HOST:PORT"),
        (["cluster.coordinator=h:1", "cluster.num_processes=2", "cluster.process_id=2"], "expected less than"),
        (["out=s3://bucket/run"], "out is 's3://bucket/run'.*expected a path on disk, or gs://"),
        (["evaluate_every=4"], "without eval_traces"),
        (["mesh.dcn_data=0"], "mesh.dcn_data is 0.*expected a number from 1 on, or -1"),
        (["mesh.data=-2"], "mesh.data is -2.*expected a number from 1 on, or -1"),
        (["profile_steps=[4, 2]"], "1 <= first <= last"),
        (["aux_layers=[3, 1]"], r"aux_layers is \[3, 1\]: .*expected ids from 0 \(the embedding\) on, rising"),
        (["optimizer.muon_rate=.inf"], "optimizer.muon_rate is inf: .*finite number"),
        (["optimizer.adam_rate=.inf"], "optimizer.adam_rate is inf: .*finite number"),
        (["optimizer.head_rate=.inf"], "optimizer.head_rate is inf: .*finite number"),
        (["optimizer.weight_decay=.inf"], "optimizer.weight_decay is inf: .*finite number"),
        (["signals.share=.inf"], "signals.share is inf: .*finite number"),
        (["signals.boundary_weight=.inf"], "signals.boundary_weight is inf: .*finite number"),
        (["seed=-1"], "seed is -1: .*greater than or equal to 0"),
        (["steps=2147483648"], "steps is 2147483648: .*less than 2147483648"),  # steps are counted in int32
        (["seed=4294967296"], "seed is 4294967296: .*less than 4294967296"),
    ],
)
def test_recipes_that_cannot_work_are_refused(
    recipe: TrainConfig, tmp_path: Path, keys: list[str], message: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, path, keys)


def test_a_package_that_is_not_there_is_asked_for_by_every_process(
    recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb=drafts .*pip install '\.\[wandb\]' in a checkout"):
        train(changed(recipe, wandb="drafts"))
    assert not recipe.out.exists()


def test_a_trace_that_would_never_begin_is_refused(recipe: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"profile_steps is \[9, 12\], expected to begin within .* steps=8"):
        train(changed(recipe, profile_steps=[9, 12]))
    assert not recipe.out.exists()


def test_a_coordinator_s_port_that_is_taken_is_named() -> None:
    """JAX ended in a segmentation fault, or two runs shared the port: both listen with SO_REUSEPORT."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        job = ClusterConfig(coordinator=f"localhost:{port}", num_processes=2, process_id=0)
        with pytest.raises(PassingError, match=rf"=localhost:{port}: another process of this machine listens at port"):
            join(job)


def test_a_trace_that_a_disk_refuses_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It ended in JAX's traceback. What could not be written counts there as a trace that goes on."""
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: vm.xplane.pb; No space left on device")
    monkeypatch.setattr(jax.profiler, "start_trace", Mock(side_effect=[None, RuntimeError("has already been started")]))
    monkeypatch.setattr(jax.profiler, "stop_trace", Mock(side_effect=full))
    with Profiler(tmp_path, (1, 2)) as profiler:
        for step in (1, 2):
            profiler.begin(step)
            profiler.end(step, None)
        profiler.steps = (3, 4)  # as one that is asked for
        profiler.begin(3)
        profiler.end(3, None)
    first, second = capsys.readouterr().err.splitlines()
    folder = tmp_path / "profile"
    assert first == f"{folder}: lacks a trace, which could not be written to {folder}: {full}"
    assert second == f"{folder}: no trace of step 3: has already been started"


def test_a_planned_trace_that_a_run_goes_on_behind_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """There was none, and nothing said so."""
    Profiler(tmp_path, (4, 6), 3)
    assert capsys.readouterr().err == ""
    Profiler(tmp_path, (4, 6), 4)
    assert "profile_steps=[4, 6] begins in front of step 5, which is next: no trace of it" in capsys.readouterr().err
    (tmp_path / "profile").mkdir()  # it was taken before
    Profiler(tmp_path, (4, 6), 7)
    assert capsys.readouterr().err == ""


def test_a_planned_trace_that_begins_within_another_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """There was that of SIGUSR1 alone, and nothing said so."""
    monkeypatch.setattr(jax.profiler, "start_trace", Mock())
    monkeypatch.setattr(jax.profiler, "stop_trace", Mock())
    monkeypatch.setattr("jax_specexit.training.profiling._asked", Mock(now=True))
    with Profiler(tmp_path, (4, 6)) as profiler:
        for step in range(2, 9):
            profiler.begin(step)
            profiler.end(step, None)
    said = "profile_steps=[4, 6] begins within the trace that SIGUSR1 asked for, which ends with step 6: no other trace"
    assert capsys.readouterr().err == f"{tmp_path / 'profile'}: {said} of it\n"


def test_a_damaged_target_is_named_where_its_nan_stops_the_run(
    recipe: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start.load_target

    def damaged(*given: Any, **more: Any) -> Any:
        target = whole(*given, **more)
        target.norm.scale[...] = target.norm.scale[...].at[3].set(np.nan)
        return target

    monkeypatch.setattr(start, "load_target", damaged)
    said = r"all of which is finite; the target's own norm\.scale is not finite\. .*: get the target's weights anew"
    with pytest.raises(NotFiniteError, match=said):
        train(recipe)


def test_a_folder_that_holds_something_else_is_refused(recipe: TrainConfig) -> None:
    (recipe.out / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds checkpoints but no run.yaml"):
        train(recipe)


def test_the_page_names_every_key_that_a_run_goes_on_with_in_another_form() -> None:
    """A run that moved to another slice, whose `topology` is another one, was not said to be allowed."""
    page = (REPOSITORY / "docs" / "training.md").read_text()
    (told,) = re.findall(r"These keys may change:\n\n((?:\|.*\n)+)", page)
    keys = [key for line in told.splitlines()[2:] for key in re.findall(r"`([a-z_]+)`", line)]
    assert sorted(keys) == sorted(MAY_CHANGE | MAY_MOVE)
