"""``specexit bench-labels`` makes the same trials both ways. How fast is for `make bench-labels`."""

import json
import subprocess
import sys

import pytest

from specexit.schemas.bench_labels import BenchLabelsConfig
from torch_specexit.bench import labels


def test_the_result_names_the_gpu(tmp_path, monkeypatch):
    chosen = {"boundaries": "all", "trials": 1, "all_trials": 1, "traces": 1, "same_earliest": 1, "same_stable": 1}
    speed = {"trials_per_second": 1.0}
    found = {"trials": 1, "traces": 1, "same": 1, "speedup": 1.0, "together": speed, "alone": speed}

    async def measured(*_):
        return found | dict.fromkeys(("refine", "stable", "bisect"), chosen)

    for name in ("LocalEngine", "_Recorder", "Tracer", "_measure"):
        monkeypatch.setattr(labels, name, lambda *_: None)
    monkeypatch.setattr(labels, "_beside", measured)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    out = tmp_path / "labels.json"
    labels.bench_labels(BenchLabelsConfig(target="tiny-reasoner", split="test", n=1, out=out))
    assert json.loads(out.read_text())["hardware"]["accelerator"] == "a GPU"


@pytest.mark.vllm
def test_the_same_trials_together_and_alone(tmp_path):
    out = tmp_path / "labels.json"
    command = [sys.executable, "-m", "specexit", "bench-labels", "target=tiny-reasoner", "split=test", "n=3"]
    done = subprocess.run([*command, f"out={out}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert found["traces"] == 3
    assert found["trials"] >= 6  # a trace of the tiny reasoner has several boundaries before its natural end
    assert found["same"] == found["trials"]
    assert found["prefix_tokens"] > 20 * found["trials"]
    assert found["trial_tokens"] >= found["trials"]
    assert found["speedup"] == pytest.approx(found["alone"]["seconds"] / found["together"]["seconds"])
    assert f"{found['trials']} trials of 3 traces: " in done.stdout
    refined = found["refine"]
    assert (refined["boundaries"], refined["stride"], refined["traces"]) == ("refine", 8, 3)
    assert (
        refined["all_trials"] == sum(len(one["states"]) for one in found["tried"]) >= found["trials"]
    )  # a natural end is known
    assert refined["all_trial_tokens"] == found["trial_tokens"]
    # Traces of so few boundaries are tried at all of them.
    assert (refined["trials"], refined["same_earliest"], refined["same_stable"]) == (refined["all_trials"], 3, 3)
    assert refined["trial_tokens"] == refined["all_trial_tokens"]
    assert (
        f"boundaries=refine tries {refined['trials']} of {refined['trials']} boundaries; of 3 traces 3 have"
        in done.stdout
    )
    assert (found["stable"]["same_stable"], found["stable"]["boundaries"]) == (3, "stable")
    assert found["stable"]["trials"] < refined["trials"]
    assert "boundaries=bisect tries" in done.stdout
