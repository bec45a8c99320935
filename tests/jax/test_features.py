"""Training from stored features: the same run, of a target that there is no forward pass of. Costs 40 s."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from jax.sharding import AbstractMesh
from safetensors.numpy import load_file, save_file

from jax_specexit.planning.aot import lower_step, shapes_of
from jax_specexit.planning.work import step_work
from jax_specexit.sharding import AXES
from jax_specexit.training.train import train
from jax_specexit.weights import load_target
from specexit.config import ConfigError, load
from specexit.data.features import FILE, FeatureError, Manifest, begin, encode, write_shard
from specexit.data.packing import open_rows, read_example, read_meta
from specexit.drafts.fingerprints import target_fingerprint
from specexit.errors import InputError
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig
from tests.jax.test_train import losses, run_in_process
from tests.jax.test_work import TARGET
from tests.jax.test_work import recipe as shapes_recipe

LAYERS = (1, 2, 3)


@pytest.fixture(scope="session")
def unknown(small_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small target as one of an architecture that nobody knows, and with no layer in its weights."""
    folder = tmp_path_factory.mktemp("unknown")
    before = load_target_config(str(small_target))
    shutil.copytree(before.folder, folder / "model")
    path = folder / "model" / "config.json"
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "rms_norm_eps", "tie_word_embeddings")
    fields = json.loads(path.read_text())
    fields = {name: fields[name] for name in (*kept, "max_position_embeddings")}
    path.write_text(
        json.dumps(fields | {"architectures": ["RiverForCausalLM"], "rope_parameters": {"rope_theta": 1e4}})
    )
    weights = load_file(folder / "model" / "model.safetensors")
    ends = {name: value for name, value in weights.items() if "layers" not in name}
    assert 0 < len(ends) < len(weights)
    save_file(ends, folder / "model" / "model.safetensors")
    (folder / "target.yaml").write_text(
        yaml.safe_dump(before.model_copy(update={"path": str(folder / "model")}).model_dump(mode="json"))
    )
    return folder / "target.yaml"


@pytest.fixture(scope="session")
def stored(small_target: Path, unknown: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features in float32 that the small target's own forward pass has given, said to be the unknown one's."""
    meta, target = read_meta(packed), load_target_config(str(unknown))
    model = load_target(load_target_config(str(small_target)).folder)
    folder = tmp_path_factory.mktemp("stored") / "features"
    weights = target_fingerprint(target.folder)
    assert weights is not None
    manifest = begin(
        folder,
        Manifest(
            target=target.name,
            target_sha256=weights,
            tokenizer_sha256=meta.tokenizer_sha256,
            data=meta.identity,
            n=meta.n,
            length=meta.length,
            layers=LAYERS,
            hidden_size=32,
            dtype="float32",
            shard_rows=4,
            engine="this test",
        ),
    )
    records = open_rows(packed, meta)

    @jax.jit
    def run(*row: np.ndarray) -> jax.Array:
        aux = model(*row, aux_layers=LAYERS)[1]
        assert aux is not None
        return aux[0].reshape(meta.length, len(LAYERS), -1)

    for shard in range(len(manifest.names)):
        rows = [read_example(records[i]) for i in manifest.rows(shard)]
        found = [run(*(row[name][None] for name in ("tokens", "positions", "segment_ids"))) for row in rows]
        manifest = write_shard(folder, manifest, shard, rows, [encode(np.asarray(x), "float32") for x in found])
    return folder


@pytest.fixture
def cached(recipe: TrainConfig, unknown: Path, stored: Path) -> TrainConfig:
    return recipe.model_copy(update={"target": str(unknown), "features": stored})


def test_the_run_is_the_one_whose_target_is_run(recipe: TrainConfig, cached: TrainConfig, tmp_path: Path) -> None:
    """On one device and on eight, whose processes read rows and stretches of their own."""
    train(recipe)
    train(cached.model_copy(update={"out": tmp_path / "cached"}))
    online, ours = losses(recipe.out), losses(tmp_path / "cached")
    assert sorted(ours) == sorted(online) == list(range(1, 9))
    # The same numbers from another program: sums run in another order, and training amplifies that.
    np.testing.assert_allclose(list(ours.values()), list(online.values()), rtol=1e-5)
    for name in ("vocab", "aux_rms"):
        assert (
            len(
                {
                    json.dumps(json.loads((run / "draft.json").read_text())[name])
                    for run in (recipe.out, tmp_path / "cached")
                }
            )
            == 1
        )

    mesh = {"data": 2, "fsdp": 2, "context": 2}
    eight = TrainConfig.model_validate(cached.model_dump() | {"mesh": mesh, "out": tmp_path / "eight"})
    assert run_in_process(eight, eight.out, devices=8) == 0
    np.testing.assert_allclose(list(losses(eight.out).values()), list(ours.values()), rtol=1e-5)


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


def test_a_target_whose_ends_are_not_plain_is_refused(cached: TrainConfig, unknown: Path, tmp_path: Path) -> None:
    target = load_target_config(str(unknown))
    shutil.copytree(target.folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"final_logit_softcapping": 30.0}))
    other = target.model_copy(update={"path": str(tmp_path / "model")})
    (tmp_path / "target.yaml").write_text(yaml.safe_dump(other.model_dump(mode="json")))
    with pytest.raises(InputError, match=r"final_logit_softcapping is 30\.0, expected a target whose"):
        train(cached.model_copy(update={"target": str(tmp_path / "target.yaml")}))


@pytest.mark.parametrize("key", ["eval_traces", "target_int8"])
def test_what_runs_the_target_does_not_go_with_features(cached: TrainConfig, tmp_path: Path, key: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(cached.model_dump(mode="json")))
    with pytest.raises(ConfigError, match=f"{key}=.* with features=.*: there the target is not run"):
        load(TrainConfig, path, [f"{key}=true"])


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
    assert not lowered.others
