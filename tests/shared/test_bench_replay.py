"""``specexit bench-replay``: served exits against replayed ones, and what explains a difference."""

import dataclasses
import json

import numpy as np
import pytest
from pydantic import ValidationError

from specexit.bench.comparison import compare, summarise
from specexit.bench.inputs import draft_inputs
from specexit.bench.replay import ReplayError, bench_replay, check_exits
from specexit.bench.requests import Request, Run, write_requests
from specexit.bench.results import BASELINE, Oracle, Results, read_results, write_results
from specexit.config import ConfigError
from specexit.data.scores import ScoreError, Scores, write_scores
from specexit.data.traces import TraceError, write_traces
from specexit.drafts.policy import OperatingPoint, PolicyFile, write_policy
from specexit.drafts.tensors import weights_hash
from specexit.method.decision import Policy
from specexit.method.signals import column
from specexit.schemas.bench_replay import BenchReplayConfig

N = 6
END = 99


def served(trace, exit_at):
    """A request that exits behind so many thinking tokens; None thinks to the end."""
    kept = len(trace.think_ids) if exit_at is None else exit_at
    ids = [*trace.think_ids[:kept], END, *trace.answer_ids]
    return Request(trace.id, ids, kept, "natural_end" if exit_at is None else "exit", "7", True, {"validity": 0.9})


@pytest.fixture
def traces(make_trace):
    return [make_trace(id=str(i)) for i in range(N)]


@pytest.fixture
def signals():
    """Validity at the boundaries behind 4, 7 and 10 tokens: trace i exits at 7, the last one nowhere."""
    found = []
    for i in range(N):
        values = np.full((10, 4), 0.01, np.float32)
        values[[3, 6], column("validity")] = (0.5, 0.95 if i < N - 1 else 0.8996)
        found.append(values)
    return found


@pytest.fixture
def requests(traces):
    return {trace.id: served(trace, 7 if i < N - 1 else None) for i, trace in enumerate(traces)}


def check(traces, signals, requests, policy=None):
    return check_exits(traces, signals, policy or Policy(), requests, method="specexit", near=1e-3)


def test_exits_that_are_the_replayed_ones(traces, signals, requests):
    found = check(traces, signals, requests)
    assert (found.n, found.same, found.share, found.differences) == (N, N, 1.0, ())


def test_a_signal_next_to_its_threshold_may_fall_on_either_side(traces, signals, requests):
    requests["5"] = served(traces[5], 7)  # 0.8996 by the scores, of the 0.9 that are needed
    (difference,) = check(traces, signals, requests).differences
    assert (difference.why, difference.at) == ("rounding of a signal", 7)
    assert (difference.served, difference.replayed) == (7, None)
    assert difference.signals == {"validity": pytest.approx(0.8996)}


@pytest.mark.parametrize(("exit_at", "at"), [(4, 4), (10, 7), (None, 7)])
def test_what_nothing_explains_is_said_to_be_unexplained(traces, signals, requests, exit_at, at):
    requests["0"] = served(traces[0], exit_at)
    (difference,) = check(traces, signals, requests).differences
    assert (difference.served, difference.replayed, difference.why, difference.at) == (exit_at, 7, "unexplained", at)


def test_all_that_a_verdict_hangs_on_has_to_be_close(traces, signals, requests):
    """Progress is far below its threshold, so validity's rounding cannot have tipped the verdict."""
    policy = Policy(thresholds={"validity": 0.9, "progress": 0.5})
    requests = {trace.id: served(trace, None) for trace in traces} | {"5": served(traces[5], 7)}
    (difference,) = check(traces, signals, requests, policy).differences
    assert difference.why == "unexplained"
    signals[5][6, column("progress")] = 0.4995
    (difference,) = check(traces, signals, requests, policy).differences
    assert difference.why == "rounding of a signal"


@pytest.mark.parametrize(
    ("early", "validity", "exits", "why"),
    [
        # The boundary behind 10 tokens, by the scores of it and of the token eight before; needed are 0.45 and 0.9.
        (0.4496, 0.95, True, "rounding of an early signal"),
        (0.3, 0.9004, True, "unexplained"),  # what holds already was not what kept it from exiting
        (0.3, 0.8996, True, "unexplained"),
        (0.4496, 0.7, True, "unexplained"),
        (0.6, 0.8996, True, "rounding of a signal"),
        (0.4496, 0.8996, True, "rounding of a signal and an early one"),
        (0.4504, 0.95, False, "rounding of an early signal"),
        (0.6, 0.9004, False, "rounding of a signal"),
        (0.4504, 0.9004, False, "rounding of a signal and an early one"),
        (0.6, 0.95, False, "unexplained"),
    ],
)
def test_an_early_signal_is_an_explanation_of_its_own(traces, signals, early, validity, exits, why):
    policy = Policy(early={"validity": 0.45})
    signals[5][[1, 6, 9], column("validity")] = (early, 0.5, validity)
    requests = {trace.id: served(trace, 7) for trace in traces} | {"5": served(traces[5], 10 if exits else None)}
    (difference,) = check(traces, signals, requests, policy).differences
    assert (difference.served, difference.replayed) == ((10, None) if exits else (None, 10))
    assert (difference.why, difference.at) == (why, 10)
    assert difference.signals == {"validity": pytest.approx(validity)}
    assert difference.early_signals == {"validity": pytest.approx(early)}


def test_so_near_to_the_beginning_no_early_signal_is_looked_at(traces, signals, requests):
    requests["5"] = served(traces[5], 7)
    (difference,) = check(traces, signals, requests, Policy(early={"validity": 0.45})).differences
    assert (difference.why, difference.early_signals) == ("rounding of a signal", {})


@pytest.mark.parametrize("limits", [{"min_thinking_tokens": 8}, {"max_thinking_tokens": 7}])
def test_no_rounding_moves_a_number_of_tokens(traces, signals, limits):
    """An exit that the limits forbid, and one that they ask for, beside a signal that is next to its threshold."""
    exits = "min_thinking_tokens" in limits
    requests = {trace.id: served(trace, None if exits else 7) for trace in traces}
    requests["5"] = served(traces[5], 7 if exits else None)
    (difference,) = check(traces, signals, requests, Policy(**limits)).differences
    assert (difference.why, difference.at) == ("unexplained", 7)


def test_thinking_that_was_at_its_maximum_is_compared_as_an_exit(traces, signals):
    """Served and replayed alike: it ends at the first boundary behind its maximum, whatever the signals there."""
    requests = {t.id: dataclasses.replace(served(t, 7), ended_by="cap") for t in traces}
    found = check(traces, signals, requests, Policy(thresholds={"validity": 0.99}, max_thinking_tokens=5))
    assert (found.n, found.same) == (N, N)


@pytest.mark.parametrize(
    ("ended_by", "exit_at", "why"),
    [("loop", 4, "not replayed"), ("cap", 6, "not replayed"), ("cap", 4, "unexplained"), ("exit", 6, "unexplained")],
)
def test_an_end_that_no_replay_knows_is_told_from_one_that_nothing_explains(
    traces, signals, requests, ended_by, exit_at, why
):
    """Boundaries are behind 4, 7 and 10 tokens: behind 6, a maximum ends by its margin."""
    requests["0"] = dataclasses.replace(served(traces[0], exit_at), ended_by=ended_by)
    (difference,) = check(traces, signals, requests).differences
    assert (difference.served, difference.replayed, difference.why, difference.at) == (exit_at, 7, why, exit_at)


@pytest.mark.parametrize(
    ("finish_reason", "answer", "why"), [("stop", [5, 6], "other text"), ("length", [], "out of tokens")]
)
def test_a_request_may_think_on_behind_the_end_of_its_trace(traces, signals, requests, finish_reason, answer, why):
    """It was an IndexError. The second trace was collected with fewer tokens than are served."""
    traces[5] = dataclasses.replace(traces[5], finish_reason=finish_reason, answer_ids=answer)
    ids = [*traces[5].think_ids, 40, 41, 42, END, 5]
    requests["5"] = dataclasses.replace(served(traces[5], None), token_ids=ids, thinking_tokens=13, reason="exit")
    (difference,) = check(traces, signals, requests).differences
    assert (difference.served, difference.replayed, difference.why, difference.at) == (13, None, why, 10)


def test_thinking_that_the_target_ends_before_the_replayed_exit_is_other_text(traces, signals, requests):
    """Its trace goes on there: nothing has run out."""
    requests["2"] = dataclasses.replace(served(traces[2], 5), reason="natural_end")
    (difference,) = check(traces, signals, requests).differences
    assert (difference.served, difference.replayed, difference.why, difference.at) == (None, 7, "other text", 5)


def test_other_text_before_the_exit_is_the_cause_even_where_the_exit_is_there_as_well(traces, signals, requests):
    other = served(traces[1], 10)
    ids = [*other.token_ids[:5], 77, *other.token_ids[6:]]
    requests["1"] = dataclasses.replace(other, token_ids=ids)
    (difference,) = check(traces, signals, requests).differences
    assert (difference.id, difference.why, difference.at) == ("1", "other text", 5)


def test_a_request_that_ran_out_of_tokens_before_its_exit(traces, signals, requests):
    short = dataclasses.replace(
        served(traces[2], None), token_ids=traces[2].think_ids[:5], thinking_tokens=5, reason="length"
    )
    requests["2"] = short
    (difference,) = check(traces, signals, requests).differences
    assert (difference.why, difference.at, difference.served) == ("out of tokens", 5, None)


def test_a_trace_that_was_not_finished_exits_where_its_tokens_say(traces, signals, requests):
    """`collect` writes it without boundaries, as it has no answer to try; its exits are replayed all the same."""
    tried = ("answers", "agrees", "confidence", "state", "trial_tokens")
    nothing = {"boundaries": []} | {f"boundary_{name}": [] for name in tried}
    traces[0] = dataclasses.replace(traces[0], finish_reason="length", answer=None, **nothing)
    assert check(traces, signals, requests).differences == ()
    requests["0"] = served(traces[0], 4)
    (difference,) = check(traces, signals, requests).differences
    assert (difference.served, difference.replayed, difference.why) == (4, 7, "unexplained")


@pytest.fixture
def files(tmp_path, traces, signals, requests, write_random_draft):
    """A benchmark's folder, and what it was made from; the problems were asked in another order."""
    draft = write_random_draft(tmp_path / "draft", "draft")
    write_traces(tmp_path / "traces.parquet", [*traces, dataclasses.replace(traces[0], id="not asked")])
    named = {trace.id: values for trace, values in zip(traces, signals, strict=True)} | {"not asked": signals[0]}
    write_scores(tmp_path / "scores.parquet", Scores("draft", weights_hash(draft), named))
    bench = tmp_path / "bench"
    write_bench(bench, list(reversed(requests.values())))
    return BenchReplayConfig(
        bench=bench,
        traces=tmp_path / "traces.parquet",
        draft=draft,
        scores=tmp_path / "scores.parquet",
        out=tmp_path / "replay.json",
    )


def write_bench(folder, requests, **sampling):
    run = Run()
    run.add(16, requests, [1.0], 0, 0)
    results = Results(
        n=len(requests),
        n_seconds={"16": len(requests)},
        target="tiny-reasoner",
        hardware={},
        versions={},
        seed=0,
        num_speculative_tokens=3,
        methods=dict.fromkeys((BASELINE, "specexit"), summarise(run)),
        against_eagle3={"specexit": compare(run, run)},
        oracle=Oracle(thinking_cut=0.5, fraction_reached={"specexit": 0.9}),
        lossless={},
        sampling={"temperature": 0.0} | sampling,
    )
    write_results(folder / "results.json", results)
    write_requests(folder / "requests.jsonl", {"specexit": run})


def test_traces_of_another_target_than_the_one_given_are_refused(files):
    with pytest.raises(ConfigError, match=r"is 'qwen3-4b-thinking-2507', but .*traces\S* belongs to 'tiny-reasoner'"):
        bench_replay(files.model_copy(update={"target": "qwen3-4b-thinking-2507"}))
    assert not files.out.exists()


def test_traces_of_two_targets_are_refused(files, traces):
    write_traces(files.traces, [dataclasses.replace(traces[0], target="tiny-mixed"), *traces[1:]])
    with pytest.raises(TraceError, match=r"traces of several targets \(tiny-mixed, tiny-reasoner\), expected those"):
        bench_replay(files)
    assert not files.out.exists()


def test_where_one_token_alone_may_be_drawn_the_text_is_greedy(files, requests):
    write_bench(files.bench, list(requests.values()), temperature=0.6, top_k=1)
    assert bench_replay(files).share == 1.0


def test_the_command_writes_what_it_found(files):
    assert bench_replay(files).share == 1.0
    written = json.loads(files.out.read_text())
    assert (written["n"], written["same"], written["policy"]["thresholds"]) == (N, N, {"validity": 0.9})
    of_draft = {f"draft.{name}" for name in ("weights", "policy", "computation", "boundaries")}
    assert set(written["inputs"]) == {"requests", "traces"} | of_draft


def test_a_policy_that_was_not_measured_is_named_and_its_differences_are_not_listed(files):
    """After a calibration every exit may be another, and rounding explains none of them."""
    results = read_results(files.bench / "results.json")
    write_results(files.bench / "results.json", results.model_copy(update={"inputs": draft_inputs(files.draft)}))
    assert bench_replay(files).share == 1.0
    files.out.unlink()
    bolder = OperatingPoint(name="default", policy=Policy(thresholds={"validity": 0.5}))
    write_policy(files.draft, PolicyFile(points=(bolder,)))
    with pytest.raises(
        ReplayError, match=r"bench: measured with inputs\.draft\.policy \w+ \(now \w+\), expected a draft"
    ):
        bench_replay(files)
    assert not files.out.exists()


def test_too_many_differences_are_an_error_that_counts_them_and_leaves_the_list(files, traces, requests, capsys):
    requests |= {"0": served(traces[0], 4), "5": served(traces[5], 7)}
    write_bench(files.bench, list(requests.values()))
    with pytest.raises(ReplayError, match=r"4 of 6 exits .*1 unexplained, 1 rounding.*at least 0\.999"):
        bench_replay(files)
    assert [found["id"] for found in json.loads(files.out.read_text())["differences"]] == ["0", "5"]
    assert "0.89960" in capsys.readouterr().out
    assert bench_replay(files.model_copy(update={"least_same": 0.5})).same == 4


def test_problems_are_listed_as_they_are_called(files, traces, signals, requests, capsys):
    """In brackets they were lost, or ended the command."""
    names = ["[red]", "[/b]"]
    named = [dataclasses.replace(trace, id=name) for trace, name in zip(traces, names, strict=False)]
    write_traces(files.traces, named)
    scores = Scores("draft", weights_hash(files.draft), dict(zip(names, signals, strict=False)))
    write_scores(files.scores, scores)
    write_bench(files.bench, [served(trace, 4) for trace in named])
    bench_replay(files.model_copy(update={"least_same": 0}))
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_what_cannot_be_compared_is_refused(files, traces, requests, signals):
    write_traces(files.traces, traces[:3])
    with pytest.raises(ReplayError, match="problem '3' of the benchmark is missing"):
        bench_replay(files)
    write_traces(files.traces, traces)
    with pytest.raises(ReplayError, match=r"no requests of method 'specexit-fc', measured were eagle3, specexit$"):
        bench_replay(files.model_copy(update={"method": "specexit-fc"}))
    with pytest.raises(ReplayError, match=r"bench: batch is 7, expected one that was measured: 16$"):
        bench_replay(files.model_copy(update={"batch": 7}))
    named = {trace.id: values for trace, values in zip(traces, signals, strict=True)}
    write_scores(files.scores, Scores("draft", "0" * 64, named))
    with pytest.raises(
        ScoreError, match=r"scores\.parquet: scores come from a draft with hash 000000000000, but .*draft"
    ):
        bench_replay(files)
    write_scores(files.scores, Scores("fc", weights_hash(files.draft), named))
    with pytest.raises(ScoreError, match=r"scores\.parquet: scores of source 'fc', but .*draft has source 'draft'"):
        bench_replay(files)
    write_bench(files.bench, list(requests.values()), temperature=0.6)
    with pytest.raises(ReplayError, match=r"temperature 0\.6, expected greedy decoding"):
        bench_replay(files)
    assert not files.out.exists()


def test_a_method_with_a_policy_of_its_own_is_not_held_against_the_drafts(tmp_path):
    """All exits of a budget would be unexplained."""
    places = dict.fromkeys(("bench", "traces", "draft", "scores", "out"), tmp_path / "there")
    with pytest.raises(ValidationError, match="'specexit' or 'specexit-fc'"):
        BenchReplayConfig(**places, method="budget")
