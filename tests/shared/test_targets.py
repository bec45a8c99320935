"""The shipped targets, and where their sizes come from. Costs a second."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from specexit.config import REPOSITORY, ConfigError, find
from specexit.drafts.fingerprints import target_fingerprint
from specexit.schemas.target import TargetConfig, find_target, load_target_config, save_target
from specexit.stand_in.files import parameters
from specexit.tiny import EMBEDDED
from torch_specexit.kv_cache import weight_bytes

FULL_SIZE = ["qwen3-4b-thinking-2507", "deepseek-r1-distill-llama-8b", "qwen3-30b-a3b-thinking-2507"]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_target_is_known_without_its_weights(name: str) -> None:
    target = load_target_config(name)
    fields = target.hf_config()
    layers = fields["num_hidden_layers"]
    assert target.aux_layers == (2, layers // 2, layers - 3, layers)
    assert fields["num_attention_heads"] % fields["num_key_value_heads"] == 0


def test_full_size_targets_are_served_in_bfloat16() -> None:
    """So are their drafts, as `convert` writes them; a target that does not say its type is, too."""
    shipped = [load_target_config(path.stem) for path in (REPOSITORY / "configs" / "targets").glob("*.yaml")]
    full = {target.name: target.dtype for target in shipped if target.path not in EMBEDDED}
    assert len(full) >= 4
    assert set(full.values()) == {"bfloat16"}
    assert TargetConfig.model_fields["dtype"].default == "bfloat16"


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    target = load_target_config(FULL_SIZE[0])
    assert target.config is not None
    (tmp_path / "config.json").write_text(json.dumps(target.config | {"num_hidden_layers": 28, "eos_token_id": 1}))
    here = target.model_copy(update={"path": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"config\.json: num_hidden_layers is 28, but target .* says 36"):
        here.hf_config()
    (tmp_path / "config.json").write_text(json.dumps(target.config | {"eos_token_id": 1}))
    assert here.hf_config()["eos_token_id"] == 1


@pytest.mark.parametrize("asked", ["positions", "long_behind"])
def test_a_count_that_is_none_is_said_with_its_file_once(asked: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 0}')
    target = TargetConfig(name="t", path=str(tmp_path), aux_layers=(1,), max_model_len=8)
    said = rf"^{re.escape(str(tmp_path))}/config\.json: num_hidden_layers is 0, expected a whole number above 0$"
    with pytest.raises(ConfigError, match=said):
        getattr(target, asked)()


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
def test_a_number_is_none_in_quotes(name: str, tmp_path: Path) -> None:
    """A plan ended in a traceback; without quotes it is the number of the config.json that it was copied from."""
    said = {"path": "m", "name": "t", "aux_layers": [1], "max_model_len": 8}
    for value, written in ((1e-6, "1e-06"), (1e6, "1e6")):
        (tmp_path / "t.yaml").write_text(f"{json.dumps(said)[:-1]}, config: {{{name}: {written}}}}}")
        target = load_target_config(str(tmp_path / "t.yaml"))
        assert target.needed(name) == {name: value}
        quoted = target.model_copy(update={"config": {name: written}})
        with pytest.raises(ConfigError, match=rf"^target t: config: {name} is '{written}', expected a number$"):
            quoted.needed(name)


def test_fields_that_a_config_lacks_are_named_with_their_place(tmp_path: Path) -> None:
    said = {"vocab_size": 8, "rope_parameters": {"sliding": {}, "full_attention": {"rope_theta": 5e5}}}
    target = TargetConfig(name="t", path=str(tmp_path), aux_layers=(1,), max_model_len=8)
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert target.needed("rope_theta", "vocab_size") == {"rope_theta": 5e5, "vocab_size": 8}
    with pytest.raises(
        ConfigError, match=rf"^{tmp_path}/config\.json: no value for rms_norm_eps, hidden_size, expected"
    ):
        target.needed("rms_norm_eps", "vocab_size", "hidden_size")
    elsewhere = target.model_copy(update={"path": str(tmp_path / "nowhere"), "config": {"rope_scaling": "none"}})
    with pytest.raises(ConfigError, match=r"^target t: config: rope_scaling is 'none', expected keys and values"):
        elsewhere.needed("vocab_size")


def test_without_weights_or_sizes_the_folder_is_named(tmp_path: Path) -> None:
    target = TargetConfig(name="t", path=str(tmp_path / "nowhere"), aux_layers=(1,), max_model_len=8)
    with pytest.raises(ConfigError, match=r"nowhere/config\.json: target t cannot be read"):
        target.hf_config()
    with pytest.raises(
        ConfigError, match=r"nowhere/tokenizer\.json: target t .* '.*nowhere', .* say target=FILE\.yaml"
    ):
        target.tokenizer()


def test_a_folder_carries_its_target(tmp_path: Path) -> None:
    """A target of one's own is found again from what was made with it, wherever its YAML lies."""
    mine = load_target_config("tiny-reasoner").model_copy(update={"name": "mine", "split_endings": ("\n\n", "?")})
    save_target(tmp_path / "traces", mine)
    assert find_target(None, tmp_path / "traces", name="mine") == mine
    assert find_target(None, tmp_path / "draft", tmp_path / "traces" / "traces-00000.parquet", name="mine") == mine
    assert find_target("tiny-reasoner", tmp_path / "traces").name == "tiny-reasoner"
    assert find_target(None, tmp_path, name="tiny-reasoner").name == "tiny-reasoner"


def test_where_no_target_is_said_or_known_the_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected target=NAME or target=FILE\.yaml"):
        find_target(None, tmp_path)
    with pytest.raises(ConfigError, match=r"targets 'mine' does not exist.*; say target=FILE\.yaml for "):
        find_target(None, tmp_path, name="mine")
    with pytest.raises(ConfigError, match=r"targets 'x{199}\.\.\. does not exist; there is .*; say target="):
        find_target(None, tmp_path, name="x" * 5000)
    save_target(tmp_path, load_target_config("tiny-reasoner"))
    with pytest.raises(ConfigError, match=r"target\.yaml is of 'tiny-reasoner', but the rest belongs to 'mine'"):
        find_target(None, tmp_path, name="mine")


def test_a_target_given_has_to_be_the_one_that_is_named(tmp_path: Path) -> None:
    mine = load_target_config("tiny-reasoner").model_copy(update={"path": str(tmp_path / "elsewhere")})
    save_target(tmp_path, mine)
    assert find_target(str(tmp_path / "target.yaml"), tmp_path / "draft", name="tiny-reasoner") == mine
    with pytest.raises(ConfigError, match=r"target=tiny-mixed is 'tiny-mixed', but .*draft belongs to 'tiny-reasoner'"):
        find_target("tiny-mixed", tmp_path / "draft", name="tiny-reasoner")
    with pytest.raises(ConfigError, match=r"belongs to 'x{199}\.\.\.: expected target=x{80}\.\.\., or the YAML"):
        find_target("tiny-mixed", tmp_path / "draft", name="x" * 5000)


@pytest.mark.parametrize("layers", [[4, 1, 3], [3, 3, 4], [0, -1], [-1, 2], []])
def test_layers_that_no_draft_can_read_are_refused_with_their_key(layers: list[int], tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(f"name: mine\npath: embedded\naux_layers: {layers}\nmax_model_len: 8\n")
    message = rf"t\.yaml: aux_layers is {re.escape(str(layers))}: .*expected ids from 0 \(the embedding\) on, rising"
    with pytest.raises(ConfigError, match=message):
        load_target_config(str(tmp_path / "t.yaml"))


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    target = load_target_config("tiny-reasoner")
    assert target.layers_read() == (1, 3, 4)
    assert target.layers_read((0, 4)) == (0, 4)
    with pytest.raises(ConfigError, match=r"aux_layers=\[1, 5\]: expected ids from 0 .* to 4, the last layer of"):
        target.layers_read((1, 5))


def test_a_relative_path_counts_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a command runs, and wherever a copy of the target lies."""
    (tmp_path / "mine" / "models" / "m").mkdir(parents=True)
    fields = "name: mine\npath: models/m\naux_layers: [1]\nmax_model_len: 8\n"
    (tmp_path / "mine" / "t.yaml").write_text(fields)
    for here, file in (
        (tmp_path, "mine/t.yaml"),
        (tmp_path / "mine", "t.yaml"),
        (tmp_path / "mine/models", "../t.yaml"),
    ):
        monkeypatch.chdir(here)
        target = load_target_config(file)
        assert target.folder.resolve() == tmp_path / "mine" / "models" / "m"
        save_target(tmp_path / "run", target)
        monkeypatch.chdir("/")
        assert find_target(None, tmp_path / "run", name="mine").folder.resolve() == target.folder.resolve()


def test_a_relative_path_that_leads_nowhere_says_where_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of that name in the working directory is not taken in its place."""
    (tmp_path / "models").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "t.yaml").write_text("name: mine\npath: models\naux_layers: [1]\nmax_model_len: 8\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"t\.yaml: path is 'models', but there is no folder .*/mine/models: a relative"
    ):
        load_target_config("mine/t.yaml")


def test_a_shipped_target_lies_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = load_target_config(FULL_SIZE[0])
    assert target.folder == Path("models/Qwen3-4B-Thinking-2507")
    assert target == load_target_config(str(find("targets", FULL_SIZE[0])))
    save_target(tmp_path / "run", target)
    monkeypatch.chdir("/")
    assert find_target(None, tmp_path / "run", name=target.name).folder == tmp_path / target.folder


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"split_endings": ["\n\n", ""]}, r"split_endings\.1"),
        ({"split_connectors": [""]}, r"split_connectors\.0"),
        ({"trial": {"math": {"max_tokens": 8, "stop": [""]}}}, r"trial\.math\.stop\.0"),
    ],
)
def test_an_empty_text_is_not_looked_for(tmp_path: Path, fields: dict, key: str) -> None:
    """It would be found at every token."""
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"name": "mine", "path": "embedded", "aux_layers": [1], "max_model_len": 64} | fields))
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {key} is '': String should have at least 1 character"):
        load_target_config(str(path))


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (r"split_endings: ['\n\n']", r"split_endings\.0"),
        (r"split_connectors: ['\nWait']", r"split_connectors\.0"),
        (r"trial: {math: {text: '\n\n\boxed{', max_tokens: 8}}", r"trial\.math\.text"),
        (r"trial: {math: {text: '\boxed{', max_tokens: 8, stop: ['\n'], close: '}'}}", r"trial\.math\.stop\.0"),
        (r"trial: {code: {max_tokens: 8, stop: ['```'], close: '\n```'}}", r"trial\.code\.close"),
        (r"trial: {math: {text: 'It is $\nabla f$ or $1 \neq 2$: ', max_tokens: 8, stop: ['$']}}", None),
        (r'split_endings: ["\n\n", "\r\n"]', None),
    ],
)
def test_a_line_break_that_yaml_does_not_read_as_one_is_refused(tmp_path: Path, line: str, key: str | None) -> None:
    r"""In single quotes: ``\n`` is a token of code, so that no step ended, and a trial's stop was never written."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\npath: embedded\naux_layers: [1]\nmax_model_len: 64\n{line}\n")
    if key is None:
        load_target_config(str(path))
        return
    with pytest.raises(ConfigError, match=rf'mine\.yaml: {key} is .*: holds a backslash .* "\\n" so in double quotes'):
        load_target_config(str(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "fp16"}, "dtype is 'fp16': .*'bfloat16', 'float16' or 'float32'"),
        ({"dtype": "torch.bfloat16"}, "dtype is 'torch.bfloat16': .*'bfloat16'"),
        ({"sampling": {"temperature": float("inf"), "max_tokens": 8}}, "sampling.temperature is inf: .*finite"),
        ({"sampling": {"temperature": 1, "max_tokens": 8, "top_k": -2}}, "sampling.top_k is -2: .*greater than or"),
        ({"sampling": {"temperature": 1, "max_tokens": 8, "min_p": 0.1}}, "sampling.min_p is 0.1: .*expected 0, as"),
        (
            {"sampling": {"temperature": 1, "max_tokens": 8, "presence_penalty": 1}},
            "unknown key 'sampling.presence_penalty', expected one of temperature, .*, max_tokens.* in sampling",
        ),
        ({"name": ""}, "name is '': .*a name of one line"),
        ({"name": " "}, "name is ' ': .*a name of one line"),
        ({"name": "a\nb"}, r"name is 'a\\nb': .*a name of one line"),
        ({"think_end": "<think>"}, "think_end is '<think>', as think_start is"),
        ({"think_start": "[A]", "think_end": "[A]"}, r"think_end is '\[A\]', as think_start is"),
        ({"path": ""}, "path is '': String should have at least 1 character"),
        ({"path": "https://huggingface.co/Qwen/Qwen3-4B"}, "path is 'https://.*': .*a path on disk, or gs://"),
        ({"path": "file:///models/Qwen3-4B"}, "path is 'file:///models/Qwen3-4B': .*a path on disk, or gs://"),
    ],
)
def test_what_no_engine_could_do_is_refused_with_its_key(tmp_path: Path, fields: dict, message: str) -> None:
    path = tmp_path / "mine.yaml"
    given = {"name": "mine", "path": "embedded", "aux_layers": [1], "max_model_len": 64} | fields
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {message}"):
        load_target_config(str(path))


def test_the_sampling_of_a_model_card_can_be_copied(tmp_path: Path) -> None:
    """With what it names and what changes nothing: no other record is made of it."""
    found = []
    for sampling in ({"top_k": 0}, {"top_k": -1, "min_p": 0.0}):
        fields = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 8} | sampling
        given = {"name": "mine", "path": "embedded", "aux_layers": [1], "max_model_len": 64, "sampling": fields}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(given))
        found.append(load_target_config(str(tmp_path / "mine.yaml")))
    assert found[0] == found[1]
    assert found[1].model_dump() == found[0].model_dump()
    assert "min_p" not in str(found[1].model_dump())


@pytest.mark.parametrize("name", ["Qwen/Qwen3-4B", "my model", "模型-4b"])
def test_a_name_may_be_any_other_text(name: str) -> None:
    assert TargetConfig(name=name, path="embedded", aux_layers=(1,), max_model_len=8).name == name


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/targets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_target_says_how_it_is_asked(path: Path) -> None:
    target = load_target_config(path.stem)
    assert target.sampling is not None
    assert target.trial_of(target.answer_kind).max_tokens <= target.sampling.max_tokens <= target.max_model_len


def write_sharded(folder: Path, named: list[str]) -> None:
    """A target with a file ``a`` of 6 parameters and a file ``b`` of 4, and an index that names some files."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": np.zeros((2, 3), np.float32)}, folder / "a.safetensors")
    save_file({"b": np.zeros(4, np.float32)}, folder / "b.safetensors")
    weights = {"weight_map": {name: f"{name}.safetensors" for name in named}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))


def test_files_that_no_index_names_are_no_part_of_a_target(tmp_path: Path) -> None:
    """Authors lay the weights in a layout of their own beside them. A copy without was another target, its certificate
    void, and a server asked for memory for both."""
    full = tmp_path / "full"
    write_sharded(full, ["a"])
    copy = shutil.copytree(full, tmp_path / "copy", ignore=shutil.ignore_patterns("b.safetensors"))
    assert target_fingerprint(full) == target_fingerprint(copy) is not None
    assert weight_bytes(full) == weight_bytes(copy) == (copy / "a.safetensors").stat().st_size
    assert parameters(full) == 6


def test_a_target_whose_files_are_still_to_come_has_no_fingerprint(tmp_path: Path) -> None:
    write_sharded(tmp_path / "target", ["a", "c"])
    assert target_fingerprint(tmp_path / "target") is None
