"""``specexit bench-training`` compares the same work: its check of losses, right and mistaken ones.

Costs 80 s, and minutes more at the sizes of the benchmark (``make test-slow``).
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import jax
import pytest
import torch

import jax_specexit.bench_step as ours
import torch_specexit.bench.step as theirs
from jax_specexit.training import step
from specexit.bench import training as bench
from specexit.bench.process import BenchError
from specexit.bench.training import check_losses, write_inputs
from specexit.config import find, load
from specexit.outputs import Ended
from specexit.schemas.bench_training import BenchTrainingConfig
from tests.marks import SLOW


@pytest.fixture(scope="module", params=["float32", "bfloat16", pytest.param("as shipped", marks=SLOW)])
def config(request: pytest.FixtureRequest) -> BenchTrainingConfig:
    """Small sizes in either type, and those that `make bench-training` runs, in float32."""
    if request.param == "as shipped":
        return load(BenchTrainingConfig, find("bench", "training"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    return BenchTrainingConfig.model_validate(
        {
            "out": "unused",
            "draft": sizes | {"head_dim": 16, "draft_vocab_size": 96},
            "vocab_size": 160,
            "length": 128,
            "ttt_steps": 3,
            "loss_chunk": 32,
            "dtype": request.param,
        }
    )


@pytest.fixture(scope="module")
def inputs(config: BenchTrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("bench")
    return folder, write_inputs(config, folder)


@pytest.fixture(scope="module")
def speculators(config: BenchTrainingConfig, inputs: tuple[Path, float]) -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda forward: forward)
        return theirs.make_step(inputs[0], config.length, config.ttt_steps, getattr(torch, config.dtype))()


def test_the_same_work_has_the_same_loss(
    config: BenchTrainingConfig, inputs: tuple[Path, float], speculators: float
) -> None:
    folder, entropy = inputs
    loss = ours.make_step(config, folder)() - entropy
    check_losses(loss, speculators, config.dtype)
    if config.dtype == "float32":
        assert loss == pytest.approx(speculators, rel=1e-5)  # float32 sums in another order; 1e-6 was seen


def of_states(x: jax.Array, by: int) -> int:
    """Shift of the draft's outputs, which meet the teacher one row further on."""
    return by + 1


def of_later_states(x: jax.Array, by: int) -> int:
    """The same, right at step 0 alone."""
    return 2 * by + 1


def of_embeddings(x: jax.Array, by: int) -> int:
    """Shift of the tokens that the draft reads; what else is shifted there has no width."""
    return by + 1 if x.ndim == 3 else by


# What bfloat16's rounding does not hide, float32's does not either. As shipped, a row is so long that a shift of the
# embeddings alone hides in it.
@pytest.mark.parametrize("config", ["bfloat16", pytest.param("as shipped", marks=SLOW)], indirect=True)
@pytest.mark.parametrize(
    ("module", "mistaken"),
    [(ours, of_states), (ours, of_later_states), (step, of_embeddings)],
    ids=["states", "later states", "embeddings"],
)
def test_a_shift_that_is_off_by_one_is_refused(
    config: BenchTrainingConfig,
    inputs: tuple[Path, float],
    speculators: float,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    mistaken: Callable[[jax.Array, int], int],
) -> None:
    shift = module.shift
    monkeypatch.setattr(module, "shift", lambda x, by: shift(x, mistaken(x, by)))
    folder, entropy = inputs
    loss = ours.make_step(config, folder)() - entropy
    with pytest.raises(BenchError, match="loss of the first step"):
        check_losses(loss, speculators, config.dtype)


def test_a_loss_that_is_no_number_is_not_the_same() -> None:
    with pytest.raises(BenchError, match="loss of the first step: nan in JAX"):
        check_losses(float("nan"), 1.0, "bfloat16")


def test_times_are_printed_before_they_are_written(
    config: BenchTrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """They took minutes of an idle machine, and a disk may be full by then."""
    found = {"gather": {"jax": 5.98}, "tables": ["5.98 seconds"]}
    for name in ("write_inputs", "BenchProcess", "check_losses", "take_turns", *found):
        monkeypatch.setattr(bench, name, MagicMock(return_value=found.get(name, MagicMock())))
    with pytest.raises(IsADirectoryError):
        bench.bench_training(config.model_copy(update={"out": tmp_path}))
    assert "5.98 seconds" in capsys.readouterr().out


def test_a_notice_leaves_no_draft_behind(tmp_path: Path, scratch: Path, told_to_end, monkeypatch) -> None:
    monkeypatch.setattr(bench, "write_inputs", told_to_end)
    with pytest.raises(Ended):
        bench.bench_training(load(BenchTrainingConfig, find("bench", "training"), [f"out={tmp_path / 'out.json'}"]))
    assert not list(scratch.iterdir())
