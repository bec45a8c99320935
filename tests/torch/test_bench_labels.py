"""``specexit bench-labels`` makes the same trials both ways. How fast is for `make bench-labels`."""

import asyncio
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from specexit.data.prompts import Prompt
from specexit.schemas.bench_labels import BenchLabelsConfig
from torch_specexit.bench import labels
from torch_specexit.collecting.local import LocalEngine
from torch_specexit.collecting.tracer import Response, Tracer
from torch_specexit.collecting.work import Ask, Decoding


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


class Engine(LocalEngine):
    """Remembers what it is asked, and answers each prompt with one token."""

    def __init__(self) -> None:
        self.seen: list[str | list[int]] = []
        self.engine = SimpleNamespace(reset_prefix_cache=lambda: self.seen.append("emptied"))

    async def generate(self, ids, how):
        self.seen.append(ids)
        return Response([5], [-0.1], "stop")


class Thinker(Tracer):
    """Writes one trace, and tries two of its prefixes."""

    def __init__(self, engine, trace):
        self.asked, self.written = engine, trace

    async def trace(self, ask):
        for ids in ([1], [1, 2], [1, 2, 3]):
            await self.asked.generate(ids, Decoding(1))
        return self.written

    def stated(self, trace):
        return []


def test_both_ways_begin_with_nothing_cached(make_trace):
    """Of one prefix at a time each one, or what is compared is the cache."""
    recorder = labels._Recorder(engine := Engine())
    asks = [Ask(Prompt("a", "What is 3 + 4?", "7"), 0)]
    result = asyncio.run(labels._measure(engine, recorder, Thinker(recorder, make_trace()), asks))
    together, alone = ["emptied", [1, 2], [1, 2, 3]], ["emptied", [1, 2], "emptied", [1, 2, 3]]
    assert engine.seen == [[1], [1, 2], [1, 2, 3], *together, *alone]
    assert (result["trials"], result["same"]) == (2, 2)


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
