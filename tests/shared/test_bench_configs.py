"""The shipped benchmark configs are what their schemas take, and name methods that there are."""

from pathlib import Path

import pytest

from specexit.bench.methods import NAMES, find_method
from specexit.config import load
from specexit.schemas.bench import BenchConfig
from specexit.schemas.bench_full_size import BenchFullSizeConfig

FOLDER = Path(__file__).parents[2] / "configs" / "bench"


@pytest.mark.parametrize("name", ["tiny-reasoner", "field", "field-sampled"])
def test_a_benchmark_names_methods_that_there_are(name: str) -> None:
    config = load(BenchConfig, FOLDER / f"{name}.yaml", [] if name != "tiny-reasoner" else ["out=x"])
    methods = [find_method(method) for method in config.methods or ()]
    assert len({method.name for method in methods}) == len(methods)
    if config.sampling.temperature:
        # A replay of a greedy recording is of another text.
        assert not {"oracle", "exits-alone"} & {method.name for method in methods}


def test_the_field_is_every_method() -> None:
    config = load(BenchConfig, FOLDER / "field.yaml")
    assert config.methods == NAMES


def test_full_size_is_that_of_a_target_that_is_known() -> None:
    assert load(BenchFullSizeConfig, FOLDER / "full-size.yaml").shape == "qwen3-0.6b"
