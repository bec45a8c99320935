"""Published EAGLE-3 drafts: every layout is read to the bit, with what its trainer meant."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from specexit.data.teacher import EMBEDDING, HEAD
from specexit.drafts.config import DraftError
from specexit.drafts.directory import read_config, read_draft
from specexit.drafts.inspect import describe
from specexit.drafts.layouts import LAYOUTS
from specexit.drafts.published import _other_than, import_draft
from specexit.drafts.rope import RopeScaling, rotary_factor
from specexit.drafts.tensors import FLOATS
from specexit.drafts.vocabulary import read_vocabulary
from specexit.schemas.published import ImportConfig
from specexit.schemas.target import load_target_config
from tests.shared.published import (
    AUX,
    CONFIGS,
    DRAFT_VOCAB,
    HIDDEN,
    HUNYUAN,
    LLAMA3,
    MODEL_OPTIMIZER,
    PHI3,
    TRANSFORMERS_5,
    VOCAB,
    exported,
    imported,
    mutated,
    tensors_of,
    write_published,
    write_target,
)


def test_there_is_an_instance_of_every_layout():
    assert CONFIGS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", CONFIGS)
def test_every_layout_is_told_by_itself_and_read_to_the_bit(layout, tmp_path):
    folder = imported(tmp_path, layout)
    config, tensors = read_draft(folder)
    published = {LAYOUTS[layout].ours(name): tensor for name, tensor in tensors_of(layout).items()}
    assert json.loads((folder / "import.json").read_text())["layout"] == layout
    assert config.specexit is None
    # vLLM has no place for d2t where a draft has all of its target's tokens.
    assert ("d2t" in tensors) == ("t2d" in tensors) == (layout not in ("torchspec", "deepspec"))
    assert tensors.keys() == published.keys() | (tensors.keys() & {"d2t", "t2d"})
    for name, tensor in published.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].tobytes() == tensor.tobytes()
    assert config.num_aux_hidden_states == AUX.get(layout, 3)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("layer", ["midlayer.", "layers.0."])
@pytest.mark.parametrize("layout", CONFIGS)
def test_either_name_of_the_layer_is_read_in_every_layout(layout, layer, prefix, tmp_path):
    ours = {LAYOUTS[layout].ours(name): tensor for name, tensor in tensors_of(layout).items()}
    named = {name.replace("midlayer.", f"{prefix}{layer}"): tensor for name, tensor in ours.items()}
    folder, one = imported(tmp_path, layout, tensors=named), "midlayer.mlp.up_proj.weight"
    said = json.loads((folder / "import.json").read_text())
    assert said["layout"] == layout
    assert said["names"][f"{prefix}{layer}mlp.up_proj.weight"] == one
    assert read_draft(folder)[1][one].tobytes() == ours[one].tobytes()


def test_the_drafts_own_geometry_is_kept(tmp_path):
    """Not the target's, not the recipe's: each of these has made drafts useless in silence."""
    of = {layout: read_config(imported(tmp_path / layout, layout)) for layout in CONFIGS}
    assert of["safeailab"].rope_theta == 10_000.0
    assert of["safeailab"].rms_norm_eps == 1e-5
    assert of["safeailab"].head_dim == 16
    assert of["specforge"].rope_theta == 1e6
    assert of["torchspec"].head_dim == 12
    assert of["speculators"].rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert of["speculators"].norm_before_residual
    assert of["specforge"].fc_norm
    assert of["specforge"].norm_output
    assert of["nemo"].attention_bias
    assert of["nemo"].model_type == "llama"
    assert of["deepspec"].model_type == "qwen3"
    assert of["deepspec"].architectures == ("Eagle3Qwen3ForCausalLM",)


@pytest.mark.parametrize(("layout", "positions"), [("deepspec", 32_768), ("specforge", 2048), ("nemo", 2048)])
def test_positions_that_a_config_does_not_say_are_its_familys(layout, positions, tmp_path):
    """transformers' defaults for Qwen3 and for Llama, which vLLM reads as well."""
    config = mutated(layout, "max_position_embeddings", None)
    assert read_config(imported(tmp_path, layout, config)).max_position_embeddings == positions


DYNAMIC = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}


@pytest.mark.parametrize(
    ("layout", "says", "options", "theta", "told"),
    [
        ("angelslim", {}, {}, 1e4, "rope_theta is 1000000, but taken as 10000: AngelSlim's trainer"),
        ("angelslim", TRANSFORMERS_5, {}, 1e4, "rope_theta is 1000000, but taken as 10000"),
        ("angelslim", {}, {"layout": "specforge"}, 1e6, None),
        ("angelslim", HUNYUAN | {"rope_theta": 10_000.0}, {}, 1e4, None),
        (
            *("angelslim", HUNYUAN | {"rope_theta": 10_000.0, "rope_scaling": DYNAMIC}, {}, 1e4),
            "rope_scaling is of type 'dynamic', and is passed over",
        ),
        ("safeailab", {}, {}, 1e4, None),
        ("safeailab", {"rope_theta": 1e6}, {}, 1e6, "rope_theta is 1000000.0, and is kept; SafeAILab's trainer"),
    ],
)
def test_the_theta_that_a_draft_was_trained_with_is_taken_or_doubted(
    layout, says, options, theta, told, tmp_path, capsys
):
    """The trainers of these two build their rotation without the config's theta."""
    config = read_config(imported(tmp_path, layout, CONFIGS[layout] | says, **options))
    assert (config.rope_theta, config.rope_scaling) == (theta, None)
    said = " ".join(capsys.readouterr().err.split())
    assert ("rope" in said) == (told is not None)
    assert told is None or told in said


@pytest.mark.parametrize(("kind", "theta"), [("linear", 1e4), ("yarn", 1e6)])
def test_of_the_scalings_its_trainer_has_angelslims_theta_goes_with_linear_alone(kind, theta, tmp_path):
    """It has no yarn, so a draft with one is of another trainer, under that class name."""
    scaling = {"type": kind, "factor": 4.0} | ({} if kind == "linear" else {"original_max_position_embeddings": 64})
    config = read_config(imported(tmp_path, "angelslim", CONFIGS["angelslim"] | {"rope_scaling": scaling}))
    assert (config.rope_scaling.kind, config.rope_theta) == (kind, theta)


def test_aux_layers_come_from_wherever_the_layout_has_them(tmp_path):
    def layers(layout, **options):
        folder = imported(tmp_path / str(len(list(tmp_path.iterdir()))), layout, **options)
        return read_config(folder).eagle_aux_hidden_state_layer_ids

    assert layers("safeailab") == (2, 6, 9)  # in front of 2, n // 2 and n - 3, in every engine
    assert layers("specforge") == (2, 6, 9)  # nested ids count outputs: one less
    assert layers("deepspec") == (2, 4, 6, 8, 10)
    assert layers("speculators") == (2, 6, 9)
    assert layers("safeailab", aux_layers=(1, 5, 12)) == (1, 5, 12)
    lifted = {key: value for key, value in CONFIGS["specforge"].items() if key != "eagle_config"}
    assert layers("specforge", config=lifted | {"eagle_aux_hidden_state_layer_ids": [1, 5, 8]}) == (1, 5, 8)


@pytest.mark.parametrize(
    ("says", "layers", "place"),
    [
        ({"target_layer_ids": [1, 5, 8]}, (2, 6, 9), "target_layer_ids + 1"),
        ({"eagle_config": {"layer_ids": [1, 5, 8]}}, (1, 5, 8), "eagle_config.layer_ids"),
        (
            *({"target_layer_ids": [1, 5, 8], "eagle_config": {"layer_ids": [2, 6, 9]}}, (2, 6, 9)),
            "target_layer_ids + 1",
        ),
        (
            *({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 5, 8]}}, (2, 6, 9)),
            "eagle_config.eagle_aux_hidden_state_layer_ids + 1",
        ),
        ({"eagle_aux_hidden_state_layer_ids": [1, 5, 8]}, (1, 5, 8), "eagle_aux_hidden_state_layer_ids"),
        ({}, (2, 6, 9), "every engine's default"),
    ],
)
def test_aux_layers_are_read_where_vllm_reads_them_and_the_place_is_said(says, layers, place, tmp_path, capsys):
    folder = imported(tmp_path, "angelslim", CONFIGS["angelslim"] | says)
    assert read_config(folder).eagle_aux_hidden_state_layer_ids == layers
    assert f"aux layers {list(layers)} of 12 ({place})" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("layout", ["speculators", "deepspec"])
@pytest.mark.parametrize(
    ("named", "same"),
    [
        *(("org/Small", True), ("small", True), ("/models/small/", True), ("org/Smaller", False), (None, True)),
        ("/cache/models--org--small/snapshots/0123abc", True),
    ],
)
def test_a_target_of_another_name_is_warned_of_and_recorded(layout, named, same, tmp_path, capsys):
    """Of the same sizes nothing else tells it, and its draft would be bad in silence."""
    keys = {"speculators": "speculators_config.verifier.name_or_path", "deepspec": "target_model_name_or_path"}
    folder = imported(tmp_path, layout, mutated(layout, keys[layout], named))
    printed = " ".join(capsys.readouterr().err.split())
    assert (f"names target {named!r}, but it is imported for small" in printed) == (not same)
    assert json.loads((folder / "import.json").read_text())["target_said"] == (None if same else named)
    assert ("; its config names another target, org/Smaller" in describe(folder)["origin"]) == (not same)


def test_the_hub_s_cache_names_a_target():
    target = load_target_config("tiny-reasoner").model_copy(
        update={"name": "mine", "path": "/cache/models--Qwen--Qwen3-4B/snapshots/0123abc"}
    )
    assert _other_than(target, "Qwen/Qwen3-4B") is None
    assert _other_than(target, "Qwen/Qwen3-4B-Thinking-2507") == "Qwen/Qwen3-4B-Thinking-2507"
    elsewhere = "/hub/models--Qwen--Qwen3-8B/snapshots/0123abc"  # the hash of a commit is no name
    assert _other_than(target, elsewhere) == elsewhere


def test_a_draft_of_model_optimizer_is_read_as_it_exports_it(tmp_path, capsys):
    tensors = tensors_of("model-optimizer", config=MODEL_OPTIMIZER)
    folder = imported(tmp_path, "specforge", MODEL_OPTIMIZER, tensors)
    config, ours = read_draft(folder)
    assert config.eagle_aux_hidden_state_layer_ids == (2, 6, 9)
    assert config.rope_scaling == RopeScaling("yarn", 32.0, original_max_position_embeddings=2048)
    assert ours["midlayer.mlp.up_proj.weight"].tobytes() == tensors["layers.0.mlp.up_proj.weight"].tobytes()
    # 32 times 2,048 is how far vLLM's angles of it go, whatever the target's own length is.
    assert config.max_position_embeddings == 65_536
    said = " ".join(capsys.readouterr().err.split())
    assert "max_position_embeddings is 131072, taken as 65536: of a rope_scaling 'yarn' vLLM has angles for" in said
    named = MODEL_OPTIMIZER | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}, "rope_scaling": None}
    config = read_config(imported(tmp_path / "b", "specforge", named, tensors))
    assert (config.eagle_aux_hidden_state_layer_ids, config.max_position_embeddings) == ((2, 6, 9), 131_072)


KIMI = {"type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0}


@pytest.mark.parametrize(
    ("scales", "factor"),
    [
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),  # SpecForge's and TorchSpec's own, of Kimi K2 and DeepSeek
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 0.0}, 0.1 * np.log(64) + 1),  # what TorchSpec makes of a target's
        ({}, 0.1 * np.log(64) + 1),
    ],
)
def test_a_scaling_as_deepseek_has_it_is_read_as_trainers_and_engines_do(scales, factor, tmp_path):
    config = read_config(imported(tmp_path, "torchspec", CONFIGS["torchspec"] | {"rope_scaling": KIMI | scales}))
    assert config.rope_scaling.kind == "yarn"
    assert rotary_factor(config.rope_scaling) == pytest.approx(factor)


@pytest.mark.parametrize("form", ["offsets", "ids", "shuffled ids"])
@pytest.mark.parametrize("t2d", [True, False])
def test_a_vocabulary_in_offsets_or_ids_is_told_apart(form, t2d, tmp_path):
    tensors = tensors_of("angelslim")
    ids = tensors["d2t"] + np.arange(DRAFT_VOCAB)
    if form == "shuffled ids":
        order = np.random.default_rng(0).permutation(DRAFT_VOCAB)
        ids = ids[order]
    if form != "offsets":
        tensors["d2t"] = ids.astype(np.int32)
    if not t2d:
        del tensors["t2d"]
    folder = imported(tmp_path, "angelslim", tensors=tensors)
    _, ours = read_draft(folder)
    np.testing.assert_array_equal(ours["d2t"] + np.arange(DRAFT_VOCAB), ids)
    assert json.loads((folder / "import.json").read_text())["vocabulary"] == form.split()[-1]


@settings(max_examples=120, deadline=None)
@given(st.data(), st.booleans())
def test_a_vocabulary_is_read_right_or_refused(tmp_path_factory, data, marked):
    """Any vocabulary, in either form, with t2d or without: never another vocabulary."""
    ids = np.array(data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=39, unique=True)))
    path, marks = tmp_path_factory.getbasetemp(), np.isin(np.arange(40), ids) if marked else None
    for d2t in (ids, ids - np.arange(len(ids))):
        try:
            found, _ = read_vocabulary(d2t, marks, len(ids), 40, path)
        except DraftError as error:
            assert "can be read as offsets and as ids" in str(error)  # noqa: PT017, either outcome is right
        else:
            np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize(
    ("t2d", "message"),
    [
        (
            np.arange(VOCAB) != 7,
            "t2d says that target token 7 has no draft token, but draft_vocab_size is 200, as many",
        ),
        (np.ones(50, bool), r"t2d is bool \[50\], expected true or false \[200\]"),
        (np.ones(VOCAB, np.float32), r"t2d is float32 \[200\], expected true or false \[200\]"),
    ],
    ids=["a part", "short", "floats"],
)
def test_a_t2d_that_contradicts_a_whole_vocabulary_is_refused(t2d, message, tmp_path):
    """Where nobody says d2t: it was passed over, and what was imported did not come back as the original."""
    with pytest.raises(DraftError, match=message):
        imported(tmp_path, "torchspec", tensors=tensors_of("torchspec") | {"t2d": t2d})


def test_the_context_that_a_scaling_of_nemo_s_counts_from_is_not_ignored(tmp_path):
    """transformers puts it in the place of the scaling's own."""
    says = CONFIGS["nemo"] | {"rope_scaling": LLAMA3} | PHI3
    with pytest.raises(DraftError, match="original_max_position_embeddings is 4096, which is unknown"):
        imported(tmp_path, "nemo", says)


@pytest.mark.parametrize("said", [True, False, None])
def test_the_meaning_of_norm_output_that_is_assumed_is_said(said, tmp_path, capsys):
    """SpecForge gave it another one at first, and its configs do not tell which."""
    folder = imported(tmp_path, "specforge", CONFIGS["specforge"] | {"norm_output": said})
    assert read_config(folder).norm_output == bool(said)
    printed = " ".join(capsys.readouterr().err.split())
    which = {True: "reads the normed output of the one before", False: "reads the output before the norm", None: ""}
    assert ("norm_output is" in printed) == (said is not None)
    assert which[said] in printed


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ({"sliding_window": 128, "use_sliding_window": None}, True),  # SpecForge's own, of gpt-oss: from the target
        ({"sliding_window": 128}, False),
        ({"sliding_window": 131072, "use_sliding_window": None}, False),  # wider than any text of it
    ],
)
def test_a_window_that_no_tensor_tells_of_is_passed_over_aloud(says, told, tmp_path, capsys):
    imported(tmp_path, "specforge", CONFIGS["specforge"] | says)
    said = " ".join(capsys.readouterr().err.split())
    assert ("sliding_window is 128, and is passed over" in said) == told


def test_an_lm_head_tied_to_the_drafts_own_embeddings_is_read(tmp_path):
    tensors = tensors_of("deepspec")
    del tensors["lm_head.weight"]
    folder = imported(tmp_path, "deepspec", CONFIGS["deepspec"] | {"tie_word_embeddings": True}, tensors)
    _, ours = read_draft(folder)
    np.testing.assert_array_equal(ours["lm_head.weight"], ours["embed_tokens.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_an_lm_head_that_a_draft_of_the_whole_vocabulary_lacks_is_its_target_s(tied, tmp_path, capsys):
    """NVIDIA's first drafts of gpt-oss: vLLM takes the target's, and so has the trainer."""
    tensors, target = tensors_of("deepspec"), write_target(tmp_path / "of", tie_word_embeddings=tied)
    del tensors["lm_head.weight"]
    source = write_published(tmp_path / "published", "deepspec", tensors=tensors)
    options = ImportConfig(draft=source, target=target, out=tmp_path / "draft")
    with pytest.raises(
        DraftError, match=r"lm_head\.weight is missing, .* that of target small, in \S+/target: such a draft"
    ):
        import_draft(options)
    rows = np.random.default_rng(3).normal(size=(VOCAB, HIDDEN)).astype(FLOATS["float16"])
    weights = {EMBEDDING: rows} if tied else {HEAD: rows, EMBEDDING: rows + 1}
    save_file(weights, tmp_path / "of" / "target" / "model.safetensors")
    import_draft(options)
    assert read_draft(tmp_path / "draft")[1]["lm_head.weight"].tobytes() == rows.tobytes()
    assert "has no lm_head.weight, so the target's is taken" in " ".join(capsys.readouterr().err.split())
    _, original, _ = exported(tmp_path / "draft", tmp_path, "original", target)
    assert {name: tensor.tobytes() for name, tensor in original.items()} == {
        name: tensor.tobytes() for name, tensor in tensors.items()
    }
