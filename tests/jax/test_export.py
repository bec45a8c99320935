"""From a run to a draft directory and back: what training divides by is folded into the weights, to the bit."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jax_specexit import export
from jax_specexit.convert import convert
from jax_specexit.export import params_from_draft, tensor_pieces
from jax_specexit.model.draft import Draft
from jax_specexit.sharding import make_mesh
from jax_specexit.training.data import first_rows
from jax_specexit.training.run import Start, read_start, save_start
from jax_specexit.training.start import draft_config, start
from jax_specexit.training.step import ttt_outputs
from jax_specexit.training.train import train
from jax_specexit.training.warm import chosen_on, length_of, read_source, widen
from specexit.config import ConfigError
from specexit.data.outlines import outlines
from specexit.data.overlap import OverlapError, read_prompts, write_prompts
from specexit.data.packed import read_meta
from specexit.data.traces import read_traces
from specexit.drafts.config import DraftError, read_config
from specexit.drafts.directory import FLOATS, DraftConfig, SpecExitBlock, read_draft, vocabulary_tensors, write_draft
from specexit.drafts.inspect import describe
from specexit.drafts.policy import PolicyError, PolicyFile, Selection, read_policy
from specexit.drafts.published import Origin, import_draft
from specexit.drafts.rope import RopeScaling
from specexit.method.signals import NAMES
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.published import ImportConfig
from specexit.schemas.target import TargetConfig, load_target_config
from specexit.schemas.train import CheckpointConfig, SignalConfig, TrainConfig
from tests.parity.layout_forward import published_logits, stated
from tests.shared.published import CONFIGS, tensors_of, write_published

DraftWriter = Callable[..., Path]


def shape(source: str) -> DraftConfig:
    return DraftConfig(
        hidden_size=8,
        target_hidden_size=6,
        intermediate_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        vocab_size=20,
        draft_vocab_size=10,
        eagle_aux_hidden_state_layer_ids=(1, 2, 3),
        num_aux_hidden_states=3,
        target_num_hidden_layers=4,
        specexit=SpecExitBlock.model_validate({"source": source, "target": "t", "split_endings": ["\n\n"]}),
    )


def tensors_from_params(
    config: DraftConfig, params: Mapping[str, Any], vocab: np.ndarray, aux_rms: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """All tensors of ``model.safetensors`` at once, in float32.

    Args:
      config: of the draft; its ``specexit.source`` says where the signal rows go.
      params: pure parameter tree of `Draft`.
      vocab: target id of every draft token.
      aux_rms: of the `Draft` that the parameters belong to.
    """

    def read(path: str) -> np.ndarray:
        tree: Any = params
        for key in path.split("/"):
            tree = tree[key]
        return np.asarray(tree, np.float32)

    pieces = tensor_pieces(config, read, aux_rms)
    vocabulary = vocabulary_tensors(vocab, config.vocab_size)
    names = (name for name in config.tensor_shapes() if name not in vocabulary)
    return {name: np.concatenate([*pieces(name)]) for name in names} | vocabulary


@pytest.mark.parametrize("source", ["draft", "fc"])
@settings(max_examples=10, deadline=None)
@given(exponents=st.tuples(*[st.integers(-8, 12)] * 3), seed=st.integers(0, 99))
def test_a_draft_directory_computes_what_the_run_computed(source, exponents, seed):
    rms = tuple(2.0**e for e in exponents)
    trained = Draft(shape(source), rngs=nnx.Rngs(seed), aux_rms=rms)
    params, vocab = nnx.to_pure_dict(nnx.state(trained)), np.arange(0, 20, 2)
    tensors = tensors_from_params(shape(source), params, vocab, rms)

    served = Draft(shape(source), rngs=nnx.Rngs(0))
    nnx.update(served, jax.tree.map(jnp.asarray, params_from_draft(shape(source), tensors)))
    rng = np.random.default_rng(seed)
    aux = jnp.asarray(rng.normal(size=(2, 5, 18)) * np.repeat(rms, 6), jnp.float32)
    normed = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    np.testing.assert_array_equal(served.fuse(aux), trained.fuse(aux))
    np.testing.assert_array_equal(served.signals(aux, normed), trained.signals(aux, normed))
    jax.tree.map(np.testing.assert_array_equal, params_from_draft(shape(source), tensors, rms), params)


@pytest.mark.parametrize("source", ["draft", "fc"])
@pytest.mark.parametrize(("block", "tile"), [(1, 1), (100, 3), (500, 5)])
def test_in_however_many_blocks_and_tiles_it_is_the_same(source, block, tile, monkeypatch):
    params = nnx.to_pure_dict(nnx.state(Draft(shape(source), rngs=nnx.Rngs(0))))
    vocab, rms = np.arange(0, 20, 2), (0.5, 4.0, 64.0)
    whole = tensors_from_params(shape(source), params, vocab, rms)
    monkeypatch.setattr(export, "BLOCK", block)
    monkeypatch.setattr(export, "TILE", tile)
    tensors = tensors_from_params(shape(source), params, vocab, rms)
    assert whole.keys() == tensors.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, params_from_draft(shape(source), tensors, rms), params)


def test_a_directory_in_bfloat16_is_trained_in_float32() -> None:
    params = nnx.to_pure_dict(nnx.state(Draft(shape("fc"), rngs=nnx.Rngs(0))))
    tensors = tensors_from_params(shape("fc"), params, np.arange(0, 20, 2))
    half = {name: t.astype(FLOATS["bfloat16"]) if t.dtype == np.float32 else t for name, t in tensors.items()}
    wide = {name: t.astype(np.float32) for name, t in half.items()}
    read = params_from_draft(shape("fc"), half, (0.5, 2.0, 8.0))
    jax.tree.map(np.testing.assert_array_equal, read, params_from_draft(shape("fc"), wide, (0.5, 2.0, 8.0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(read)} == {"float32"}


def test_a_frozen_trunk_is_the_same_to_the_bit(recipe: TrainConfig, tmp_path) -> None:
    train(recipe)
    convert(ConvertConfig(run=recipe.out, out=tmp_path / "draft"))
    changes = {
        "signals": SignalConfig(source="fc"),
        "freeze_trunk": True,
        "init_from": tmp_path / "draft",
        "out": tmp_path / "probe",
    }
    train(recipe.model_copy(update=changes))
    assert set(read_start(tmp_path / "probe").aux_rms) != {1.0}  # else there would be nothing to fold
    convert(ConvertConfig(run=tmp_path / "probe", out=tmp_path / "draft-fc"))
    (_, before), (_, after) = read_draft(tmp_path / "draft"), read_draft(tmp_path / "draft-fc")
    rows = after["fc.weight"][-len(NAMES) :]
    assert np.abs(rows).max() > 0
    after["fc.weight"] = after["fc.weight"][: -len(NAMES)]
    del before["signal_head.weight"]
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.fixture(scope="module")
def foreign(write_random_draft: DraftWriter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain draft of the small target with a geometry of its own: RoPE, eps, and biases."""
    sizes = {
        "hidden_size": 32,
        "target_hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 640,
        "draft_vocab_size": 320,
        "eagle_aux_hidden_state_layer_ids": (1, 2, 3),
        "target_num_hidden_layers": 3,
    }
    own = {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rms_norm_eps": 1e-3,
        "attention_bias": True,
        "max_position_embeddings": 256,
        "sliding_window": 9,
    }
    return write_random_draft(tmp_path_factory.mktemp("foreign") / "draft", None, **sizes, **own)


def test_a_warm_start_keeps_the_draft_s_own_geometry(
    recipe: TrainConfig, foreign: Path, small_target: Path, tmp_path: Path
) -> None:
    """And its weights, to the bit, where they are finer than what the target is served in."""
    changes = {"signals": SignalConfig(source="fc"), "freeze_trunk": True, "init_from": foreign, "steps": 2}
    train(recipe.model_copy(update=changes))
    convert(ConvertConfig(run=recipe.out, out=tmp_path / "draft"))
    served = load_target_config(str(small_target)).model_copy(update={"dtype": "bfloat16"})
    (tmp_path / "served.yaml").write_text(yaml.safe_dump(served.model_dump(mode="json")))
    convert(ConvertConfig(run=recipe.out, out=tmp_path / "of-half", target=str(tmp_path / "served.yaml")))
    for name, tensor in read_draft(tmp_path / "draft")[1].items():
        np.testing.assert_array_equal(read_draft(tmp_path / "of-half")[1][name], tensor, err_msg=name)
    assert read_config(tmp_path / "of-half").torch_dtype == "float32"
    (before, trunk), (after, tensors) = read_draft(foreign), read_draft(tmp_path / "draft")
    assert before.rope_theta != 10_000  # the target's
    ours = {"architectures", "specexit", "max_position_embeddings"}
    assert after.model_dump(exclude=ours) == before.model_dump(exclude=ours)
    assert (before.max_position_embeddings, after.max_position_embeddings) == (256, 512)  # the target's
    tensors["fc.weight"] = tensors["fc.weight"][: -len(NAMES)]
    for name in trunk:
        np.testing.assert_array_equal(tensors[name], trunk[name], err_msg=name)
    # So it drafts the same, bit by bit: the same greedy choices of every TTT step, by the same arithmetic.
    ids = jax.random.randint(jax.random.key(1), (1, 24), 0, 640)
    aux, table = jax.random.normal(jax.random.key(2), (1, 24, 96)), jax.random.normal(jax.random.key(3), (640, 32))
    batch = {"tokens": ids, "positions": jnp.arange(24)[None], "segment_ids": jnp.ones((1, 24), jnp.int32)}
    outputs = []
    for config, weights in ((before, trunk), (after, read_draft(tmp_path / "draft")[1])):
        draft = Draft(config, rngs=nnx.Rngs(0))
        nnx.update(draft, jax.tree.map(jnp.asarray, params_from_draft(config, weights)))
        outputs.append([y @ draft.lm_head.kernel[...] for y in ttt_outputs(draft, table, aux, batch, 3)])
    jax.tree.map(np.testing.assert_array_equal, *outputs)


@pytest.mark.parametrize(
    ("own", "says", "scaling", "expected"),
    [
        (2048, 131_072, None, 131_072),
        (2048, 131_072, RopeScaling("llama3", 8.0), 131_072),
        (2048, 8192, None, 32_768),  # the target is served longer than its config says
        (262_144, 131_072, None, 262_144),
        # vLLM's table of yarn ends at factor x original positions, and is read beyond its end.
        (2048, 131_072, RopeScaling("yarn", 32.0, original_max_position_embeddings=2048), 65_536),
    ],
)
def test_a_short_published_draft_becomes_as_long_as_its_target(
    own: int, says: int, scaling: RopeScaling | None, expected: int
) -> None:
    target = TargetConfig(
        name="t", path="/nowhere", aux_layers=(1,), max_model_len=32_768, config={"max_position_embeddings": says}
    )
    source = shape("draft").model_copy(update={"max_position_embeddings": own, "rope_scaling": scaling})
    assert length_of(source, target) == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-9], "cannot be read as JSON"),
        (lambda _: "[]", r"it is \[\]: Input should be"),
        (lambda text: text.replace('"vocab"', '"words"'), "vocab is .*: Field required"),
        (
            lambda text: text.replace('"hidden_size": 8', '"hidden_size": -8'),
            "config.hidden_size is -8: .* greater than",
        ),
        (lambda text: text.replace("[1.0, 1.0, 2.0]", "[1.0, NaN, 2.0]"), r"aux_rms.1 is nan"),
        (lambda text: text.replace("[1.0, 1.0, 2.0]", "[1.0]"), "aux_rms holds 1 numbers, but .* is 3"),
        (lambda text: text.replace("[0, 2, 4,", "[0, 4,"), "vocab holds 9 numbers, but config.draft_vocab_size is 10"),
        (lambda text: text.replace("[0, 2, 4,", "[0, 2, 2,"), "vocab names a token twice, or one beyond .*size 20"),
        (lambda text: text.replace("16, 18]", "16, 20]"), "vocab names a token twice, or one beyond .*size 20"),
    ],
)
def test_a_damaged_start_of_a_run_is_one_line_that_names_file_and_field(
    damage: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    save_start(tmp_path, Start(shape("draft"), np.arange(0, 20, 2), (1.0, 1.0, 2.0)))
    path = tmp_path / "draft.json"
    whole = path.read_text()
    assert read_start(tmp_path).aux_rms == (1.0, 1.0, 2.0)
    path.write_text(damage(whole))
    assert path.read_text() != whole
    with pytest.raises(ConfigError, match=f"{path}: {message}") as refused:
        read_start(tmp_path)
    assert "\n" not in str(refused.value)


PUBLISHED = {
    "angelslim": {"eagle_aux_hidden_state_layer_ids": [1, 2, 3]},
    "specforge": {
        "rope_theta": 1e6,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]},
        "attention_bias": False,
    },
}
"""Layout, and what its instance says here: another RoPE than the target's; own embeddings, and norms before fc."""


def test_a_fresh_draft_is_as_long_as_its_target_is_served(recipe: TrainConfig, small_target: Path) -> None:
    """Stretched by YaRN a target is longer than its config.json says; engines refuse a draft that is shorter."""
    target = load_target_config(str(small_target)).model_copy(update={"max_model_len": 2048})
    assert draft_config(recipe, target, "earliest").max_position_embeddings == 2048


@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_run_that_starts_from_an_import_drafts_at_first_what_the_published_draft_did(
    layout: str, recipe: TrainConfig, small_target: Path, tmp_path: Path
) -> None:
    """At step 0, whatever the run divides aux hidden states by: the layout's own forward, restated in float64."""
    sizes = recipe.draft.model_dump() | {"vocab_size": 640}
    says = {key: value for key, value in CONFIGS[layout].items() if key not in sizes} | sizes | PUBLISHED[layout]
    published = tensors_of(layout, config=says)
    source = write_published(tmp_path / "published", layout, says, published)
    import_draft(ImportConfig(draft=source, target=str(small_target), out=tmp_path / "draft"))
    run = recipe.model_copy(update={"init_from": tmp_path / "draft"})
    rows, meta = first_rows(run.data, read_meta(run.data)), read_meta(run.data)
    fixed, draft, target = start(run, load_target_config(str(small_target)), meta, rows, make_mesh(run.mesh))
    says = stated(layout, says)
    assert fixed.shape.rope_theta == says["rope_theta"]
    if layout == "angelslim":
        assert set(fixed.aux_rms) != {1.0}, "nothing is divided, so that is not tried here"
    rng = np.random.default_rng(0)
    tokens, aux = rng.integers(0, 640, 24), rng.normal(size=(24, 96)).astype(np.float32)
    table = np.asarray(target.embedding[...], np.float64)
    theirs = {name: tensor.astype(np.float64) for name, tensor in published.items()}
    expected = published_logits(says, theirs, table, tokens, aux, run.ttt_steps)
    batch = {"tokens": jnp.asarray(tokens)[None], "positions": jnp.arange(24)[None]}
    batch["segment_ids"] = jnp.ones((1, 24), jnp.int32)
    outputs = ttt_outputs(draft, target.embedding[...], jnp.asarray(aux)[None], batch, run.ttt_steps)
    for k, (y, wanted) in enumerate(zip(outputs, expected, strict=True)):
        found = np.asarray(y @ draft.lm_head.kernel[...])[0, : 23 - k]
        np.testing.assert_allclose(
            found, wanted, atol=5e-5, rtol=1e-4
        )  # float32 against float64, as tests/parity has it
        np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


def test_the_draft_that_a_run_began_with_is_not_needed_to_go_on(
    recipe: TrainConfig, foreign: Path, tmp_path: Path
) -> None:
    draft = Path(shutil.copytree(foreign, tmp_path / "draft"))
    recipe = recipe.model_copy(update={"init_from": draft, "steps": 2, "checkpoint": CheckpointConfig(every=1)})
    train(recipe)
    before = [json.loads(line)["loss"] for line in (recipe.out / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(recipe.out / "checkpoints" / "2")
    draft.rename(tmp_path / "moved")
    path = recipe.out / "draft.json"
    path.write_text(path.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 256'))
    train(recipe)
    assert read_start(recipe.out).shape.max_position_embeddings == 512  # older versions kept the draft's
    assert [json.loads(line)["loss"] for line in (recipe.out / "metrics.jsonl").read_text().splitlines()] == before
    shutil.rmtree(recipe.out / "checkpoints")
    with pytest.raises(DraftError, match=f"^init_from={draft}: holds no config.json"):
        train(recipe)


def test_what_begins_anew_says_of_the_draft_what_lies_there_now(
    recipe: TrainConfig, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a kill that came before the first checkpoint, a run that read another draft used to call it the old one:
    which prompts had chosen it was lost, and `calibrate` had nothing to refuse them by."""
    draft = Path(shutil.copytree(foreign, tmp_path / "draft"))
    recipe = recipe.model_copy(update={"init_from": draft, "steps": 1, "freeze_trunk": True})
    recipe = recipe.model_copy(update={"signals": SignalConfig(source="fc")})
    with monkeypatch.context() as killed:
        killed.setattr("jax_specexit.training.train.write_status", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    assert (read_start(recipe.out).before, read_start(recipe.out).kept) == (None, "float32")
    config, tensors = read_draft(draft)
    halves = {name: np.asarray(x, FLOATS["bfloat16"]) if x.dtype.kind == "f" else x for name, x in tensors.items()}
    shutil.rmtree(draft)
    write_draft(draft, config.model_copy(update={"torch_dtype": "bfloat16"}), halves)
    selection = Selection(by="brier", prompts=("0123456789abcdef",))
    (draft / "policy.json").write_text(PolicyFile(selection=selection).model_dump_json())
    train(recipe)
    assert (read_start(recipe.out).before, read_start(recipe.out).kept) == (selection, "bfloat16")
    convert(ConvertConfig(run=recipe.out, out=tmp_path / "trained"))
    assert read_policy(tmp_path / "trained").selection == selection
    kept = read_draft(tmp_path / "trained")[1]
    for name in halves.keys() - {"fc.weight"}:
        np.testing.assert_array_equal(kept[name], halves[name], err_msg=name)


def test_what_is_known_of_the_draft_stays_known(
    recipe: TrainConfig, foreign: Path, packed: Path, tmp_path: Path
) -> None:
    draft = Path(shutil.copytree(foreign, tmp_path / "draft"))
    held_out, ours = packed.parent / "traces.parquet", read_prompts(packed)
    theirs = [*outlines(read_traces(held_out)).prompts()]
    write_prompts(draft, theirs)
    origin = Origin(layout="angelslim", config={}, names={}, vocabulary="offsets", types={}, target="small")
    (draft / "import.json").write_text(origin.model_dump_json())
    selection = Selection(by="brier", prompts=("0123456789abcdef",))
    (draft / "policy.json").write_text(PolicyFile(selection=selection).model_dump_json())
    recipe = recipe.model_copy(update={"init_from": draft, "steps": 1})
    with pytest.raises(OverlapError, match=f"40 of 40 prompts were trained on according to {draft}/prompts.npy"):
        train(recipe.model_copy(update={"eval_traces": held_out}))
    train(recipe)
    shutil.rmtree(draft)
    train(recipe)  # goes on without it
    convert(ConvertConfig(run=recipe.out, out=tmp_path / "trained"))
    known = read_prompts(tmp_path / "trained")
    assert known is not None
    assert ours is not None
    assert {*known.tolist()} == {*theirs, *ours.tolist()}
    assert describe(tmp_path / "trained")["origin"].startswith(
        "imported, layout angelslim, and trained further here, on "
    )
    assert read_policy(tmp_path / "trained").selection == selection  # nor may these calibrate what became of it


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_attention_heads", 2, "num_attention_heads is 4, but the recipe says draft.num_attention_heads=2"),
        ("head_dim", 16, "head_dim is 8, but the recipe says draft.head_dim=16"),
    ],
)
def test_sizes_that_are_not_the_draft_s_are_refused(
    recipe: TrainConfig, foreign: Path, field: str, value: int, message: str
) -> None:
    wrong = recipe.draft.model_copy(update={field: value})
    with pytest.raises(ConfigError, match=message):
        train(recipe.model_copy(update={"init_from": foreign, "draft": wrong}))
    assert not recipe.out.exists()


@pytest.mark.parametrize("imported", [False, True])
def test_a_draft_of_another_target_of_the_same_sizes_is_refused(
    recipe: TrainConfig, foreign: Path, tmp_path: Path, imported: bool
) -> None:
    draft = Path(shutil.copytree(foreign, tmp_path / "draft"))
    if imported:
        origin = Origin(layout="angelslim", config={}, names={}, vocabulary="offsets", types={}, target="large")
        (draft / "import.json").write_text(origin.model_dump_json())
    else:
        fields = json.loads((draft / "config.json").read_text())
        (draft / "config.json").write_text(json.dumps(fields | {"specexit": {"target": "large", "policy": {}}}))
    with pytest.raises(DraftError, match=f"init_from={draft}: the draft was made for target 'large', .* says 'small'"):
        train(recipe.model_copy(update={"init_from": draft}))
    assert not recipe.out.exists()


def test_what_is_no_draft_directory_is_named_by_its_key(recipe: TrainConfig, tmp_path: Path) -> None:
    said = f"^init_from={tmp_path}: holds no config.json, expected a draft directory"
    with pytest.raises(DraftError, match=f"{said}$"):
        train(recipe.model_copy(update={"init_from": tmp_path}))
    (tmp_path / "draft.json").touch()
    with pytest.raises(DraftError, match=f"{said}; `specexit convert run={tmp_path} out=DRAFT` makes one of a run$"):
        train(recipe.model_copy(update={"init_from": tmp_path}))


def test_a_damaged_draft_is_refused_before_the_target_is_loaded(
    recipe: TrainConfig, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = Path(shutil.copytree(foreign, tmp_path / "draft"))
    tensors = load_file(draft / "model.safetensors")
    tensors["fc.weight"][0, 0] = np.nan
    save_file(tensors, draft / "model.safetensors")
    monkeypatch.setattr("jax_specexit.training.start.load_target", Mock(side_effect=LookupError("loading")))
    with pytest.raises(DraftError, match=r"model\.safetensors: tensor fc\.weight holds NaN or infinity"):
        train(recipe.model_copy(update={"init_from": draft}))


def test_a_draft_that_has_lost_its_policy_is_begun_with(foreign: Path, small_target: Path, tmp_path: Path) -> None:
    """As vLLM leaves it in the Hub's cache, or a copy without `policy.json`: a run has no use of one."""
    draft, target = Path(shutil.copytree(foreign, tmp_path / "draft")), load_target_config(str(small_target))
    fields = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(fields | {"specexit": {"target": "small"}}))
    with pytest.raises(PolicyError, match=r"draft/policy\.json: is not there"):
        read_policy(draft)
    source = read_source(draft, target)
    assert (source.target_name, source.rope_theta) == ("small", 1e6)
    assert chosen_on(draft) is None


def test_a_window_of_fewer_tokens_than_steps_is_refused_before_anything_is_written(
    recipe: TrainConfig, foreign: Path
) -> None:
    """The last of ten steps would see nothing of the first pass in a window of 9."""
    said = "sliding_window is 9, but the recipe says ttt_steps=10, expected at most 9"
    with pytest.raises(ConfigError, match=said):
        train(recipe.model_copy(update={"init_from": foreign, "ttt_steps": 10}))
    assert not recipe.out.exists()


def test_aux_layers_that_lack_the_draft_s_own_are_refused(recipe: TrainConfig, foreign: Path) -> None:
    with pytest.raises(ConfigError, match=r"is \[1, 2, 3\], but the recipe says \[1, 3\]"):
        train(recipe.model_copy(update={"init_from": foreign, "aux_layers": (1, 3)}))


def test_freezing_a_trunk_that_does_not_exist_is_refused(recipe: TrainConfig) -> None:
    with pytest.raises(ValueError, match="expected source fc and a draft directory"):
        TrainConfig.model_validate(recipe.model_dump() | {"freeze_trunk": True})


def test_a_draft_with_a_further_aux_layer_drafts_what_it_did() -> None:
    narrow = shape("draft")
    draft = Draft(narrow, rngs=nnx.Rngs(1))
    tensors = tensors_from_params(narrow, nnx.to_pure_dict(nnx.state(draft)), np.arange(0, 20, 2))
    config, wider = widen(narrow, tensors, (1, 2, 4, 3))
    assert config.eagle_aux_hidden_state_layer_ids == (1, 2, 4, 3)
    served = Draft(config, rngs=nnx.Rngs(0))
    nnx.update(served, jax.tree.map(jnp.asarray, params_from_draft(config, wider)))
    states = jax.random.normal(jax.random.key(0), (2, 5, 24))  # of the layers 1, 2, 4, 3
    old = jnp.concatenate([states[..., :12], states[..., 18:]], axis=-1)
    # the zeros change nothing but the order of the sums
    np.testing.assert_allclose(served.fuse(states), draft.fuse(old), rtol=1e-5, atol=1e-6)
    assert widen(narrow, tensors, (1, 2)) == (narrow, tensors)
