"""Where a small model's parts go in a large one, what does not fit, and files of more than one shard."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from specexit import tiny
from specexit.config import ConfigError
from specexit.schemas.stand_in import StandInConfig
from specexit.schemas.target import load_target_config
from specexit.stand_in import stand_in, write
from specexit.stand_in.files import write_shards
from specexit.stand_in.shape import Fit, Shape, StandInError
from specexit.stand_in.write import read_shape
from tests.shapes import STAND_IN, TINY_DRAFT

TINY = Shape.read(load_target_config("tiny-reasoner").hf_config(), "tiny-reasoner")
LARGE = Shape(hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128, intermediate=3072, vocab=151_936, tied=True)


def fit(**changes: object) -> Fit:
    return Fit(TINY, replace(LARGE, **changes), (1, 3, 4), (2, 14, 25, 28))  # pyright: ignore[reportArgumentType]


def test_every_layer_that_the_draft_reads_is_one_that_the_large_ones_draft_reads() -> None:
    at = fit()
    assert [at.readable[i] for i in at.reads] == [2, 25, 28]
    for read, i in zip((1, 3, 4), at.reads, strict=True):
        # Layer k of vLLM's counting has k layers before it.
        assert sum(place < at.readable[i] for place in at.places) == read
    assert at.places == sorted(set(at.places))


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([2, 4, 8, 16]), st.integers(1, 4))
def test_a_query_head_keeps_the_keys_and_values_of_its_group(
    small_kv: int, small_group: int, large_kv: int, large_group: int
) -> None:
    small = replace(TINY, kv_heads=small_kv, heads=small_kv * small_group)
    large = replace(LARGE, kv_heads=large_kv, heads=large_kv * large_group)
    if small_kv * -(-small_group // large_group) > large_kv:
        with pytest.raises(StandInError, match="num_key_value_heads"):
            Fit(small, large, (1, 3, 4), (2, 14, 25, 28))
        return
    at = Fit(small, large, (1, 3, 4), (2, 14, 25, 28))
    assert len(set(at.query_places)) == small.heads
    assert max(at.query_places) < large.heads
    for head, place in enumerate(at.query_places):
        assert at.kv_sources[place // large_group] == head // small_group


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 192}, "hidden_size is 192, expected at least 193"),
        ({"vocab": 640}, "vocab_size is 640, expected at least 641"),
        ({"head_dim": 96}, "head_dim is 96, expected a multiple of 64"),
        ({"intermediate": 100}, "intermediate_size is 100, expected at least 384"),
        ({"kv_heads": 1, "heads": 2}, "num_key_value_heads is 1, expected at least 2"),
        ({"layers": 3}, "num_hidden_layers is 3, expected at least 4"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(StandInError, match=message):
        fit(**changes)


def test_too_few_layers_between_two_that_are_read_are_named() -> None:
    with pytest.raises(StandInError, match="aux layers 0 and 0 have 0 layers between them, expected at least 1"):
        Fit(TINY, LARGE, (1, 3, 4), (0, 14, 25, 28))


def test_another_architecture_is_refused() -> None:
    target = load_target_config("deepseek-r1-distill-llama-8b")
    with pytest.raises(StandInError, match=r"architectures is \['LlamaForCausalLM'\], expected \['Qwen3ForCausalLM'\]"):
        Shape.read(target.hf_config(), target.name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, r"mine: architectures is None, expected \['Qwen3ForCausalLM'\]"),
        ({"hidden_size": None}, "mine: hidden_size is None, expected a number above 0"),
        ({"vocab_size": "many"}, "mine: vocab_size is 'many', expected a number above 0"),
        ({"head_dim": True}, "mine: head_dim is True, expected a number above 0"),
        ({"num_attention_heads": -1}, "mine: num_attention_heads is -1, expected a number above 0"),
        ({"num_key_value_heads": 0}, "mine: num_key_value_heads is 0, expected a number above 0"),
        ({"num_attention_heads": 6}, "num_attention_heads is 6, expected a multiple of num_key_value_heads, 8"),
        ({"tie_word_embeddings": None}, "mine: tie_word_embeddings is None, expected true or false"),
    ],
)
def test_sizes_that_no_model_has_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StandInError, match=message):
        Shape.read({"architectures": ["Qwen3ForCausalLM"]} | LARGE.fields() | changes, "mine")


def test_the_path_in_a_targets_yaml_counts_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere else; another model that lies where the command is run would be the shape in silence."""
    (tmp_path / "sub" / "model").mkdir(parents=True)
    fields = json.loads((tiny.MODEL_DIR / "config.json").read_text())
    (tmp_path / "sub" / "model" / "config.json").write_text(json.dumps(fields | {"intermediate_size": 4321}))
    target = load_target_config("tiny-reasoner").model_copy(update={"path": "model"})
    (tmp_path / "sub" / "t.yaml").write_text(yaml.safe_dump(target.model_dump(mode="json")))
    monkeypatch.chdir(tmp_path)
    assert read_shape("sub/t.yaml")[1]["intermediate_size"] == 4321


def test_a_file_that_is_no_config_is_told(tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"shape\.json: holds a list, expected a model's config\.json"):
        read_shape(str(tmp_path / "shape.json"))


def test_a_shape_that_is_too_small_is_named(tmp_path: Path) -> None:
    (tmp_path / "narrow.json").write_text(json.dumps(STAND_IN | {"hidden_size": 128}))
    asked = StandInConfig(target="tiny-reasoner", shape=str(tmp_path / "narrow.json"), out=tmp_path / "out")
    with pytest.raises(StandInError, match=r"shape=.*narrow\.json: hidden_size is 128, expected at least 193"):
        stand_in(asked)


@pytest.mark.parametrize(
    ("geometry", "draft_vocab", "message"),
    [
        ({}, 1500, "draft_vocab_size is 1500, expected 512 or more, and fewer than the target's 1500"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, 1200, "num_key_value_heads is 4, expected at least 5"),
    ],
)
def test_a_draft_that_does_not_fit_is_told_before_a_shard_is_written(
    geometry: dict[str, int], draft_vocab: int, message: str, tmp_path: Path, write_random_draft, monkeypatch
) -> None:
    draft = write_random_draft(tmp_path / "small", "draft", **(TINY_DRAFT | geometry))
    (tmp_path / "shape.json").write_text(json.dumps(STAND_IN))
    monkeypatch.setattr(write, "write_shards", lambda *_: pytest.fail("a shard was written"))
    settings = {"target": "tiny-reasoner", "shape": str(tmp_path / "shape.json"), "out": tmp_path / "out"}
    with pytest.raises(StandInError, match=message):
        stand_in(StandInConfig(**settings, draft=draft, draft_vocab_size=draft_vocab))
    assert not (tmp_path / "out").exists()


def copy_of_tiny(folder: Path, **changes: object) -> str:
    """The tiny reasoner in a folder of its own, fields of its ``config.json`` changed; returns its YAML."""
    target = load_target_config("tiny-reasoner")
    shutil.copytree(target.folder, folder / "model")
    (folder / "model" / "config.json").write_text(json.dumps(target.hf_config() | changes))
    own = target.model_dump(mode="json") | {"path": str(folder / "model")}
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    return str(folder / "own.yaml")


def test_what_a_recent_config_says_of_each_layer_is_said_of_the_large_ones_layers(tmp_path: Path) -> None:
    """transformers refuses a ``config.json`` with fewer kinds of layers than layers."""
    small = copy_of_tiny(tmp_path, layer_types=["full_attention"] * 4, max_window_layers=4, use_sliding_window=False)
    (tmp_path / "shape.json").write_text(json.dumps(STAND_IN))
    stand_in(StandInConfig(target=small, shape=str(tmp_path / "shape.json"), out=tmp_path / "out"))
    fields = json.loads((tmp_path / "out" / "target" / "config.json").read_text())
    assert fields["layer_types"] == ["full_attention"] * STAND_IN["num_hidden_layers"]
    assert fields["max_window_layers"] == STAND_IN["num_hidden_layers"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_types": ["full_attention", "sliding_attention"] * 2},
            r"layer_types has \['sliding_attention'\], only",
        ),
        ({"use_sliding_window": True}, "use_sliding_window is True, only False"),
    ],
)
def test_a_small_model_with_a_window_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(STAND_IN))
    small, shape = copy_of_tiny(tmp_path, **changes), str(tmp_path / "shape.json")
    with pytest.raises(StandInError, match=f"tiny-reasoner: {message}"):
        stand_in(StandInConfig(target=small, shape=shape, out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is true, which is implemented for Qwen2 only"),
        ({"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window is True, only False"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is .*fp8.*, only {} is implemented"),
        (
            {"layer_types": ["full_attention", "sliding_attention"] * 6},
            r"layer_types has \['sliding_attention'\], only",
        ),
    ],
)
def test_a_shape_with_more_than_sizes_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    """A stand-in used to come without biases and windows, and without a word."""
    (tmp_path / "shape.json").write_text(json.dumps(STAND_IN | changes))
    with pytest.raises(StandInError, match=f"^shape=.*shape.json: {message}"):
        stand_in(StandInConfig(target="tiny-reasoner", shape=str(tmp_path / "shape.json"), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_shape_is_a_target_or_a_models_own_config(tmp_path: Path) -> None:
    name, fields, layers = read_shape("qwen3-4b-thinking-2507")
    assert (name, fields["hidden_size"], layers) == ("qwen3-4b-thinking-2507", 2560, (2, 18, 33, 36))
    model = tmp_path / "Qwen3-4B"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(fields))
    assert read_shape(str(model)) == ("Qwen3-4B", fields, (2, 18, 33, 36))


def test_shards_hold_every_tensor_once_and_the_index_says_where(tmp_path: Path) -> None:
    tensors = {f"w{i}": np.full((4, i + 1), i, np.float32) for i in range(5)}
    made = list(write_shards(tmp_path, {n: lambda t=t: t for n, t in tensors.items()}, np.dtype(np.float32), 50))
    assert made == list(tensors)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)
