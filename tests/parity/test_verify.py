"""``specexit verify`` on the tiny target: both frameworks agree on a draft of random weights, and it notices if not."""

import importlib.util
import json
import re
import shutil
import subprocess
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from specexit.config import ConfigError
from specexit.data.stream import TraceError
from specexit.data.traces import write_traces
from specexit.drafts.agreement import TOLERANCE, VerifyError, compare
from specexit.drafts.directory import read_config
from specexit.drafts.inspect import describe
from specexit.drafts.probing import SCRATCH, kept_rows
from specexit.drafts.verified import doubt_of
from specexit.drafts.verify import _arrays, _probe, verify
from specexit.outputs import Ended
from specexit.schemas.target import load_target_config, save_target
from specexit.schemas.verify import VerifyConfig
from torch_specexit.engine_probe import collect, run_engine, watch
from torch_specexit.probe import probe

TINY = {
    "hidden_size": 192,
    "target_hidden_size": 192,
    "vocab_size": 640,
    "eagle_aux_hidden_state_layer_ids": (1, 3, 4),
}


def test_both_frameworks_agree_on_signals_and_logits(tmp_path, write_random_draft, make_trace, capsys):
    """Of source fc; tests/serving/test_verify_engine.py has the other one.

    Two traces of four say nothing of the draft, and do not count: the prompt of one fills what is read, and the other
    ends before every draft step has a token. Of those that do, the second is cut, by one token."""
    rng = np.random.default_rng(0)
    traces = []
    for i, length in enumerate((30, 50)):
        ids = rng.integers(0, 630, length + 8).tolist()
        traces.append(make_trace(id=f"t{i}", prompt_ids=ids[:8], think_ids=ids[8:]))
    whole = rng.integers(0, 630, 60).tolist()
    long = make_trace(id="long", prompt_ids=whole, think_ids=whole)
    none = {name: [] for name in ("boundaries", "boundary_answers", "boundary_agrees", "boundary_confidence")}
    short = make_trace(id="short", prompt_ids=[1], think_ids=[2], answer_ids=[], **none)
    write_traces(tmp_path / "traces.parquet", [long, traces[0], short, traces[1]])
    draft = write_random_draft(tmp_path / "draft", "fc", **TINY)

    with pytest.raises(VerifyError, match="hardly a token is accepted"):  # of random weights
        verify(VerifyConfig(draft=draft, traces=tmp_path / "traces.parquet", n=4, tokens=60, vllm=False))
    written = json.loads((draft / "verify.json").read_text())
    differences = written["differences"]

    later = {"logits, draft step 1", "logits, draft step 2"}
    assert set(differences) == {"logits", "confidence", "progress", "remaining", "validity"} | later
    assert 0 < max(differences.values()) <= 1e-4  # exactly 0 would mean that something was compared with itself
    printed, told = capsys.readouterr()
    assert "ok" in printed
    drafts = written["greedy_drafts"]
    assert re.search(rf"greedy drafts +│ {drafts['same']} of {drafts['compared']} the same +│ ok", printed), printed
    assert written["passed"]
    assert (written["n"], written["passed_over"]) == (2, ["long", "short"])
    assert "2 of 4 traces do not count" in " ".join(told.split())
    assert written["acceptance"]["rows"] == (30 - 3) + (49 - 3) + 2 * 3
    assert written["greedy_drafts"]["same"] == written["greedy_drafts"]["compared"] == (40 + 59) * 3 - 2 * (1 + 2)
    said = describe(draft)["verified"]
    assert re.match(r"no: hardly a token is accepted.*, on 2 traces; acceptance length 1\.\d\d", said), said
    assert describe(write_random_draft(tmp_path / "other", "fc", **TINY))["verified"] == "no: run `specexit verify`"
    tensors = load_file(draft / "model.safetensors")
    tensors["norm.weight"] *= 2
    save_file(tensors, draft / "model.safetensors")
    assert describe(draft)["verified"].startswith("stale")


def test_a_notice_leaves_no_logits_behind(random_draft, tmp_path, scratch, told_to_end, monkeypatch):
    """SIGTERM to this process alone ended it where it stood: a side went on, and up to 2 GiB stayed in TMPDIR."""

    def probed(_side, _config, out):
        out.mkdir()
        (out / "0.npz").write_bytes(bytes(8))
        told_to_end()

    monkeypatch.setattr("specexit.drafts.verify._probe", probed)
    with pytest.raises(Ended):
        verify(VerifyConfig(draft=random_draft, traces=tmp_path / "traces.parquet", vllm=False))
    assert not list(scratch.iterdir())


@pytest.fixture
def probes(monkeypatch):
    """``probes(n)``: sides that agree in all but the largest logit of n of 100 rows, where two are nearly equal."""

    def stand_in(others):
        def probed(side, _config, out):
            out.mkdir()
            logits = np.tile(np.float32([[1.0, 1.0 - 2e-5]]), (100, 1))
            logits[: others if side == "jax" else 0] = 1.0 - 2e-5, 1.0
            np.savez(out / "0.npz", logits_0=logits)
            (out / "mistakes.json").write_text('{"acceptance": null, "mistakes": []}')
            (out / "ran.json").write_text('{"dtype": "float32", "device": "cpu"}')
            return out

        monkeypatch.setattr("specexit.drafts.verify._probe", probed)

    return stand_in


@pytest.mark.parametrize(("others", "passes"), [(0, True), (1, True), (2, False)])
def test_greedy_drafts_are_judged(others, passes, tmp_path, random_draft, probes, capsys):
    """All logits can be within the tolerance, and their largest another one."""
    probes(others)
    config = VerifyConfig(draft=random_draft, traces=tmp_path / "traces.parquet", vllm=False)
    if passes:
        assert verify(config)["logits"] < 1e-4
    else:
        with pytest.raises(
            VerifyError, match="draft otherwise: 98 of 100 greedy drafts are the same, float32, expected"
        ):
            verify(config)
    written = json.loads((random_draft / "verify.json").read_text())
    assert written["greedy_drafts"] == {"compared": 100, "same": 100 - others, "passed": passes}
    assert written["passed"] == passes
    assert f"{100 - others} of 100 the same" in capsys.readouterr().out
    assert describe(random_draft)["verified"].startswith("yes") == passes


def test_another_target_makes_a_verification_stale(tmp_path, random_draft, probes):
    """Of the same name and sizes: a fine-tune that was saved over it, or another folder that is said."""
    probes(0)
    verify(VerifyConfig(draft=random_draft, traces=tmp_path / "traces.parquet", vllm=False))
    tiny = load_target_config("tiny-reasoner")
    moved, tuned = (shutil.copytree(tiny.folder, tmp_path / name) for name in ("moved", "tuned"))
    tensors = load_file(tuned / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, tuned / "model.safetensors")
    for folder, stale in ((tiny.folder, False), (moved, False), (tuned, True), (tmp_path / "nowhere", False)):
        save_target(random_draft, tiny.model_copy(update={"path": str(folder)}))
        said = describe(random_draft)["verified"]
        assert said.startswith(f"stale: it was beside another target than that in {folder}") == stale, said
        assert (doubt_of(random_draft, folder) or "").startswith("stale") == stale
    save_target(tmp_path, tiny.model_copy(update={"path": str(tuned)}))
    save_target(random_draft, tiny)
    assert describe(random_draft, str(tmp_path / "target.yaml"))["verified"].startswith("stale")


def test_differences_are_relative_for_remaining_and_absolute_elsewhere():
    ours = {"signals": np.array([[0.5, 0.5, 1000.0, 0.5]]), "logits_0": np.array([[3.0, 1.0]])}
    theirs = {"signals": np.array([[0.5, 0.4, 1001.0, 0.5]]), "logits_0": np.array([[3.0, 3.5]])}
    found = compare(ours, theirs, "float32")
    assert found["progress"] == pytest.approx(0.1)
    assert found["remaining"] == pytest.approx(1 / 1001)
    assert found["logits"] == 2.5


def test_a_probe_that_was_killed_says_what_to_change(tmp_path, write_random_draft, make_trace, monkeypatch):
    write_traces(tmp_path / "traces.parquet", [make_trace()])
    draft = write_random_draft(tmp_path / "draft", "fc", **TINY)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -9, "", ""))
    with pytest.raises(VerifyError, match=r"torch_specexit\.probe was killed, .*smaller tokens=77, dtype=bfloat16"):
        verify(VerifyConfig(draft=draft, traces=tmp_path / "traces.parquet", n=1, tokens=77, vllm=False))
    assert not (draft / "verify.json").exists()


def test_draft_traces_and_the_target_given_have_to_be_of_one_name(tmp_path, write_random_draft, make_trace):
    draft, traces = write_random_draft(tmp_path / "draft", "fc", **TINY), tmp_path / "traces.parquet"
    write_traces(traces, [make_trace()])
    with pytest.raises(ConfigError, match=r"'tiny-mixed', but .* belongs to 'tiny-reasoner'"):
        verify(VerifyConfig(draft=draft, traces=traces, target="tiny-mixed"))
    write_traces(traces, [make_trace(target="tiny-mixed")])
    with pytest.raises(TraceError, match=r"traces of target 'tiny-mixed', but .*draft was made for 'tiny-reasoner'"):
        verify(VerifyConfig(draft=draft, traces=traces))
    assert not (draft / "verify.json").exists()


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_framework_that_is_not_installed_is_named_with_what_brings_it(framework, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("specexit.drafts.verify.find_spec", lambda name: None if name == framework else found(name))
    with pytest.raises(VerifyError, match=rf"needs {framework}: pip install '\.\[train,serve\]' in a checkout"):
        verify(VerifyConfig(draft=tmp_path, traces=tmp_path))


def test_a_model_that_is_gone_is_said_before_any_side_starts(tmp_path, write_random_draft, make_trace, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a side was started"))
    draft, traces = write_random_draft(tmp_path / "draft", "fc", **TINY), tmp_path / "traces.parquet"
    write_traces(traces, [make_trace()])
    gone = load_target_config("tiny-reasoner").model_copy(update={"path": str(tmp_path / "nowhere")})
    save_target(tmp_path, gone)
    with pytest.raises(ConfigError, match=r"^\S*nowhere/config\.json: .* which is not there; .* say target=FILE\.yaml"):
        verify(VerifyConfig(draft=draft, traces=traces, target=str(tmp_path / "target.yaml")))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("architectures", ["GptOssForCausalLM"], "architectures is GptOssForCausalLM, but `specexit train`"),
        ("quantization_config", {"quant_method": "fp8"}, "quantization_config is {'quant_method': 'fp8'}"),
    ],
)
def test_a_target_that_jax_cannot_run_is_refused_before_any_side_starts(
    field, value, said, tmp_path, write_random_draft, make_trace, monkeypatch
):
    """PyTorch had read every trace by then, and nothing said what to do instead."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a side was started"))
    draft, traces = write_random_draft(tmp_path / "draft", "fc", **TINY), tmp_path / "traces.parquet"
    write_traces(traces, [make_trace()])
    tiny = load_target_config("tiny-reasoner")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(tiny.hf_config() | {field: value}))
    save_target(tmp_path, tiny.model_copy(update={"path": str(tmp_path / "model")}))
    with pytest.raises(VerifyError, match=rf"model/config\.json: {re.escape(said)}.* `specexit score` and"):
        verify(VerifyConfig(draft=draft, traces=traces, target=str(tmp_path / "target.yaml")))
    assert not (draft / "verify.json").exists()


def test_traces_of_another_tokenizer_are_refused_before_any_side_starts(
    tmp_path, write_random_draft, make_trace, monkeypatch
):
    """Their ids are other text, which no draft guesses: a sound one was said to be wrongly converted."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a side was started"))
    draft, traces = write_random_draft(tmp_path / "draft", "fc", **TINY), tmp_path / "traces.parquet"
    write_traces(traces, [make_trace()], tokenizer_sha256="0" * 64)
    with pytest.raises(TraceError, match=r"traces\.parquet: written with the tokenizer 000000000000\.\.\., expected"):
        verify(VerifyConfig(draft=draft, traces=traces))
    write_traces(traces, [make_trace(prompt_ids=[1, 640])])
    with pytest.raises(TraceError, match="640 at 1 of prompt_ids, expected a token of the target, from 0 to 639"):
        verify(VerifyConfig(draft=draft, traces=traces))
    assert not (draft / "verify.json").exists()


def test_a_token_that_cannot_be_drafted_is_held_against_its_own_size():
    theirs = np.array([[3.0, -20_000.0, -90.0]])

    def apart(ours, dtype):
        return compare({"logits_0": ours}, {"logits_0": theirs}, dtype)["logits"]

    assert apart(theirs + np.array([0.0, 0.2, 0.0]), "float32") == pytest.approx(1e-5)
    assert apart(theirs + np.array([0.0, 0.0, 0.2]), "float32") == pytest.approx(0.2)
    assert apart(theirs + np.array([0.0, 0.0, 0.2]), "bfloat16") == pytest.approx(0.2 / 90 / 3**0.5), (
        "of the largest in reach"
    )
    within_reach = np.array([[3.0, 2.0, -90.0]])
    for dtype in ("float32", "bfloat16"):
        assert apart(within_reach, dtype) > 0.5, "one side keeps the token out of reach and the other does not"


def test_arrays_of_other_shapes_are_an_error():
    with pytest.raises(VerifyError, match=r"logits_0 .*JAX \(2, 3\), PyTorch \(2, 4\)"):
        compare({"logits_0": np.zeros((2, 3))}, {"logits_0": np.zeros((2, 4))}, "float32")


def test_a_plain_draft_is_verified_and_what_is_long_is_cut(tmp_path, write_random_draft, make_trace):
    ids = np.random.default_rng(0).integers(0, 630, 400).tolist()
    write_traces(tmp_path / "traces.parquet", [make_trace(prompt_ids=ids[:8], think_ids=ids[8:])])
    draft = write_random_draft(tmp_path / "draft", None, **TINY)
    config = VerifyConfig(draft=draft, traces=tmp_path / "traces.parquet", steps=2, rows=50, tokens=150, vllm=False)
    with pytest.raises(VerifyError, match="hardly a token is accepted"):
        verify(config)
    written = json.loads((draft / "verify.json").read_text())
    assert set(written["differences"]) == {"logits", "logits, draft step 1"}
    assert written["greedy_drafts"]["compared"] == 50 + 49  # the last row has no token for its second step


@pytest.mark.parametrize("tokens", [2, 8, 11])
def test_where_no_row_can_be_compared_nothing_is_verified(tokens, tmp_path, random_draft, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a side was started"))
    config = VerifyConfig(draft=random_draft, traces=tmp_path / "traces.parquet", tokens=tokens, vllm=False)
    with pytest.raises(VerifyError, match=rf"of 1 traces none .* within tokens={tokens}, expected at least tokens=12"):
        verify(config)
    with pytest.raises(VerifyError, match="expected longer traces"):
        verify(config.model_copy(update={"steps": 200}))
    assert not (random_draft / "verify.json").exists()


def test_where_the_positions_end_within_all_prompts_no_larger_tokens_is_asked_for(
    tmp_path, random_draft, write_random_draft, monkeypatch
):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a side was started"))
    draft = write_random_draft(tmp_path / "short", "draft", max_position_embeddings=11, **TINY)
    said = r"within tokens=11, expected traces of shorter prompts$"
    with pytest.raises(VerifyError, match=said):
        verify(VerifyConfig(draft=draft, traces=tmp_path / "traces.parquet", vllm=False))


def test_a_nan_on_one_side_is_a_difference(tmp_path, monkeypatch, write_random_draft, make_trace):
    write_traces(tmp_path / "traces.parquet", [make_trace()])
    draft = write_random_draft(tmp_path / "draft", "draft", **TINY)

    def probed(side, _config, out):
        out.mkdir()
        np.savez(out / "0.npz", logits_0=np.array([[np.nan if side == "jax" else 0.0]]))
        (out / "mistakes.json").write_text('{"acceptance": null, "mistakes": []}')
        (out / "ran.json").write_text('{"dtype": "float32", "device": "cpu"}')
        return out

    monkeypatch.setattr("specexit.drafts.verify._probe", probed)
    with pytest.raises(VerifyError, match="logits nan"):
        verify(VerifyConfig(draft=draft, traces=tmp_path / "traces.parquet", vllm=False))
    assert not json.loads((draft / "verify.json").read_text())["passed"]


def test_what_an_engine_says_may_be_nan_and_finds_no_logits_of_the_others(tmp_path, random_draft, monkeypatch):
    """JSON has no NaN: other programs could not read the file. And 1.6 GB of temporary files stayed until the end."""
    accepted = {"rows": 1, "length": 2.0, "by_position": [1.0, 0.0, 0.0]}
    engine = {"vllm": "0.32.0", "runner": "V1", "dtype": "float32", "n": 1, "differences": {"logits": float("nan")}}
    engine |= {"acceptance": dict.fromkeys(("vllm", "torch"), accepted), "greedy_drafts": {"compared": 1, "same": 1}}

    def probed(side, _config, out):
        out.mkdir()
        if side == "vllm":
            assert not [*out.parent.rglob("*.npz")]
        else:
            np.savez(out / "0.npz", logits_0=np.zeros((1, 2)))
        files = {"mistakes": {"acceptance": None, "mistakes": []}, "ran": {"dtype": "float32", "device": "cpu"}}
        for name, found in (files | {"engine": engine}).items():
            (out / f"{name}.json").write_text(json.dumps(found))
        return out

    monkeypatch.setattr("specexit.drafts.verify._probe", probed)
    with pytest.raises(VerifyError, match="logits differs by nan"):
        verify(VerifyConfig(draft=random_draft, traces=tmp_path / "traces.parquet", vllm=True))
    refuse = {"parse_constant": lambda word: pytest.fail(f"{word} is no JSON")}
    written = json.loads((random_draft / "verify.json").read_text(), **refuse)
    assert written["vllm"]["differences"] == {"logits": "nan"}
    assert describe(random_draft)["verified"].startswith("no: the frameworks differ, on 1 traces")


def test_an_engine_is_asked_for_no_more_than_the_draft_s_own_length(tmp_path, write_random_draft, monkeypatch):
    """The plug-in would refuse the draft, and verify had no vLLM side for published ones of 2,048 positions."""
    draft, asked = write_random_draft(tmp_path / "draft", "draft", max_position_embeddings=300, **TINY), {}

    def start(_target, config, **_):
        asked.update(config.extra)
        raise RuntimeError("is not started")

    monkeypatch.setattr("torch_specexit.engine_probe.start_engine", start)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(RuntimeError, match="is not started"):
        run_engine(Namespace(draft=draft, tokens=4096, steps=3), load_target_config("tiny-reasoner"), "draft")
    assert asked["max_model_len"] == asked["max_num_batched_tokens"] == 300


@pytest.mark.parametrize("owner", ["drafter", "speculator"])
def test_what_a_draft_computes_is_noted_in_either_model_runner(owner):
    model = SimpleNamespace(compute_logits=lambda hidden_states: hidden_states * 2)
    worker = SimpleNamespace(model_runner=SimpleNamespace(**{owner: SimpleNamespace(model=model)}))
    watch(worker)
    model.compute_logits(torch.ones(1, 3))
    (noted,) = collect(worker)["logits"]
    np.testing.assert_array_equal(noted, [2, 2, 2])
    assert collect(worker) == {"logits": [], "signals": []}


@pytest.mark.parametrize(("most", "said"), [(50, True), (200, False)])
def test_no_trace_is_read_further_than_the_draft_has_positions(
    most, said, tmp_path, random_draft, write_random_draft, monkeypatch, capsys
):
    """Both frameworks have angles anywhere, and acceptance was of what an engine drafts nothing in."""
    draft = write_random_draft(tmp_path / "short", "draft", max_position_embeddings=most, **TINY)
    asked = []

    def probed(_side, config, _out):
        asked.append(config.tokens)
        raise VerifyError("is not started")

    monkeypatch.setattr("specexit.drafts.verify._probe", probed)
    with pytest.raises(VerifyError, match="is not started"):
        verify(VerifyConfig(draft=draft, traces=tmp_path / "traces.parquet", vllm=False))
    assert asked == [most]
    warned = f"{draft / 'config.json'}: there are {most} positions (max_position_embeddings"
    assert (warned in capsys.readouterr().err) == said  # in one line, however long the path is


@pytest.mark.parametrize(("n", "vocabulary"), [(8, 32_000), (64, 32_000), (8, 151_936), (1000, 151_936)])
def test_logits_on_the_disk_do_not_grow_with_the_number_of_traces(n, vocabulary):
    kept = len(kept_rows(Namespace(rows=256, n=n, steps=3), vocabulary, 4096))
    assert kept >= 1
    assert kept * n * 3 * vocabulary * 4 <= max(SCRATCH, n * 3 * vocabulary * 4)  # a row of each trace at least
    assert (kept == 256) == (n == 8 and vocabulary == 32_000)  # the default, and the vocabulary of most drafts


def test_fewer_rows_than_asked_for_are_told(tmp_path, random_draft, probes, monkeypatch, capsys):
    monkeypatch.setattr("specexit.drafts.probing.SCRATCH", 40 * 3 * 4 * read_config(random_draft).draft_vocab_size)
    probes(0)
    verify(VerifyConfig(draft=random_draft, traces=tmp_path / "traces.parquet", n=500, vllm=False))
    said = " ".join(capsys.readouterr().err.split())
    assert "rows=256: 40 rows of each of 1 traces are compared" in said  # there is one, whatever n says
    assert json.loads((random_draft / "verify.json").read_text())["rows"] == 40


@pytest.fixture
def random_draft(tmp_path, write_random_draft, make_trace):
    """A draft of random weights, and one trace of 120 tokens."""
    ids = np.random.default_rng(0).integers(0, 630, 120).tolist()
    write_traces(tmp_path / "traces.parquet", [make_trace(prompt_ids=ids[:8], think_ids=ids[8:])])
    return write_random_draft(tmp_path / "draft", "draft", **TINY)


MISTAKEN = (
    {"norm_before_residual": True},
    {"norm_output": True},
    {"eagle_aux_hidden_state_layer_ids": [0, 2, 3]},
)


def test_in_bfloat16_both_agree_as_far_as_it_goes_which_is_less_than_a_mistake_makes(
    tmp_path, random_draft, capsys, monkeypatch
):
    """JAX reads the draft as it is; PyTorch first does, and then with a mistake in it."""
    as_it_is = {}

    def kept(side, config, out):
        found = _probe(side, config, out)
        if side == "jax":
            as_it_is.update(_arrays(found / "0.npz"))
        return found

    monkeypatch.setattr("specexit.drafts.verify._probe", kept)
    config = VerifyConfig(draft=random_draft, traces=tmp_path / "traces.parquet", dtype="bfloat16", vllm=False)
    with pytest.raises(VerifyError, match="hardly a token is accepted"):
        verify(config)
    written = json.loads((random_draft / "verify.json").read_text())
    assert written["passed"]
    assert (written["dtype"], written["tolerance"]) == ("bfloat16", TOLERANCE["bfloat16"])
    assert written["devices"] == {"jax": "cpu", "torch": "cpu"}
    assert max(written["differences"].values()) > TOLERANCE["float32"], "nothing was rounded"
    assert "JAX against PyTorch, bfloat16" in capsys.readouterr().out

    fields = json.loads((random_draft / "config.json").read_text())
    asked = config.model_dump(include={"traces", "n", "steps", "rows", "tokens", "dtype"}) | {"device": "cpu"}
    for i, wrong in enumerate(MISTAKEN):
        (random_draft / "config.json").write_text(json.dumps(fields | wrong))
        out = tmp_path / str(i)
        out.mkdir()
        probe(Namespace(draft=random_draft, target="tiny-reasoner", out=out, **asked))
        found = compare(as_it_is, _arrays(out / "0.npz"), "bfloat16")
        assert max(found.values()) > TOLERANCE["bfloat16"], wrong


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_is_used_where_there_is_one(tmp_path, random_draft):
    with pytest.raises(VerifyError, match="hardly a token is accepted"):
        verify(VerifyConfig(draft=random_draft, traces=tmp_path / "traces.parquet", vllm=False))
    written = json.loads((random_draft / "verify.json").read_text())
    assert written["passed"]
    assert written["devices"]["torch"] == "cuda"
