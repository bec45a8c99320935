"""``specexit simulate``: sums, curves and the table."""

import dataclasses
import json

import numpy as np
import pytest

from specexit.config import ConfigError
from specexit.data.scores import ScoreError, Scores, write_scores
from specexit.data.traces import TraceError, data_sha256, write_traces
from specexit.method.decision import Policy
from specexit.method.policies.budget import budget_policy
from specexit.method.replay import Replay
from specexit.method.simulate import Part, Simulation, best_within, largest, pareto, simulate, summarise
from specexit.schemas.simulate import SimulateConfig


@pytest.fixture
def traces(make_trace):
    """Twenty traces with boundaries behind 4, 7 and 10 of ten tokens: answers agree from 7 on, in half of them
    from 4 on."""
    return [make_trace(id=str(i), boundary_agrees=[i % 2 == 0, True, True]) for i in range(20)]


@pytest.fixture
def perfect():
    """Validity that says exactly what is so, at every boundary."""
    signals = {}
    for i in range(20):
        values = np.tile(np.array([0.5, 0.5, 50.0, 0.02], np.float32), (10, 1))
        values[[3, 6, 9], 3] = [0.98 if i % 2 == 0 else 0.02, 0.98, 0.98]
        signals[str(i)] = values
    return signals


@pytest.fixture
def paths(tmp_path, traces, perfect):
    write_traces(tmp_path / "traces.parquet", traces)
    write_scores(tmp_path / "scores.parquet", Scores("draft", "0" * 64, perfect))
    return {name: tmp_path / f"{name}.parquet" for name in ("traces", "scores")} | {"out": tmp_path / "simulation.json"}


def test_totals_add_up(traces):
    replay = Replay(traces)
    point = summarise(replay, budget_policy(4), replay.play(budget_policy(4)))
    assert point.thinking_cut == pytest.approx(1 - 4 / 10)
    assert point.total_cut == pytest.approx(1 - (4 + 1 + 2) / (10 + 1 + 2))  # marker, and two answer tokens
    assert point.agreement == 0.5
    assert point.exits == 1


def test_perfect_signals_reach_the_oracle_and_a_budget_cannot(paths):
    simulation = simulate(SimulateConfig(**paths))
    oracle = simulation.oracle
    assert oracle.thinking_cut == pytest.approx(1 - (4 + 7) / 20)
    validity = best_within(simulation.curves["validity"], simulation.full_accuracy, 0)
    budget = best_within(simulation.curves["budget"], simulation.full_accuracy, 0)
    assert validity.thinking_cut == pytest.approx(oracle.thinking_cut)
    assert validity.agreement == 1
    assert budget.thinking_cut == pytest.approx(1 - 7 / 10)
    assert Simulation.model_validate(json.loads(paths["out"].read_text())) == simulation
    assert simulation.inputs == {"traces": data_sha256(paths["traces"]), "draft.weights": "0" * 64}


def test_a_curve_is_a_pareto_front(traces, perfect):
    replay = Replay(traces, [perfect[trace.id] for trace in traces])
    policies = [Policy(thresholds={"validity": tau}) for tau in (0.99, 0.9, 0.5, 0.01)]
    front = pareto([summarise(replay, policy, replay.play(policy)) for policy in policies], 1.0)
    cuts, accuracies = [p.thinking_cut for p in front], [p.accuracy for p in front]
    assert cuts == sorted(set(cuts))
    assert accuracies == sorted(set(accuracies), reverse=True)
    assert front[0].accuracy == 1  # 0.9 and 0.5 lose nothing and cut more than 0.99, which never exits


def test_without_references_the_changed_answers_are_the_loss(make_trace):
    traces = [make_trace(id=str(i), reference=None, correct=None) for i in range(4)]
    replay = Replay(traces)
    points = [summarise(replay, budget_policy(n), replay.play(budget_policy(n))) for n in (4, 7)]
    assert [point.accuracy for point in points] == [None, None]
    assert best_within(points, None, 0.0) == points[1]


def test_the_table_and_the_file_name_every_family(paths, capsys):
    simulate(SimulateConfig(**paths))
    printed = capsys.readouterr().out
    for name in ("oracle", "validity", "trio", "budget", "boundary", "paper"):
        assert name in printed


def test_where_nothing_can_be_cut_there_is_no_share_of_it(paths, make_trace, capsys):
    write_traces(paths["traces"], [make_trace(id=str(i), boundary_agrees=[False] * 3) for i in range(20)])
    assert simulate(SimulateConfig(**paths)).oracle.net_cut == 0
    assert "nan" not in capsys.readouterr().out


def test_scores_of_other_traces_are_refused_and_nothing_is_written(paths, perfect):
    write_scores(paths["scores"], Scores("draft", "0" * 64, {"other": perfect["0"]}))
    with pytest.raises(ScoreError, match="trace '0' is missing"):
        simulate(SimulateConfig(**paths))
    assert not paths["out"].exists()


def test_traces_of_another_target_than_the_one_given_are_refused(paths):
    with pytest.raises(ConfigError, match=r"is 'qwen3-4b-thinking-2507', but .*traces\S* belongs to 'tiny-reasoner'"):
        simulate(SimulateConfig(**paths, target="qwen3-4b-thinking-2507"))
    assert not paths["out"].exists()


def test_traces_of_two_targets_are_refused(paths, traces):
    mixed = [dataclasses.replace(trace, target="tiny-mixed") if i < 3 else trace for i, trace in enumerate(traces)]
    write_traces(paths["traces"], mixed)
    for target in (None, "tiny-reasoner"):
        with pytest.raises(
            TraceError, match=r"traces of several targets \(tiny-mixed, tiny-reasoner\), expected those"
        ):
            simulate(SimulateConfig(**paths, target=target))
    assert not paths["out"].exists()


def test_a_trace_that_is_there_twice_is_refused(paths, traces, tmp_path):
    """A copy of a file that was left in the folder would count its traces twice."""
    for name in ("a", "copy of a"):
        write_traces(tmp_path / "traces" / f"{name}.parquet", traces)
    with pytest.raises(TraceError, match=r"traces: trace '0', sample 0, is there twice, expected every sample"):
        simulate(SimulateConfig(**paths | {"traces": tmp_path / "traces"}))
    assert not paths["out"].exists()


def test_a_truncated_score_file_is_refused(paths):
    paths["scores"].write_bytes(paths["scores"].read_bytes()[:100])
    with pytest.raises(ScoreError, match=r"scores\.parquet: cannot be read as Parquet"):
        simulate(SimulateConfig(**paths))


def test_nan_signals_are_refused(paths, perfect):
    perfect["0"][3, 2] = np.nan
    write_scores(paths["scores"], Scores("draft", "0" * 64, perfect))
    with pytest.raises(ScoreError, match="signals of trace '0' hold NaN"):
        simulate(SimulateConfig(**paths))


def test_a_task_that_is_called_no_task_counts_with_the_traces_of_none(paths, traces):
    named = [dataclasses.replace(trace, task=("no task", None, "sums")[i % 3]) for i, trace in enumerate(traces)]
    write_traces(paths["traces"], named)
    simulation = simulate(SimulateConfig(**paths))
    assert {name: part.n for name, part in simulation.tasks.items()} == {"no task": 14, "sums": 6}
    assert simulation.n == 20


def test_of_many_tasks_the_largest_have_tables() -> None:
    """Of 400 tasks 34,000 lines were printed."""
    tasks = {f"task {i:02}": Part.model_construct(n=9 if i == 20 else 1) for i in range(21)}
    assert list(largest(tasks)) == ["task 20", *(f"task {i:02}" for i in range(19))]
    few = dict(list(tasks.items())[1:])
    assert list(largest(few)) == list(few)
