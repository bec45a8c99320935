"""The journal of a benchmark: what has been asked is not asked again, and what others asked is not taken for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from specexit.bench.journal import Journal, alone_at
from specexit.bench.process import BenchError

ASKED = {
    "config": {"seed": 0},
    "versions": {"vllm": "1"},
    "inputs": {"draft.weights": "a" * 64, "traces": "b" * 64},
    "machine": {"cores": 2, "revision": "abc"},
}


def never() -> dict:
    raise AssertionError("asked again")


def test_an_interrupted_benchmark_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out", ASKED)
    assert journal.reply("first", lambda: {"seconds": 1}) == {"seconds": 1}
    journal.reply("second", lambda: {"seconds": 2})
    text = journal.path.read_text()
    journal.path.write_text(text[:-5])  # killed while it wrote the second
    again = Journal(tmp_path / "out", ASKED)
    assert again.reply("first", never) == {"seconds": 1}
    assert again.reply("second", lambda: {"seconds": 3}) == {"seconds": 3}
    assert [json.loads(line)["asked"] for line in again.path.read_text().splitlines()[1:]] == ["first", "second"]
    again.remove()
    assert not again.path.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"inputs": ASKED["inputs"] | {"draft.weights": "c" * 64}},
            "inputs.draft.weights aaaaaaaaaaaa (now cccccccccccc)",
        ),
        ({"inputs": ASKED["inputs"] | {"traces": "c" * 64}}, "inputs.traces bbbbbbbbbbbb (now cccccccccccc)"),
        ({"config": {"seed": 1}}, "config.seed 0 (now 1)"),
        ({"versions": {"vllm": "2"}}, "versions.vllm 1 (now 2)"),
        (
            {"machine": {"cores": 4, "revision": "abc-dirty-1"}},
            "machine.cores 2 (now 4), machine.revision abc (now abc-dirty-1)",
        ),
    ],
)
def test_what_another_draft_or_other_traces_measured_is_neither_mixed_in_nor_thrown_away(
    tmp_path: Path, change: dict, told: str
) -> None:
    journal = Journal(tmp_path / "out", ASKED)
    journal.reply("first", lambda: {"seconds": 1})
    with pytest.raises(
        BenchError, match=re.escape(f"{journal.path}: an interrupted benchmark has measured with {told}: delete")
    ):
        Journal(tmp_path / "out", ASKED | change)
    assert Journal(tmp_path / "out", ASKED).reply("first", never) == {"seconds": 1}


def test_what_another_accelerator_measured_is_not_mixed_in(tmp_path: Path) -> None:
    """Which it is, engines tell that stand already."""
    journal = Journal(tmp_path / "out", ASKED)
    journal.check_accelerator("a fast one")
    journal.reply("first", lambda: {"seconds": 1, "accelerator": "a fast one"})
    again = Journal(tmp_path / "out", ASKED)
    again.check_accelerator("a fast one")
    with pytest.raises(BenchError, match=r"has measured with accelerator a fast one \(now None\): delete this file"):
        again.check_accelerator(None)


def test_a_benchmark_that_is_killed_while_it_takes_up_its_journal_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal(tmp_path / "out", ASKED).reply("first", lambda: {"seconds": 1})

    def killed(path: Path, *_: object) -> None:
        path.open("w").close()  # what was there is gone, and nothing is written yet
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        patch.setattr(Path, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            Journal(tmp_path / "out", ASKED)
    assert Journal(tmp_path / "out", ASKED).reply("first", never) == {"seconds": 1}


def test_a_journal_without_replies_is_in_nobodys_way(tmp_path: Path) -> None:
    Journal(tmp_path / "out", ASKED | {"config": {"seed": 1}})
    journal = Journal(tmp_path / "out", ASKED)
    journal.reply("first", lambda: {"seconds": 1})
    assert Journal(tmp_path / "out", ASKED).reply("first", never) == {"seconds": 1}


def test_a_journal_of_before_that_names_no_inputs_is_refused(tmp_path: Path) -> None:
    old = {name: ASKED[name] for name in ("config", "versions", "machine")}
    Journal(tmp_path / "out", old).reply("first", lambda: {"seconds": 1})
    with pytest.raises(BenchError, match=r"inputs\.draft\.weights not told \(now aaaaaaaaaaaa\)"):
        Journal(tmp_path / "out", ASKED)


def test_a_journal_of_before_there_was_a_setting_goes_on_where_that_is_not_set(tmp_path: Path) -> None:
    Journal(tmp_path / "out", ASKED).reply("first", lambda: {"seconds": 1})
    now = {tasks: ASKED | {"config": {"seed": 0, "tasks": tasks}} for tasks in (None, "sums")}
    with pytest.raises(BenchError, match=r"config\.tasks not told \(now sums\)"):
        Journal(tmp_path / "out", now["sums"])
    assert Journal(tmp_path / "out", now[None]).reply("first", never) == {"seconds": 1}


def test_a_benchmark_that_was_killed_lets_its_output_go(tmp_path: Path) -> None:
    out = tmp_path / "bench" / "out"
    script = "import sys, time; from pathlib import Path; from specexit.bench.journal import alone_at\n"
    script += "with alone_at(Path(sys.argv[1])):\n  print('held', flush=True)\n  time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        by = rf"out={out}: process {other.pid} on \S+, since \d{{4}}-.*, measures into it: wait until that has ended"
        for _ in range(2):
            with pytest.raises(BenchError, match=by), alone_at(out):
                pass
        other.kill()
    with alone_at(out):
        assert (out.parent / ".out.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not list(out.parent.iterdir())
