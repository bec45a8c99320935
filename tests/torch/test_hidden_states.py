"""`specexit features` without an engine: what is asked of one, what a kill costs, what is refused before one starts."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from specexit.config import ConfigError
from specexit.data.annotate import label
from specexit.data.features import FeatureError, Features, decode, read_manifest
from specexit.data.packed import open_rows, read_example, read_meta
from specexit.data.packing import pack
from specexit.data.sequences import Example
from specexit.data.traces import Trace, write_traces
from specexit.outputs import Ended
from specexit.schemas.engine import EngineConfig
from specexit.schemas.features import FeaturesConfig
from specexit.schemas.pack import PackConfig
from specexit.schemas.target import TargetConfig, load_target_config
from torch_specexit import hidden_states
from torch_specexit.hidden_states import features

CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector"


def pack_texts(n: int, make_trace: Callable[..., Trace], folder: Path) -> Path:
    """Rows of two texts each."""
    tokenizer = load_target_config("tiny-reasoner").tokenizer()
    traces = [make_trace(id=str(i), prompt_ids=[1, 2, 3, i]) for i in range(n)]
    write_traces(folder / "traces" / "traces.parquet", [label(trace, tokenizer, "answer") for trace in traces])
    pack(PackConfig(traces=folder / "traces", out=folder / "packed", length=40, workers=1))
    return folder / "packed"


@pytest.fixture(scope="module")
def packed(make_trace: Callable[..., Trace], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_texts(12, make_trace, tmp_path_factory.mktemp("packed"))


@pytest.fixture
def config(packed: Path, tmp_path: Path) -> FeaturesConfig:
    return FeaturesConfig(data=packed, out=tmp_path / "features", dtype="float32", shard_rows=2)


class Pretended(hidden_states.Engine):
    """Gives for each token its id and its place in the text; dies when it is asked for more texts than it may be."""

    asked: list[list[int]]
    dies_behind: int

    def __init__(self, config: object, target: object, manifest: object, folder: Path) -> None:
        self.manifest = manifest

    def check(self, texts: Sequence[np.ndarray]) -> None:
        assert len(texts) == 12, "all that there are"

    def states(self, texts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        for text in texts:
            if len(self.asked) == self.dies_behind:
                raise KeyboardInterrupt
            self.asked.append(text.tolist())
            found = np.zeros((len(text), 3, 192), np.float32)
            found[..., 0], found[..., 1] = text[:, None], np.arange(len(text))[:, None]
            yield found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Pretended]:
    monkeypatch.setattr(hidden_states, "Engine", Pretended)
    monkeypatch.setattr(Pretended, "asked", [], raising=False)
    monkeypatch.setattr(Pretended, "dies_behind", -1, raising=False)
    return Pretended


def rows_of(packed: Path) -> list[Example]:
    meta = read_meta(packed)
    records = open_rows(packed, meta)
    return [read_example(records[i]) for i in range(meta.n)]


def test_each_packed_text_is_a_request_of_its_own(config: FeaturesConfig, engine: type[Pretended]) -> None:
    manifest = features(config)
    assert manifest.layers == (1, 3, 4)
    assert len(manifest.names) == 3
    assert len(engine.asked) == 12
    stored = Features(config.out, manifest)
    for i, row in enumerate(rows_of(config.data)):
        found, real = decode(stored.read(i, row)), row["segment_ids"] > 0
        np.testing.assert_array_equal(found[real, 2, 0], row["tokens"][real])
        np.testing.assert_array_equal(found[real, 1, 1], row["positions"][real])
        assert not found[~real].any()


def test_a_kill_costs_the_shard_that_was_being_written(config: FeaturesConfig, engine: type[Pretended]) -> None:
    engine.dies_behind = 9
    with pytest.raises(KeyboardInterrupt):
        features(config)
    done = read_manifest(config.out).shards
    assert len(done) == 2
    engine.dies_behind, engine.asked = -1, []
    manifest = features(config)
    assert len(manifest.shards) == 3
    assert {name: manifest.shards[name] for name in done} == done
    assert len(engine.asked) == 4, "the texts of the last shard alone"
    engine.asked = []
    assert features(config) == manifest
    assert not engine.asked, "what is finished starts no engine"


def test_a_notice_leaves_no_states_behind(
    config: FeaturesConfig, engine: type[Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM, as a preemption sends it, ended the process where it stood, and a shard's states stayed in TMPDIR."""
    scratch: list[Path] = []

    def noticed(self: Pretended, config: object, target: object, manifest: object, folder: Path) -> None:
        scratch.append(folder)
        assert folder.is_dir()
        end = signal.getsignal(signal.SIGTERM)
        assert callable(end), "nobody listens"
        end(signal.SIGTERM, None)

    monkeypatch.setattr(engine, "__init__", noticed)
    monkeypatch.setattr(signal, "raise_signal", lambda _: None)
    with pytest.raises(Ended):
        features(config)
    assert not scratch[0].exists()


def test_states_that_vllm_could_not_write_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so in a log, and what was told was that a file in /tmp does not exist."""

    def missing(path: str) -> None:
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setitem(sys.modules, CONNECTOR, SimpleNamespace(load_hidden_states=missing))
    said = r"7\.safetensors: vLLM has not written .* expected room in TMPDIR \([\d,]+ MiB free\) for those of a whole"
    with pytest.raises(FeatureError, match=said):
        hidden_states._written(str(tmp_path / "7.safetensors"))


@pytest.mark.parametrize("right_on_the_first", [True, False])
def test_a_teacher_is_judged_by_many_texts_however_few_a_shard_has(
    right_on_the_first: bool, make_trace: Callable[..., Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By those of the first shard, where long rows are one or two: a tie refused a target, an easy token let a wrong
    teacher pass."""
    asked: list[list[int]] = []

    def generate(prompts: list[dict[str, list[int]]], *_: object, **__: object) -> Iterator[SimpleNamespace]:
        for ids in (prompt["prompt_token_ids"] for prompt in prompts if prompt != {"prompt_token_ids": [0]}):
            token = int((len(asked) < 2) != right_on_the_first)
            path = {"hidden_states_path": str(len(asked))}
            asked.append(ids)
            yield SimpleNamespace(kv_transfer_params=path, outputs=[SimpleNamespace(token_ids=[token])])

    def states(path: str) -> dict[str, torch.Tensor]:
        ids = torch.tensor(asked[int(path)])
        return {"token_ids": ids, "hidden_states": torch.zeros(len(ids), 3, 192)}

    llm = SimpleNamespace(generate=lambda *given, **how: list(generate(*given, **how)))
    stub = SimpleNamespace(load_hidden_states=states, cleanup_hidden_states=lambda _: None)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **_: None))
    monkeypatch.setitem(sys.modules, CONNECTOR, stub)
    monkeypatch.setattr(hidden_states, "connector", dict)
    monkeypatch.setattr(hidden_states, "start_engine", lambda *_: llm)
    monkeypatch.setattr(hidden_states, "version_of_vllm", lambda: "0")
    monkeypatch.setattr("specexit.data.teacher.choices", lambda states, *_: np.zeros(len(states), np.int64))
    packed = pack_texts(64, make_trace, tmp_path)
    config = FeaturesConfig(data=packed, out=tmp_path / "features", dtype="float32", shard_rows=1)
    if right_on_the_first:
        with pytest.raises(FeatureError, match="behind 2 of 64 texts only, expected nearly all"):
            features(config)
        assert not read_manifest(config.out).shards
    else:
        assert len(features(config).shards) == 32
    assert len({len(piece) for piece in asked[:64]}) > 10, "each ends elsewhere"


def test_what_is_refused_before_an_engine_starts(config: FeaturesConfig, engine: type[Pretended]) -> None:
    features(config)
    engine.asked = []
    with pytest.raises(FeatureError, match=r"dtype is float32, but this run says float8: choose another `out`"):
        features(config.model_copy(update={"dtype": "float8"}))
    with pytest.raises(FeatureError, match=r"aux_layers=\[1, 9\]: expected ids from 0 \(the embedding\) to 4"):
        features(config.model_copy(update={"aux_layers": (1, 9), "out": config.out / "other"}))
    with pytest.raises(ConfigError, match=r"'tiny-mixed', but .* belongs to 'tiny-reasoner': expected target=tiny-re"):
        features(config.model_copy(update={"target": "tiny-mixed", "out": config.out / "other"}))
    with pytest.raises(ConfigError, match="does not exist"):
        features(config.model_copy(update={"target": "nobody"}))
    poor = lacking(load_target_config("tiny-reasoner"), "rope_theta", config.out / "model")
    with pytest.raises(ConfigError, match=r"model/config\.json: no value for rope_theta, expected the model's own"):
        features(config.model_copy(update={"target": str(poor), "out": config.out / "other"}))
    assert not engine.asked
    assert not (config.out / "other").exists()


def test_an_engine_of_another_model_does_not_go_on(config: FeaturesConfig, engine: type[Pretended]) -> None:
    """Shards of two of them would lie in one folder, and be trained on as one; how fast it runs may change."""
    begun = {"quantization": "fp8", "dtype": "float16", "gpu_memory_utilization": 0.9}
    engine.dies_behind = 9
    with pytest.raises(KeyboardInterrupt):
        features(with_extra(config, **begun))
    engine.dies_behind, engine.asked = -1, []
    for change, said in (
        ({"quantization": None}, r"quantization fp8 \(now None\)"),
        ({"max_model_len": 64}, r"max_model_len not told \(now 64\)"),
    ):
        with pytest.raises(
            FeatureError, match=rf"features\.json: begun with other arguments of the engine: {said}: ch"
        ):
            features(with_extra(config, **begun | change))
    with pytest.raises(FeatureError, match="target_dtype is float16, but this run says bfloat16: choose another `out`"):
        features(with_extra(config, **begun | {"dtype": "bfloat16"}))
    assert not engine.asked
    assert len(features(with_extra(config, **begun | {"gpu_memory_utilization": 0.5})).shards) == 3


def test_longrope_of_other_factors_than_in_serving_is_refused(config: FeaturesConfig, engine: type[Pretended]) -> None:
    """Rows are shorter than what is served, and vLLM chooses by the length that it is started for."""
    target = load_target_config("tiny-reasoner")
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512}
    folder = shutil.copytree(target.folder, config.out.parent / "long")
    (folder / "config.json").write_text(json.dumps(target.hf_config() | {"rope_parameters": rope}))
    said = target.model_copy(update={"path": str(folder), "max_model_len": 1024}).model_dump(mode="json")
    (folder / "target.yaml").write_text(yaml.safe_dump(said))
    config = config.model_copy(update={"target": str(folder / "target.yaml")})
    with pytest.raises(
        FeatureError, match=r"max_model_len=41, here, and .* 1024, .* engine\.extra\.max_model_len=1024"
    ):
        features(config)
    assert len(features(with_extra(config, max_model_len=1024)).shards) == 3


def with_extra(config: FeaturesConfig, **extra: object) -> FeaturesConfig:
    return config.model_copy(update={"engine": EngineConfig(extra=extra)})


def lacking(target: TargetConfig, field: str, folder: Path) -> Path:
    """A copy of a target whose ``config.json`` does not say something, in either of its places."""
    shutil.copytree(target.folder, folder)
    said = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in said.items() if key not in (field, "rope_parameters")}
    (folder / "config.json").write_text(json.dumps(kept))
    moved = target.model_copy(update={"path": str(folder)})
    (folder / "target.yaml").write_text(yaml.safe_dump(moved.model_dump(mode="json", exclude_defaults=True)))
    return folder / "target.yaml"
