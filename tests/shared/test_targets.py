"""The shipped targets, and where their sizes come from. Costs a second."""

import json
from pathlib import Path

import pytest

from specexit.config import ConfigError
from specexit.schemas.target import TargetConfig, load_target_config

FULL_SIZE = ["qwen3-4b-thinking-2507", "deepseek-r1-distill-llama-8b"]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_target_is_known_without_its_weights(name: str) -> None:
    target = load_target_config(name)
    fields = target.hf_config()
    layers = fields["num_hidden_layers"]
    assert target.aux_layers == (2, layers // 2, layers - 3, layers)
    assert fields["num_attention_heads"] % fields["num_key_value_heads"] == 0


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    target = load_target_config(FULL_SIZE[0])
    assert target.config is not None
    (tmp_path / "config.json").write_text(json.dumps(target.config | {"num_hidden_layers": 28, "eos_token_id": 1}))
    here = target.model_copy(update={"path": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"config\.json: num_hidden_layers is 28, but target .* says 36"):
        here.hf_config()
    (tmp_path / "config.json").write_text(json.dumps(target.config | {"eos_token_id": 1}))
    assert here.hf_config()["eos_token_id"] == 1


def test_without_weights_or_sizes_the_folder_is_named(tmp_path: Path) -> None:
    target = TargetConfig(name="t", path=str(tmp_path / "nowhere"), aux_layers=(1,), max_model_len=8)
    with pytest.raises(ConfigError, match=r"nowhere/config\.json: target t cannot be read"):
        target.hf_config()
