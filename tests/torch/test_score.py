"""Scoring traces on the real tiny target, with a draft of random weights: alignment, batching, bad input."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from specexit import tiny
from specexit.config import ConfigError
from specexit.data.scores import SCHEMA, ScoreError, read_scores
from specexit.data.stream import TraceError
from specexit.data.traces import WEIGHTS, data_sha256, write_traces
from specexit.drafts.computation import config_hashes
from specexit.drafts.directory import DraftError, read_config
from specexit.drafts.fingerprints import target_fingerprint
from specexit.drafts.policy import PolicyFile, write_policy
from specexit.drafts.tensors import weights_hash
from specexit.method.signals import activate
from specexit.schemas.score import ScoreConfig
from specexit.schemas.target import load_target_config
from tests.shared.peak import peak
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures, check_rotary
from torch_specexit.score import Text, load_pair, raw_signals, score

TINY = {
    "hidden_size": 192,
    "target_hidden_size": 192,
    "vocab_size": 640,
    "eagle_aux_hidden_state_layer_ids": (1, 3, 4),
}


@pytest.fixture(scope="module")
def traces(make_trace):
    rng = np.random.default_rng(0)
    found = []
    for i, length in enumerate((9, 31, 17)):
        ids = rng.integers(0, 630, length + 6).tolist()
        found.append(make_trace(id=f"t{i}", prompt_ids=ids[:6], think_ids=ids[6:], boundaries=[4, 7, 9]))
    return found


@pytest.fixture(params=["draft", "fc"])
def paths(request, tmp_path, write_random_draft, traces):
    draft = write_random_draft(tmp_path / "draft", request.param, **TINY)
    write_traces(tmp_path / "traces.parquet", traces)
    return {"draft": draft, "traces": tmp_path / "traces.parquet", "out": tmp_path / "scores"}


def test_features_are_the_residual_stream_before_the_final_norm():
    features = TargetFeatures(load_target_config("tiny-reasoner"), (0, 2, 4))
    tokens = torch.arange(40).reshape(2, 20)
    first, middle, last = features(tokens).chunk(3, dim=-1)
    with torch.inference_mode():
        theirs = features.model(input_ids=tokens, output_hidden_states=True)
        assert torch.equal(first, theirs.hidden_states[0])
        assert torch.equal(middle, theirs.hidden_states[2])
        assert torch.equal(features.model.norm(last), theirs.last_hidden_state)


def test_a_target_with_an_lm_head_of_its_own(tmp_path, capfd):
    """The head is not needed, and its being there is no news; weights that are missing are an error, not random."""
    fields = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**fields, **heads))
    model.save_pretrained(tmp_path)
    target = load_target_config("tiny-reasoner").model_copy(update={"path": str(tmp_path)})
    capfd.readouterr()
    features = TargetFeatures(target, (1, 2))
    assert "lm_head" not in "".join(capfd.readouterr())
    torch.testing.assert_close(features.embedding, model.get_input_embeddings().weight.detach())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"weights of layers\.1\.mlp\.up_proj\.weight are missing"):
        TargetFeatures(target, (1, 2))


def test_weights_beside_those_of_the_index_are_refused(tmp_path):
    """transformers reads `model.safetensors` before it looks at the index, by which vLLM and the fingerprint go."""
    folder = shutil.copytree(tiny.MODEL_DIR, tmp_path / "model")
    served = folder / "model-00001-of-00001.safetensors"
    tensors = load_file((folder / "model.safetensors").rename(served))
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, served.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    target = load_target_config("tiny-reasoner").model_copy(update={"path": str(folder)})
    expected = TargetFeatures(target, (1, 2)).embedding
    torch.testing.assert_close(expected, tensors["model.embed_tokens.weight"].float())
    stale = {name: torch.zeros_like(value) for name, value in tensors.items()}
    save_file(stale, folder / "model.safetensors", {"format": "pt"})
    said = r"model/model\.safetensors: model\.safetensors\.index\.json does not name it, .*: move it elsewhere"
    with pytest.raises(ConfigError, match=said):
        TargetFeatures(target, (1, 2))


@pytest.mark.parametrize(("given", "said"), [({}, "None"), ({"metadata": "none"}, "'none'")])
def test_an_index_without_metadata_is_told_what_it_lacks(given, said, tmp_path):
    """vLLM reads one, as does training; transformers alone ended, with a KeyError."""
    folder = shutil.copytree(tiny.MODEL_DIR, tmp_path / "model")
    served = (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(load_file(served), served.name), **given}))
    target = load_target_config("tiny-reasoner").model_copy(update={"path": str(folder)})
    with pytest.raises(ConfigError, match=rf'^{index}: metadata is {said}, .*: add "metadata": {{}}$'):
        TargetFeatures(target, (1, 2))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ quantized model requires optimum"),
        ({"model_type": "new", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}, "which is not run"),
        ({"model_type": "nobody's"}, "nobody's"),
        ({"hidden_act": "nobody's"}, 'KeyError: "nobody\'s"'),
    ],
)
def test_a_target_that_transformers_refuses_is_one_line(fields, said, tmp_path, monkeypatch):
    """It was a traceback; and where the code is the folder's own, a question whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks for a stranger's code"))
    folder = shutil.copytree(tiny.MODEL_DIR, tmp_path / "model")
    target = load_target_config("tiny-reasoner").model_copy(update={"path": str(folder)})
    (folder / "config.json").write_text(json.dumps(target.hf_config() | fields))
    (folder / "own.py").write_text("class Config: pass\nclass Model: pass\n")
    with pytest.raises(ConfigError, match=rf"model: transformers cannot load it: .*{said}") as error:
        TargetFeatures(target, (1, 2))
    assert "\n" not in str(error.value)


def test_weights_of_another_size_than_the_config_says_are_named(tmp_path):
    """transformers' error was a traceback that points to a report, which it had not been let print."""
    folder = shutil.copytree(tiny.MODEL_DIR, tmp_path / "model")
    target = load_target_config("tiny-reasoner").model_copy(update={"path": str(folder)})
    (folder / "config.json").write_text(json.dumps(target.hf_config() | {"vocab_size": 700}))
    said = r"model: weights of embed_tokens\.weight have shape \[640, 192\], expected \[700, 192\] by config\.json"
    with pytest.raises(ConfigError, match=said):
        TargetFeatures(target, (1, 2))


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}


@pytest.mark.parametrize(
    ("where", "expected"), [("Draft.load", "a larger one"), ("raw_signals", "a smaller batch_tokens than 8192")]
)
def test_a_device_that_is_too_small_is_one_line_with_what_to_change(where, expected, paths, monkeypatch):
    """torch's error was a traceback."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(f"torch_specexit.score.{where}", full)
    said = rf"the device has too little memory, expected {expected}, dtype=bfloat16 .* or device=cpu"
    with pytest.raises(ScoreError, match=said):
        score(ScoreConfig(**paths, batch_tokens=8192))
    assert not paths["out"].exists()


def test_a_target_larger_than_the_device_is_told_with_both_sizes(paths, monkeypatch):
    """It was told to take a smaller `batch_tokens`, on which no weight depends."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 2**30))
    said = r"the weights take 0\.0 GiB in float32, .* GPU with 80\.0 GiB in all: .* a larger one, .* or device=cpu$"
    with pytest.raises(ConfigError, match=said) as error:
        score(ScoreConfig(**paths))
    assert "batch_tokens" not in str(error.value)
    assert not paths["out"].exists()


@pytest.mark.parametrize("rope", [LONG | {"original_max_position_embeddings": 512}, LONG | {"rope_type": "su"}])
def test_longrope_beyond_the_original_context_is_refused(rope, tmp_path):
    """transformers chooses the factors by the longest text of a batch, vLLM once for all: they are other states."""
    target = load_target_config("tiny-reasoner")
    fields = target.hf_config() | {"rope_parameters": rope}
    fields |= {} if "original_max_position_embeddings" in rope else {"original_max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    long = target.model_copy(update={"path": str(tmp_path), "max_model_len": 513})
    with pytest.raises(
        ConfigError, match=r"config\.json: rope_type is 'longrope' .*512, but .* max_model_len=513: vLLM"
    ):
        TargetFeatures(long, (1, 2))
    check_rotary(long.model_copy(update={"max_model_len": 512}))


def test_a_factor_that_only_older_vllm_reads_is_refused(tmp_path):
    """transformers passes it over, so that served signals would be those of another computation."""
    target = load_target_config("tiny-reasoner").model_copy(update={"path": str(tmp_path)})
    fields = load_target_config("tiny-reasoner").hf_config()
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "attn_factor": 0.878248856}
    for beside in ({}, {"attention_factor": 1.3}):
        (tmp_path / "config.json").write_text(json.dumps(fields | {"rope_parameters": rope | beside}))
        with pytest.raises(ConfigError, match=r"config\.json: attn_factor is 0\.878249, which transformers and vLLM 0"):
            check_rotary(target)
    for agreed in ({"attention_factor": 1.0}, {"attn_factor": 1.0}):
        (tmp_path / "config.json").write_text(json.dumps(fields | {"rope_parameters": rope | agreed}))
        check_rotary(target)


def test_longrope_whose_original_context_is_no_number_is_said_by_file(tmp_path):
    """It was a traceback."""
    target = load_target_config("tiny-reasoner")
    rope = LONG | {"original_max_position_embeddings": "512"}
    (tmp_path / "config.json").write_text(json.dumps(target.hf_config() | {"rope_parameters": rope}))
    said = r"config\.json: original_max_position_embeddings is '512', expected a number"
    with pytest.raises(ConfigError, match=said):
        check_rotary(target.model_copy(update={"path": str(tmp_path)}))


def test_scores_are_the_signals_at_the_thinking_tokens_whatever_the_batch(paths, traces):
    assert score(ScoreConfig(**paths, batch_tokens=64)) == 3
    scores = read_scores(paths["out"])
    assert list(scores.signals) == [trace.id for trace in traces]
    assert scores.source == read_config(paths["draft"]).specexit.source
    assert scores.draft_blake3 == weights_hash(paths["draft"])
    assert scores.computation_sha256 == config_hashes(read_config(paths["draft"]))["computation"]
    assert (paths["out"] / "run.yaml").exists()

    features = TargetFeatures(load_target_config("tiny-reasoner"), (1, 3, 4))
    draft = Draft.load(paths["draft"], features.embedding)
    for trace, values in zip(traces, scores.of(traces), strict=True):
        tokens = torch.tensor([trace.prompt_ids + trace.think_ids])
        with torch.inference_mode():
            raw = draft(tokens, features(tokens)).raw_signals[0].numpy()
        expected = activate(raw[len(trace.prompt_ids) :])
        # Alone and in a padded batch, matrix products add up in another order.
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_scores_of_other_traces_are_refused(paths, traces):
    score(ScoreConfig(**paths))
    scores = read_scores(paths["out"])
    with pytest.raises(ScoreError, match="'new' is missing"):
        scores.of([dataclasses.replace(traces[0], id="new")])
    with pytest.raises(ScoreError, match="has 9 rows, expected one for each of its 8 thinking tokens"):
        scores.of([dataclasses.replace(traces[0], think_ids=traces[0].think_ids[:8])])


def test_a_draft_without_signals_or_of_another_target_is_refused_and_nothing_is_written(
    paths, tmp_path, write_random_draft
):
    plain = write_random_draft(tmp_path / "plain", None, **TINY)
    with pytest.raises(DraftError, match="no signals to score"):
        score(ScoreConfig(**paths | {"draft": plain}))
    other = write_random_draft(tmp_path / "other", "draft", **TINY | {"target_num_hidden_layers": 36})
    with pytest.raises(DraftError, match=r"target_num_hidden_layers is 36, but target tiny-reasoner has .* 4"):
        score(ScoreConfig(**paths | {"draft": other}))
    assert not paths["out"].exists()


def test_a_draft_that_has_lost_its_policy_is_scored(paths):
    """Scores are what a policy is calibrated on."""
    write_policy(paths["draft"], PolicyFile())
    (paths["draft"] / "policy.json").unlink()
    assert score(ScoreConfig(**paths)) == 3


def test_draft_traces_and_the_target_given_have_to_be_of_one_name(paths, traces):
    """Signals of another model's states, on which a certificate could be made, are never written."""
    with pytest.raises(ConfigError, match=r"'tiny-mixed', but .* belongs to 'tiny-reasoner': expected"):
        score(ScoreConfig(**paths, target="tiny-mixed"))
    others = [dataclasses.replace(trace, target="tiny-mixed") for trace in traces]
    for written, named in ((others, "'tiny-mixed'"), ([*traces, *others[:1]], "'tiny-mixed', 'tiny-reasoner'")):
        write_traces(paths["traces"], written)
        with pytest.raises(TraceError, match=rf"traces of target {named}, but .*draft was made for 'tiny-reasoner'"):
            score(ScoreConfig(**paths))
    assert not paths["out"].exists()


def test_traces_of_another_tokenizer_are_not_scored(paths, traces):
    write_traces(paths["traces"], traces, "0" * 64)
    with pytest.raises(TraceError, match="written with the tokenizer 000000000000"):
        score(ScoreConfig(**paths))
    assert not paths["out"].exists()


def test_traces_of_other_weights_are_not_scored(paths, traces):
    """Scores of the weights of today made a certificate of what others had written."""
    write_traces(paths["traces"], traces, said={WEIGHTS: "0" * 64})
    with pytest.raises(TraceError, match="written by weights with the fingerprint 000000000000"):
        score(ScoreConfig(**paths))
    assert not paths["out"].exists()


def test_a_model_that_moved_is_scored_with_and_its_fingerprint_is_kept(paths, tmp_path):
    moved = load_target_config("tiny-reasoner").model_dump(mode="json") | {"path": str(tmp_path / "moved")}
    shutil.copytree(tiny.MODEL_DIR, tmp_path / "moved")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(moved))
    score(ScoreConfig(**paths, target=str(tmp_path / "t.yaml")))
    assert read_scores(paths["out"]).target_sha256 == target_fingerprint(tiny.MODEL_DIR)


def test_scores_that_are_there_are_kept_and_those_of_something_else_are_refused(paths, write_random_draft):
    assert score(ScoreConfig(**paths)) == 3
    written = (paths["out"] / "scores.parquet").stat().st_mtime_ns
    assert score(ScoreConfig(**paths)) == 3
    assert (paths["out"] / "scores.parquet").stat().st_mtime_ns == written
    with pytest.raises(ScoreError, match=r"holds scores with config\.batch_tokens 8192 \(now 64\): delete the folder"):
        score(ScoreConfig(**paths, batch_tokens=64))
    file = paths["draft"] / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"max_position_embeddings": 65_536}))
    assert score(ScoreConfig(**paths)) == 3
    file.write_text(json.dumps(said | {"rope_theta": 1e6}))
    other = r"inputs\.computation \w{12} \(now \w{12}\), as .*draft/config\.json was changed: delete the folder"
    with pytest.raises(ScoreError, match=rf"scores: holds scores with {other}"):
        score(ScoreConfig(**paths))
    file.write_text(json.dumps(said))
    before, source = weights_hash(paths["draft"])[:12], read_config(paths["draft"]).specexit.source
    shutil.rmtree(paths["draft"])
    write_random_draft(paths["draft"], source, seed=1, **TINY)
    with pytest.raises(ScoreError, match=rf"scores: holds scores with inputs\.draft {before} \(now [0-9a-f]{{12}}\): "):
        score(ScoreConfig(**paths))
    assert (paths["out"] / "scores.parquet").stat().st_mtime_ns == written


@pytest.mark.parametrize("metadata", [{}, {"specexit.scores": "3", "specexit.source": "draft"}])
def test_scores_that_cannot_be_used_any_more_are_to_be_deleted(paths, metadata):
    """Of an older version, say: it said to score again, and so did the same command then."""
    paths["out"].mkdir()
    pq.write_table(SCHEMA.with_metadata(metadata).empty_table(), paths["out"] / "scores.parquet")
    told = r"scores: holds scores that cannot be used: delete the folder to score anew, or give another out \(.*: "
    with pytest.raises(ScoreError, match=told):
        score(ScoreConfig(**paths))


def test_an_output_folder_that_holds_something_is_refused(paths):
    paths["out"].mkdir()
    (paths["out"] / "precious").write_text("1")
    with pytest.raises(FileExistsError, match="not empty"):
        score(ScoreConfig(**paths))
    assert [path.name for path in paths["out"].iterdir()] == ["precious"]


def test_blocks_and_samples(paths, traces, monkeypatch):
    sampled = [*traces, dataclasses.replace(traces[0], sample=1, think_ids=traces[1].think_ids)]
    write_traces(paths["traces"], sampled)
    score(ScoreConfig(**paths))
    whole = read_scores(paths["out"])
    assert list(whole.signals) == ["t0", "t1", "t2", "t0#1"]
    monkeypatch.setattr("torch_specexit.score.BLOCK_TOKENS", 10)
    monkeypatch.setattr("specexit.data.stream.BATCH_ROWS", 1)
    score(ScoreConfig(**paths | {"out": paths["out"].with_name("again")}))
    again = read_scores(paths["out"].with_name("again"))
    for one, other in zip(whole.of(sampled), again.of(sampled), strict=True):
        # Batches of other traces add up in another order.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_trace_that_is_there_twice_is_refused(paths, traces):
    write_traces(paths["traces"], [*traces, traces[1]])
    with pytest.raises(TraceError, match=r"traces\.parquet: trace 't1', sample 0, is there twice"):
        score(ScoreConfig(**paths))
    assert not paths["out"].exists()


def test_a_file_that_is_not_the_one_that_collect_wrote_is_not_scored(paths, traces, tmp_path):
    """`annotate` refused the folder, and its scores were those of the changed file."""
    paths["traces"] = tmp_path / "collected"
    write_traces(file := paths["traces"] / "traces-00000.parquet", traces)
    manifest = {"files": {file.name: {"sha256": data_sha256(file)}}}
    (paths["traces"] / "manifest.json").write_text(json.dumps(manifest))
    write_traces(file, traces[:2])
    with pytest.raises(TraceError, match=r"traces-00000\.parquet: its content is not what manifest\.json says"):
        score(ScoreConfig(**paths))
    assert not paths["out"].exists()


def test_a_signal_that_is_not_finite_is_never_written(paths, monkeypatch):
    """One value would spoil the file for every command that reads it: so may an overflow in half precision."""

    def overflowing(*arguments):
        found = raw_signals(*arguments)
        found[-1][3, 0] = np.nan
        return found

    monkeypatch.setattr("torch_specexit.score.raw_signals", overflowing)
    with pytest.raises(
        ScoreError, match=r"traces\.parquet: signals of trace 't\d' are .*nan.* at thinking token 3, exp"
    ):
        score(ScoreConfig(**paths))
    assert not paths["out"].exists()


def test_an_id_that_looks_like_another_ones_sample_has_scores_of_its_own(paths, traces):
    alike = [dataclasses.replace(traces[1], id="t0", sample=1), dataclasses.replace(traces[2], id="t0#1")]
    write_traces(paths["traces"], [traces[0], *alike])
    assert score(ScoreConfig(**paths)) == 3
    assert [len(values) for values in read_scores(paths["out"]).of(alike)] == [31, 17]


def test_nothing_as_large_as_time_times_time_or_vocabulary(write_random_draft, tmp_path):
    """Every tensor that scoring makes is linear in time: none has two axes of it, none one of the vocabulary."""
    folder = write_random_draft(tmp_path / "draft", "draft", **TINY)
    features = TargetFeatures(load_target_config("tiny-reasoner"), (1, 3, 4))
    draft = Draft.load(folder, features.embedding)
    time = 1531  # like no other size here
    shapes: set[tuple[int, ...]] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **kwargs or {})
            shapes.update(tuple(t.shape) for t in (made if isinstance(made, tuple) else (made,)) if torch.is_tensor(t))
            return made

    tokens = torch.randint(0, 630, (1, time))
    with torch.inference_mode():
        expected = draft(tokens, features(tokens)).raw_signals
        with Watch():
            found = draft.signals(tokens, features(tokens))
    torch.testing.assert_close(found, expected, equal_nan=True)
    near = {time, time - 1}
    assert any(set(shape) & near for shape in shapes)
    assert not [shape for shape in shapes if sum(size in near for size in shape) > 1]
    words = {draft.config.draft_vocab_size, draft.config.vocab_size}
    assert not [shape for shape in shapes if set(shape) & near and set(shape) & words]


SLIM = {
    "hidden_size": 32,
    "target_hidden_size": 32,
    "num_attention_heads": 2,
    "eagle_aux_hidden_state_layer_ids": (0, 1, 2),
    "target_num_hidden_layers": 2,
}


def test_a_trace_of_16k_tokens_in_bounded_memory(tmp_path, write_random_draft, make_trace):
    """One buffer of time x time in two heads would take 2 GiB; of a target that is all length and no width."""
    draft = write_random_draft(tmp_path / "draft", "draft", **SLIM)
    fields = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**fields, num_attention_heads=2, head_dim=16, max_position_embeddings=1 << 15))
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.MODEL_DIR / name, tmp_path / "model")
    target = load_target_config("tiny-reasoner").model_dump(mode="json")
    asked = target | {"path": str(tmp_path / "model"), "max_model_len": 1 << 15, "aux_layers": [0, 1, 2]}
    (tmp_path / "slim.yaml").write_text(yaml.safe_dump(asked))
    think = np.random.default_rng(0).integers(0, 190, 1 << 14).tolist()
    write_traces(tmp_path / "traces.parquet", [make_trace(id="long", think_ids=think)])
    places = [f"draft={draft}", f"traces={tmp_path / 'traces.parquet'}", f"out={tmp_path / 'scores'}"]
    assert peak("score", *places, f"target={tmp_path / 'slim.yaml'}", "device=cpu", "dtype=float32") < 1536
    assert read_scores(tmp_path / "scores").signals["long"].shape == (1 << 14, 4)


def test_bfloat16_is_near(paths, traces):
    texts = [Text(trace.id, np.array(trace.prompt_ids), np.array(trace.think_ids)) for trace in traces]
    target, draft_config = load_target_config("tiny-reasoner"), read_config(paths["draft"])
    raw = {}
    for dtype in ("float32", "bfloat16"):
        features, draft = load_pair(ScoreConfig(**paths, dtype=dtype), target, draft_config)
        assert draft.fc.weight.dtype == features.embedding.dtype == getattr(torch, dtype)
        raw[dtype] = np.concatenate(raw_signals(features, draft, texts))
    assert not np.array_equal(raw["float32"], raw["bfloat16"])
    # Eight bits of mantissa, of which four target layers and a draft layer may lose three.
    assert np.abs(raw["float32"] - raw["bfloat16"]).max() <= 2**-5 * np.abs(raw["float32"]).max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(paths):
    with pytest.raises(ConfigError, match=r"device=cuda: torch .* finds no GPU, expected device=cpu"):
        score(ScoreConfig(**paths, device="cuda"))
    assert not paths["out"].exists()
