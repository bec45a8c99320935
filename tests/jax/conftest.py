"""A small random target and packed data, so that a real training run fits in a test."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file, save_file

from jax_specexit.model.target import Target, TargetShape
from jax_specexit.weights import export_target, load_target
from specexit import tiny
from specexit.buckets import BucketPath
from specexit.config import load
from specexit.data.features import Manifest, begin, encode, write_shard
from specexit.data.packed import open_rows, read_example, read_meta
from specexit.data.packing import pack
from specexit.drafts.fingerprints import target_fingerprint
from specexit.schemas.pack import PackConfig
from specexit.schemas.target import load_target_config
from specexit.schemas.train import TrainConfig

SHAPE = TargetShape(
    vocab_size=640,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
)
AUX_LAYERS = (1, 2, 3)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """What `tests.jax.devices.QUICK_COMPILATION` is for processes."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def small_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target YAML: random weights, the tiny reasoner's tokenizer."""
    folder = tmp_path_factory.mktemp("target")
    target = Target(SHAPE, rngs=nnx.Rngs(1))
    export_target(target, folder / "model", eos_token_id=608, max_position_embeddings=512)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((tiny.MODEL_DIR / name).read_bytes())
    path = folder / "small.yaml"
    config = {
        "name": "small",
        "path": str(folder / "model"),
        "aux_layers": list(AUX_LAYERS),
        "max_model_len": 512,
        "dtype": "float32",
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def packed(small_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed examples of made-up traces of that target; ``traces.parquet`` beside them has the same, other prompts."""
    from dataclasses import asdict, replace

    from specexit.data.annotate import label
    from specexit.data.traces import Trace, write_traces

    folder = tmp_path_factory.mktemp("packed")
    tokenizer = load_target_config(str(small_target)).tokenizer()
    rng = np.random.default_rng(0)
    traces = []
    for i, problem in enumerate(tiny.problems("draft", 40)):
        think = rng.integers(0, 600, rng.integers(20, 50)).tolist()
        boundaries = sorted(rng.choice(np.arange(1, len(think)), 4, replace=False).tolist())
        trace = Trace(
            id=str(i),
            prompt=problem.question,
            prompt_ids=tokenizer.encode(tiny.prompt_text(problem.question))[:20],
            think_ids=think,
            answer_ids=rng.integers(0, 600, 6).tolist(),
            answer="1",
            reference="1",
            correct=True,
            finish_reason="stop",
            boundaries=boundaries,
            boundary_answers=["2", "1", "1", "1"],
            boundary_agrees=[False, True, True, True],
            boundary_confidence=rng.uniform(0.2, 1, 4).tolist(),
            target="small",
            sampling=json.dumps({}),
            seed=0,
        )
        traces.append(label(trace, tokenizer, "answer"))
        assert asdict(traces[-1])
    # What is evaluated on has prompts of its own, as it must.
    held_out = [replace(trace, prompt_ids=[*trace.prompt_ids, 7]) for trace in traces]
    write_traces(folder / "traces.parquet", held_out)
    write_traces(folder / "trained" / "traces.parquet", traces)
    pack(PackConfig(traces=folder / "trained", out=folder / "packed", target=str(small_target), length=128))
    return folder / "packed"


@pytest.fixture
def recipe(base_recipe: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The recipe with a run folder of the test's own."""
    return base_recipe.model_copy(update={"out": tmp_path / "run"})


@pytest.fixture(scope="session")
def base_recipe(small_target: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Eight steps in float32, checkpoints every three."""
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "target": str(small_target),
                "data": str(packed),
                "out": str(folder / "run"),
                "draft": {
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "draft_vocab_size": 320,
                },
                "steps": 8,
                "batch_size": 8,
                "ttt_steps": 2,
                "loss_chunk": 64,
                "dtype": "float32",
                "checkpoint": {"every": 3},
                "log_every": 1,
            }
        )
    )
    return load(TrainConfig, path)


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
            target_dtype=target.dtype,
            tokenizer_sha256=meta.tokenizer_sha256,
            data=meta.identity,
            n=meta.n,
            length=meta.length,
            layers=AUX_LAYERS,
            hidden_size=32,
            dtype="float32",
            shard_rows=4,
            engine="this test",
        ),
    )
    records = open_rows(packed, meta)

    @jax.jit
    def run(*row: np.ndarray) -> jax.Array:
        aux = model(*row, aux_layers=AUX_LAYERS)[1]
        assert aux is not None
        return aux[0].reshape(meta.length, len(AUX_LAYERS), -1)

    for shard in range(len(manifest.names)):
        rows = [read_example(records[i]) for i in manifest.rows(shard)]
        found = [run(*(row[name][None] for name in ("tokens", "positions", "segment_ids"))) for row in rows]
        manifest = write_shard(folder, manifest, shard, rows, [encode(np.asarray(x), "float32") for x in found])
    return folder


@pytest.fixture
def cached(recipe: TrainConfig, unknown: Path, stored: Path) -> TrainConfig:
    return recipe.model_copy(update={"target": str(unknown), "features": stored})


@pytest.fixture(scope="module")
def storage_server() -> Iterator[None]:
    """Every library that reads buckets is told where this one is, by the variable that it knows."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("emulator.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # clients hang up when they have seen enough
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
            patch.setenv(name, address)
        yield
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()


@pytest.fixture
def bucket(storage_server: None, request: pytest.FixtureRequest) -> BucketPath:
    """A place of the test's own."""
    return BucketPath(f"gs://open/{request.node.name}")
