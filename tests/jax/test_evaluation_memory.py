"""Evaluations hold what is known at boundaries, and neither the text of their traces nor the signals of every token.

`SPECEXIT_MEMORY_TRACES=20000` is the large form by hand.
"""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from specexit.bench.data import generate
from specexit.data.annotate import annotate
from specexit.data.rows import SCHEMA
from specexit.schemas.annotate import AnnotateConfig
from specexit.schemas.bench_data import BenchDataConfig
from specexit.schemas.target import load_target_config

LARGE = "SPECEXIT_MEMORY_TRACES" in os.environ
TRACES = int(os.environ.get("SPECEXIT_MEMORY_TRACES", "250"))

PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from jax.sharding import NamedSharding
from jax_specexit.evaluation import held_out, scoring
from jax_specexit.evaluation.judging import judge
from jax_specexit.sharding import BATCH, make_mesh
from specexit.data.packed import PackMeta
from specexit.data.traces import stream_labelled
from specexit.schemas.target import load_target_config
from specexit.schemas.train import MeshConfig

what, path, target = sys.argv[1], Path(sys.argv[2]), load_target_config("tiny-reasoner")

def nothing(*arguments):
    # What a draft would say of a batch: as large, and as quickly gone.
    tokens = arguments[-1]["tokens"] if isinstance(arguments[-1], dict) else arguments[-1]
    return np.zeros((*tokens.shape, 4), np.float32), np.zeros((3, *tokens.shape), bool)

def run(n):
    if what == "evaluate":
        scoring.program = lambda *_: nothing
        draft = SimpleNamespace(source="draft")
        done = scoring.score(draft, None, None, stream_labelled(path, n), think_end=0, ttt_steps=3)
        return judge(done, 1, "earliest").n
    config = SimpleNamespace(eval_traces=path, evaluate_n=n, target=None, data=path.parent, dtype="float32",
                             out=path.parent, init_from=None, evaluate_length=1 << 20, best_by="brier",
                             signals=SimpleNamespace(source="draft"))
    held = held_out.HeldOut(config, target, PackMeta.model_construct(length=8192, exit_point="earliest"))
    held.run, held.size, held.length = nothing, 4, held.longest
    held.sharding = NamedSharding(make_mesh(MeshConfig()), BATCH)
    return held(None, None, 1, lambda: False).n

def peak(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024

few = run(int(sys.argv[3]))
before = peak("VmHWM")
many = run(None)
print(few, many, peak("VmHWM") - before, peak("VmHWM"))
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled traces of 8,192 tokens in the mean: 2 M tokens."""
    folder = tmp_path_factory.mktemp("memory")
    step = 50 if LARGE else 1600  # few boundaries, so that a bound in MiB is about tokens
    config = BenchDataConfig(out=folder / "unused", target="tiny-reasoner", traces=TRACES, step_tokens=step)
    with pq.ParquetWriter(folder / "traces.parquet", SCHEMA) as writer:
        for batch in generate(config, load_target_config("tiny-reasoner")):
            writer.write_batch(batch)
    annotate(AnnotateConfig(traces=folder / "traces.parquet", out=folder / "labelled", workers=1))
    return folder / "labelled" / "traces.parquet"


@pytest.mark.parametrize("what", ["evaluate", "train"])
def test_memory_does_not_grow_with_the_traces(traces: Path, what: str) -> None:
    """Growth from the first 64 traces, which are about a block, to all: held as objects with their
    signals they take 88 and 108 MiB."""
    command = [sys.executable, "-c", PROGRAM, what, str(traces), "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, many, grown, peak = done.stdout.split()
    print(f"{what}: {float(grown):.0f} MiB more for {many} traces than for {few}, {float(peak):.0f} at most")
    assert (int(few), int(many)) == (64, TRACES)
    assert float(grown) < (1024 if LARGE else 64)
    assert not LARGE or float(peak) < 1536
