"""What an export says of the target that its draft was made for."""

import shutil
from pathlib import Path

import pytest
import yaml

from specexit.drafts.config import DraftError
from specexit.drafts.directory import read_config
from specexit.drafts.export import FORMATS
from specexit.drafts.policy import (
    PolicyFile,
    Serving,
    read_policy,
    write_policy,
)
from specexit.schemas.target import find_target, load_target_config
from tests.shared.published import (
    SHAPE,
    exported,
    write_target,
)


@pytest.fixture
def target(tmp_path):
    return write_target(tmp_path / "of")


def test_an_export_for_a_target_called_otherwise_is_found_by_its_own_name(tmp_path, target, write_random_draft):
    """Every command looks there for the target that `config.json` names, and refused the folder."""
    _, _, out = exported(write_random_draft(tmp_path / "draft", "draft", **SHAPE), tmp_path, "plugin", target)
    found = find_target(None, out, name=read_config(out).target_name)
    assert found.folder == load_target_config(target).folder


@pytest.mark.parametrize("form", FORMATS)
def test_a_draft_is_not_exported_for_a_target_of_other_sizes(form, tmp_path, write_random_draft):
    """`vllm serve` would fetch that target, and end over its shapes, or serve a draft that guesses nothing."""
    folder = write_random_draft(tmp_path / "draft", "fc", **SHAPE)
    other = write_target(tmp_path / "of", hidden_size=128)
    with pytest.raises(DraftError, match="target_hidden_size is 64, but target small has hidden_size 128"):
        exported(folder, tmp_path, form, other)
    assert not (tmp_path / form).exists()


@pytest.mark.parametrize("form", ["speculators", "plugin", "eagle3"])
def test_a_published_folder_names_its_target_on_the_hub_and_no_path_of_this_machine(
    form, tmp_path, target, write_random_draft
):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    callers = {"tenants": {"0123456789abcdef": "off"}, "loras": {"acme": "off"}}
    write_policy(folder, PolicyFile(serving=Serving.model_validate(callers | {"share": 0.5})))
    config, _, out = exported(folder, tmp_path, form, target, base_model="org/model")
    if form == "speculators":
        assert config["speculators_config"]["verifier"]["name_or_path"] == "org/model"
    assert yaml.safe_load((out / "README.md").read_text().split("---")[1])["base_model"] == "org/model"
    said = "".join(path.read_text() for path in out.iterdir() if path.suffix != ".safetensors")
    for word in (str(tmp_path), "0123456789abcdef", "acme"):  # nor whom it serves
        assert word not in said
    assert form == "eagle3" or read_policy(out).serving == Serving(share=0.5)


def test_a_shipped_target_is_named_by_a_path_that_is_its_own_from_everywhere(tmp_path, write_random_draft, monkeypatch):
    """Its YAML says `models/Qwen3-8B`, which vLLM would look for on the Hub from any other folder."""
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 8, "own_embeddings": True, "target_hidden_size": 4096, "vocab_size": 151936}
    sizes |= {"eagle_aux_hidden_state_layer_ids": (2, 18, 33), "target_num_hidden_layers": 36}
    folder = write_random_draft(tmp_path / "draft", None, **sizes)
    config, _, _ = exported(folder, tmp_path, "speculators", "qwen3-8b")
    verifier = config["speculators_config"]["verifier"]
    assert verifier["name_or_path"] == str(tmp_path / "models" / "Qwen3-8B")


def test_a_target_in_the_hub_s_cache_has_its_name_there(tmp_path, target, write_random_draft):
    """Its folder is called by the hash of a commit, which nobody could serve."""
    lies = load_target_config(target).folder
    shutil.copytree(lies, cached := tmp_path / "hub" / "models--Qwen--Qwen3-4B" / "snapshots" / "0123abc")
    Path(target).write_text(Path(target).read_text().replace(str(lies), str(cached)))
    _, _, out = exported(write_random_draft(tmp_path / "draft", "draft", **SHAPE), tmp_path, "eagle3", target)
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "Qwen/Qwen3-4B"
    assert "vllm serve Qwen/Qwen3-4B --speculative-config" in card
    assert "0123abc" not in card


@pytest.mark.parametrize("form", ["plugin", "eagle3"])
def test_a_target_without_a_name_on_the_hub_is_not_served_by_its_folder_s(form, tmp_path, target, write_random_draft):
    """The card's command asked the Hub for a model that is called as a folder of this machine, or as nothing."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    _, _, out = exported(folder, tmp_path, form, target)
    card = (out / "README.md").read_text()
    assert "base_model" not in yaml.safe_load(card.split("---")[1])
    assert "vllm serve TARGET --speculative-config" in card
    assert "`TARGET` is the folder of small, or its name on the Hub." in card
    _, _, out = exported(folder, tmp_path / "b", form, target, base_model="models/my target #2")
    card = (out / "README.md").read_text()
    assert "vllm serve 'models/my target #2' --speculative-config" in card
    assert "`TARGET`" not in card
