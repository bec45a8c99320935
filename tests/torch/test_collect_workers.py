"""Engines as processes of a collection: which devices each gets, and what is said of one that dies or fails."""

import errno
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from specexit import tiny
from specexit.config import ConfigError
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import load_target_config
from tests.waiting import wait_for
from torch_specexit.collecting import CollectError, collect, local, processes
from torch_specexit.collecting.processes import worker_devices
from torch_specexit.collecting.work import Decoding

TARGET = load_target_config("tiny-reasoner")


@pytest.mark.parametrize(
    ("gpus", "changes", "expected"),
    [
        ([], {}, [[], []]),
        ([], {"workers": 3}, [[], [], []]),
        (["0", "1", "2"], {}, [["0"], ["1"], ["2"]]),
        (["4", "5", "6"], {"workers": 2}, [["4"], ["5"]]),
        (["0", "1", "2"], {"engine": {"extra": {"tensor_parallel_size": 2}}}, [["0", "1"]]),
        # Each engine was shown two of the four that it asks for, and died of it.
        (
            list("01234"),
            {"engine": {"extra": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}}},
            [list("0123")],
        ),
    ],
)
def test_devices_of_the_workers(monkeypatch, gpus, changes, expected):
    monkeypatch.setattr(processes, "_visible_gpus", lambda: gpus)
    config = CollectConfig.model_validate({"target": "t", "out": "o", "split": "test"} | changes)
    assert worker_devices(config) == expected


@pytest.mark.parametrize(
    ("visible", "seen", "expected"),
    [
        (None, 2, ["0", "1"]),
        ("4,5", 2, ["4", "5"]),
        ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),  # a process sees one at most
        # Each was an engine's one GPU, though there was none.
        ("-1", 0, []),
        ("0", 0, []),  # of a torch for CPUs
    ],
)
def test_gpus_that_are_hidden_are_none(monkeypatch, visible, seen, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert processes._visible_gpus() == expected


def test_more_workers_than_gpus(monkeypatch):
    monkeypatch.setattr(processes, "_visible_gpus", lambda: ["0"])
    with pytest.raises(ConfigError, match="workers is 2 with 1 GPUs each, but only 1 GPUs are visible"):
        worker_devices(CollectConfig(target="t", out=Path("o"), split="test", workers=2))


@pytest.mark.vllm
def test_a_failing_worker_says_why(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.MODEL_DIR, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    target = yaml.safe_dump(TARGET.model_dump(mode="json") | {"path": str(folder)})
    (tmp_path / "target.yaml").write_text(target)
    asked = {"split": "test", "n": 2, "workers": 1}
    with pytest.raises(CollectError, match=r"(?s)exit code 1; what it said is in .*; its last lines:.*SafetensorError"):
        collect(CollectConfig(target=str(tmp_path / "target.yaml"), out=tmp_path / "out", **asked))
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize(
    ("end", "workers", "message"),
    [
        ("kill -9 $$", 2, r"by SIGKILL, as Linux does where memory runs out: lower workers \(2 here\) or engine\.kv"),
        ("kill -9 $$", 1, r"by SIGKILL, as Linux does where memory runs out: lower engine\.kv_cache_gib; what"),
        ('printf \'{"number": 0, "tra\'; kill -9 $$', 1, "by SIGKILL, as Linux does where memory runs out: lower eng"),
        ("kill -11 $$", 2, "killed by SIGSEGV; what it said"),
        ("kill -40 $$", 2, "killed by signal 40; what it said"),
        ("exit 3", 2, r"ended with exit code 3; .*; its last lines:\nOSError: no such model"),
    ],
)
@pytest.mark.parametrize("parts", [False, True])
def test_an_engine_that_dies_is_one_clear_error(end, workers, message, parts, tmp_path, monkeypatch):
    """And what it said is kept: an engine that is killed says nothing of it."""
    engine = tmp_path / "engine"
    engine.write_text(f"#!/bin/sh\necho 'OSError: no such model' >&2\nread config\n{end}\n")
    engine.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(engine))
    monkeypatch.setattr(processes, "_visible_gpus", lambda: [])
    asked = {"parts": {"a": {"split": "test"}}} if parts else {"split": "test"}
    out = tmp_path / "out"
    asked |= {"target": "tiny-reasoner", "out": out, "n": 12, "workers": workers}
    with pytest.raises(CollectError, match=message) as raised:
        collect(CollectConfig.model_validate(asked))
    logs = list((out / "a" if parts else out).glob(".collect/*.log"))
    assert any(f"what it said is in {log}; the same command goes on" in str(raised.value) for log in logs)
    assert {log.read_text() for log in logs} == {"OSError: no such model\n"}
    assert str(raised.value).count("\n") == (end == "exit 3")


def test_why_an_engine_died_is_said_though_its_log_cannot_be_kept(tmp_path, monkeypatch):
    """A disk without room for the log is often why it died, and hid everything else."""
    engine = tmp_path / "engine"
    engine.write_text("#!/bin/sh\necho 'OSError: no such model' >&2\nread config\nexit 3\n")
    engine.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(engine))
    monkeypatch.setattr(processes, "_visible_gpus", lambda: [])

    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".log":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    said = (
        r"with exit code 3; .*engine-0\.log: No space left on device; .* goes on .*; its last lines:\nOSError: no such"
    )
    with pytest.raises(CollectError, match=said):
        collect(CollectConfig(target="tiny-reasoner", out=tmp_path / "out", n=12, split="test", workers=1))


STARTING = """
import fcntl, time
from pathlib import Path
from torch_specexit.collecting import worker
def start(*_):
    lock = open("lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    Path("ready").touch()
    time.sleep(20)
    Path("went on").touch()
worker.LocalEngine = start
worker.main()
"""

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
child.stdin.write(sys.argv[2] + "\\n")
child.stdin.flush()
time.sleep(600)
"""


def test_an_engine_that_is_starting_ends_when_its_parent_is_killed(tmp_path):
    """It takes minutes, and found out behind them only that nobody was there any more."""
    asked = CollectConfig(target="tiny-reasoner", out=tmp_path / "out", split="test").model_dump(mode="json")
    command = [sys.executable, "-c", PARENT, STARTING, json.dumps({"config": asked})]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(command, cwd=tmp_path, env=environment)
    wait_for((tmp_path / "ready").exists)
    parent.kill()
    parent.wait()
    with (tmp_path / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as soon as it has ended
    assert not (tmp_path / "went on").exists()


@pytest.mark.vllm
def test_an_engine_is_asked_for_whole_thinking_whatever_draft_its_settings_name():
    """vLLM carries the key along unread where there is no SpecExit draft."""
    assert local._params(Decoding(5)).extra_args == {"specexit": False}


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5])
def test_an_engine_s_value_that_is_no_probability(value):
    """A model that overflows: its traces could not be read again."""
    written = {token: SimpleNamespace(logprob=logprob) for token, logprob in ((1, -0.1), (2, value))}
    completion = SimpleNamespace(token_ids=[1, 2], logprobs=[written, written], finish_reason="stop")
    with pytest.raises(CollectError, match=f"log-probability {value:g}, expected 0 at most.*target's dtype"):
        local._response(SimpleNamespace(outputs=[completion]))
