"""`specexit bench` on engines that are pretended: who is asked what, when, and what an interrupted one goes on with."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from specexit.bench.comparison import open_loop_speedup, speedup_at
from specexit.bench.journal import Journal, alone_at
from specexit.bench.methods import find_method
from specexit.bench.process import BenchError, BenchProcess
from specexit.bench.requests import Run
from specexit.bench.results import Results, read_results
from specexit.data.traces import write_traces
from specexit.drafts.policy import OperatingPoint, PolicyFile, write_policy
from specexit.hardware import describe_hardware
from specexit.method.decision import Policy
from specexit.schemas.bench import BenchConfig
from tests.serving.benching import (
    MAX_NEW_TOKENS,
    N_LATENCY,
    TARGET,
    N,
    config,
    generated_traces,
    small,
    write_inputs,
    write_random_draft,
)
from torch_specexit.bench import conditions, worker
from torch_specexit.bench import run as module
from torch_specexit.bench.run import bench, plan_methods
from torch_specexit.bench.turns import Entry, measure, spread, turns

HARDWARE = describe_hardware()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("bench-inputs"))


class Unfinished(BenchProcess):
    """Stands for the process of an engine whose responses all run out of tokens."""

    def __init__(self, *args: object):
        pass

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def wait_ready(self) -> dict:
        return {"accelerator": None}

    def ask(self, job: dict) -> dict:
        request = {"token_ids": [5] * job["marks"]["max_new_tokens"], "finish_reason": "length", "outcome": None}
        request |= {"forced": False, "probe_tokens": 0, "seconds": 1.0, "first_answer_seconds": None}
        return {"seconds": 1.0, "requests": [request] * len(job["problems"]), "n_drafts": 1, "n_accepted": 0}


def test_responses_that_run_out_of_tokens_are_an_error(inputs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "BenchProcess", Unfinished)
    short = config(inputs, methods=("eagle3",), max_unfinished=0.05, out=tmp_path / "new", n=2)
    with pytest.raises(
        BenchError, match=r"max_new_tokens=96: 1 responses of eagle3 ran out of tokens, of 2 at batch 1"
    ):
        bench(short)
    assert not (tmp_path / "new").exists()


def test_answers_that_run_out_of_tokens_are_an_error_too(inputs: Path, tmp_path: Path, monkeypatch) -> None:
    """Their thinking ended, and none of them is right: accuracy would be that of `max_new_tokens`."""
    end = TARGET.think_tokens().end

    def ask(self: Unfinished, job: dict) -> dict:
        reply = Unfinished.ask(self, job)
        return reply | {"requests": [one | {"token_ids": [5] * 40 + [end, 5]} for one in reply["requests"]]}

    monkeypatch.setattr(Pretend, "ask", ask)
    with pytest.raises(
        BenchError, match=r"1 responses of eagle3 ran out of tokens, of 2 at batch 1 \(1 of them in the"
    ):
        measured(small(inputs, tmp_path, max_unfinished=0.05), tmp_path, Pretend)


class Pretend(Unfinished):
    """Stands for an engine that writes the recorded responses; ``asked`` is what all of them were asked, in order."""

    asked: ClassVar[list[dict]] = []
    left: ClassVar[int] = 10**6
    """Jobs until it is interrupted."""

    def ask(self, job: dict) -> dict:
        if self.left <= len(self.asked):
            raise KeyboardInterrupt
        self.asked.append(job)
        traces, end = {t.id: t for t in generated_traces(N)}, TARGET.think_tokens().end
        slower = {"none": 2.0, "eagle3": 1.0}[job["method"]]
        requests = [
            {
                "token_ids": [*traces[problem["id"]].think_ids, end, *traces[problem["id"]].answer_ids],
                "finish_reason": "stop",
                "outcome": None,
                "forced": False,
                "probe_tokens": 0,
                "seconds": slower * (1 + i),
                "first_answer_seconds": slower,
            }
            for i, problem in enumerate(job["problems"])
        ]
        return {"seconds": slower * len(requests), "requests": requests, "n_drafts": 0, "n_accepted": 0}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> type[Pretend]:
    monkeypatch.setattr(module, "BenchProcess", Pretend)
    monkeypatch.setattr(Pretend, "asked", [])
    monkeypatch.setattr("specexit.report.page.report", lambda config: None)  # seconds of drawing
    return Pretend


def measuring(asked: list[dict]) -> list[dict]:
    """Jobs that are no warm-up."""
    return [job for job in asked if job["marks"]["max_new_tokens"] == MAX_NEW_TOKENS]


def test_a_second_benchmark_into_the_same_folder_is_refused_while_the_first_one_measures(
    inputs: Path, tmp_path: Path, pretend: type[Pretend]
) -> None:
    """Both went on with one journal: each wrote its replies over the other's, and one failed at its end."""
    ours = small(inputs, tmp_path)
    with alone_at(ours.out), pytest.raises(BenchError, match=r"out=\S+out: process \d+ on .* measures into it"):
        bench(ours)
    assert pretend.asked == []
    bench(ours)
    assert not list(tmp_path.glob(".out*"))


def test_an_interrupted_benchmark_goes_on_with_the_draft_it_began_with_and_no_other(
    inputs: Path, tmp_path: Path, pretend: type[Pretend], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = small(inputs, tmp_path)
    monkeypatch.setattr(pretend, "left", 10)  # of its 2 x 3 short and 8 measured jobs
    with pytest.raises(KeyboardInterrupt):
        bench(ours)
    first = measuring(pretend.asked)
    monkeypatch.setattr(pretend, "left", 10**6)
    (tmp_path / "draft").rename(tmp_path / "kept")
    write_random_draft(tmp_path / "draft", seed=1)
    with pytest.raises(
        BenchError,
        match=r"\.out\.journal\.jsonl: an interrupted benchmark has measured with inputs\.draft\.weights "
        r"[0-9a-f]{12} \(now [0-9a-f]{12}\): delete this file to measure anew",
    ):
        bench(ours)
    shutil.rmtree(tmp_path / "draft")
    (tmp_path / "kept").rename(tmp_path / "draft")
    # On another machine, or with other code; on its own it goes on, however much memory is free there now.
    for name, value, told in (
        ("describe_hardware", HARDWARE | {"processor": "another"}, r"machine\.processor .+ \(now another\)"),
        ("revision", "0123-dirty-45", r"machine\.revision \S+ \(now 0123-dirty-45\)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(conditions, name, lambda value=value: value)
            with pytest.raises(BenchError, match=f"has measured with {told}: delete this"):
                bench(ours)
    monkeypatch.setattr(conditions, "describe_hardware", lambda: HARDWARE | {"memory_gib": 0.5})
    pretend.asked.clear()
    results = bench(ours)
    assert (len(first), len(measuring(pretend.asked))) == (4, 4)
    _is_kept_or_refused(ours, results, pretend)


def test_responses_that_ran_out_of_tokens_may_be_taken_after_all_and_nothing_is_measured_twice(
    inputs: Path, tmp_path: Path, pretend: type[Pretend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key judges replies and changes none: hours were thrown away for it, and the error did not name it."""
    ask = pretend.ask

    def cut(self: Pretend, job: dict) -> dict:
        reply = ask(self, job)
        return reply | {"requests": [one | {"finish_reason": "length"} for one in reply["requests"]]}

    monkeypatch.setattr(pretend, "ask", cut)
    with pytest.raises(BenchError, match="go on with a larger max_unfinished"):
        bench(small(inputs, tmp_path, max_unfinished=0.05))
    first = measuring(pretend.asked)
    pretend.asked.clear()
    bench(small(inputs, tmp_path, max_unfinished=1.0))
    assert first
    assert len(first) + len(measuring(pretend.asked)) == 8


def _is_kept_or_refused(ours: BenchConfig, results: Results, pretend: type[Pretend]) -> None:
    """Finished results are there for what they are of, and in the way of anything else."""
    of_draft = ("weights", "computation", "boundaries", "policy", "serving")
    read = {"target", "target.settings"} | {f"draft.{name}" for name in of_draft}
    read |= {"traces", "calibration_traces", "scores"}
    assert set(results.inputs) == read | {"tolerance"}
    assert results.tolerance == 0.01
    assert "1 % (the draft's policy has no certificate)" in results.definitions["tolerance"]
    pretend.asked.clear()
    assert bench(ours) == results
    assert not pretend.asked
    file = ours.draft / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"rms_norm_eps": 1e-5}))
    with pytest.raises(BenchError, match=r"out: holds a benchmark with inputs\.draft\.computation .*: delete the"):
        bench(ours)
    file.write_text(json.dumps(said))
    point = OperatingPoint(name="default", policy=Policy(thresholds={"validity": 0.5}))
    write_policy(ours.draft, PolicyFile(points=(point,)))
    with pytest.raises(BenchError, match=r"out: holds a benchmark with inputs\.draft\.policy .*: delete the folder"):
        bench(ours)
    with pytest.raises(BenchError, match=r"config\.rounds 2 \(now 3\)"):
        bench(ours.model_copy(update={"rounds": 3}))
    assert read_results(ours.out / "results.json") == results


def measured(ours: BenchConfig, tmp_path: Path, pretend: type[Unfinished]) -> dict[str, Run]:
    (tmp_path / "scratch").mkdir()
    entries = plan_methods(ours, TARGET, generated_traces(N), tmp_path / "scratch")
    engines = {entry.draft: pretend() for entry in entries}
    return measure(ours, TARGET, entries, engines, generated_traces(N), Journal(ours.out, {}))


def test_problems_come_in_at_the_same_moments_for_all_methods_which_take_turns(
    inputs: Path, tmp_path: Path, pretend: type[Pretend]
) -> None:
    runs = measured(small(inputs, tmp_path, rates=(2.0,), n_latency=N), tmp_path, pretend)
    asked = [job for job in pretend.asked if job["arrivals"] is not None]
    # Who begins moves on, so that a noisy machine hits all alike.
    assert [job["method"] for job in asked] == ["none", "eagle3", "eagle3", "none"]
    assert [[problem["id"] for problem in job["problems"]] for job in asked] == [
        *2 * [["test-0", "test-1"]],
        *2 * [["test-2", "test-3"]],
    ]
    first, again, second, last = (job["arrivals"] for job in asked)
    assert (first, second) == (again, last)
    assert first != second
    assert 0 < first[0] < first[1]
    assert [[r.id for r in part] for part in runs["none"].open_loop[2.0]] == [
        ["test-0", "test-1"],
        ["test-2", "test-3"],
    ]
    assert open_loop_speedup(2.0, runs["none"], runs["eagle3"]) == (0.5, 0.5, 0.5)


def test_a_few_problems_are_of_all_tasks_wherever_they_lie(
    inputs: Path, tmp_path: Path, pretend: type[Pretend]
) -> None:
    """The first ones would be of the first benchmark of a file: how fast that is, is not how fast they are."""
    (trace,) = generated_traces(1)
    tasks = {"one behind the other": ["a"] * 60 + ["b"] * 30 + ["c"] * 10, "in turns": ["a", "b", "c"] * 30}
    for order, of in tasks.items():
        problems = [replace(trace, id=str(i), task=task) for i, task in enumerate(of)]
        chosen = spread(problems, 10)
        assert chosen == sorted(set(chosen)), order
        shares = {task: round(10 * n / len(of)) for task, n in Counter(of).items()}
        assert all(abs(n - shares[task]) <= 1 for task, n in Counter(of[i] for i in chosen).items()), order
        assert {of[i] for i in chosen} == {"a", "b", "c"}, order
        assert spread(problems, len(problems)) == list(range(len(problems)))
    runs = measured(small(inputs, tmp_path), tmp_path, pretend)
    few = {trace.id for trace in (generated_traces(N)[i] for i in spread(generated_traces(N), N_LATENCY))}
    for run in runs.values():
        assert {request.id for request in run.requests[1]} == {request.id for request in run.requests[3]} == few
        assert [request.id for request in run.requests[4]] == [f"test-{i}" for i in range(N)]


def test_a_sampled_target_is_measured_as_its_traces_were_drawn(
    inputs: Path, tmp_path: Path, pretend: type[Pretend]
) -> None:
    """Greedy responses would be held against the oracle of other text, under its plain name."""
    card = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    sampling = json.dumps(card | {"max_tokens": 768})
    write_traces(tmp_path / "traces.parquet", [replace(trace, sampling=sampling) for trace in generated_traces(N)])
    ours = small(inputs, tmp_path, traces=tmp_path / "traces.parquet", scores=None, sampling=None)
    results = bench(ours)
    assert all(job["sampling"] == card for job in pretend.asked)
    assert (results.sampling, results.oracle_name, results.lossless) == (card, "oracle", {})
    assert yaml.safe_load((ours.out / "run.yaml").read_text())["config"]["sampling"] == card


def test_samples_and_slices_are_asked_with_a_seed_each_and_stay_samples_of_their_problem(
    inputs: Path, tmp_path: Path, pretend: type[Pretend]
) -> None:
    ours = small(inputs, tmp_path, samples=3, sampling={"temperature": 0.6}, batches=(2,), rates=(2.0,))
    runs = measured(ours, tmp_path, pretend)
    seeds = {name: [job["seed"] for job in pretend.asked if job["method"] == name] for name in runs}
    assert seeds["none"] == seeds["eagle3"]
    # Two slices: of each sample in the batch, of those alone, and of those that come in.
    assert len(set(seeds["none"])) == len(seeds["none"]) == 2 * 3 + 2 + 2
    assert [(r.id, r.sample) for r in runs["none"].requests[2]] == [
        (f"test-{i}", sample) for sample in range(3) for i in range(N)
    ]
    assert runs["none"].units[2] == 3 * ["test-0 to test-1", "test-2 to test-3"]
    assert len(runs["none"].requests[1]) == N_LATENCY  # one sample of each
    assert speedup_at(2, runs["none"], runs["eagle3"]) == (0.5, 0.5, 0.5)


def test_no_slice_is_smaller_than_the_batch(inputs: Path, tmp_path: Path, pretend: type[Pretend], capsys) -> None:
    """ "Batch 4" would be the speed of two at a time."""
    measured(small(inputs, tmp_path, n_latency=N, batches=(2, 3, 4)), tmp_path, pretend)
    asked = [(job["batch"], len(job["problems"])) for job in pretend.asked if job["method"] == "none"]
    assert asked == [(1, 2), (1, 2), (2, 2), (2, 2), (3, 4), (4, 4)]
    assert "problems, so no more" not in capsys.readouterr().err
    more = tmp_path / "more"
    more.mkdir()
    measured(small(inputs, more, batches=(16,)), more, pretend)
    assert "batch 16: there are 4 problems, so no more are asked at once" in capsys.readouterr().err


class Pressed(Pretend):
    """Has too little KV cache for EAGLE-3's requests."""

    def ask(self, job: dict) -> dict:
        return super().ask(job) | {"n_preempted": 3 if job["method"] == "eagle3" else 0}


def test_requests_that_were_computed_again_are_counted(inputs: Path, tmp_path: Path, pretend: type[Pretend]) -> None:
    """Whoever writes more has more of them, in batches and as problems come in, and the time is in its seconds."""
    runs = measured(small(inputs, tmp_path, rates=(2.0,)), tmp_path, Pressed)
    jobs = Counter(job["method"] for job in pretend.asked)
    assert {name: run.n_preempted for name, run in runs.items()} == {"none": 0, "eagle3": 3 * jobs["eagle3"]}


def test_a_worker_counts_what_its_engine_has_computed_again() -> None:
    metrics = [SimpleNamespace(name="vllm:num_preemptions", value=3)]
    counted = worker._counters(SimpleNamespace(get_metrics=lambda: metrics))
    assert counted == {"n_drafts": 0, "n_accepted": 0, "n_preempted": 3}


def test_what_could_not_exit_is_asked_again(inputs: Path, tmp_path: Path) -> None:
    """Were it written down, a benchmark could not go on where the plug-in has failed once."""
    ours = small(inputs, tmp_path).model_copy(update={"methods": ("specexit", "eagle3")})
    with pytest.raises(BenchError, match="method specexit: vLLM reported no outcome for test-"):
        measured(ours, tmp_path, Unfinished)
    assert len(Journal(ours.out, {})) == 0


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 8))
def test_turns_give_every_method_every_problem_once_and_in_order(n_methods: int, n: int, rounds: int) -> None:
    entries = [Entry(str(i), "none", find_method("none")(), None, (), ()) for i in range(n_methods)]
    seen = [(entry.name, len(part)) for entry, part in turns(entries, range(n), rounds)]
    assert {name: sum(k for who, k in seen if who == name) for name in "01234"[:n_methods]} == dict.fromkeys(
        "01234"[:n_methods], n
    )
    beginners = [name for name, _ in seen[::n_methods]]
    if n >= rounds:
        assert beginners == [str(i % n_methods) for i in range(rounds)]


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_prompt_that_no_engine_has_room_for_is_refused_before_any_starts(
    inputs: Path, tmp_path: Path, room: int
) -> None:
    """It ended the engine, and so the benchmark, when its turn came, and every time that it was gone on with; with room
    for one token so did `no-thinking`, whose end marker takes it."""
    traces = generated_traces(N)
    longest = max(len(trace.prompt_ids) for trace in traces)
    ours = small(inputs, tmp_path, engine={"extra": {"max_model_len": longest + room}})
    (tmp_path / "scratch").mkdir()
    if room == 2:
        assert len(plan_methods(ours, TARGET, traces, tmp_path / "scratch")) == 2
        return
    told = rf"test-\d is {longest} tokens long, expected room for an end marker and a token in max_model_len \d+$"
    with pytest.raises(BenchError, match=told):
        plan_methods(ours, TARGET, traces, tmp_path / "scratch")
