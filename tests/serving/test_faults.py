"""Draft directories that are damaged, and a vLLM that is not as expected: a refusal at the start, or plain EAGLE-3.

Nearly all is decided before an engine computes anything, and is tested there; what files alone can show wrong is in
``tests/shared/test_draftdir.py``. Seven engine starts, of some 15 seconds each.
"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from specexit.drafts.directory import DraftError, read_config
from specexit.errors import InputError
from specexit.method.splits import load_tokenizer, resolve
from tests.marks import SLOW
from tests.serving.conftest import LIVELY, ON_A_CPU, V2, serve
from tests.serving.stand_ins import stand_in
from tests.shared.published import WINDOW
from torch_specexit.plugin.compat.checks import check_draft, checked
from torch_specexit.plugin.protocols import ModelConfig
from torch_specexit.plugin.worker.checking import SWITCH

OFF = {"extra_args": {"specexit": False}}


def config(**changes):
    """Changes the config; a key with a dot is within a block."""

    def damage(folder):
        path = folder / "config.json"
        fields = json.loads(path.read_text())
        for key, value in changes.items():
            block, _, name = key.rpartition("__")
            inner = fields
            for part in block.split("__") if block else ():
                inner = inner[part]
            if value is None:
                del inner[name]
            else:
                inner[name] = value
        path.write_text(json.dumps(fields))

    return damage


def tensor(name, change):
    """Changes a tensor; None takes it out."""

    def damage(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        changed = change(tensors.pop(name).copy())
        save_file(tensors if changed is None else tensors | {name: np.ascontiguousarray(changed)}, path)

    return damage


def poison(value):
    def change(weights):
        weights.flat[3] = value
        return weights

    return change


def cut(kept):
    def damage(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])

    return damage


def text(content):
    return lambda folder: (folder / "config.json").write_bytes(content)


def gone(name):
    return lambda folder: (folder / name).unlink()


AUX = "eagle_aux_hidden_state_layer_ids"
YARN = {"rope_type": "yarn", "original_max_position_embeddings": 32}


def whole_vocabulary(folder):
    config(draft_vocab_size=640)(folder)
    for name in ("lm_head.weight", "d2t"):
        tensor(name, lambda weights: np.resize(weights, (640, *weights.shape[1:])) * 0)(folder)
    tensor("d2t", poison(1))(folder)


DAMAGES = {
    "config is no JSON": (text(b"{"), r"config\.json: cannot be read as JSON"),
    "config is binary": (text(b"\xff\x00"), r"config\.json: cannot be read as JSON"),
    "config is empty": (text(b""), r"config\.json: cannot be read as JSON"),
    "config is a list": (text(b"[]"), r"config\.json: holds a list, expected an object"),
    "config is missing": (gone("config.json"), r"config\.json: does not exist, expected a draft directory"),
    "no specexit block": (config(specexit=None), r"no specexit block, expected one in a draft of architecture"),
    "unknown source": (config(specexit__source="lm_head"), r"specexit\.source is 'lm_head'"),
    "unknown signal": (config(specexit__policy__thresholds={"mood": 0.5}), "signal 'mood' does not exist"),
    "threshold out of range": (config(specexit__policy__thresholds={"progress": 1.2}), "of progress is 1.2"),
    "no threshold": (config(specexit__policy__thresholds={}), r"policy\.thresholds is empty"),
    "patience zero": (config(specexit__policy__patience=0), r"specexit\.policy\.patience is 0"),
    "smoothing of the other source": (config(specexit__policy__smoothing="ewma"), "smoothing is 'ewma', expected none"),
    "smoothing not served": (config(specexit__policy__smoothing="round"), "smoothing is 'round', expected none"),
    "unknown key": (config(specexit__polcy={}), r"specexit\.polcy is \{\}: Extra inputs"),
    "newer format": (config(specexit__format_version=2), r"format_version is 2, expected 1"),
    "fewer signals": (config(specexit__signals=["validity"]), r"specexit\.signals is \['validity'\]"),
    "no such start marker": (config(specexit__think_start="<ponder>"), r"think marker '<ponder>' is \d+ tokens"),
    "end marker in a circle": (config(specexit__think_end="</think></think>"), r"end marker '</think></think>'"),
    "splits that no token has": (config(specexit__split_endings=["\u2603"]), "no token ends with"),
    "other hidden size": (config(target_hidden_size=128), "target_hidden_size is 128, .* has hidden_size 192"),
    "draft of another width": (config(hidden_size=96), " hidden_size is 96, but target t has hidden_size 192"),
    "other layer count": (config(target_num_hidden_layers=36), "target_num_hidden_layers is 36, but target t"),
    "other vocabulary": (config(vocab_size=641), "vocab_size is 641, but target t has vocab_size 640"),
    "aux layer beyond the target": (config(**{AUX: [1, 3, 5]}), r"is \[1, 3, 5\], expected ids from 0"),
    "aux layers out of order": (config(**{AUX: [3, 1, 4]}), r"is \[3, 1, 4\], expected increasing"),
    "aux layer twice": (config(**{AUX: [1, 3, 3]}), r"is \[1, 3, 3\], expected increasing"),
    "class of another layer": (config(model_type="qwen3"), "expected 'SpecExitQwen3.*' with model_type 'qwen3'"),
    "too short": (
        config(max_position_embeddings=64),
        "max_position_embeddings is 64, .* max_model_len 512.*; expected max_model_len 64 .*, or a larger max_pos",
    ),
    "too short, and yarn ends there": (
        config(max_position_embeddings=64, rope_scaling=YARN | {"factor": 2.0}),
        r"; expected max_model_len 64 \(of vLLM, or in the target's YAML\): its rope_scaling 'yarn' ends at 64$",
    ),
    "too short, and yarn ends later": (
        config(max_position_embeddings=64, rope_scaling=YARN | {"factor": 4.0}),
        "; expected max_model_len 64 .*, or a larger max_position_embeddings in that file, of at most 128, where its",
    ),
    "weights are empty": (cut(0), r"model\.safetensors: cannot be read as safetensors"),
    "weights are truncated": (cut(-1), r"model\.safetensors: cannot be read as safetensors"),
    "weights are missing": (gone("model.safetensors"), r"model\.safetensors"),
    "missing tensor": (tensor("norm.weight", lambda _: None), r"tensor norm\.weight \[192\] is missing"),
    "missing signal rows": (tensor("signal_head.weight", lambda _: None), r"tensor signal_head\.weight .* is missing"),
    "wrong shape": (tensor("fc.weight", lambda w: w[:, :-1]), r"tensor fc\.weight has shape \[192, 575\]"),
    "NaN": (tensor("midlayer.mlp.up_proj.weight", poison(np.nan)), r"up_proj\.weight holds NaN"),
    "infinite signal rows": (tensor("signal_head.weight", poison(np.inf)), r"signal_head\.weight holds NaN or inf"),
    "d2t beyond the vocabulary": (tensor("d2t", poison(640)), "d2t maps draft token 3 to target token 643, expect"),
    "d2t that moves a whole vocabulary": (whole_vocabulary, "d2t maps draft token 3 to target token 4"),
    "d2t negative": (tensor("d2t", poison(-4)), "d2t maps draft token 3 to target token -1, expected an id"),
}


@pytest.fixture
def draft(write_random_draft, tmp_path):
    shape = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    return write_random_draft(tmp_path / "draft", "draft", **shape, eagle_aux_hidden_state_layer_ids=(1, 3, 4))


def served(target):
    """As much of vLLM's ``ModelConfig`` as is read."""
    return stand_in(ModelConfig, hf_text_config=SimpleNamespace(**target.hf_config()), model="t", max_model_len=512)


def start(folder, target):
    """What a draft model does with its directory and the target's tokenizer before it computes anything."""
    config = read_config(folder)
    block = check_draft(config, folder, served(target))
    tokenizer = load_tokenizer(target.folder)
    resolve(tokenizer, block.think_start, block.think_end, block.split_endings, block.split_connectors, several=True)
    return dict(checked(stored(folder / "model.safetensors"), config, folder))


def stored(path):
    """Tensors of a file, opened when the first is asked for, as vLLM does it."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            yield name, file.get_tensor(name)


def test_a_whole_draft_passes(draft, target):
    assert start(draft, target).keys() == load_torch(draft / "model.safetensors").keys()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_draft_is_refused_before_anything_is_computed(draft, target, damage):
    spoil, message = DAMAGES[damage]
    spoil(draft)
    with pytest.raises((InputError, FileNotFoundError), match=message):
        start(draft, target)


def test_a_window_that_vllm_alone_would_give_the_draft_is_refused(draft, target):
    """Where all layers of a target have one. Within it, and with the same in the config, nothing differs."""
    message = "sliding_window is None, but all layers of the target have 256, .* max_model_len 256 at most, found 512"
    with pytest.raises(DraftError, match=message):
        check_draft(read_config(draft), draft, served(target), 256)
    check_draft(read_config(draft), draft, served(target), 512)
    config(**WINDOW | {"sliding_window": 256})(draft)
    check_draft(read_config(draft), draft, served(target), 256)


def test_the_signal_rows_of_the_other_source_are_missed_as_well(write_random_draft, tmp_path, target):
    shape = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    folder = write_random_draft(tmp_path / "fc", "fc", **shape, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    tensor("fc.weight", lambda rows: rows[:-4])(folder)
    with pytest.raises(DraftError, match=r"tensor fc\.weight has shape \[192, 576\], expected \[196, 576\]"):
        start(folder, target)


@pytest.mark.vllm
@pytest.mark.parametrize("damage", ["d2t beyond the vocabulary", pytest.param("no such start marker", marks=SLOW)])
def test_a_damaged_draft_keeps_an_engine_from_starting(engines, drafts, tmp_path, damage):
    spoil, message = DAMAGES[damage]
    spoil(shutil.copytree(drafts / "draft", tmp_path / "damaged"))
    with pytest.raises(AssertionError, match=rf"(Draft|Split)Error: .*{message}"):
        engines.serve(damage, [], draft=str(tmp_path / "damaged"))


@pytest.mark.vllm
def test_a_draft_of_the_whole_vocabulary_is_served(engines, write_random_draft, tmp_path):
    shape = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640, "draft_vocab_size": 640, "head_dim": 64}
    folder = write_random_draft(tmp_path / "whole", "draft", **shape, eagle_aux_hidden_state_layer_ids=(1, 3, 4))
    run = engines.serve("whole", [engines.batch({"max_tokens": 20} | OFF, n=2)], draft=str(folder))
    assert [r["ids"] for r in run[0]["requests"]] == [r["ids"][:20] for r in engines.none()[0]["requests"][:2]]


V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"


@pytest.mark.vllm
@pytest.mark.parametrize(
    "place",
    [
        f"{V1}._sample",
        pytest.param("vllm.v1.core.sched.scheduler:Scheduler.update_from_output", marks=SLOW),
    ],
)
def test_with_a_method_that_takes_other_parameters_plain_eagle3_is_served(engines, place):
    run = engines.changed(place)
    requests = run["batches"][0]["requests"]
    assert [r["ids"] for r in requests] == [r["ids"][:80] for r in engines.plain()["requests"]]
    assert [r["outcome"] for r in requests] == [None] * len(requests)
    assert len(run["log"]) == 1
    assert place in run["log"][0]
    assert "plain EAGLE-3 is served" in run["log"][0]


@pytest.mark.vllm
@pytest.mark.parametrize("source", ["draft", "fc"])
def test_what_fails_in_flight_leaves_plain_eagle3_and_says_so(engines, source):
    """From the step on that fails; the requests of that step go on as well."""
    works, failed = engines.main(source)[5], engines.main(source)[-1]
    assert "exit" in {r["outcome"]["outcome"] for r in works["requests"]}
    assert [r["ids"] for r in failed["requests"]] == [r["ids"][:80] for r in engines.plain()["requests"][:4]]
    assert failed["status"] == [{"active": False, "reason": failed["status"][0]["reason"], "requests": 0}]
    assert "injected" in failed["status"][0]["reason"]
    assert [r["outcome"] for r in failed["requests"]] == [None] * 4
    assert failed["inactive"] == [failed["status"][0]["reason"]] * 4


REQUIRED = {SWITCH: "0", "SPECEXIT_SERVING": json.dumps({"required": True})}
ON_V2 = pytest.param("refuse_the_kernel", ON_A_CPU | V2, marks=SLOW)


@pytest.mark.vllm
@pytest.mark.parametrize(("refuse", "environment"), [("refuse_the_rule", {}), ON_V2])
def test_an_engine_that_must_have_exits_does_not_start_where_they_cannot_be_made_ready(
    drafts, tmp_path, refuse, environment
):
    """It used to be seen at the first request, on V1, and said with its output: the server was ready by then."""
    job = {"engine": {"draft": str(drafts / "draft")}, "batches": [], "refuse": refuse}
    with pytest.raises(AssertionError, match=r"ConfigError: specexit.required is true, but exits would not .*injected"):
        serve(tmp_path / "required", job, environment | REQUIRED)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_kernel_that_does_not_compile_leaves_plain_eagle3_and_says_so(engines, drafts, shared):
    """On the V2 runner, which has the kernel; the checking mode would let the engine die of it."""
    batch = engines.batch(LIVELY | {"max_tokens": 24}, n=2)
    job = {"engine": {"draft": str(drafts / "draft")}, "batches": [batch], "refuse": "refuse_the_kernel"}
    run = serve(shared / "no-kernel", job, ON_A_CPU | V2 | {SWITCH: "0"})
    (served,) = run["batches"]
    assert [r["ids"] for r in served["requests"]] == [r["ids"][:24] for r in engines.plain()["requests"][:2]]
    assert [r["outcome"] for r in served["requests"]] == [None] * 2
    (status,) = served["status"]
    assert not status["active"]
    assert status["reason"].startswith("could not be made ready: CompilationError")
    assert served["inactive"] == [status["reason"]] * 2
    assert any("specexit is inactive" in line and "injected" in line for line in run["log"])
