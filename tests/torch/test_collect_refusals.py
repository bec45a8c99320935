"""What stops a collection before it starts: keys that are wrong or missing, folders and targets that cannot be used."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from specexit import tiny
from specexit.config import ConfigError, load
from specexit.method.splits import SplitError
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import load_target_config
from torch_specexit.collecting import collect

TARGET = load_target_config("tiny-reasoner")


def test_a_ray_cluster_that_is_not_there(tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "specexit", "collect", "target=tiny-reasoner", "split=test", "n=2"]
    done = subprocess.run(
        [*command, f"out={tmp_path / 'out'}", "ray=auto"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ray is 'auto': " in done.stderr
    assert "expected a cluster's address, auto or local" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not empty and holds no run\.yaml"):
        collect(CollectConfig(target="tiny-reasoner", out=tmp_path, split="test", n=2))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=r"prompts\.jsonl: is a file, expected a folder"):
        collect(CollectConfig(target="tiny-reasoner", out=tmp_path / "prompts.jsonl", split="test", n=2))
    assert (tmp_path / "prompts.jsonl").read_text() == "mine"


def test_a_tokenizer_without_think_markers(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"</think>"', '"</thought>"'))
    (tmp_path / "target.yaml").write_text(yaml.safe_dump(TARGET.model_dump(mode="json") | {"path": str(folder)}))
    with pytest.raises(SplitError, match=r"think marker '</think>' is \d+ tokens .* expected exactly one"):
        collect(CollectConfig(target=str(tmp_path / "target.yaml"), out=tmp_path / "out", split="test", n=2))
    assert not (tmp_path / "out").exists()


def test_a_target_whose_marker_is_several_tokens_is_told_that_before_anything_that_has_a_way_round(tmp_path):
    """As gpt-oss: its architecture was refused first, with a key that leads to this very refusal."""
    folder = tmp_path / "model"
    shutil.copytree(tiny.MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    fields = json.loads((folder / "config.json").read_text()) | {"architectures": ["GptOssForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(fields))
    marker = {"path": str(folder), "think_start": "<|channel|>analysis<|message|>"}
    (tmp_path / "target.yaml").write_text(yaml.safe_dump(TARGET.model_dump(mode="json") | marker))
    with pytest.raises(SplitError, match=r"'<\|channel\|>analysis<\|message\|>' is \d+ tokens .* expected exactly one"):
        collect(CollectConfig(target=str(tmp_path / "target.yaml"), out=tmp_path / "out", split="test", n=2))


def test_an_unknown_target(tmp_path):
    with pytest.raises(ConfigError, match=r"targets 'tiny-reasonr' does not exist, did you mean 'tiny-reasoner'\?"):
        collect(CollectConfig(target="tiny-reasonr", out=tmp_path / "out", split="test"))


@pytest.mark.parametrize("sources", [[], ["split=test", "prompts=p.jsonl"], ["parts={}"]])
def test_exactly_one_source_of_prompts(sources):
    with pytest.raises(ConfigError, match="exactly one of prompts, split and parts is needed"):
        load(CollectConfig, overrides=["target=t", "out=o", *sources])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["parts={../up: p.jsonl}"], "expected one that a folder may have"),
        (["parts.a={n: 3}"], r"parts\.a is \{'n': 3\}: .*exactly one of prompts and split is needed"),
        (["parts.a=p.jsonl", "parts.a.n=3"], r"parts\.a\.n=3: a is 'p\.jsonl' already, expected keys and values"),
        (["parts.a=p.jsonl", "split=test"], "exactly one of prompts, split and parts is needed"),
    ],
)
def test_parts_that_cannot_be(parts, said):
    with pytest.raises(ConfigError, match=said):
        load(CollectConfig, overrides=["target=t", "out=o", *parts])


def test_each_part_is_a_run_of_its_own():
    parts = ["parts.a.prompts=gsm8k:p.jsonl", "parts.b={split: test, n: 3}", "parts.c=more.jsonl"]
    each = load(CollectConfig, overrides=["target=t", "out=o", "n=5", *parts]).each()
    found = [(str(one.out), one.prompts, one.split, one.n) for one in each]
    assert found == [("o/a", "gsm8k:p.jsonl", None, 5), ("o/b", None, "test", 3), ("o/c", "more.jsonl", None, 5)]


def test_no_target_is_an_error():
    with pytest.raises(ConfigError, match="key 'target' is required"):
        load(CollectConfig, overrides=["out=o", "split=test"])


def test_an_unknown_key():
    with pytest.raises(ConfigError, match="unknown key 'temprature', did you mean 'temperature'"):
        load(CollectConfig, overrides=["target=t", "out=o", "split=test", "temprature=1"])
