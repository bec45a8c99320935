"""What is made of the responses of a benchmark's methods: means, tests, speed-ups, oracles."""

import dataclasses
import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats as scipy_stats

from specexit.bench import comparison
from specexit.bench.comparison import (
    accuracy,
    by_task,
    compare,
    faster,
    open_loop_speedup,
    oracle,
    speedup_at,
    summarise,
)
from specexit.bench.requests import Run
from specexit.bench.results import (
    result_tables,
)
from specexit.data.traces import Trace
from specexit.method.statistics import holm, paired_bootstrap, sign_flip_test
from specexit.report import readme
from tests.shared.measured import exit_run, full_run, request, some_results


def test_means_and_pooled_acceptance() -> None:
    result = summarise(full_run())
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.accuracy_interval == pytest.approx((2 / 3, 0, 1))  # of three problems next to nothing is known
    assert result.thinking_tokens == 200
    assert result.total_tokens == pytest.approx(650 / 3)
    assert result.seconds == {"1": 2.0, "16": 8.0}
    assert result.exits.model_dump() == {"exit": 0, "natural_end": 3, "length": 0}
    # 100 accepted tokens in 50 steps, plus the bonus token; the mean over the three jobs would be 4.0.
    assert result.acceptance_length == 3.0


def test_throughput_is_of_the_responses_and_answers_are_counted_apart() -> None:
    run = full_run()
    result = summarise(run)
    assert result.throughput == {"1": 110 / 2.0, "16": 650 / 8.0}
    assert result.answer_tokens is None  # as in files of before
    counted = [dataclasses.replace(r, answer_tokens=n, probe_tokens=90) for n, r in enumerate(run.requests[16], 9)]
    run.requests[16] = counted
    assert summarise(run).answer_tokens == 10
    assert summarise(run).throughput["16"] == 650 / 8.0  # what is tried besides is none of the response


def test_no_speculation_has_no_acceptance_length() -> None:
    run = Run()
    run.add(16, [request(0, 5, total=6)], [1.0], 0, 0)
    assert summarise(run).acceptance_length is None


def test_a_result_has_joules_only_where_every_slice_was_told() -> None:
    run = Run()
    for joules in (30.0, 50.0):
        run.add(1, [request(0, 5, total=6)], [1.0], 0, 0, joules)
    run.add(16, [request(0, 5, total=6)], [1.0], 0, 0, 30.0)
    run.add(16, [request(1, 5, total=6)], [1.0], 0, 0, None)
    assert summarise(run).joules == {"1": 40.0}


def test_comparison_is_of_totals_on_the_same_problems() -> None:
    versus = compare(exit_run(), full_run())
    assert versus.thinking_cut[0] == pytest.approx(1 - 200 / 600)
    assert versus.total_cut[0] == pytest.approx(1 - 250 / 650)
    assert versus.accuracy_delta[0] == 0  # one problem lost, one won
    assert versus.speedup["1"][0] == 2.0
    assert versus.speedup["16"][0] == 2.0
    for value, low, high in (versus.thinking_cut, versus.total_cut, versus.accuracy_delta, *versus.speedup.values()):
        assert low <= value <= high
    # What is lost on one problem and won on another is no certainty: the interval has to be wide.
    assert versus.accuracy_delta[1] < -0.3
    assert versus.accuracy_delta[2] > 0.3


def sampled(speedups: Sequence[float], samples: int) -> tuple[Run, Run]:
    """Method and baseline in slices of two problems, each slice with a speed-up of its own, alike in all samples."""
    ours, theirs = Run(), Run()
    for sample in range(samples):
        for i, speedup in enumerate(speedups):
            part = [
                dataclasses.replace(request(2 * i + k, 100, total=110), sample=sample, seconds=1.0) for k in range(2)
            ]
            theirs.add(32, part, [speedup], 0, 0)
            ours.add(32, part, [1.0], 0, 0)
    return ours, theirs


def test_further_samples_of_the_same_slices_make_no_speedup_more_certain() -> None:
    """Taken for sixteen independent slices, its interval would be half as wide."""
    speedups = (1.0, 1.5, 2.5, 3.0)
    of_slices = paired_bootstrap(lambda theirs, ours: theirs.sum() / ours.sum(), np.array(speedups), np.ones(4))
    assert speedup_at(32, *sampled(speedups, 4)) == pytest.approx(of_slices)


def test_slices_of_other_problems_are_not_compared() -> None:
    ours, theirs = sampled((1.0, 2.0), 1)
    whole = Run()
    whole.add(32, ours.requests[32], [2.0], 0, 0)
    with pytest.raises(ValueError, match="at batch 32 the two runs have different slices of the problems"):
        speedup_at(32, whole, theirs)


def test_accuracy_has_an_interval_over_problems_whose_samples_stay_together() -> None:
    """Half of the problems right in all of four samples: as many independent responses would know it twice as well."""
    right = [i % 2 == 0 for i in range(20)]
    once, four = Run(), Run()
    for run, samples in ((once, 1), (four, 4)):
        for sample in range(samples):
            found = [
                dataclasses.replace(request(i, 9, total=11, correct=ok), sample=sample) for i, ok in enumerate(right)
            ]
            run.add(32, found, [1.0], 0, 0)
    of_problems = paired_bootstrap(np.mean, np.array(right, np.float64))
    assert 0.2 < of_problems[1] < 0.35
    assert accuracy(once.requests[32]) == accuracy(four.requests[32]) == of_problems
    assert f"50.0 % ({100 * of_problems[1]:.1f}..{100 * of_problems[2]:.1f})" in readme.table(
        some_results().model_copy(update={"methods": {"eagle3": summarise(four)}})
    )


def losing(n: int, lost: int, samples: int = 1) -> float | None:
    """``p_loss`` of a method that loses so many of n problems, in all samples of each."""
    ours, theirs = Run(), Run()
    for sample in range(samples):
        right = [dataclasses.replace(request(i, 9, total=11), sample=sample) for i in range(n)]
        theirs.add(32, right, [1.0], 0, 0)
        ours.add(32, [dataclasses.replace(r, correct=i >= lost) for i, r in enumerate(right)], [1.0], 0, 0)
    return compare(ours, theirs).p_loss


def test_no_loss_is_proven_by_problems_and_not_by_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_interval", lambda *_, **__: (0.0, 0.0, 0.0))  # seconds of resampling
    assert losing(1000, 0) < 0.05
    assert losing(1000, 10) == 1.0  # a point is lost
    assert losing(100, 0) > 0.05  # too few to tell
    assert losing(100, 0, samples=10) == pytest.approx(losing(100, 0))


def timed(gains: Sequence[float], samples: int = 1) -> Run:
    """A method that takes a second more on each problem, times the gain, than one that gains nothing; asked one at a
    time."""
    run = Run()
    for sample in range(samples):
        requests = [
            dataclasses.replace(request(i, 9, total=11), seconds=5.0 + gain, sample=sample)
            for i, gain in enumerate(gains)
        ]
        run.add(1, requests, [1.0] * len(requests), 0, 0)
    return run


def sliced(slices: Sequence[Sequence[float]], samples: int = 1) -> Run:
    """A method asked slice by slice, 32 at once, with the seconds of each response."""
    run = Run()
    for sample in range(samples):
        start = 0
        for seconds in slices:
            named = [request(start + i, 9, total=11) for i in range(len(seconds))]
            timed = [
                dataclasses.replace(r, seconds=s, sample=sample, task=f"t{i % 2}")
                for i, (r, s) in enumerate(zip(named, seconds, strict=True))
            ]
            run.add(32, timed, [max(seconds)], 0, 0)
            start += len(seconds)
    return run


@pytest.mark.parametrize("samples", [1, 4])
def test_faster_is_said_of_what_holds_among_all_comparisons(samples: int) -> None:
    """Of 20 problems: sooner on all of them; on 15, which alone would be significant; on as many as not, twice."""
    gains = {"slow": [1.0] * 20, "weak": [1.0] * 15 + [-1.0] * 5, "like": [1.0, -1.0] * 10, "same": [-1.0, 1.0] * 10}
    runs = {name: timed(of, samples) for name, of in gains.items()}
    runs |= {"specexit": timed([0.0] * 20, samples), "oracle": timed([1.0] * 20, samples)}
    problems = np.array([str(i) for i in range(20)])
    raw = {name: sign_flip_test(np.array(of), problems) for name, of in gains.items()}
    found = faster(runs, "specexit")
    assert found == {"1": dict(zip(raw, holm(np.array(list(raw.values()))).tolist(), strict=True))}
    assert found["1"]["slow"] < 0.05
    assert raw["weak"] < 0.05 < found["1"]["weak"]
    assert found["1"]["like"] > 0.5


@pytest.mark.parametrize("samples", [1, 4])
def test_above_batch_1_faster_is_said_by_slices_as_their_responses_wait_for_each_other(samples: int) -> None:
    """Whatever slowed the machine down in a slice slowed 50 responses down: of 300 such, nearly all in two slices of
    six, a method that takes the same times was called faster for certain (p < 0.001)."""
    alike = [1.0, 1.0, 1.0, 1.03, 1.0, 1.02]
    half = [1.9, 2.0, 2.1, 2.0, 1.95, 2.05]
    runs = {name: sliced([[one] * 50 for one in of], samples) for name, of in (("eagle3", half), ("none", alike))}
    runs["specexit"] = sliced([[1.0 + 0.001 * i] * 50 for i in range(6)], samples)
    raw = [
        scipy_stats.ttest_1samp(np.log(np.array(of) / (1 + 0.001 * np.arange(6))), 0, alternative="greater").pvalue
        for of in (half, alike)
    ]
    found = faster(runs, "specexit")
    assert list(found["32"].values()) == pytest.approx(holm(np.array(raw)).tolist())
    assert found["32"]["eagle3"] < 0.001
    assert found["32"]["none"] > 0.05


def test_of_one_slice_nothing_is_tested() -> None:
    runs = {name: sliced([[seconds] * 50]) for name, seconds in (("eagle3", 2.0), ("specexit", 1.0))}
    assert faster(runs, "specexit") == {}


def test_the_correction_is_over_all_batch_sizes_together() -> None:
    """The same comparison twice is two chances."""
    gains = [1.0] * 15 + [-1.0] * 5
    runs = {"eagle3": timed(gains), "specexit": timed([0.0] * 20)}
    (once,) = faster(runs, "specexit")["1"].values()
    for run, seconds in zip(runs.values(), (2.0, 1.0), strict=True):
        again = sliced([[seconds] * 2, [1.1 * seconds] * 2, [seconds] * 2])
        run.requests[32], run.unit_of[32] = again.requests[32], again.unit_of[32]
    twice = faster(runs, "specexit")
    assert twice["32"]["eagle3"] < once
    assert twice["1"] == {"eagle3": once}  # the larger of two
    for run in runs.values():
        run.requests[32] = [dataclasses.replace(r, seconds=1.0) for r in run.requests[32]]
    assert faster(runs, "specexit")["1"] == {"eagle3": 2 * once}
    runs["eagle3"].requests[32] = [dataclasses.replace(r, seconds=None) for r in runs["eagle3"].requests[32]]
    assert faster(runs, "specexit") == {"1": {"eagle3": once}}  # what was not timed is not tested


def test_an_open_loop_is_compared_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = sampled((1.0, 1.5, 2.5, 3.0), 1)
    for i, speedup in enumerate((1.0, 1.5, 2.5, 3.0)):
        part = ours.requests[32][2 * i : 2 * i + 2]
        ours.open_loop.setdefault(4.0, []).append(part)
        theirs.open_loop.setdefault(4.0, []).append([dataclasses.replace(r, seconds=speedup) for r in part])
    assert open_loop_speedup(4.0, ours, theirs) == pytest.approx(speedup_at(32, ours, theirs))
    assert (summarise(theirs).open_loop["4"].mean, summarise(theirs).open_loop["4"].n) == (2.0, 8)
    monkeypatch.setattr(comparison, "_interval", lambda *_, **__: (2.0, 1.0, 3.0))
    assert compare(ours, theirs).open_loop == {"4": (2.0, 1.0, 3.0)}


def test_a_run_against_itself_differs_in_nothing_and_for_certain() -> None:
    versus = compare(full_run(), full_run())
    assert versus.thinking_cut == versus.accuracy_delta == (0, 0, 0)
    assert versus.speedup["16"] == (1, 1, 1)


def test_runs_over_other_problems_are_not_compared() -> None:
    other = full_run()
    other.requests[16].reverse()
    with pytest.raises(ValueError, match="nothing can be paired"):
        compare(other, full_run())


def test_a_task_has_its_own_speedup_from_its_own_responses() -> None:
    """A task on which exits save half the time, and problems of none on which they cost a little."""

    def run(*seconds: float) -> Run:
        found = Run()
        for batch, slower in ((1, 1.0), (16, 3.0)):
            requests = [
                dataclasses.replace(request(i, 10, total=12), task="long" if i < 3 else None, seconds=slower * s)
                for i, s in enumerate(seconds)
            ]
            found.add(batch, requests, [sum(seconds)], 0, 0)
        return found

    tasks = by_task({"eagle3": run(4, 4, 4, 1, 1, 1), "specexit": run(2, 2, 2, 1.25, 1.25, 1.25)})
    assert {task: found["specexit"].n for task, found in tasks.items()} == {"long": 3, "no task": 3}
    assert tasks["long"]["eagle3"].speedup == {}
    for batch in ("1", "16"):
        assert tasks["long"]["specexit"].speedup[batch] == (2.0, 2.0, 2.0)
        assert tasks["no task"]["specexit"].speedup[batch] == (0.8, 0.8, 0.8)
    untimed = {"eagle3": full_run(), "specexit": exit_run()}
    assert by_task(untimed) == {}  # none names a task
    for found in untimed.values():
        found.requests[16] = [dataclasses.replace(r, task=f"t{i}") for i, r in enumerate(found.requests[16])]
    assert by_task(untimed)["t0"]["specexit"].speedup == {}


def test_above_batch_1_the_speedup_on_a_task_has_its_interval_by_slice() -> None:
    """By problem, the interval of two slices that differ was as narrow as if all 200 problems had their own times."""
    tasks = by_task({"eagle3": sliced([[2.0] * 100, [4.0] * 100]), "specexit": sliced([[2.0] * 100, [2.0] * 100])})
    for task in ("t0", "t1"):
        assert tasks[task]["specexit"].speedup["32"] == (1.5, 1.0, 2.0)


def test_oracle_ends_at_the_earliest_agreeing_boundary(make_trace: Callable[..., Trace]) -> None:
    never = make_trace(id="b", boundary_agrees=[False, False, False])
    versus = {"specexit": compare(exit_run(), full_run())}
    found = oracle([make_trace(), never], versus)
    assert found.thinking_cut == pytest.approx(1 - (7 + 10) / 20)
    assert found.fraction_reached["specexit"] == pytest.approx((2 / 3) / 0.15)


def test_of_an_oracle_that_cuts_nothing_no_share_is_reached(make_trace: Callable[..., Trace]) -> None:
    never = make_trace(boundary_agrees=[False, False, False])
    found = oracle([never], {"specexit": compare(exit_run(), full_run())})
    assert (found.thinking_cut, found.fraction_reached) == (0, {"specexit": None})
    results = some_results().model_copy(update={"oracle": found})
    _, compared, *_ = result_tables(results)
    assert list(compared.columns[2].cells) == ["-"]


def test_where_one_point_was_looked_for_shares_of_the_oracle_are_at_most_what_is_said(
    make_trace: Callable[..., Trace],
) -> None:
    """In front of the first trial an answer may stand already, so that there is more to cut."""
    throughout = [make_trace(), make_trace(trial=json.dumps({"boundaries": "refine"}))]
    one_point = [make_trace(trial=json.dumps({"boundaries": how})) for how in ("stable", "bisect")]
    for traces, n in (throughout, 0), ([*throughout, *one_point], 2):
        found = oracle(traces, some_results().against_eagle3)
        assert found.one_point == n
        results = some_results().model_copy(update={"oracle": found})
        assert ("| at most of the oracle's cut |" in readme.table(results)) == (n > 0)
        _, compared, *_ = result_tables(results)
        assert ("the oracle cuts at least" in str(compared.title)) == (n > 0)
        assert ("at most,\nof oracle" in [column.header for column in compared.columns]) == (n > 0)


def test_luck_is_told_from_an_answer_that_stands(make_trace: Callable[..., Trace]) -> None:
    lucky = make_trace(boundary_agrees=[True, False, True])
    cut_off = make_trace(boundary_state=["agrees", "undecided", "agrees"], boundary_agrees=[True, False, True])
    first, last, full = lucky.boundaries[0], lucky.boundaries[-1], len(lucky.think_ids)
    found = oracle([lucky, cut_off], {})
    assert found.thinking_cut == pytest.approx(1 - first / full)
    assert found.for_good == pytest.approx(1 - (last + first) / (2 * full))
