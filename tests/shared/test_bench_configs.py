"""The shipped benchmark configs are what their schemas take, and name methods that there are."""

from pathlib import Path

import pytest

from specexit.bench.methods import NAMES, Method, find_method
from specexit.config import ConfigError, load
from specexit.schemas.bench import BenchConfig
from specexit.schemas.bench_full_size import BenchFullSizeConfig
from specexit.schemas.bench_training import BenchTrainingConfig

FOLDER = Path(__file__).parents[2] / "configs" / "bench"


@pytest.mark.parametrize("name", ["tiny-reasoner", "field", "field-sampled"])
def test_a_benchmark_names_methods_that_there_are(name: str) -> None:
    config = load(BenchConfig, FOLDER / f"{name}.yaml", [] if name != "tiny-reasoner" else ["out=x"])
    methods = [find_method(method) for method in config.methods or ()]
    assert len({method.name for method in methods}) == len(methods)


REPLAYS = {"exits-alone", "oracle"}
"""Methods of a greedy recording. Sampled text is another."""


def test_the_field_is_every_method_greedy_and_every_one_that_replays_nothing_sampled() -> None:
    greedy, sampled = (load(BenchConfig, FOLDER / f"{name}.yaml") for name in ("field", "field-sampled"))
    assert greedy.methods == NAMES
    assert sampled.methods == tuple(name for name in NAMES if name not in REPLAYS)
    assert sampled.batches == greedy.batches
    assert sampled.sampling.temperature > 0
    # What replays is what `bench` refuses with a temperature: a method with hints.
    assert {name for name in NAMES if find_method(name).hints is not Method.hints} == REPLAYS


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("loss_chunk=60", "loss_chunk=60 does not divide length=2048"),
        ("ttt_steps=2048", "ttt_steps=2048: expected at most length - 2, which is 2046"),
        ("draft.draft_vocab_size=200000", r"draft\.draft_vocab_size=200000: expected at most vocab_size=\d+"),
        ("draft.num_key_value_heads=3", r"num_attention_heads=\d+: expected a multiple of num_key_value_heads=3"),
        ("lengths=[0]", r"lengths\.0 is 0: .* greater than 0"),
        ("draft.head_dim=15", r"draft\.head_dim is 15: .* multiple of 2"),
    ],
)
def test_a_training_step_that_cannot_be_is_refused_before_a_side_starts(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(BenchTrainingConfig, FOLDER / "training.yaml", [key])


@pytest.mark.parametrize("rates", [(4.0, 4.0), (4.0, 2.0), (float("nan"),), (float("inf"),), (0.0,)])
def test_rates_of_arrivals_are_different_numbers(rates: tuple[float, ...]) -> None:
    """One that came four times was measured once and counted as four slices, with an interval half as wide."""
    with pytest.raises(ValueError, match=r"rates=.*: expected rising numbers of arrivals per second above 0"):
        BenchConfig(traces=Path("t"), draft=Path("d"), out=Path("o"), rates=rates)


def test_full_size_is_that_of_a_target_that_is_known() -> None:
    assert load(BenchFullSizeConfig, FOLDER / "full-size.yaml").shape == "qwen3-0.6b"
