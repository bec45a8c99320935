"""`specexit bench-full-size` on a stand-in that is small: the engine writes the tiny reasoner's texts with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specexit.bench.results import read_results
from specexit.data.traces import write_traces
from specexit.schemas.bench_full_size import BenchFullSizeConfig
from tests.serving.test_bench import generated_traces
from tests.torch.test_stand_in import SIZES
from torch_specexit.bench_full_size import bench_full_size

N = 3


@pytest.mark.vllm
def test_engine_and_plug_in_do_on_a_stand_in_what_they_do_on_the_small_target(drafts: Path, tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(SIZES | {"vocab_size": 40_000}))
    write_traces(tmp_path / "traces.parquet", generated_traces(N))
    config = BenchFullSizeConfig(
        shape=str(tmp_path / "shape.json"),
        draft=drafts / "draft",
        traces=tmp_path / "traces.parquet",
        models=tmp_path / "models",
        out=tmp_path / "bench" / "full-size.json",
        n=N,
        n_latency=1,
        batch=2,
        rounds=1,
    )
    bench_full_size(config)
    results = read_results(config.out)
    assert results.shape is not None
    # A draft with random signals exits at arbitrary places, and at the same ones.
    assert results.shape["same"] == {
        "eagle3: texts in float32": [N, N],
        "specexit: texts in float32": [N, N],
        "specexit: exits in bfloat16": [N, N],
    }
    assert results.methods["specexit"].exits.exit > 0
    assert (results.shape["hidden_size"], results.shape["dtype"]) == (320, "bfloat16")
    assert set(results.against_eagle3["specexit"].speedup) == {"1", "2"}
    assert sorted(path.name for path in config.out.parent.iterdir()) == ["full-size.json"]
