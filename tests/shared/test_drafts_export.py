"""A draft in every form it is exported to: what is kept to the bit, and what is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specexit.data.outlines import outlines
from specexit.data.overlap import OverlapError, refuse_trained, write_prompts
from specexit.drafts.computation import config_hashes
from specexit.drafts.config import DraftError
from specexit.drafts.directory import read_config, read_draft
from specexit.drafts.export import export
from specexit.drafts.inspect import describe
from specexit.drafts.policy import (
    Certificate,
    Fingerprints,
    OperatingPoint,
    PolicyError,
    PolicyFile,
    read_policy,
    write_policy,
)
from specexit.drafts.published import import_draft
from specexit.drafts.tensors import FLOATS, weights_hash
from specexit.method.decision import Policy
from specexit.schemas.export import ExportConfig
from specexit.schemas.published import ImportConfig
from tests.shared.published import (
    CONFIGS,
    SHAPE,
    SPECULATORS_0_9,
    VOCAB,
    WINDOW,
    exported,
    tensors_of,
    write_published,
    write_target,
)


@pytest.fixture
def target(tmp_path):
    return write_target(tmp_path / "of")


@pytest.mark.parametrize("layout", CONFIGS)
def test_what_was_imported_comes_back_bit_for_bit(layout, tmp_path, target):
    source = write_published(tmp_path / "published", layout)
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    config, tensors, _ = exported(tmp_path / "draft", tmp_path, "original", None)
    assert config == CONFIGS[layout]
    published = tensors_of(layout)
    assert tensors.keys() == published.keys()
    for name, tensor in published.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize("name", ["fc.weight", "lm_head.weight"])
def test_what_has_changed_since_its_import_is_no_original(name, tmp_path, target):
    import_draft(
        ImportConfig(draft=write_published(tmp_path / "published", "nemo"), target=target, out=tmp_path / "draft")
    )
    tensors = load_file(tmp_path / "draft" / "model.safetensors")
    tensors[name][3, 5] *= 2
    save_file(tensors, tmp_path / "draft" / "model.safetensors")
    with pytest.raises(DraftError, match=r"model\.safetensors: the weights have changed since they were imported"):
        exported(tmp_path / "draft", tmp_path, "original", None)
    assert not (tmp_path / "original").exists()
    exported(tmp_path / "draft", tmp_path, "eagle3", None)
    assert describe(tmp_path / "draft")["exports to"] == "eagle3, speculators"  # inspect does not offer it


def test_a_vocabulary_in_ids_comes_back_as_ids(tmp_path, target):
    published = tensors_of("angelslim")
    published["d2t"] = (published["d2t"] + np.arange(len(published["d2t"]))).astype(np.int32)
    published["t2d"] = published["t2d"].astype(np.uint8)
    source = write_published(tmp_path / "published", "angelslim", tensors=published)
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    _, tensors, _ = exported(tmp_path / "draft", tmp_path, "original", None)
    for name in ("d2t", "t2d"):
        assert tensors[name].dtype == published[name].dtype
        np.testing.assert_array_equal(tensors[name], published[name])


def test_a_whole_vocabulary_comes_back_as_it_was_said(tmp_path, target):
    said = {"d2t": np.zeros(VOCAB, np.int32), "t2d": np.ones(VOCAB, np.uint8)}
    source = write_published(tmp_path / "published", "torchspec", tensors=tensors_of("torchspec") | said)
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    _, tensors, _ = exported(tmp_path / "draft", tmp_path, "original", None)
    for name, values in said.items():
        assert tensors[name].dtype == values.dtype
        np.testing.assert_array_equal(tensors[name], values)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_window_is_said_where_each_program_reads_it(model_type, tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", sliding_window=2048, model_type=model_type, **SHAPE)
    for name in ("plugin", "eagle3", "speculators"):
        config, _, out = exported(folder, tmp_path, name, target)
        read = config["transformer_layer_config"] if name == "speculators" else config
        assert read.items() >= WINDOW.items()
        assert read_config(out).sliding_window == 2048
        assert "| attends to | the last 2048 tokens |" in (out / "README.md").read_text()
    full = write_random_draft(tmp_path / "full", "draft", model_type=model_type, **SHAPE)
    for name in ("plugin", "eagle3", "speculators"):
        config, _, _ = exported(full, tmp_path / "of full", name, target)
        said = config | config.get("transformer_layer_config", {})
        assert not {"sliding_window", "use_sliding_window"} & said.keys()
        assert said.get("layer_types", ["full_attention"]) == ["full_attention"]


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_the_trunk_is_the_same_in_every_format(source, tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", source, **SHAPE)
    _, ours = read_draft(folder)
    trunk = {name: tensor for name, tensor in ours.items() if name != "signal_head.weight"}
    trunk["fc.weight"] = ours["fc.weight"][:64]
    for name in ("eagle3", "speculators", *(["angelslim"] if source == "fc" else [])):
        _, tensors, _ = exported(folder, tmp_path, name, target)
        if name == "speculators":
            rows = ours["fc.weight"][64:] if source == "fc" else ours["signal_head.weight"]
            np.testing.assert_array_equal(tensors.pop("signal_head.weight"), rows)
        renamed = {key.replace("layers.0.", "midlayer."): tensor for key, tensor in tensors.items()}
        renamed["fc.weight"] = renamed["fc.weight"][:64]
        assert renamed.keys() == trunk.keys()
        for key, tensor in trunk.items():
            np.testing.assert_array_equal(renamed[key], tensor)


def test_a_draft_that_has_lost_its_policy_goes_where_none_is_asked_for(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    write_policy(folder, PolicyFile())
    (folder / "policy.json").unlink()
    for name in ("plugin", "speculators"):  # which are to exit by it
        with pytest.raises(PolicyError, match=r"draft/policy\.json: is not there"):
            exported(folder, tmp_path, name, target)
    assert "specexit" not in exported(folder, tmp_path, "eagle3", target)[0]


def test_eagle3_names_the_layers_as_each_engine_counts_them(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    config, _, out = exported(folder, tmp_path, "eagle3", target)
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 6, 9]
    assert config["eagle_config"] == {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [1, 5, 8]}
    assert read_config(out).specexit is None  # and we read it as well
    last = write_random_draft(tmp_path / "last", "draft", **(SHAPE | {"eagle_aux_hidden_state_layer_ids": (2, 6, 12)}))
    config, _, _ = exported(last, tmp_path / "b", "eagle3", target)
    assert "eagle_config" not in config  # SGLang never sees what the last layer gives


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({}, None),
        ({"model_type": "qwen3"}, "draft: model_type 'qwen3': vLLM serves that"),
        ({"attention_bias": True, "norm_output": True}, "draft: attention_bias true, norm_output true: vLLM"),
        ({"sliding_window": 9}, "draft: sliding_window 9: vLLM serves that"),
        ({"eagle_aux_hidden_state_layer_ids": (2, 6), "num_aux_hidden_states": 2}, "draft: aux layers [2, 6]: vLLM"),
        ({"eagle_aux_hidden_state_layer_ids": (2, 6, 12)}, "draft: aux layers [2, 6, 12]: vLLM serves that"),
    ],
)
def test_what_sglang_does_not_have_is_said_of_a_draft_for_both(
    shape, said, tmp_path, target, write_random_draft, capsys
):
    folder = write_random_draft(tmp_path / "draft", None, **(SHAPE | shape))
    exported(folder, tmp_path, "eagle3", target)
    printed = " ".join(capsys.readouterr().err.split())
    assert ("SGLang" in printed) == (said is not None)
    assert said is None or said in printed


@pytest.mark.parametrize(
    "shape", [{"norm_before_residual": True}, {"sliding_window": 9}, {"sliding_window": 9, "model_type": "qwen3"}]
)
def test_what_is_exported_is_imported_again(shape, tmp_path, target, write_random_draft, capsys):
    folder = write_random_draft(tmp_path / "draft", None, **shape, **SHAPE)
    before = read_draft(folder)
    for name in ("eagle3", "speculators"):
        _, _, out = exported(folder, tmp_path, name, target)
        again = tmp_path / f"{name} again"
        layout = {"layout": "specforge"} if name == "eagle3" else {}
        import_draft(ImportConfig(draft=out, target=target, out=again, **layout))
        config, tensors = read_draft(again)
        assert config == before[0].model_copy(update={"architectures": config.architectures})
        for key, tensor in before[1].items():
            np.testing.assert_array_equal(tensors[key], tensor)
    assert "norm_output is" not in capsys.readouterr().err  # in ours it means what vLLM means


@pytest.mark.parametrize("form", ["eagle3", "speculators"])
@pytest.mark.parametrize("layout", [*CONFIGS, "speculators 0.9.0"])
def test_an_import_is_the_same_after_another_program_s_form(layout, form, tmp_path, target):
    layout, says = layout.split()[0], SPECULATORS_0_9 if layout == "speculators 0.9.0" else {}
    config = CONFIGS[layout] | says
    source = write_published(tmp_path / "published", layout, config, tensors_of(layout, config=config))
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    _, _, out = exported(tmp_path / "draft", tmp_path, form, None)
    import_draft(ImportConfig(draft=out, target=target, out=tmp_path / "again"))
    assert read_config(tmp_path / "again") == read_config(tmp_path / "draft")
    assert read_config(tmp_path / "again").sliding_window == (16 if says else None)
    assert weights_hash(tmp_path / "again") == weights_hash(tmp_path / "draft")


def test_a_published_folder_is_no_draft_directory_and_errors_do_not_print_it(tmp_path):
    with pytest.raises(DraftError, match=r"config\.json: field target_hidden_size is missing") as error:
        describe(write_published(tmp_path / "published", "safeailab"))
    assert len(str(error.value).replace(str(tmp_path), "")) < 200


def test_an_export_for_speculators_keeps_what_exits_need(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", model_type="qwen3", **SHAPE)
    found = Certificate(risk="accuracy_lost", epsilon=0.02, delta=0.1, n=500, errors=4, bound=0.0159, data_sha256="ab")
    point = OperatingPoint(name="careful", policy=Policy(thresholds={"validity": 0.97}), certificate=found)
    marks = Fingerprints(draft=weights_hash(folder), **config_hashes(read_config(folder)))
    write_policy(folder, PolicyFile(default="careful", points=(point,), fingerprints=marks))
    config, _, out = exported(folder, tmp_path, "speculators", target)
    assert config["architectures"] == ["SpecExitQwen3ForCausalLMEagle3"]
    assert config["speculators_config"]["verifier"]["name_or_path"] == str(tmp_path / "of" / "target")
    assert read_config(out).specexit == read_config(folder).specexit
    # The same weights in another file: the certificate is of them.
    assert read_policy(out).fingerprints.draft == weights_hash(out) != weights_hash(folder)
    assert marks.model_dump().items() >= config_hashes(read_config(out)).items()
    assert read_policy(out).points == read_policy(folder).points
    with pytest.raises(DraftError, match=r"layers\.0, as an export .* take the draft directory that it was made from"):
        describe(out)
    with pytest.raises(DraftError, match=r"specexit is .*an export with signals"):
        import_draft(ImportConfig(draft=out, target=target, out=tmp_path / "again"))


def test_draft_tokens_are_asked_for_as_in_serving(tmp_path, target, write_random_draft):
    """They were `speculative_tokens` here alone."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    config, _, _ = exported(folder, tmp_path, "speculators", target, num_speculative_tokens=5)
    (proposal,) = config["speculators_config"]["proposal_methods"]
    assert proposal["speculative_tokens"] == 5
    _, _, out = exported(folder, tmp_path, "eagle3", target, num_speculative_tokens=5)
    assert '"num_speculative_tokens": 5}' in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"torch_dtype": "float32"}, "embeddings that were never set; export where the target's weights are"),
        ({"torch_dtype": "bfloat16"}, "no model.embed_tokens.weight [200, 64] in"),
        ({"torch_dtype": "float32", "own_embeddings": True}, None),
        ({"hidden_size": 48, "own_embeddings": True}, "hidden_size is 48, but target_hidden_size 64"),
    ],
)
def test_what_speculators_itself_does_not_load_is_said(shape, said, tmp_path, target, write_random_draft, capsys):
    folder = write_random_draft(tmp_path / "draft", None, **(SHAPE | shape))
    exported(folder, tmp_path, "speculators", target)
    printed = " ".join(capsys.readouterr().err.split())
    assert ("speculators itself" in printed) == (said is not None)
    assert said is None or said in printed


@pytest.mark.parametrize("of_target", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", [None, "draft", "fc"])
def test_the_target_s_embeddings_go_along_to_speculators(
    source, of_target, tmp_path, target, write_random_draft, capsys
):
    """Bit for bit, in the target's own type: speculators would compute with memory that was never written."""
    rows = np.random.default_rng(3).normal(size=(VOCAB, 64)).astype(FLOATS[of_target])
    save_file({"model.embed_tokens.weight": rows}, tmp_path / "of" / "target" / "model-00001-of-00001.safetensors")
    folder = write_random_draft(tmp_path / "draft", source, **SHAPE)
    _, tensors, out = exported(folder, tmp_path, "speculators", target)
    assert tensors["embed_tokens.weight"].dtype == rows.dtype
    assert tensors["embed_tokens.weight"].tobytes() == rows.tobytes()
    assert "never set" not in capsys.readouterr().err
    if source is not None:
        assert not read_config(out).own_embeddings  # the plug-in has vLLM take the target's
        return
    import_draft(ImportConfig(draft=out, target=target, out=tmp_path / "again"))
    assert read_config(tmp_path / "again").own_embeddings


def test_embeddings_are_found_beside_weights_of_unknown_types(tmp_path, target, write_random_draft):
    """As in a target in FP8, whose embeddings are bfloat16."""
    rows = np.random.default_rng(3).normal(size=(VOCAB, 64)).astype(FLOATS["bfloat16"])
    file = tmp_path / "of" / "target" / "model.safetensors"
    save_file({"model.embed_tokens.weight": rows, "model.layers.0.mlp.up_proj.weight": np.ones((4, 4), np.int8)}, file)
    file.write_bytes(file.read_bytes().replace(b'"I8"', b'"F8"', 1))
    _, tensors, _ = exported(write_random_draft(tmp_path / "draft", None, **SHAPE), tmp_path, "speculators", target)
    assert tensors["embed_tokens.weight"].tobytes() == rows.tobytes()


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (np.zeros((VOCAB, 32), np.float32), "no model.embed_tokens.weight [200, 64] in"),
        (np.zeros((VOCAB, 64), np.int8), "no model.embed_tokens.weight [200, 64] in"),
        (None, "cannot be read as safetensors (truncated?)"),
    ],
)
def test_embeddings_that_cannot_be_the_draft_s_are_not_written(
    theirs, why, tmp_path, target, write_random_draft, capsys
):
    weights = tmp_path / "of" / "target" / "model.safetensors"
    weights.write_bytes(b"") if theirs is None else save_file({"model.embed_tokens.weight": theirs}, weights)
    _, tensors, _ = exported(write_random_draft(tmp_path / "draft", None, **SHAPE), tmp_path, "speculators", target)
    assert "embed_tokens.weight" not in tensors
    assert why in " ".join(capsys.readouterr().err.split())


def test_angelslims_rows_are_confidence_progress_and_remain(tmp_path, target, write_random_draft, capsys):
    folder = write_random_draft(tmp_path / "draft", "fc", **SHAPE)
    _, ours = read_draft(folder)
    config, tensors, _ = exported(folder, tmp_path, "angelslim", target)
    assert config["early_stop_method"] == "confidence_progress_remain"
    assert config["architectures"] == ["Eagle3LlamaForCausalLM"]
    np.testing.assert_array_equal(tensors["fc.weight"], ours["fc.weight"][: 64 + 3])
    card = (tmp_path / "angelslim" / "README.md").read_text()
    assert "by a rule and by thresholds of its own" in card  # not by ours, and no certificate of ours holds there
    assert "exits at" not in card
    assert "released code reads" not in capsys.readouterr().err
    elsewhere = write_random_draft(tmp_path / "e", "fc", **(SHAPE | {"eagle_aux_hidden_state_layer_ids": (2, 6, 12)}))
    exported(elsewhere, tmp_path / "elsewhere", "angelslim", target)
    said = " ".join(capsys.readouterr().err.split())
    assert "reads layers [2, 6, 12], but the released code reads [2, 6, 9] whatever a config says" in said
    other = write_random_draft(tmp_path / "other", "draft", **SHAPE)
    with pytest.raises(DraftError, match="source 'draft', expected 'fc' for format=angelslim"):
        export(ExportConfig(draft=other, out=tmp_path / "no", format="angelslim", target=target))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            {"norm_before_residual": True},
            "norm_before_residual is True, expected False for format=angelslim: the released",
        ),
        ({"norm_output": True}, "norm_output is True, expected False"),
        ({"model_type": "qwen3"}, "model_type is 'qwen3', expected 'llama'"),
        ({"attention_bias": True}, "attention_bias is True, expected False"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling is .*, expected None"),
        ({"sliding_window": 9}, "sliding_window is 9, expected None for format=angelslim: the released code has"),
        (
            {"eagle_aux_hidden_state_layer_ids": (2, 4, 6, 9), "num_aux_hidden_states": 4},
            "num_aux_hidden_states is 4, expected 3",
        ),
    ],
)
def test_what_the_released_code_computes_otherwise_is_refused_by_name(
    shape, message, tmp_path, target, write_random_draft
):
    folder = write_random_draft(tmp_path / "draft", "fc", **(SHAPE | shape))
    with pytest.raises(DraftError, match=f"draft: {message}"):
        exported(folder, tmp_path, "angelslim", target)
    assert not (tmp_path / "angelslim").exists()
    assert "angelslim" not in describe(folder)["exports to"]


@pytest.mark.parametrize("narrow", [False, True])
def test_the_released_code_takes_the_target_s_embeddings_where_the_draft_has_none(
    narrow, tmp_path, target, write_random_draft
):
    """It does so only if its config lacks the key `target_hidden_size`; else they stay random."""
    shape = {"hidden_size": 48, "own_embeddings": True} if narrow else {}
    folder = write_random_draft(tmp_path / "draft", "fc", **(SHAPE | shape))
    config, tensors, _ = exported(folder, tmp_path, "angelslim", target)
    assert ("target_hidden_size" in config) == ("embed_tokens.weight" in tensors) == narrow


def test_the_plugins_form_is_the_directory_itself(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    _, _, out = exported(folder, tmp_path, "plugin", target)
    assert read_config(out) == read_config(folder)
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["plugin", "eagle3"])
def test_an_export_that_is_a_draft_directory_is_not_judged_by_its_training_prompts(
    form, tmp_path, target, write_random_draft, make_trace
):
    folder, trace = write_random_draft(tmp_path / "draft", "draft", **SHAPE), make_trace()
    _, _, out = exported(folder, tmp_path, form, target)
    assert not (out / "prompts.npy").exists()
    write_prompts(folder, list(outlines([trace]).prompts()))
    _, _, out = exported(folder, tmp_path / "b", form, target)
    with pytest.raises(OverlapError, match="1 of 1 prompts were trained on"):
        refuse_trained(out, [trace], tmp_path / "traces.parquet")


def test_an_imported_draft_is_not_judged_by_the_prompts_that_its_folder_lists(
    tmp_path, target, write_random_draft, make_trace
):
    """`import` dropped the list of an `eagle3` folder: it was calibrated and judged on what it was trained on."""
    folder, trace = write_random_draft(tmp_path / "draft", "draft", **SHAPE), make_trace()
    write_prompts(folder, list(outlines([trace]).prompts()))
    _, _, published = exported(folder, tmp_path, "eagle3", target)
    import_draft(ImportConfig(draft=published, target=target, out=tmp_path / "again"))
    with pytest.raises(OverlapError, match="1 of 1 prompts were trained on"):
        refuse_trained(tmp_path / "again", [trace], tmp_path / "traces.parquet")
    assert "trained on 1 prompts" in describe(tmp_path / "again")["origin"]
    _, _, out = exported(tmp_path / "again", tmp_path / "b", "eagle3", target)
    card = (out / "README.md").read_text()
    assert "It came with a list of 1 prompts that it was trained on" in card
    assert "What it was trained on is not known here" not in card


def test_the_plugins_form_says_where_the_draft_came_from(tmp_path, target, write_random_draft):
    """As the directory does: ``convert`` multiplies by its ``aux_rms`` again. Nothing of it names this machine."""
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    import_draft(
        ImportConfig(draft=write_published(tmp_path / "p", "specforge"), target=target, out=tmp_path / "other")
    )
    (folder / "import.json").write_bytes((tmp_path / "other" / "import.json").read_bytes())
    said = {"which": "best", "step": 9, "aux_rms": [0.5, 4.0, 64.0], "imported": "specforge", "weights_blake3": "ab"}
    (folder / "convert.json").write_text(json.dumps({"run": str(tmp_path / "run"), "draft": str(tmp_path)} | said))
    _, _, out = exported(folder, tmp_path, "plugin", target, base_model="org/model")
    assert (out / "import.json").read_bytes() == (folder / "import.json").read_bytes()
    assert json.loads((out / "convert.json").read_text()) == said
    assert not [path for path in out.iterdir() if str(tmp_path).encode() in path.read_bytes()]


def test_large_weights_are_split_and_read_again(tmp_path, target, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft", **SHAPE)
    options = {"format": "plugin", "target": target, "max_file_gib": 1e-4}
    export(ExportConfig(draft=folder, out=tmp_path / "split", **options))
    assert len(list((tmp_path / "split").glob("model-*.safetensors"))) > 1
    for name, tensor in read_draft(folder)[1].items():
        np.testing.assert_array_equal(read_draft(tmp_path / "split")[1][name], tensor)
