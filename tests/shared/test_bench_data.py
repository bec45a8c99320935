"""The corpus of `make bench-data`, and what annotate and pack do with it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from specexit.bench import data
from specexit.bench.data import bench_data, generate, memory_of_tree
from specexit.data.columns import list_lengths
from specexit.data.stream import MOST_WORKERS
from specexit.outputs import Ended
from specexit.schemas.bench_data import BenchDataConfig
from specexit.schemas.target import load_target_config

TRACES = int(os.environ.get("SPECEXIT_BENCH_TRACES", "1000"))
"""`make bench-data TRACES=20000` is the large form by hand."""


def test_lengths_are_those_of_a_real_corpus():
    config = BenchDataConfig(out=Path("unused"), target="tiny-reasoner", traces=2000, longest=32768)
    batches = list(generate(config, load_target_config("tiny-reasoner")))
    lengths = np.concatenate([list_lengths(batch["think_ids"]) for batch in batches])
    assert len(lengths) == 2000
    # A mean of 2,000 draws is off by 8 % once in 15,000 times; those above the longest are cut.
    assert 0.88 * 8192 < lengths.mean() < 1.08 * 8192
    assert lengths.max() <= 32768
    boundaries = np.concatenate([list_lengths(batch["boundaries"]) for batch in batches])
    assert lengths.sum() / boundaries.sum() == pytest.approx(50, rel=0.05)


def test_steps_are_of_two_tokens_or_more():
    """Fewer ended in numpy's words for a mean below 0."""
    with pytest.raises(ValidationError, match=r"step_tokens\n.*greater than or equal to 2"):
        BenchDataConfig(out=Path("unused"), target="tiny-reasoner", step_tokens=1.5)
    (batch,) = generate(
        BenchDataConfig(out=Path("unused"), target="tiny-reasoner", traces=1, mean_tokens=64, step_tokens=2),
        load_target_config("tiny-reasoner"),
    )
    boundaries = batch["boundaries"][0].as_py()
    assert set(np.diff(boundaries).tolist()) <= {1, 2}


def test_a_notice_leaves_neither_the_corpus_nor_a_command_behind(tmp_path, told_to_end, monkeypatch):
    """SIGTERM left gigabytes in a hidden folder, and `annotate` at work on them."""
    begun = []

    def told(pid):
        begun.append(pid)
        told_to_end()

    monkeypatch.setattr(data, "write_corpus", lambda _config, folder: folder.mkdir() or 1)
    monkeypatch.setattr(data, "python", lambda *_: [sys.executable, "-c", "import time; time.sleep(30)"])
    monkeypatch.setattr(data, "memory_of_tree", told)
    with pytest.raises(Ended):
        bench_data(BenchDataConfig(out=tmp_path / "data.json", target="tiny-reasoner"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(begun[0], 0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, MOST_WORKERS])
def test_tokens_lost_and_memory(tmp_path, workers):
    """Speed is for `make bench-data` on a quiet machine; what rows lose and what commands hold is the same anywhere."""
    out = tmp_path / "data.json"
    result = bench_data(BenchDataConfig(out=out, target="tiny-reasoner", traces=TRACES, workers=workers))
    assert json.loads(out.read_text()) == result
    commands = result["commands"]
    assert list(commands) == ["annotate", "pack 8192", "pack 16384"]
    assert 0.2 < commands["pack 8192"]["lost"] <= 0.35
    assert 0.05 < commands["pack 16384"]["lost"] <= 0.15
    for row in commands.values():
        assert row["tokens_per_second"] > 0
        assert 0.05 < row["peak_gib"] <= 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


def test_memory_of_a_process_and_its_children():
    held = memory_of_tree(os.getpid())
    block = np.ones(64 << 20, np.uint8)
    assert memory_of_tree(os.getpid()) - held > 0.9 * block.nbytes
    assert memory_of_tree(1 << 30) == 0  # nobody there
