"""What is learned from stored features, what of them a run refuses before anything is compiled, and what a plan counts.

The refusals and the plan cost 25 s. That a whole run from them is the one whose target is run is in `test_jobs`.
"""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import yaml
from jax.sharding import AbstractMesh, NamedSharding
from safetensors.numpy import load_file, save_file

from jax_specexit.model.cached import CachedTarget
from jax_specexit.planning.aot import lower_step, shapes_of, stored_example
from jax_specexit.planning.work import step_work
from jax_specexit.sharding import AXES, BATCH, make_mesh
from jax_specexit.training.data import Batches, first_rows, open_features
from jax_specexit.training.measure import measure_stored
from jax_specexit.training.nonfinite import NotFiniteError
from jax_specexit.training.run import check_folder
from jax_specexit.training.train import train
from jax_specexit.weights import load_ends
from specexit.config import ConfigError, load, save_run
from specexit.data.features import (
    FILE,
    FeatureError,
    Features,
    Shard,
    begin,
    decode,
    encode,
    read_manifest,
    write_shard,
)
from specexit.data.packed import FIELDS, open_rows, read_example, read_meta
from specexit.differences import file_sha256
from specexit.errors import InputError
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig
from tests.jax.first_step import FirstStep, difference, first_step
from tests.jax.test_work import TARGET
from tests.jax.test_work import recipe as shapes_recipe


def test_without_features_an_unknown_architecture_is_refused(recipe: TrainConfig, unknown: Path) -> None:
    with pytest.raises(InputError, match="architectures is RiverForCausalLM, expected one of"):
        train(recipe.model_copy(update={"target": str(unknown)}))


def changed(stored: Path, folder: Path, **fields: object) -> Path:
    """A copy of the features whose manifest says something else."""
    shutil.copytree(stored, folder)
    (folder / FILE).write_text(json.dumps(json.loads((folder / FILE).read_text()) | fields))
    return folder


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target": "tiny-reasoner"}, "target is 'tiny-reasoner', expected 'small'"),
        ({"target_sha256": "0" * 64}, "target_sha256 is '0000"),
        ({"tokenizer_sha256": "0" * 64}, "tokenizer_sha256 is '0000"),
        ({"dtype": "float4"}, "dtype is 'float4'"),
        ({"dtype": "bfloat16"}, "states are float32, expected bfloat16"),
        ({"target_dtype": "float16"}, "target_dtype is 'float16', expected 'float32'"),
        ({"data": "other"}, "data is 'other', expected"),
        ({"shards": {}}, "shards are not written"),
        ({"layers": [1, 3]}, r"layers is \[1, 3\], but the draft reads \[2\], too"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_features_of_something_else_are_refused(
    cached: TrainConfig, stored: Path, tmp_path: Path, fields: dict, said: str
) -> None:
    features = changed(stored, tmp_path / "features", **fields)
    with pytest.raises(FeatureError, match=said):
        train(cached.model_copy(update={"features": features}))
    assert not cached.out.exists()


def test_a_run_goes_on_with_features_and_a_target_that_have_moved(cached: TrainConfig, recipe: TrainConfig) -> None:
    """What they are is compared, not where: two terabytes that went to another disk used to end a run."""
    cached.out.mkdir()
    save_run(cached, cached.out)
    check_folder(cached.model_copy(update={"features": Path("elsewhere"), "target": "of the same name"}))
    with pytest.raises(ConfigError, match=r"begun with features=.*, but the recipe says None"):
        check_folder(recipe.model_copy(update={"target": cached.target}))


def test_a_run_does_not_go_on_with_features_of_another_type(cached: TrainConfig, stored: Path, tmp_path: Path) -> None:
    cached = cached.model_copy(update={"steps": 1})
    train(cached)
    rounded = changed(stored, tmp_path / "rounded", dtype="float8")
    said = f"begun with features stored as float32, but those in {rounded} are float8"
    with pytest.raises(ConfigError, match=said):
        train(cached.model_copy(update={"features": rounded}))


def test_a_target_whose_ends_are_not_plain_is_refused(cached: TrainConfig, unknown: Path, tmp_path: Path) -> None:
    target = load_target_config(str(unknown))
    shutil.copytree(target.folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"final_logit_softcapping": 30.0}))
    other = target.model_copy(update={"path": str(tmp_path / "model")})
    (tmp_path / "target.yaml").write_text(yaml.safe_dump(other.model_dump(mode="json")))
    with pytest.raises(InputError, match=r"final_logit_softcapping is 30\.0, expected a target whose"):
        train(cached.model_copy(update={"target": str(tmp_path / "target.yaml")}))


def test_a_tied_target_that_does_not_say_so_is_told_by_its_weights(
    cached: TrainConfig, unknown: Path, tmp_path: Path
) -> None:
    """As of SmolLM3, whose class is tied by default: a head was expected that no file has."""
    target = load_target_config(str(unknown))
    folder = shutil.copytree(target.folder, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    assert fields.pop("tie_word_embeddings") is True
    (folder / "config.json").write_text(json.dumps(fields))
    ends = load_ends(folder, (1, 2, 3))
    np.testing.assert_array_equal(ends.head(), np.asarray(ends.embedding[...]).T)
    planned = shapes_of(cached.model_copy(update={"length": 128}), target.model_copy(update={"path": str(folder)}))
    assert planned.target.tie_word_embeddings


def spoilt(stored: Path, folder: Path, which: int = 0) -> tuple[Path, Path]:
    """A copy of the features in which a state of each row of a shard is no number, of the same size; and that shard."""
    shutil.copytree(stored, folder)
    shard = folder / read_manifest(folder).names[which]
    tensors = load_file(shard)
    tensors["states"][:, 0, 2] = np.nan
    save_file(tensors, shard, metadata={"dtype": "float32", "layers": "[1, 2, 3]"})
    return folder, shard


def test_a_damaged_shard_of_features_is_named(cached: TrainConfig, stored: Path, tmp_path: Path) -> None:
    """The target was blamed, whose states are not computed at all, for a damaged download."""
    folder, shard = spoilt(stored, tmp_path / "features")
    with pytest.raises(
        FeatureError, match=rf"^{shard}: is damaged: its SHA-256 is .*\.\.\., expected .* features\.json"
    ):
        train(cached.model_copy(update={"features": folder}))
    assert not list(cached.out.glob("checkpoints/*"))


def test_a_damaged_shard_of_features_is_named_where_its_nan_stops_the_run(
    cached: TrainConfig, stored: Path, tmp_path: Path
) -> None:
    """What a start has not read: the batch was called finite, and its data the thing to mend."""
    folder, shard = spoilt(stored, tmp_path / "features", which=-1)
    said = rf"all of which is finite; {shard}: is damaged: .* the last checkpoint is good: mend the stored features$"
    with pytest.raises(NotFiniteError, match=said):
        train(cached.model_copy(update={"features": folder}))


def test_features_whose_shard_is_as_written_are_stored_anew(stored: Path, packed: Path, tmp_path: Path) -> None:
    folder, shard = spoilt(stored, tmp_path / "features")
    written = Shard(size=shard.stat().st_size, sha256=file_sha256(shard))
    manifest = read_manifest(folder)
    features = Features(folder, manifest.model_copy(update={"shards": {shard.name: written}}))
    example = read_example(open_rows(packed, read_meta(packed))[1])
    with pytest.raises(FeatureError, match=r"states of row 1 are not finite, and its shard is as .* store the states"):
        features.check_finite(1, example)


def test_stored_states_that_are_no_numbers_are_named_by_their_folder_and_layer(stored: Path, tmp_path: Path) -> None:
    """Where every shard is what was written."""
    folder, shard = spoilt(stored, tmp_path / "features")
    manifest = read_manifest(folder)
    written = Shard(size=shard.stat().st_size, sha256=file_sha256(shard))
    text = manifest.model_copy(update={"shards": manifest.shards | {shard.name: written}}).model_dump_json()
    (folder / FILE).write_text(text)
    states = np.ones((8, 4, 3, 8), np.float32)
    rows = {"segment_ids": np.ones((8, 4), np.int32)}
    assert measure_stored((1, 3), folder, rows, states) == (1.0, 1.0)
    said = rf"^{folder}: the stored hidden states have an RMS of 1 at layer 1, nan at layer 3: expected finite ones"
    for broken in (np.nan, np.inf):  # at one token of 32, which no median shows
        states[0, 2, 2] = broken
        with pytest.raises(FeatureError, match=said):
            measure_stored((1, 3), folder, rows, states)


def test_a_batch_that_is_left_behind_is_read_without_its_states(cached: TrainConfig) -> None:
    """The first host reads it for all of them, whose states together are more than its memory."""
    features = Mock(Features)
    features.read.return_value = {"states": np.zeros((128, 3, 8), np.float32)}
    sharding = NamedSharding(make_mesh(cached.mesh), BATCH)
    batches = Batches(cached, read_meta(cached.data), sharding, features)
    whole = batches.whole(2)
    assert not features.read.called
    read = batches.read(2, range(cached.batch_size))
    assert features.read.call_count == cached.batch_size
    assert whole.keys() == {*FIELDS} == read.keys() - {"states"}
    for name in FIELDS:
        np.testing.assert_array_equal(whole[name], read[name])


@pytest.mark.parametrize(("key", "without"), [("eval_traces", "null"), ("target_int8", "false")])
def test_what_runs_the_target_does_not_go_with_features(
    cached: TrainConfig, tmp_path: Path, key: str, without: str
) -> None:
    """Every full-size recipe names `eval_traces`; what the message expects is what goes on with it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(cached.model_dump(mode="json") | {key: True if without == "false" else "traces"}))
    said = f"{key}=.* with features=.*: there the target is not run, expected {key}={without}"
    with pytest.raises(ConfigError, match=said):
        load(TrainConfig, path)
    assert load(TrainConfig, path, [f"{key}={without}"]).features == cached.features


def test_a_plan_takes_the_layers_that_are_stored(cached: TrainConfig, stored: Path, tmp_path: Path) -> None:
    """As a run does: its batches hold all layers of the features, whichever of them this draft reads."""
    config, target = cached.model_copy(update={"length": 128, "aux_layers": (1,)}), load_target_config(cached.target)
    meta = read_meta(config.data)
    batch = first_rows(config.data, meta, features=open_features(config, target, meta))
    shapes = shapes_of(config, target)
    assert shapes.draft.eagle_aux_hidden_state_layer_ids == (1,)
    planned = stored_example(shapes)
    assert {name: (batch[name].shape[2:], batch[name].dtype) for name in planned} == planned
    fewer = config.model_copy(update={"features": changed(stored, tmp_path / "features", layers=[1, 2])})
    with pytest.raises(FeatureError, match=r"layers is \[1, 2\], but the draft reads \[3\], too"):
        shapes_of(fewer, target)


def test_a_plan_counts_nothing_of_the_target() -> None:
    """Neither FLOPs nor memory, but reading what is stored; the step is the one that is compiled for a slice."""
    config = shapes_recipe(features="nowhere")
    unknown = TARGET.model_copy(update={"config": (TARGET.config or {}) | {"architectures": ["RiverForCausalLM"]}})
    shapes = shapes_of(config, unknown)
    work = list(step_work(config, shapes, AbstractMesh((1,) * len(AXES), AXES)))
    assert {w.part for w in work if w.flops} == {"signals", "draft", "draft attention", "logits", "optimizer"}
    read = [w.hbm_bytes for w in work if w.part == "stored features"]
    assert read == [8 * 128 * 2 * 256 * 2], "8 rows of 128 tokens, two layers of 256 in bfloat16"
    lowered = lower_step(config, shapes, jax.devices()[:1])
    assert set(lowered.frozen.target) == {"embedding", "norm"}
    assert set(lowered.others) == {"begin"}


@pytest.fixture(scope="module")
def base(base_recipe: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A draft that reads two of the three layers that are stored."""
    out = tmp_path_factory.mktemp("first") / "run"
    return base_recipe.model_copy(update={"out": out, "aux_layers": (1, 3)})


@pytest.fixture(scope="module")
def online(base: TrainConfig) -> FirstStep:
    return first_step(base)


def test_what_is_learned_from_stored_states_is_what_is_learned_online(
    base: TrainConfig, online: FirstStep, unknown: Path, stored: Path
) -> None:
    """Losses to 1e-3; and gradients, as a random target's choice is so even that its loss hardly tells another one."""
    found = first_step(base.model_copy(update={"target": str(unknown), "features": stored}))
    assert isinstance(found.target, CachedTarget)
    assert found.aux_rms == online.aux_rms
    # The same arithmetic in float32, but for the order of sums: one row was run at a time, and here four are.
    np.testing.assert_allclose(found.token_loss, online.token_loss, rtol=1e-3)
    np.testing.assert_allclose(found.signal_loss, online.signal_loss, rtol=1e-3)
    gradients = difference(found.gradients, online.gradients)
    assert max(gradients.each.values()) < 1e-3, gradients


def in_float8(stored: Path, packed: Path, folder: Path) -> Path:
    """The same features as `specexit features` would have stored them with ``dtype=float8``."""
    before, meta = read_manifest(stored), read_meta(packed)
    features, records = Features(stored, before), open_rows(packed, meta)
    manifest = begin(folder, before.model_copy(update={"dtype": "float8", "shards": {}}))
    for shard in range(len(manifest.names)):
        rows = {i: read_example(records[i]) for i in manifest.rows(shard)}
        states = [encode(decode(features.read(i, row)), "float8") for i, row in rows.items()]
        manifest = write_shard(folder, manifest, shard, list(rows.values()), states)
    return folder


def test_float8_states_teach_the_same_to_their_rounding(
    base: TrainConfig, online: FirstStep, unknown: Path, stored: Path, packed: Path, tmp_path: Path
) -> None:
    features = in_float8(stored, packed, tmp_path / "features")
    found = first_step(base.model_copy(update={"target": str(unknown), "features": features}))
    # Rounded to four bits, a state is 2.6 % off in norm. A loss is a mean of what hardly depends on that (the tiny
    # reasoner's differ by 0.007 and 0.027). A gradient is made of two or three states: some 5 %, and single ones more
    # where they are differences. Without its scales a state would be a hundred times as large, and what the layer adds
    # to it would have no gradient: 100 % off.
    np.testing.assert_allclose(found.token_loss, online.token_loss, rtol=0.03)
    np.testing.assert_allclose(found.signal_loss, online.signal_loss, rtol=0.03)
    gradients = difference(found.gradients, online.gradients)
    assert gradients.whole < 0.15, gradients
    assert max(gradients.each.values()) < 0.5, gradients
