"""Which rows an evaluation in a run takes, and that a plan has compiled none that are smaller. A few seconds."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

from jax_specexit.evaluation import held_out as module
from jax_specexit.evaluation.held_out import HeldOut
from jax_specexit.evaluation.rows import largest_rows, rows_for
from jax_specexit.model.draft import Draft
from jax_specexit.planning.aot import Lowered, lower_step, shapes_of
from jax_specexit.sharding import AXES, make_mesh
from jax_specexit.training import measure
from jax_specexit.training.data import first_rows
from jax_specexit.training.step import Frozen, make_step
from jax_specexit.weights import abstract_target, load_target
from specexit.config import ConfigError
from specexit.data.packed import PackMeta, read_meta
from specexit.data.traces import TOKENIZER, WEIGHTS, TraceError, read_labelled, write_traces
from specexit.errors import InputError, lasts
from specexit.method.signals import SIGNALS
from specexit.schemas.target import TargetConfig, load_target_config
from specexit.schemas.train import MeshConfig, TrainConfig

ROW = 16
"""Tokens of a packed row: of the traces the longest needs five."""


def tokens_of(trace: Any) -> int:
    return trace.n_prompt + trace.n_think + 1 + trace.n_answer


@pytest.fixture
def config(recipe: TrainConfig, packed: Path) -> TrainConfig:
    changes = {"length": ROW, "loss_chunk": ROW, "eval_traces": packed.parent / "traces.parquet"}
    return TrainConfig.model_validate(recipe.model_dump() | changes)


@pytest.fixture
def target(small_target: Path, config: TrainConfig) -> TargetConfig:
    """One whose longest sequence is the longest trace."""
    assert config.eval_traces is not None
    longest = max(map(tokens_of, read_labelled(config.eval_traces)))
    assert 4 * ROW < longest <= 5 * ROW
    return load_target_config(str(small_target)).model_copy(update={"max_model_len": longest})


def evaluated(
    held_out: HeldOut, target: TargetConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, tuple[Any, ...]], Any]:
    """Shapes and types of the one kind of batch that an evaluation takes, and what it says with nothing computed."""
    seen: list[dict[str, tuple[Any, ...]]] = []

    def nothing(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
        seen.append(shapes(batch))
        rows = batch["tokens"].shape
        return np.zeros((*rows, len(SIGNALS)), np.float32), np.zeros((2, *rows), bool)

    models = shapes_of(held_out.config, target)
    draft, model = (
        nnx.eval_shape(lambda: Draft(models.draft, rngs=nnx.Rngs(0))),
        abstract_target(models.target, "float32"),
    )
    step = make_step(held_out.config, draft, model, make_mesh(MeshConfig(), jax.devices()[:1]))
    monkeypatch.setattr(module, "scoring", lambda *_: nothing)
    held_out.compile(step, draft, model)
    found = held_out(None, Frozen(None, None, None), 1, lambda: False)
    assert all(one == seen[0] for one in seen)
    return seen[0], found


def shapes(batch: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: (x.shape, x.dtype) for name, x in batch.items()}


def planned(config: TrainConfig, target: TargetConfig) -> Lowered:
    return lower_step(config, shapes_of(config, target), jax.devices()[:1])


def test_the_evaluation_that_is_planned_is_the_one_that_long_traces_cause(
    config: TrainConfig, target: TargetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(update={"batch_size": 5})
    held_out = HeldOut(config, target, PackMeta.model_construct(length=ROW, exit_point="earliest"))
    seen, found = evaluated(held_out, target, monkeypatch)
    (_, _, batch), _ = planned(config, target).others["evaluate"]().in_avals
    assert seen == shapes(batch)
    assert seen["tokens"][0] == (1, 5 * ROW)
    assert (found.n, found.left_out) == (40, 0)
    # Where nobody has planned it: what the compiler says it would say again, behind every restart.
    monkeypatch.setattr(held_out, "run", Mock(side_effect=jax.errors.JaxRuntimeError("Used 24.00G of 15.75G hbm.")))
    expected = r"^evaluate needs at least 24\.0 GiB .* can have 15\.75: choose a smaller evaluate_length"
    with pytest.raises(ConfigError, match=expected) as refused:
        held_out(None, Frozen(None, None, None), 1, lambda: False)
    assert lasts(refused.value)


def test_traces_of_another_tokenizer_are_not_held_out_and_the_weights_that_wrote_them_are_known(
    config: TrainConfig, target: TargetConfig, tmp_path: Path
) -> None:
    assert config.eval_traces is not None
    traces, meta = read_labelled(config.eval_traces), PackMeta.model_construct(length=ROW, exit_point="earliest")
    config = config.model_copy(update={"eval_traces": tmp_path / "traces.parquet"})
    write_traces(tmp_path / "traces.parquet", traces, said={WEIGHTS: "0" * 64})
    assert HeldOut(config, target, meta).wrote == "0" * 64
    write_traces(tmp_path / "traces.parquet", traces, said={TOKENIZER: "0" * 64})
    with pytest.raises(TraceError, match=r"written with the tokenizer 0{12}"):
        HeldOut(config, target, meta)


def test_traces_that_are_too_long_are_left_out_and_counted(
    config: TrainConfig,
    target: TargetConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert config.eval_traces is not None
    long = sum(tokens_of(trace) > 3 * ROW for trace in read_labelled(config.eval_traces))
    assert 0 < long < 40
    path = tmp_path / "[v2]" / "traces.parquet"  # which would pass for markup
    path.parent.mkdir()
    shutil.copy(config.eval_traces, path)
    config = config.model_copy(update={"evaluate_length": 3 * ROW, "eval_traces": path})
    meta = PackMeta.model_construct(length=ROW, exit_point="earliest")
    held_out = HeldOut(config, target, meta)
    seen, found = evaluated(held_out, target, monkeypatch)
    assert seen["tokens"][0] == (2, 3 * ROW)
    assert (found.n, found.left_out) == (40 - long, long)
    assert found.to_json()["left_out"] == long
    said = " ".join(capsys.readouterr().err.split())
    assert f"{path}: {long} traces of more than 48 tokens are left out of evaluations" in said
    whole = HeldOut(config.model_copy(update={"evaluate_length": None}), target, meta)
    assert held_out.measure != whole.measure, "a score of all traces is another one"
    with pytest.raises(
        ConfigError, match=r"the shortest trace in .* has \d\d tokens, expected some of at most 8: that"
    ):
        HeldOut(config.model_copy(update={"evaluate_length": 8}), target, meta)


@given(
    limit=st.integers(1, 5000),
    length=st.sampled_from([64, 512]),
    each=st.integers(1, 9),
    shards=st.sampled_from([1, 3]),
)
def test_no_trace_asks_for_more_than_the_largest_rows(limit: int, length: int, each: int, shards: int) -> None:
    size = each * shards
    most = largest_rows(limit, length, size, shards)
    for longest in {1, limit, *range(length, limit, length)}:
        rows = rows_for(longest, length, size, shards)
        assert longest <= rows.length
        assert rows.length % length == rows.at_once % shards == 0
        assert rows.at_once * rows.length <= most.at_once * most.length
        # About as many tokens as in training, or one row for each shard.
        assert rows.at_once * rows.length <= max(size * length, shards * rows.length)


def test_what_is_measured_is_what_is_planned(
    config: TrainConfig, target: TargetConfig, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few rows a step has: a run measures four."""
    config = config.model_copy(update={"batch_size": 1, "length": 128})
    model, program, seen = load_target(target.folder), measure.measurement, []

    def noted(*arguments: Any) -> Any:
        run = program(*arguments)
        return lambda target, *rows: seen.append([(x.shape, x.dtype) for x in rows]) or run(target, *rows)

    monkeypatch.setattr(measure, "measurement", noted)
    rows, mesh = first_rows(packed, read_meta(packed)), make_mesh(MeshConfig(), jax.devices()[:1])
    measure.measure_aux(model, (1, 2, 3), rows, mesh, "float32")
    (_, *batch), _ = planned(config, target).others["measure"]().in_avals
    assert seen == [[(x.shape, x.dtype) for x in batch]]


def test_rows_that_fill_a_mesh_change_no_measure(target: TargetConfig, packed: Path) -> None:
    assert measure.rows_measured(AbstractMesh((3, 1, 1, 1, 1), AXES)) == 6
    assert measure.rows_measured(AbstractMesh((1, 16, 1, 4, 1), AXES)) == 16
    rows, mesh = first_rows(packed, read_meta(packed)), make_mesh(MeshConfig(), jax.devices()[:1])
    run, model = measure.measurement((1, 2, 3), mesh, "float32"), load_target(target.folder)
    few = run(model, *(rows[name] for name in measure.NAMES))
    many = run(model, *(np.pad(rows[name], ((0, 5), (0, 0))) for name in measure.NAMES))
    np.testing.assert_allclose(few, many, rtol=1e-5)  # float32, of products of other sizes


def test_a_state_of_one_token_that_is_no_number_is_said_before_a_run(target: TargetConfig, packed: Path) -> None:
    """A median passes it over, and the first step of the run would be the one to fail."""
    rows, mesh = first_rows(packed, read_meta(packed)), make_mesh(MeshConfig(), jax.devices()[:1])
    model = load_target(target.folder)
    seen = np.bincount(rows["tokens"][rows["segment_ids"] > 0])
    rare = np.flatnonzero(seen == seen[seen > 0].min())[0]
    model.embedding[...] = model.embedding[...].at[rare].set(jax.numpy.nan)
    with pytest.raises(InputError, match=r"hidden states have an RMS of nan at layer 1, nan at layer 2"):
        measure.measure_aux(model, (1, 2), rows, mesh, "float32")
