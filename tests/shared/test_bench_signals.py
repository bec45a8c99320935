"""``specexit bench-signals``: the arithmetic of its pairs, and the recipe that it refuses."""

from pathlib import Path

import numpy as np
import pytest

from specexit.bench.signals import bench_signals, gather, table
from specexit.config import ConfigError
from specexit.schemas.bench_signals import BenchSignalsConfig


def test_points_are_lost_seed_by_seed():
    tokens_only = np.array([[0.90, 0.80], [0.92, 0.70], [0.94, 0.60]])
    lost = np.array([[0.001, 0.0], [0.003, -0.002], [0.002, 0.002]])
    result = gather((0, 1, 2), {"tokens_only": tokens_only, "joint": tokens_only - lost})
    first, second = result["top1_points_lost"]
    assert first == {"mean": 0.2, "sd": 0.1, "by_seed": [0.1, 0.3, 0.2]}
    assert second == {"mean": 0.0, "sd": 0.2, "by_seed": [0.0, -0.2, 0.2]}
    assert list(table(result).columns[3].cells) == ["+0.20 ± 0.10", "+0.00 ± 0.20"]


def test_a_recipe_whose_signals_are_a_probe_is_refused(tmp_path: Path):
    config = BenchSignalsConfig(recipe="tiny-reasoner-fc", data=tmp_path, eval_traces=tmp_path, out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"signals\.source is 'fc', expected 'draft'"):
        bench_signals(config)
    assert not config.out.exists()
