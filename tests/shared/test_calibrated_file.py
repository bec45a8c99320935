"""What ``specexit calibrate`` leaves in ``policy.json``: what others write there, and what the certificates are of."""

import errno
import json
import os
import shutil
from unittest.mock import Mock

import numpy as np
import pytest

from specexit import tiny
from specexit.data.boundaries import boundaries_tried
from specexit.data.engine import TYPES, types_in_metadata
from specexit.data.traces import TraceError, read_traces, write_traces
from specexit.drafts import locking
from specexit.drafts.files import TensorError
from specexit.drafts.fingerprints import quantization_of, quantization_served
from specexit.drafts.inspect import describe
from specexit.drafts.policy import Event, PolicyError, PolicyFile, Serving, read_policy, write_policy
from specexit.method.calibrate import calibrate
from specexit.method.certify import CertificateError
from specexit.method.decision import OFF
from specexit.method.stored import replays
from specexit.schemas.calibrate import CalibrateConfig
from specexit.schemas.target import load_target_config, save_target
from tests.shared.calibration import refused

N = 150


@pytest.fixture
def paths(setting):
    """Files that carry a certificate: every exit is right."""
    return setting(np.full(N, 0.995), [True] * N)


@pytest.mark.parametrize(
    ("untried", "epsilon", "said"),
    [
        (10, 0.2, f"10 of {N} prompts err (answer_changed; 10 WHY); with confidence"),
        (10, 0.05, "however many prompts there are; 10 WHY."),
        (N, 0.05, f"exits are switched off. At the boldest one {N} WHY."),
    ],
)
def test_exits_that_nobody_tried_are_told_with_what_to_collect(setting, capsys, untried, epsilon, said):
    """They are between two trials that agree, and were successes; nothing said that nobody had looked."""
    states = {"boundary_state": lambda i: ["agrees", "untried" if i < untried else "agrees", "agrees"]}
    fields = {"boundaries": [2, 4, 6], "boundary_agrees": [True] * 3, "boundary_answers": ["7"] * 3}
    paths = setting([0.9] * N, [True] * N, **fields, **states)  # the exit is at the second of these boundaries
    certificate = calibrate(CalibrateConfig(**paths, epsilon=epsilon)).point().certificate
    assert (certificate.errors if certificate else None) == (untried if epsilon == 0.2 else None)
    why = "traces err as they exit where no answer was tried: collect them anew with boundaries=all"
    assert said.replace("WHY", why) in " ".join(capsys.readouterr().out.split())
    assert boundaries_tried([True] * 100, "all", 8) == list(range(100)) != boundaries_tried([True] * 100, "refine", 8)


def test_traces_of_another_tokenizer_are_refused(paths):
    """The certificate named the tokenizer of today, with which none of its traces was written."""
    write_traces(paths["traces"], read_traces(paths["traces"]), tokenizer_sha256="0" * 64)
    refused(paths, "written with the tokenizer 000000000000", TraceError)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"split_endings": ("\n",)}, r"their target has split_endings=\('\\n',\), not .* says, by which"),
        ({"think_end": "</t>"}, "their target has think_end='</t>', not '</think>'"),
    ],
)
def test_traces_of_other_steps_than_the_drafts_are_refused(paths, tmp_path, fields, said):
    """Exits were judged at boundaries that no server of the draft looks at."""
    save_target(tmp_path, load_target_config("tiny-reasoner").model_copy(update=fields))
    refused(paths, said, CertificateError)


def test_a_point_that_serving_names_must_come_again_which_is_said_before_anything_is_replayed(paths, monkeypatch):
    """The file was written all the same, and then no server could read it, nor any command, `calibrate` itself among
    them."""
    stored = calibrate(CalibrateConfig(**paths, epsilon=(0.02, 0.05)))
    write_policy(paths["draft"], stored.model_copy(update={"serving": Serving(efforts={"low": "risk-0.05"})}))
    with monkeypatch.context() as m:
        m.setattr("specexit.method.calibrate.replays", lambda *_: pytest.fail("hours are spent"))
        said = r"policy\.json: serving\.efforts\.low is 'risk-0\.05', expected a point: risk-0\.02, which is all"
        refused(paths, said)
    calibrate(CalibrateConfig(**paths, epsilon=(0.02, 0.05)))
    assert read_policy(paths["draft"]).serving.efforts == {"low": "risk-0.05"}


def test_a_draft_that_cannot_be_written_is_refused_before_anything_is_replayed(paths, monkeypatch):
    """The points were lost behind hours of replaying, with a traceback."""
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("specexit.method.calibrate.replays", lambda *_: pytest.fail("hours are spent"))
    refused(paths, r"/draft: cannot be written, and the points go there: copy the folder, or mount", PolicyError)


def test_what_an_operator_says_while_traces_are_replayed_stays_said(paths, monkeypatch):
    """A kill switch was undone by the calibration that began before it, and the word was gone from the history."""
    word = Event(when="2026-01-01T00:00:00+00:00", what="switch mode=off point=-")

    def replayed(*given):
        file = read_policy(paths["draft"])
        said = {"serving": Serving(mode="off"), "history": (*file.history, word)}
        write_policy(paths["draft"], file.model_copy(update=said))
        return replays(*given)

    monkeypatch.setattr("specexit.method.calibrate.replays", replayed)
    calibrate(CalibrateConfig(**paths))
    stored = read_policy(paths["draft"])
    assert stored.point().certificate is not None
    assert (stored.serving.mode, stored.history[0], len(stored.history)) == ("off", word, 2)


def test_a_stricter_default_that_an_operator_gives_meanwhile_stays(paths, monkeypatch):
    """The bolder point was served again, as if nothing had been said, and what audits had imposed was lifted."""
    epsilon = (0.05, 0.02)
    assert calibrate(CalibrateConfig(**paths, epsilon=epsilon)).default == "risk-0.05"

    def replayed(*given):
        write_policy(paths["draft"], read_policy(paths["draft"]).model_copy(update={"default": "risk-0.02"}))
        return replays(*given)

    with monkeypatch.context() as m:
        m.setattr("specexit.method.calibrate.replays", replayed)
        assert calibrate(CalibrateConfig(**paths, epsilon=epsilon)).default == "risk-0.02"
        assert read_policy(paths["draft"]).default == "risk-0.02"
    assert calibrate(CalibrateConfig(**paths, epsilon=epsilon)).default == "risk-0.05"  # it was said before this began


def test_a_default_that_an_operator_gives_meanwhile_and_that_is_not_made_is_named(paths, monkeypatch, capsys):
    calibrate(CalibrateConfig(**paths, epsilon=(0.05, 0.02)))

    def replayed(*given):
        write_policy(paths["draft"], read_policy(paths["draft"]).model_copy(update={"default": "risk-0.02"}))
        return replays(*given)

    monkeypatch.setattr("specexit.method.calibrate.replays", replayed)
    assert calibrate(CalibrateConfig(**paths, epsilon=0.05)).default == "risk-0.05"
    said = "default is risk-0.05: risk-0.02, which was written there meanwhile, is none of its points any more"
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_draft_directory_that_is_locked_is_left_as_it_was(paths, monkeypatch):
    monkeypatch.setattr(locking, "SECONDS", 0.0)
    with locking.locked(paths["draft"]):  # as by a server that writes an operator's word
        refused(paths, "nothing is written: .*/draft: another process has locked it", PolicyError)


def test_what_cannot_be_written_in_the_end_lies_beside_the_scores(paths, monkeypatch, capsys):
    """It was lost, and not even printed, where an operator had meanwhile named a point that goes."""
    calibrate(CalibrateConfig(**paths, epsilon=(0.02, 0.05)))
    capsys.readouterr()
    left = []

    def replayed(*given):
        file = read_policy(paths["draft"])
        write_policy(paths["draft"], file.model_copy(update={"serving": Serving(efforts={"low": "risk-0.05"})}))
        left.append((paths["draft"] / "policy.json").read_text())
        return replays(*given)

    monkeypatch.setattr("specexit.method.calibrate.replays", replayed)
    with pytest.raises(PolicyError, match=r"nothing is written: .*efforts\.low is .*; what .*policy\.calibrated\.json"):
        calibrate(CalibrateConfig(**paths, epsilon=0.02))
    assert [(paths["draft"] / "policy.json").read_text()] == left
    kept = PolicyFile.model_validate_json((paths["scores"].parent / "policy.calibrated.json").read_text())
    assert [(point.name, point.certificate is not None) for point in kept.points] == [("risk-0.02", True)]
    assert [event.what.split("<= ")[1] for event in kept.history] == ["0.02, 0.05", "0.02"]
    assert "risk-0.02: exit at validity >= " in " ".join(capsys.readouterr().out.split())


def test_a_full_disk_is_one_line(paths, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    monkeypatch.setattr("specexit.method.calibrate.write_policy", full)
    monkeypatch.setattr("specexit.method.calibrate.write_text", full)
    refused(paths, r"nothing is written: .* No space left on device; nor could what was found be kept: ", PolicyError)


@pytest.mark.parametrize("right_too", [False, True])
def test_a_policy_all_of_whose_exits_err_is_not_certified(setting, capsys, right_too):
    """Three of all exit, and all three change their answer: few enough for 10 %, and nothing is won by it."""
    wrong = np.arange(N) < 3
    others = np.where(right_too & (np.arange(N) == 3), 0.9, 0.01)
    point = calibrate(CalibrateConfig(**setting(np.where(wrong, 0.6, others), ~wrong), epsilon=0.1)).point()
    said = " ".join(capsys.readouterr().out.split())
    if right_too:
        assert (point.certificate.errors, point.certificate.exits) == (3, 4 / N)
    else:
        assert (point.policy, point.certificate) == (OFF, None)
        assert "no threshold that shortens a trace without error keeps answer_changed <= 0.1" in said
        assert "exits are switched off." in said


def test_the_population_is_of_the_prompts_that_judge_and_so_is_the_traffic(setting):
    """With those that cannot, servers took the traffic's quantiles for ones of more prompts than they are of."""
    lost = {"finish_reason": lambda i: "length" if i % 3 == 0 else "stop", "group": lambda i: f"group {i % 2}"}
    paths = setting(np.full(N, 0.995), [True] * N, **lost)
    stored = calibrate(CalibrateConfig(**paths, unjudged="error", epsilon=0.6))
    found, certificate = stored.population, stored.point().certificate
    assert (certificate.n, certificate.errors, certificate.n_unjudged) == (N, N // 3, N // 3)
    assert (found.prompts, found.traces, found.references) == (100, 100, 100)
    assert found.groups == {"group 0": 50, "group 1": 50}


def test_where_no_trace_can_judge_nothing_is_said_of_population_and_traffic(setting):
    paths = setting(np.full(130, 0.995), [True] * 130, finish_reason="length")
    stored = calibrate(CalibrateConfig(**paths, unjudged="error"))
    assert (stored.point().policy, stored.population, stored.traffic) == (OFF, None, None)
    assert read_policy(paths["draft"]) == stored
    assert "NaN" not in (paths["draft"] / "policy.json").read_text()


@pytest.mark.parametrize(("temperature", "said"), [(0.0, False), (0.6, True)])
def test_of_sampled_text_it_is_said_that_exits_were_judged_by_greedy_answers(setting, capsys, temperature, said):
    """Nobody was told, and the answer that is served behind an exit is drawn."""
    paths = setting(np.full(N, 0.995), [True] * N, sampling=json.dumps({"temperature": temperature}))
    stored = calibrate(CalibrateConfig(**paths))
    printed = " ".join(capsys.readouterr().out.split())
    told = describe(paths["draft"])["policy risk-0.02, default"]
    assert stored.point().certificate is not None
    for text in (printed, told):
        assert ("; exits were judged by greedy answers, and one that is sampled there may be another" in text) == said


def test_a_disk_without_locks_is_calibrated_on_which_is_said(paths, monkeypatch, capsys):
    """Of a folder, NFS says that the descriptor is bad: none can be open for writing."""
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.EBADF, os.strerror(errno.EBADF))))
    assert calibrate(CalibrateConfig(**paths)) == read_policy(paths["draft"])
    assert f"{paths['draft']}: cannot be locked (Bad file descriptor): see to it that no" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({}, "none"),
        ({"quantization_config": None}, "none"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ],
)
def test_the_method_of_a_quantised_target_is_read_where_vllm_reads_it(fields, method):
    assert quantization_of(fields) == method


@pytest.mark.parametrize(
    ("fields", "beside", "method"),
    [
        ({}, {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "modelopt"),
        ({}, {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}, "modelopt"),
        ({}, {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": None}}, "none"),
        ({"quantization_config": {"quant_method": "fp8"}}, {"quantization": {"quant_algo": "NVFP4"}}, "fp8"),
        ({"quantization_config": {"quant_method": "gptq"}}, None, "gptq"),
        ({}, None, "none"),
    ],
)
def test_what_older_modelopt_says_beside_the_config_is_read_where_vllm_reads_it(fields, beside, method, tmp_path):
    if beside is not None:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    assert quantization_served(fields, tmp_path) == method


def test_a_certificate_names_the_quantisation_of_a_target_by_older_modelopt(paths, tmp_path):
    """It said `none`, the server `modelopt`, and calibrating again changed nothing."""
    model = shutil.copytree(tiny.MODEL_DIR, tmp_path / "of")
    (model / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    save_target(tmp_path, load_target_config("tiny-reasoner").model_copy(update={"path": str(model)}))
    stored = calibrate(CalibrateConfig(**paths, target=str(tmp_path / "target.yaml")))
    assert stored.fingerprints.quantization == "modelopt"


def test_a_damaged_file_of_modelopt_is_named(tmp_path):
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(TensorError, match=r"hf_quant_config\.json: cannot be read as JSON"):
        quantization_served({}, tmp_path)


@pytest.mark.parametrize(
    ("told", "marks"),
    [
        ("kv_cache_dtype: fp8", ("float32", "none", "fp8")),
        ("dtype: half\nquantization: fp8", ("float16", "fp8", "auto")),
        ("dtype: auto", (None, "none", "auto")),
    ],
)
def test_a_certificate_is_of_the_types_that_the_engine_was_told(paths, tmp_path, told, marks):
    """It said those of the target's YAML: exits under a KV cache that nothing was calibrated with passed for certified,
    and under the one that had written the traces they did not."""
    (tmp_path / "engine.yaml").write_text(told)
    prints = calibrate(CalibrateConfig(**paths)).fingerprints
    assert (prints.dtype, prints.quantization, prints.kv_cache_dtype) == marks


def test_a_certificate_is_of_the_types_that_wrote_the_traces_whatever_the_target_given_says_by_now(paths, tmp_path):
    """A YAML that was edited after `collect`, given as the model had moved, put its dtype in their place; and so did
    `target.yaml` and `engine.yaml` that were left behind where the traces alone were copied."""
    ours = load_target_config("tiny-reasoner")
    save_target(tmp_path, ours)
    save_target(tmp_path / "edited", ours.model_copy(update={"dtype": "bfloat16"}))
    asked = CalibrateConfig(**paths, target=str(tmp_path / "edited" / "target.yaml"))
    assert calibrate(asked).fingerprints.dtype == "float32"
    (tmp_path / "target.yaml").unlink()
    told = types_in_metadata({"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3"}, ours)
    write_traces(paths["traces"], read_traces(paths["traces"]), said={TYPES: told})
    prints = calibrate(asked).fingerprints
    assert (prints.dtype, prints.quantization, prints.kv_cache_dtype) == ("float32", "fp8", "fp8_e4m3")
    write_traces(paths["traces"], read_traces(paths["traces"]), said={TYPES: '{"bits": 8}'})
    refused(paths, r"traces\.parquet: metadata specexit\.engine: bits is 8", TraceError)
