"""Commands that read many traces hold what is known at their boundaries, and neither their text nor their signals;
those that make data hold a block of traces.

`SPECEXIT_MEMORY_TRACES=20000` is the large form by hand (3 GB of files, a quarter of an hour).
"""

import gc
import os
import tracemalloc
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specexit.bench.data import generate
from specexit.data import scratch as scratch_module
from specexit.data import traces as traces_module
from specexit.data.columns import list_lengths
from specexit.data.rows import LABELLED_SCHEMA, SCHEMA
from specexit.data.scores import Scores, ScoreWriter, write_scores
from specexit.data.traces import write_traces
from specexit.drafts.tensors import weights_hash
from specexit.method import calibrate as calibrate_module
from specexit.method import simulate as simulate_module
from specexit.method.calibrate import calibrate
from specexit.method.labels import ExitKind, exit_point
from specexit.method.policies import METHODS
from specexit.method.simulate import simulate
from specexit.schemas.bench_data import BenchDataConfig
from specexit.schemas.calibrate import CalibrateConfig
from specexit.schemas.simulate import SimulateConfig
from specexit.schemas.target import load_target_config
from tests.marks import SLOW
from tests.shared.peak import peak

LARGE = "SPECEXIT_MEMORY_TRACES" in os.environ
TRACES = int(os.environ.get("SPECEXIT_MEMORY_TRACES", "250"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory, write_random_draft):
    """Traces of 8,192 tokens in the mean and their scores: 2 M tokens, 33 MB of signals."""
    folder = tmp_path_factory.mktemp("memory")
    draft = write_random_draft(folder / "draft", "draft")
    step = 50 if LARGE else 1600  # few boundaries, so that a bound in MiB is about tokens
    config = BenchDataConfig(out=folder / "unused", target="tiny-reasoner", traces=TRACES, step_tokens=step)
    rng = np.random.default_rng(0)
    with (
        pq.ParquetWriter(folder / "traces.parquet", SCHEMA) as traces,
        ScoreWriter(folder / "scores.parquet", "draft", weights_hash(draft)) as scores,
    ):
        for batch in generate(config, load_target_config("tiny-reasoner")):
            traces.write_batch(batch)
            for key, n in zip(batch["id"].to_pylist(), list_lengths(batch["think_ids"]).tolist(), strict=True):
                scores.write(key, rng.random((n, 4), np.float32))
    return {"draft": draft, "traces": folder / "traces.parquet", "scores": folder / "scores.parquet"}


@pytest.mark.parametrize("command", ["calibrate", "simulate"])
def test_neither_text_nor_signals_are_held(paths, command, tmp_path):
    """The command's imports alone take 150 MiB. As objects, these 2 M tokens and their signals take 200 more."""
    out = [f"draft={paths['draft']}"] if command == "calibrate" else [f"out={tmp_path / 'simulation.json'}"]
    found = peak(command, *out, f"traces={paths['traces']}", f"scores={paths['scores']}")
    print(f"{command}: {TRACES} traces, at most {found:.0f} MiB")
    assert 50 < found < (1536 if LARGE else 256)


def test_long_prompts_do_not_fill_a_block(tmp_path):
    """Thinking is a tenth of these 4.6 M tokens, and a row of 8,192 holds one trace: all rows would take 240 MiB, and
    what they are made of as much again."""
    config = BenchDataConfig(out=tmp_path / "unused", target="tiny-reasoner", traces=900, mean_tokens=512, spread=0.1)
    rng = np.random.default_rng(0)
    (tmp_path / "labelled").mkdir()
    with pq.ParquetWriter(tmp_path / "labelled" / "traces.parquet", LABELLED_SCHEMA) as writer:
        for batch in generate(config, load_target_config("tiny-reasoner")):
            ends = list_lengths(batch["think_ids"]).tolist()
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            known = list(zip(batch["boundaries"].to_pylist(), batch["boundary_agrees"].to_pylist(), ends, strict=True))
            for kind in get_args(ExitKind):
                columns[f"exit_{kind}"] = pa.array([exit_point(*one, kind) for one in known], pa.int32())
            columns["hard_boundary"] = pa.nulls(len(batch), pa.int32())
            prompts = list(rng.integers(500, size=(len(batch), 4096), dtype=np.int32))
            columns["prompt_ids"] = pa.array(prompts, SCHEMA.field("prompt_ids").type)
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=LABELLED_SCHEMA))
    asked = f"traces={tmp_path / 'labelled'}", f"out={tmp_path / 'packed'}", "length=8192", "workers=1"
    found = peak("pack", *asked)
    print(f"pack: at most {found:.0f} MiB")
    assert 50 < found < 384


@pytest.fixture(scope="module")
def many(tmp_path_factory, make_trace, write_random_draft):
    """``many(n)``: a draft, traces of ten tokens, of which next to nothing can be held but what they are as wholes, and
    their scores."""
    folder = tmp_path_factory.mktemp("many")
    draft = write_random_draft(folder / "draft", "draft")
    values = np.random.default_rng(0).random((10, 4), np.float32)

    def make(n):
        traces = [make_trace(id=f"{i:06d}", prompt_ids=[i // 600, i % 600]) for i in range(n)]
        write_traces(folder / f"{n}.parquet", traces)
        scores = Scores("draft", weights_hash(draft), {trace.id: values for trace in traces})
        write_scores(folder / f"{n}.scores.parquet", scores)
        return {"draft": draft, "traces": folder / f"{n}.parquet", "scores": folder / f"{n}.scores.parquet"}

    return make


def held(work):
    """Bytes that Python and NumPy held at most while something was done."""
    gc.collect()
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("command", ["calibrate", pytest.param("simulate", marks=SLOW)])
def test_a_trace_more_takes_no_memory(many, command, monkeypatch, tmp_path):
    """What is known of each trace lies on the disk. What is seen are blocks that are not all alike and freed tuples
    that Python keeps, two thousand at most: 27 bytes in calibrate and 46 in simulate. There numbers in columns took
    180 and 150, objects 560 and 600."""
    monkeypatch.setattr(traces_module, "BLOCK_TOKENS", 1 << 11)
    monkeypatch.setattr(scratch_module, "AT_ONCE", 64)
    kept = {name: METHODS[name] for name in ("paper", "boundary")}
    monkeypatch.setattr(simulate_module, "load_methods", lambda paths: kept)
    monkeypatch.setattr(calibrate_module, "VALIDITY_GRID", (0.9, 0.5))
    few, more = 500, 4_000
    paths = {n: many(n) for n in (50, few, more)}

    def run(n):
        data = {name: paths[n][name] for name in ("traces", "scores")}
        if command == "calibrate":
            calibrate(CalibrateConfig(draft=paths[n]["draft"], **data, epsilon=0.5, delta=0.2))
        else:
            simulate(SimulateConfig(**data, out=tmp_path / "simulation.json"))

    run(50)  # what is imported on the way
    found = (held(lambda: run(more)) - held(lambda: run(few))) / (more - few)
    print(f"{command}: {found:.0f} bytes a trace")
    assert found < 80
