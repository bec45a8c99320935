"""The draft directory: what is written is read back, and a broken one is refused by file and field."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specexit.drafts.computation import config_hashes
from specexit.drafts.directory import (
    FLOATS,
    DraftError,
    check_target,
    plain_copy,
    read_config,
    read_draft,
    write_draft,
)
from specexit.drafts.inspect import describe
from specexit.drafts.policy import PolicyFile, write_policy
from specexit.drafts.rope import scaling_of
from specexit.drafts.verified import geometry_sha256
from specexit.method.signals import NAMES
from tests.shared.published import LLAMA3, MODEL_OPTIMIZER, WINDOW


@pytest.fixture(params=["draft", "fc"])
def draft(request, tmp_path, write_random_draft):
    return write_random_draft(tmp_path / "draft", request.param)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensor(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, folder / "model.safetensors")


def test_a_draft_comes_back_as_it_was_written(draft, tmp_path):
    config, tensors = read_draft(draft)
    write_draft(tmp_path / "copy", config, tensors)
    again, tensors_again = read_draft(tmp_path / "copy")
    assert again == config
    assert tensors_again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensors_again[name], tensor)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_directory_in_half_precision_is_read_and_written_bit_for_bit(draft, tmp_path, dtype):
    config, tensors = read_draft(draft)
    half = {name: t.astype(FLOATS[dtype]) if t.dtype == np.float32 else t for name, t in tensors.items()}
    write_draft(tmp_path / "half", config.model_copy(update={"torch_dtype": dtype}), half)
    again = read_draft(tmp_path / "half")[1]
    for name, tensor in half.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_in_every_type(draft, dtype, value):
    def break_one(tensor):
        tensor = tensor.astype(FLOATS[dtype])
        tensor[1, 2] = value
        return tensor

    edit_tensor(draft, "midlayer.mlp.up_proj.weight", break_one)
    with pytest.raises(DraftError, match=r"midlayer\.mlp\.up_proj\.weight holds NaN or infinity"):
        read_draft(draft)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("norm.weight", np.int8, r"norm\.weight is int8, expected float32 or bfloat16 or float16"),
        ("norm.weight", np.float64, r"norm\.weight is float64, expected float32"),
        ("d2t", np.float32, "d2t is float32, expected int64"),
        ("t2d", np.int64, "t2d is int64, expected bool"),
    ],
)
def test_a_tensor_of_the_wrong_type_is_refused_by_name(draft, name, dtype, message):
    edit_tensor(draft, name, lambda tensor: tensor.astype(dtype))
    with pytest.raises(DraftError, match=message):
        read_draft(draft)


def test_the_signal_rows_are_where_each_source_has_them(tmp_path, write_random_draft):
    _, of_draft = read_draft(write_random_draft(tmp_path / "a", "draft"))
    _, of_fc = read_draft(write_random_draft(tmp_path / "b", "fc"))
    assert of_draft["signal_head.weight"].shape == (len(NAMES), 64)
    assert of_draft["fc.weight"].shape == (64, 192)
    assert of_fc["fc.weight"].shape == (64 + len(NAMES), 192)
    assert "signal_head.weight" not in of_fc


def test_a_plain_copy_is_the_same_trunk_for_any_eagle3_reader(draft, tmp_path):
    plain_copy(draft, tmp_path / "plain")
    _, ours = read_draft(draft)
    config, plain = read_draft(tmp_path / "plain")
    raw = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForCausalLMEagle3"]
    assert "specexit" not in raw
    assert config.specexit is None
    for name, tensor in plain.items():
        np.testing.assert_array_equal(tensor, ours[name][: len(tensor)])


def test_fields_of_other_tools_are_ignored(draft):
    before = read_config(draft)
    edit_config(draft, transformers_version="5.0", eagle_config={"a": 1})
    assert read_config(draft) == before
    edit_config(draft, sliding_window=4096, use_sliding_window=False)  # as transformers leaves it without a window
    assert read_config(draft) == before


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "default"}, {"rope_type": "default", "partial_rotary_factor": 1.0}, LLAMA3]
)
def test_a_rope_is_read_where_transformers_5_saves_it(draft, scaling):
    """It takes both older keys out: the draft was computed with a theta of 10,000 here, and with its own in vLLM."""
    before, path = read_config(draft), draft / "config.json"
    said = json.loads(path.read_text())
    del said["rope_theta"], said["rope_scaling"]
    path.write_text(json.dumps(said | {"rope_parameters": scaling | {"rope_theta": 5e5}}))
    found = read_config(draft)
    assert found.rope_theta == 5e5
    assert found == before.model_copy(update={"rope_theta": 5e5, "rope_scaling": scaling_of(scaling)})
    edit_config(draft, rope_theta=5e5, rope_scaling=None)  # twice, and the same
    assert read_config(draft) == found


def test_a_window_is_written_as_every_program_reads_it(tmp_path, write_random_draft):
    """And nothing of it without one: files, and the hash in `verify.json`, are those of older versions."""
    folder = write_random_draft(tmp_path / "draft", "draft", sliding_window=2048)
    said = json.loads((folder / "config.json").read_text())
    config = read_config(folder)
    assert said.items() >= WINDOW.items()
    assert config.sliding_window == 2048
    plain = config.model_copy(update={"specexit": None})
    assert type(plain).model_validate(plain.model_dump()) == plain
    assert describe(folder)["positions"].endswith(", attends to the last 2048 tokens")
    full = write_random_draft(tmp_path / "full", "draft")
    assert not WINDOW.keys() & json.loads((full / "config.json").read_text()).keys()
    assert read_config(full).sliding_window is None
    assert not WINDOW.keys() & read_config(full).model_dump().keys()
    assert geometry_sha256(read_config(full)) != geometry_sha256(config)


@pytest.mark.parametrize(
    ("changes", "block", "differ"),
    [
        ({"rope_theta": 1e6}, {}, {"computation"}),
        ({"rope_scaling": LLAMA3}, {}, {"computation"}),
        ({"rms_norm_eps": 1e-5}, {}, {"computation"}),
        ({"norm_before_residual": True}, {}, {"computation"}),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}, {}, {"computation"}),
        (WINDOW, {}, {"computation"}),
        ({}, {"split_endings": [".\n"]}, {"boundaries"}),
        ({}, {"split_connectors": ["Wait"]}, {"boundaries"}),
        ({}, {"think_end": "</thought>"}, {"boundaries"}),
        ({"max_position_embeddings": 65_536, "torch_dtype": "bfloat16", "dtype": "bfloat16"}, {}, set()),
        ({"rope_parameters": {"rope_theta": 10_000, "rope_type": "default"}, "rope_theta": None}, {}, set()),
        ({}, {"split_endings": ["\n\n", "\n\n"], "target": "another", "exit_point": "stable"}, set()),
    ],
)
def test_another_config_beside_the_same_weights_is_another_draft(draft, changes, block, differ):
    """Its scores and certificates were taken for those of the weights, whatever the file had come to say."""
    before = config_hashes(read_config(draft))
    edit_config(draft, **changes, specexit=json.loads((draft / "config.json").read_text())["specexit"] | block)
    after = config_hashes(read_config(draft))
    assert {name for name in before if before[name] != after[name]} == differ


def test_what_rewrites_a_config_leaves_its_hashes(draft, tmp_path):
    edit_config(draft, rope_scaling=LLAMA3)
    before = config_hashes(read_config(draft))
    write_policy(draft, PolicyFile())
    assert "policy" not in json.loads((draft / "config.json").read_text())["specexit"]
    assert config_hashes(read_config(draft)) == before
    edit_config(draft, rope_scaling={**LLAMA3, "factor": 8})  # as JavaScript writes 8.0
    assert config_hashes(read_config(draft)) == before
    write_draft(tmp_path / "copy", *read_draft(draft))
    assert config_hashes(read_config(tmp_path / "copy")) == before
    plain_copy(draft, tmp_path / "plain")
    assert config_hashes(read_config(tmp_path / "plain")) == {"computation": before["computation"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": -1}, "field hidden_size is -1: .*greater than 0"),
        ({"num_hidden_layers": 2}, "field num_hidden_layers is 2"),
        ({"norm_before_residual": "perhaps"}, "field norm_before_residual is 'perhaps'"),
        ({"norm_before_fc": True, "fc_norm": True}, "norm_before_fc and fc_norm are both true"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, expected a multiple of num_key_value_heads, 2"),
        ({"draft_vocab_size": 201}, "draft_vocab_size is 201, expected at most vocab_size, 200"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "field rope_scaling is .*rope_type is 'dynamic'"),
        (
            {"max_position_embeddings": 65_537, "rope_scaling": MODEL_OPTIMIZER["rope_scaling"]},
            "max_position_embeddings is 65537, expected at most 65536: .*rope_scaling 'yarn', beyond which vLLM has no",
        ),
        ({"num_aux_hidden_states": 2}, "num_aux_hidden_states is 2, but eagle_aux_hidden_state_layer_ids names 3"),
        (
            {"rope_parameters": {"rope_theta": 5e5}},
            r"rope_parameters\.rope_theta is 500000\.0, but rope_theta or .* 10000\.0",
        ),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"factor": 4.0}},
            r"rope_parameters\.factor is 4\.0, but rope_theta or rope_scaling says 8\.0",
        ),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], expected keys and values"),
        ({"sliding_window": 9}, "sliding_window is 9, but layer_types None, expected .*by which vLLM goes"),
        (
            WINDOW | {"layer_types": ["full_attention"]},
            r"sliding_window is 2048, but layer_types \['full_attention'\], expected",
        ),
        (WINDOW | {"use_sliding_window": None}, "use_sliding_window is None, expected True with layer_types"),
        (WINDOW | {"sliding_window": 0}, "sliding_window is 0, expected a number from 1 to 2147483647 with"),
        (WINDOW | {"sliding_window": -1}, "sliding_window is -1, expected a number from 1"),
        (WINDOW | {"sliding_window": 2**31}, "sliding_window is 2147483648, expected a number from 1"),
        (WINDOW | {"sliding_window": None}, "sliding_window is None, expected a number from 1"),
    ],
)
def test_a_config_that_cannot_be_ours_is_refused_by_field(draft, changes, message):
    edit_config(draft, **changes)
    with pytest.raises(DraftError, match=rf"config\.json: {message}"):
        read_config(draft)


@pytest.mark.parametrize("value", ["64", "", 16.5, 1.0, True, None, [1]])
@pytest.mark.parametrize(
    "field",
    [
        *("hidden_size", "target_hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "num_hidden_layers", "vocab_size", "draft_vocab_size", "max_position_embeddings"),
        *("num_aux_hidden_states", "target_num_hidden_layers"),
    ],
)
def test_nothing_else_is_a_whole_number(draft, field, value):
    """Text of one was read as it, and handed on in an export, which transformers refuses."""
    edit_config(draft, **{field: value})
    with pytest.raises(DraftError, match=rf"config\.json: field {field} is {re.escape(repr(value))}: ."):
        read_config(draft)


@pytest.mark.parametrize("value", ["1", 1.0, True])
def test_nothing_else_is_a_format_version(draft, value):
    block = json.loads((draft / "config.json").read_text())["specexit"]
    edit_config(draft, specexit=block | {"format_version": value})
    with pytest.raises(DraftError, match=rf"field specexit\.format_version is {re.escape(repr(value))}: ."):
        read_config(draft)


@pytest.mark.parametrize("value", ["1e6", "10000", True, [1.0], {}])
@pytest.mark.parametrize("field", ["rms_norm_eps", "rope_theta"])
def test_nothing_else_is_a_number(draft, field, value):
    edit_config(draft, **{field: value})
    with pytest.raises(DraftError, match=rf"config\.json: field {field} is {re.escape(repr(value))}: ."):
        read_config(draft)


@pytest.mark.parametrize("value", ["false", "true", 0, 1, None])
@pytest.mark.parametrize(
    "field", ["attention_bias", "own_embeddings", "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"]
)
def test_nothing_else_is_a_flag(draft, field, value):
    edit_config(draft, **{field: value})
    with pytest.raises(DraftError, match=rf"config\.json: field {field} is {re.escape(repr(value))}: ."):
        read_config(draft)


@pytest.mark.parametrize("value", ["3", 3.0, True])
def test_nothing_else_is_an_aux_layer(draft, value):
    edit_config(draft, eagle_aux_hidden_state_layer_ids=[0, 2, value])
    message = rf"config\.json: field eagle_aux_hidden_state_layer_ids\S* is \[?.*{re.escape(repr(value))}\]?: ."
    with pytest.raises(DraftError, match=message):
        read_config(draft)


@pytest.mark.parametrize("theta", ["500000", "500000.0", "5e5"])
def test_a_theta_is_read_in_every_spelling_of_the_number(draft, theta):
    path = draft / "config.json"
    said = path.read_text().replace('"rope_theta": 10000.0', f'"rope_theta": {theta}')
    path.write_text(said)
    assert f": {theta}," in said
    assert read_config(draft).rope_theta == 5e5
    edit_config(draft, rope_theta=None, rope_parameters={"rope_theta": "500000"})
    with pytest.raises(DraftError, match=r"config\.json: field rope_theta is '500000': ."):
        read_config(draft)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 9, r"specexit\.format_version is 9, expected 1"),
        ("signals", ["validity"], r"specexit\.signals is \['validity'\], expected \['confidence'"),
        ("source", "attention", r"field specexit\.source is 'attention'"),
        ("policy", {"thresholds": {"validity": 7}}, "threshold of validity is 7"),
        ("polcy", {}, r"field specexit\.polcy"),
    ],
)
def test_a_specexit_block_of_another_kind_is_refused_by_field(draft, field, value, message):
    block = json.loads((draft / "config.json").read_text())["specexit"]
    edit_config(draft, specexit=block | {field: value})
    with pytest.raises(DraftError, match=message):
        read_config(draft)


def test_a_missing_or_broken_config_is_named(draft):
    (draft / "config.json").write_text("{")
    with pytest.raises(DraftError, match=r"config\.json: cannot be read as JSON"):
        read_config(draft)
    (draft / "config.json").unlink()
    with pytest.raises(DraftError, match=r"config\.json: does not exist, expected a draft directory of `specexit`$"):
        read_config(draft)


def test_a_folder_that_is_no_draft_directory_is_told_what_makes_one(tmp_path):
    with pytest.raises(DraftError, match=r"^\S+/elsewhere: no such folder, expected .*`hf download NAME"):
        read_config(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(DraftError, match=r"run: holds a training run, .*`specexit convert run=\S+/run out=DRAFT`$"):
        read_config(tmp_path / "run")


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_weights_are_refused(draft, kept):
    path = draft / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DraftError, match=r"model\.safetensors: cannot be read as safetensors \(truncated\?\)"):
        read_draft(draft)


def test_a_tensor_of_the_wrong_shape_is_refused_with_both_shapes(draft):
    edit_tensor(draft, "lm_head.weight", lambda tensor: tensor[:-1])
    with pytest.raises(DraftError, match=r"lm_head\.weight has shape \[119, 64\], expected \[120, 64\]"):
        read_draft(draft)


def test_a_missing_tensor_is_named(draft):
    tensors = load_file(draft / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, draft / "model.safetensors")
    with pytest.raises(DraftError, match=r"tensor norm\.weight \[64\] is missing"):
        read_draft(draft)


@pytest.mark.parametrize(("shift", "target"), [(1000, "1003"), (-1000, "-997")])
def test_a_draft_vocabulary_that_points_outside_is_refused_by_token(draft, shift, target):
    def break_one(d2t):
        d2t[3] = shift
        return d2t

    edit_tensor(draft, "d2t", break_one)
    with pytest.raises(DraftError, match=rf"d2t maps draft token 3 to target token {target}, .*vocab_size 200"):
        read_draft(draft)


@pytest.mark.parametrize("order", [1, -1])
def test_a_draft_vocabulary_in_ids_is_named_as_what_it_is(draft, order):
    """In whatever order."""
    edit_tensor(draft, "d2t", lambda d2t: (d2t + np.arange(len(d2t)))[::order])
    with pytest.raises(DraftError, match="d2t holds ids, expected what is added to a draft token"):
        read_draft(draft)


def test_a_whole_vocabulary_is_read_with_and_without_its_two_tensors(tmp_path, write_random_draft):
    """vLLM refuses a d2t there, so none is written; older versions did."""
    folder = write_random_draft(tmp_path / "draft", None, draft_vocab_size=200)
    config, tensors = read_draft(folder)
    assert not {"d2t", "t2d"} & tensors.keys()
    path = folder / "model.safetensors"
    save_file(tensors | {"d2t": np.zeros(200, np.int64), "t2d": np.ones(200, bool)}, path)
    again = read_draft(folder)
    assert again[0] == config
    assert again[1].keys() == tensors.keys()
    save_file(tensors | {"t2d": np.arange(200) != 7}, path)
    with pytest.raises(DraftError, match="t2d says False of target token 7, but d2t says True"):
        read_draft(folder)
    save_file(tensors | {"d2t": np.ones(200, np.int64)}, path)
    with pytest.raises(DraftError, match="d2t maps draft token 0 to target token 1, expected itself"):
        read_draft(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 96}, "target_hidden_size is 64, but target big has hidden_size 96"),
        ({"num_hidden_layers": 36}, "target_num_hidden_layers is 4, but target big has num_hidden_layers 36"),
        ({"vocab_size": 999}, "vocab_size is 200, but target big has vocab_size 999"),
    ],
)
def test_a_draft_of_another_target_is_refused(draft, changes, message):
    target = {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 200}
    config = read_config(draft)
    check_target(config, draft, target, "big")
    with pytest.raises(DraftError, match=rf"config\.json: {message}.*another target"):
        check_target(config, draft, target | changes, "big")


def test_a_folder_that_holds_something_is_refused_and_left_alone(draft, tmp_path):
    config, tensors = read_draft(draft)
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out: output folder is not empty"):
        write_draft(out, config, tensors)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"precious.txt": "mine"}


def test_a_draft_that_fails_its_own_check_is_never_written(draft, tmp_path):
    config, tensors = read_draft(draft)
    with pytest.raises(DraftError, match="holds NaN"):
        write_draft(tmp_path / "out", config, tensors | {"norm.weight": np.full(64, np.nan, np.float32)})
    assert {path.name for path in tmp_path.iterdir()} == {"draft"}


def test_a_write_that_fails_half_way_leaves_nothing_behind(draft, tmp_path, monkeypatch):
    config, tensors = read_draft(draft)

    def full_disk(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("specexit.drafts.directory.write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_draft(tmp_path / "out", config, tensors)
    assert {path.name for path in tmp_path.iterdir()} == {"draft"}
