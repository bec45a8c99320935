"""``specexit verify`` with vLLM beside the two frameworks: on a draft that drafts, all three say the same."""

from __future__ import annotations

import json
import shutil

import pytest

from specexit.data.traces import write_traces
from specexit.drafts.verify import _judged, verify
from specexit.schemas.verify import VerifyConfig
from tests.serving.make_draft import texts
from torch_specexit.plugin.worker.checking import SWITCH

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_jax_torch_and_vllm_say_the_same(drafts, target, make_trace, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(SWITCH, "1")
    ids, traces = target.think_tokens(), []
    for i, text in enumerate(texts(target, 704)[-4:]):
        start, end = text.index(ids.start) + 2, text.index(ids.end)
        parts = {"prompt_ids": text[:start], "think_ids": text[start:end], "answer_ids": text[end + 1 :]}
        traces.append(make_trace(id=f"t{i}", **parts))
    write_traces(tmp_path / "traces.parquet", traces)
    draft = shutil.copytree(drafts / "draft", tmp_path / "draft")
    verify(VerifyConfig(draft=draft, traces=tmp_path / "traces.parquet", target="tiny-reasoner"))
    written = json.loads((draft / "verify.json").read_text())
    assert written["passed"]
    assert written["mistakes"] == []
    found = written["vllm"]
    assert found["runner"] == "V1"
    steps = {"logits", "logits, draft step 1", "logits, draft step 2"}
    assert set(found["differences"]) == steps | {"confidence", "progress", "remaining", "validity"}
    assert 0 < max(found["differences"].values()) <= 1e-4  # what `verify` allows float32
    assert found["greedy_drafts"]["same"] == found["greedy_drafts"]["compared"] > 100
    assert found["acceptance"]["vllm"] == found["acceptance"]["torch"]
    assert found["acceptance"]["vllm"]["length"] > 1.5
    assert "acceptance length" in capsys.readouterr().out


def test_an_engine_that_drafts_otherwise_is_no_pass():
    both = {"vllm": {"length": 1.2}, "torch": {"length": 2.2}}
    found = {"dtype": "bfloat16", "differences": {"logits": 0.5, "validity": float("nan")}, "acceptance": both}
    judged = _judged(found, "float32")
    assert not judged["passed"]
    for said in (
        "logits differs by 5.0e-01, expected at most 0.04",
        "validity differs by nan",
        "length is 1.200, 2.200",
    ):
        assert said in judged["wrong"]
