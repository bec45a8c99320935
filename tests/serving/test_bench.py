"""`specexit bench` on real vLLM engines, small: what it measures has to hang together."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.bench import comparison
from specexit.bench.comparison import Request, Run, open_loop_speedup, read_requests, speedup_at
from specexit.bench.inputs import tolerance_of
from specexit.bench.journal import Journal
from specexit.bench.methods import NAMES, Marks, Problem, Trial, Tuning, find_method
from specexit.bench.process import BenchError, BenchProcess
from specexit.bench.results import Results, read_results
from specexit.config import find, load
from specexit.data.outlines import outlines
from specexit.data.overlap import OverlapError, write_prompts
from specexit.data.rows import prompt_sha256
from specexit.data.scores import ScoreError, Scores, key_of, write_scores
from specexit.data.traces import Trace, write_traces
from specexit.drafts.directory import DraftConfig, DraftError, SpecExitBlock, read_config, write_draft
from specexit.drafts.policy import (
    Certificate,
    OperatingPoint,
    PolicyFile,
    Risk,
    Selection,
    Serving,
    policy_sha256,
    write_policy,
)
from specexit.drafts.tensors import weights_hash
from specexit.errors import InputError
from specexit.hardware import describe_hardware
from specexit.method.decision import Policy
from specexit.method.policies import METHODS as METHODS_REPLAYED
from specexit.method.simulate import Simulation
from specexit.schemas.bench import BenchConfig
from specexit.schemas.target import ModelCardSampling, TrialConfig, load_target_config
from specexit.tiny import problems, prompt_text, render_response, write_trace
from torch_specexit import bench as module
from torch_specexit import bench_conditions as conditions
from torch_specexit.bench import bench, longest_response, plan_methods, read_problems, trials_of
from torch_specexit.bench_driver import drive
from torch_specexit.bench_turns import Entry, check_served, measure, read_request, spread, turns
from torch_specexit.plugin.compat.checks import check_draft
from torch_specexit.plugin.outcome import ENDED

TARGET = load_target_config("tiny-reasoner")
OWN = str(Path(__file__).with_name("own_method.py"))
METHODS = ("none", "eagle3", "specexit", "budget", "budget-hard", "deer", "oracle", OWN)
N, N_LATENCY, BUDGET, MAX_NEW_TOKENS = 4, 2, 30, 96
HARDWARE = describe_hardware()


def generated_traces(n: int, split: str = "test") -> list[Trace]:
    """Traces as the generator of the training data writes them: prompts and references are what matters here."""
    tokenizer, ids, rng = TARGET.tokenizer(), TARGET.think_tokens(), random.Random(0)
    traces = []
    for i, problem in enumerate(problems(split, n)):
        written = write_trace(rng, problem)
        thinking, answer = render_response(problem, written).split("</think>")
        think_ids = tokenizer.encode(thinking)
        boundaries = [at + 1 for at, token in enumerate(think_ids) if token in ids.split]
        final = str(written.final)
        traces.append(
            Trace(
                id=f"{split}-{i}",
                prompt=problem.question,
                prompt_ids=tokenizer.encode(prompt_text(problem.question)),
                think_ids=think_ids,
                answer_ids=tokenizer.encode(answer),
                answer=final,
                reference=str(problem.answer),
                correct=written.final == problem.answer,
                finish_reason="stop",
                boundaries=boundaries,
                boundary_answers=[None, *[final] * (len(boundaries) - 1)],
                boundary_agrees=[False, *[True] * (len(boundaries) - 1)],
                boundary_confidence=[0.5] * len(boundaries),
                target=TARGET.name,
                sampling="{}",
                seed=0,
            )
        )
    return traces


def write_random_draft(
    folder: Path, *, hidden: int = 192, source: Literal["draft", "fc"] = "draft", seed: int = 0
) -> None:
    """A draft of the right shape with random weights: it guesses badly and its signals mean nothing."""
    config = DraftConfig(
        hidden_size=hidden,
        target_hidden_size=hidden,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=TARGET.hf_config()["vocab_size"],
        draft_vocab_size=512,
        eagle_aux_hidden_state_layer_ids=TARGET.aux_layers,
        num_aux_hidden_states=len(TARGET.aux_layers),
        target_num_hidden_layers=TARGET.hf_config()["num_hidden_layers"],
        specexit=SpecExitBlock(target=TARGET.name, source=source),
    )
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray]
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in config.tensor_shapes().items()}
    tensors |= {name: np.ones(tensors[name].shape, np.float32) for name in tensors if "norm" in name}
    tensors["d2t"] = np.zeros(512, np.int64)
    tensors["t2d"] = np.arange(config.vocab_size) < 512
    write_draft(folder, config, tensors)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench-inputs")
    traces, rng = generated_traces(N), np.random.default_rng(0)
    write_traces(folder / "traces.parquet", traces)
    write_traces(folder / "calibration.parquet", generated_traces(N, "calibration"))
    write_random_draft(folder / "draft")
    signals = {key_of(trace): rng.random((trace.n_think, 4), np.float32) for trace in traces}
    write_scores(folder / "scores.parquet", Scores("draft", weights_hash(folder / "draft"), signals))
    return folder


def config(inputs: Path, **changes: object) -> BenchConfig:
    return BenchConfig.model_validate(
        {
            "target": TARGET.name,
            "draft": inputs / "draft",
            "traces": inputs / "traces.parquet",
            "scores": inputs / "scores.parquet",
            "out": inputs / "out",
            "n": N,
            "n_latency": N_LATENCY,
            "batches": (3, 4),
            "methods": METHODS,
            # Those few tokens are not enough for most responses.
            "max_unfinished": 1.0,
            "budget": BUDGET,
            "calibration_traces": inputs / "calibration.parquet",
            "rounds": 2,
            "max_new_tokens": MAX_NEW_TOKENS,
        }
        | changes
    )


@pytest.fixture(scope="module")
def results(inputs: Path) -> Results:
    bench(config(inputs))
    return read_results(inputs / "out" / "results.json")


@pytest.mark.vllm
def test_all_methods_answer_all_problems(inputs: Path, results: Results) -> None:
    assert list(results.methods) == [*METHODS[:-1], "twice"]
    for name, method in results.methods.items():
        assert sum(method.exits.model_dump().values()) == N, name
        assert set(method.seconds) == {"1", "3", "4"}, name
        assert all(seconds > 0 for seconds in method.seconds.values()), name
    rows = [json.loads(line) for line in (inputs / "out" / "requests.jsonl").read_text().splitlines()]
    assert Counter((row["method"], row["batch"]) for row in rows) == {
        (name, batch): n for name in results.methods for batch, n in ((1, N_LATENCY), (3, N_LATENCY), (4, N))
    }
    assert results.n_seconds == {"1": N_LATENCY, "3": N_LATENCY, "4": N}


def test_every_method_of_the_field_has_a_draft_that_can_be_served(inputs: Path, tmp_path: Path) -> None:
    field = load(BenchConfig, find("bench", "field")).methods
    assert field is not None
    assert set(field) == set(NAMES)
    write_random_draft(tmp_path / "fc", source="fc")
    ours = config(inputs, methods=[name for name in field if name != "exits-alone"], draft_fc=tmp_path / "fc")
    (tmp_path / "scratch").mkdir()
    target = SimpleNamespace(hf_text_config=SimpleNamespace(**TARGET.hf_config()), model="", max_model_len=1)
    entries = plan_methods(ours, TARGET, generated_traces(N), tmp_path / "scratch")
    served = {entry.name for entry in entries if entry.draft and read_config(entry.draft).specexit}
    assert served == {"specexit", "specexit-fc", "paper", "budget"}
    for entry in entries:
        if entry.name in served and entry.draft:
            check_draft(read_config(entry.draft), entry.draft, target)


@pytest.mark.parametrize(
    ("risk", "k", "said"),
    [
        ("accuracy_lost", 1, "what the certificate of the draft's policy allows"),
        ("answer_changed", 2, "certified for answer_changed <= 0.06, which is no loss of accuracy"),
        (None, 2, "no certificate"),
    ],
)
def test_methods_may_lose_what_specexit_s_certificate_allows(
    inputs: Path, tmp_path: Path, risk: Risk | None, k: int, said: str
) -> None:
    """Of 20 traces one is wrong at its first boundary: 5 %."""
    first, *others = generated_traces(20, "calibration")
    traces = [replace(t, boundary_answers=[t.answer] * len(t.boundaries), boundary_agrees=[True] * len(t.boundaries),
                      boundary_state=["agrees"] * len(t.boundaries)) for t in others]  # fmt: skip
    write_traces(tmp_path / "calibration.parquet", [first, *traces])
    assert first.correct
    write_random_draft(tmp_path / "draft")
    policy = Policy(thresholds={"validity": 0.5})
    found = {"epsilon": 0.06, "delta": 0.1, "n": 20, "errors": 0, "bound": 0.06, "data_sha256": "a" * 64}
    found |= {"policy_sha256": policy_sha256(policy)}
    certificate = None if risk is None else Certificate(risk=risk, **found)
    points = (OperatingPoint(name="default", policy=policy, certificate=certificate),)
    write_policy(tmp_path / "draft", PolicyFile(points=points))
    given = {"calibration_traces": tmp_path / "calibration.parquet", "scores": None}
    ours = config(inputs, draft=tmp_path / "draft", methods=["eagle3", "kth-boundary"], **given)
    (tmp_path / "scratch").mkdir()
    _, entry = plan_methods(ours, TARGET, generated_traces(N), tmp_path / "scratch")
    assert entry.parameters == {"k": k}
    assert said in tolerance_of(tmp_path / "draft").why


@pytest.mark.vllm
def test_speculation_changes_no_token_and_batching_neither(results: Results) -> None:
    assert set(results.lossless) == {"eagle3_vs_none", *(f"{name}_batch_1_vs_4" for name in results.methods)}
    assert {name: check.mismatches for name, check in results.lossless.items()} == dict.fromkeys(results.lossless, 0)
    assert results.against_eagle3["none"].thinking_cut == (0, 0, 0)


@pytest.mark.vllm
def test_the_budget_ends_thinking_at_the_first_boundary_behind_it(inputs: Path, results: Results) -> None:
    full = read_requests(inputs / "out" / "requests.jsonl", "eagle3")
    split = TARGET.think_tokens().split
    for name, request in read_requests(inputs / "out" / "requests.jsonl", "budget").items():
        thinking = full[name].token_ids[: full[name].thinking_tokens]
        expected = next(i + 1 for i, token in enumerate(thinking) if token in split and i + 1 >= BUDGET)
        assert (request.reason, request.thinking_tokens) == ("exit", expected)
        assert request.token_ids[:expected] == thinking[:expected]
    assert results.methods["budget"].exits.exit == N


@pytest.mark.vllm
def test_the_engines_own_budget_ends_thinking_right_there(inputs: Path, results: Results) -> None:
    full = read_requests(inputs / "out" / "requests.jsonl", "eagle3")
    for name, request in read_requests(inputs / "out" / "requests.jsonl", "budget-hard").items():
        assert (request.reason, request.thinking_tokens) == ("exit", BUDGET)
        assert request.token_ids[:BUDGET] == full[name].token_ids[:BUDGET]


@pytest.mark.vllm
def test_acceptance_is_that_of_a_bad_draft(results: Results) -> None:
    assert results.methods["none"].acceptance_length is None
    length = results.methods["eagle3"].acceptance_length
    assert length is not None
    assert 1 <= length < 1.2  # random guesses among 512 tokens, three at a time


@pytest.mark.vllm
def test_the_report_lies_beside_the_results(inputs: Path, results: Results) -> None:
    page = (inputs / "out" / "report.html").read_text()
    assert f"{results.n} problems" in page


@pytest.mark.vllm
def test_where_scores_are_given_the_report_has_the_curves_of_every_method(inputs: Path, results: Results) -> None:
    found = Simulation.model_validate_json((inputs / "out" / "simulation.json").read_text())
    assert found.n == results.n
    page = (inputs / "out" / "report.html").read_text()
    assert {name for name in found.curves if f"{name}, replayed" in page} == set(METHODS_REPLAYED) - {"paper"}
    for expected in ("How much hangs on the threshold", "budget-hard cannot be replayed: it cuts in mid-sentence"):
        assert expected in page
    assert (inputs / "out" / "run.yaml").exists()


@pytest.mark.vllm
def test_a_method_of_ones_own_is_in_table_and_report(inputs: Path, results: Results) -> None:
    twice = results.methods["twice"]
    assert (twice.says, twice.parameters) == ("exit at the second step boundary", {"steps": 2})
    assert "twice" in (inputs / "out" / "report.html").read_text()
    full = read_requests(inputs / "out" / "requests.jsonl", "eagle3")
    split = TARGET.think_tokens().split
    for name, request in read_requests(inputs / "out" / "requests.jsonl", "twice").items():
        ends = [i + 1 for i, token in enumerate(full[name].token_ids) if token in split]
        assert (request.reason, request.thinking_tokens) == ("exit", ends[1])
        assert request.token_ids[: ends[1]] == full[name].token_ids[: ends[1]]


@pytest.mark.vllm
def test_trial_answers_are_paid_for(results: Results) -> None:
    assert results.methods["deer"].probe_tokens > 0
    assert results.methods["eagle3"].probe_tokens == 0
    for method in results.methods.values():
        for latency in method.latency.values():
            assert 0 < latency.p50 <= latency.p95
        # One at a time, the times of the requests are the time of the method.
        alone = method.latency["1"]
        assert alone.mean * alone.n == pytest.approx(method.seconds["1"])


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


def small(inputs: Path, tmp_path: Path, **changes: object) -> BenchConfig:
    """A benchmark that needs no plug-in, on a draft that may be changed."""
    draft = tmp_path / "draft"
    if not draft.exists():
        write_random_draft(draft)
    return config(inputs, draft=draft, methods=("none", "eagle3"), out=tmp_path / "out", **changes)


def measuring(asked: list[dict]) -> list[dict]:
    """Jobs that are no warm-up."""
    return [job for job in asked if job["marks"]["max_new_tokens"] == MAX_NEW_TOKENS]


def test_an_interrupted_benchmark_goes_on_with_the_draft_it_began_with_and_no_other(
    inputs: Path, tmp_path: Path, pretend: type[Pretend], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = small(inputs, tmp_path)
    monkeypatch.setattr(pretend, "left", 10)  # of its 2 x 3 short and 12 measured jobs
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
    assert (len(first), len(measuring(pretend.asked))) == (4, 8)
    _is_kept_or_refused(ours, results, pretend)


def _is_kept_or_refused(ours: BenchConfig, results: Results, pretend: type[Pretend]) -> None:
    """Finished results are there for what they are of, and in the way of anything else."""
    read = {"target", "draft.weights", "draft.policy", "draft.serving", "traces", "calibration_traces", "scores"}
    assert set(results.inputs) == read | {"tolerance"}
    assert results.tolerance == 0.01
    assert "1 % (the draft's policy has no certificate)" in results.definitions["tolerance"]
    pretend.asked.clear()
    assert bench(ours) == results
    assert not pretend.asked
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


def test_samples_and_slices_are_asked_with_a_seed_each_and_stay_samples_of_their_problem(
    inputs: Path, tmp_path: Path, pretend: type[Pretend]
) -> None:
    ours = small(inputs, tmp_path, samples=3, sampling={"temperature": 0.6}, batches=(4,), rates=(2.0,))
    runs = measured(ours, tmp_path, pretend)
    seeds = {name: [job["seed"] for job in pretend.asked if job["method"] == name] for name in runs}
    assert seeds["none"] == seeds["eagle3"]
    # Two slices: of each sample in the batch, of those alone, and of those that come in.
    assert len(set(seeds["none"])) == len(seeds["none"]) == 2 * 3 + 2 + 2
    assert [(r.id, r.sample) for r in runs["none"].requests[4]] == [
        (f"test-{i}", sample) for sample in range(3) for i in range(N)
    ]
    assert runs["none"].units[4] == 3 * ["test-0 to test-1", "test-2 to test-3"]
    assert len(runs["none"].requests[1]) == N_LATENCY  # one sample of each
    assert speedup_at(4, runs["none"], runs["eagle3"]) == (0.5, 0.5, 0.5)


def test_scores_of_another_draft_are_refused_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    """Their exits are another draft's, and the table would show them as those of this one."""
    signals = {t.id: np.zeros((len(t.think_ids), 4), np.float32) for t in generated_traces(N)}
    changes = {"methods": ("eagle3", "exits-alone"), "scores": tmp_path / "scores.parquet", "out": tmp_path / "new"}
    write_scores(tmp_path / "scores.parquet", Scores("draft", "0" * 64, signals))
    ours = weights_hash(inputs / "draft")[:12]
    with pytest.raises(ScoreError, match=rf"hash 000000000000, but .*draft has {ours}: expected scores of this draft"):
        bench(config(inputs, **changes))
    assert not (tmp_path / "new").exists()
    (tmp_path / "scratch").mkdir()
    write_scores(tmp_path / "scores.parquet", Scores("draft", weights_hash(inputs / "draft"), signals))
    entries = plan_methods(config(inputs, **changes), TARGET, generated_traces(N), tmp_path / "scratch")
    assert [entry.name for entry in entries] == ["eagle3", "exits-alone"]


def test_problems_that_methods_are_tuned_on_are_refused(inputs: Path, tmp_path: Path) -> None:
    mixed = [*generated_traces(2), *generated_traces(N, "calibration")]
    write_traces(tmp_path / "mixed.parquet", mixed)
    with pytest.raises(OverlapError, match=r"mixed\.parquet: 2 of its 6 prompts are among the 4 of .*traces\.parquet"):
        bench(config(inputs, calibration_traces=tmp_path / "mixed.parquet", out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_what_the_config_leaves_open_is_the_target_s(inputs: Path) -> None:
    """Lengths are those of the target's YAML, for a real one thousands of tokens, not the tiny reasoner's."""
    traces = [replace(trace, answer_kind="function:operator:eq") for trace in generated_traces(1)]
    sampling = ModelCardSampling(temperature=0.6, max_tokens=32768)
    trial = TrialConfig(text="So:", max_tokens=2048, stop=("```",))
    target = TARGET.model_copy(update={"sampling": sampling, "trial": {"function": trial}})
    open_ = config(inputs, max_new_tokens=None)
    assert longest_response(open_, target) == 32768
    assert longest_response(config(inputs), target) == MAX_NEW_TOKENS
    ids = target.tokenizer().encode("So:")
    assert trials_of(open_, target, traces) == ({"ids": ids, "max_tokens": 2048, "stop": ("```",), "close": ""},)
    # Without a trial of its own, an answer is written in full.
    assert trials_of(open_, target.model_copy(update={"trial": {}}), traces)[0]["max_tokens"] == 32768
    with pytest.raises(BenchError, match=r"sampling\.max_tokens is missing, expected it there or max_new_tokens="):
        longest_response(open_, target.model_copy(update={"sampling": None}))


def test_an_option_s_own_text_is_its_letter_here_too() -> None:
    """As it was when the traces were collected: else the whole benchmark would find no answer right."""
    tokenizer, end = TARGET.tokenizer(), TARGET.think_tokens().end
    (trace,) = generated_traces(1)
    trace = replace(trace, answer_kind="choice", choices=["a tree", "a metal"], reference="B")
    raw = {"token_ids": [end, *tokenizer.encode("It is \\boxed{a metal}.")], "outcome": None, "finish_reason": "stop"}
    raw |= {"forced": False, "probe_tokens": 0, "seconds": 1.0, "first_answer_seconds": None}
    entry = Entry("none", "none", find_method("none").tuned(Tuning([], 0.0)), None, (None,), ({},))
    request = read_request(entry, trace, raw, tokenizer, end)
    assert (request.answer, request.correct) == ("B", True)


@pytest.mark.parametrize("closed", [True, False])
def test_a_transition_text_is_no_thinking_of_the_method(closed: bool) -> None:
    """It would make a cut smaller than it is, and no exit that of its replay."""
    tokenizer, end = TARGET.tokenizer(), TARGET.think_tokens().end
    (trace,) = generated_traces(1)
    transition = tokenizer.encode("I should answer now.")
    ids = [*trace.think_ids[:5], *transition, *([end, *trace.answer_ids] if closed else [])]
    outcome = {"outcome": "exit" if closed else "length", "thinking_tokens": 5, "transition_tokens": len(transition)}
    raw = {"token_ids": ids, "outcome": outcome, "finish_reason": "stop" if closed else "length"}
    raw |= {"forced": False, "probe_tokens": 0, "seconds": 1.0, "first_answer_seconds": None}
    entry = Entry("specexit", "specexit", find_method("specexit").tuned(Tuning([], 0.0)), None, (None,), ({},))
    request = read_request(entry, trace, raw, tokenizer, end)
    assert (request.thinking_tokens, request.reason) == (5, outcome["outcome"])
    assert request.answer_tokens == (len(trace.answer_ids) if closed else 0)
    assert request.answer == (trace.answer if closed else None)


def written(outcome: dict | None, **more: object) -> Request:
    """A response of specexit that thinks for five tokens, checked and read."""
    tokenizer, end = TARGET.tokenizer(), TARGET.think_tokens().end
    (trace,) = generated_traces(1)
    raw = {"token_ids": [*trace.think_ids[:5], end, *trace.answer_ids], "outcome": outcome, "finish_reason": "stop"}
    raw |= {"forced": False, "probe_tokens": 0, "seconds": 1.0, "first_answer_seconds": None} | more
    entry = Entry("specexit", "specexit", find_method("specexit").tuned(Tuning([], 0.0)), None, (None,), ({},))
    check_served(entry, trace, raw)
    return read_request(entry, trace, raw, tokenizer, end)


@pytest.mark.parametrize(
    ("outcome", "inactive", "said"),
    [
        (None, None, "vLLM reported no outcome for test-0"),
        (None, "ValueError: bad", "the specexit plug-in has given up by the response to test-0: ValueError: bad"),
        ({"outcome": "natural_end", "thinking_tokens": 5}, "gone", "has given up by the response to test-0: gone"),
        ({"outcome": "off", "thinking_tokens": 5}, None, "exits were off in the response to test-0, expected serving"),
        ({"outcome": "natural_end", "thinking_tokens": 5, "would_exit": 4}, None, "exits were in shadow mode"),
    ],
)
def test_a_response_that_could_not_exit_is_no_measurement(
    outcome: dict | None, inactive: str | None, said: str
) -> None:
    """It would be a method that cuts nothing and loses nothing."""
    with pytest.raises(BenchError, match=f"method specexit: .*{said}"):
        written(outcome, inactive=inactive)


def test_what_could_not_exit_is_asked_again(inputs: Path, tmp_path: Path) -> None:
    """Were it written down, a benchmark could not go on where the plug-in has failed once."""
    ours = small(inputs, tmp_path).model_copy(update={"methods": ("specexit", "eagle3")})
    with pytest.raises(BenchError, match="method specexit: vLLM reported no outcome for test-"):
        measured(ours, tmp_path, Unfinished)
    assert len(Journal(ours.out, {})) == 0


def test_thinking_that_never_began_is_a_response_like_others() -> None:
    assert written({"outcome": "off", "thinking_tokens": 0}, inactive=None).reason == "natural_end"


def test_why_the_plug_in_gave_up_comes_from_the_engine() -> None:
    from vllm import RequestOutput
    from vllm.outputs import CompletionOutput

    class Engine:
        """Answers the one request that it gets, and says that exits have failed."""

        def add_request(self, name: str, *_: object) -> None:
            self.name = name

        def step(self) -> list[RequestOutput]:
            answer = CompletionOutput(0, "", [5, 6], None, None, finish_reason="stop")
            told = {"specexit_inactive": "could not read the signals"}
            return [RequestOutput(self.name, None, [1], None, [answer], True, kv_transfer_params=told)]

    marks = Marks(start=1, end=2, split=frozenset({3}), max_new_tokens=9, decode=str)
    done = drive(
        SimpleNamespace(llm_engine=Engine()),
        find_method("specexit")(),
        [Problem("a", [1], Trial((), 9))],
        marks,
        batch=1,
        sampling={"temperature": 0.0},
    )
    assert [(one["token_ids"], one["inactive"]) for one in done["requests"]] == [([5, 6], "could not read the signals")]


def test_a_draft_that_is_held_back_is_refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its policy.json or by the environment, which engines inherit; what does change texts is one of the inputs."""
    ours = small(inputs, tmp_path).model_copy(update={"methods": ("eagle3", "specexit")})
    (tmp_path / "scratch").mkdir()

    def plan(**serving: object) -> dict[str, str]:
        write_policy(ours.draft, PolicyFile(serving=Serving.model_validate(serving)))
        shutil.rmtree(tmp_path / "scratch")
        (tmp_path / "scratch").mkdir()
        plan_methods(ours, TARGET, generated_traces(N), tmp_path / "scratch")
        return conditions.inputs_served(ours, TARGET)

    for mode in ("shadow", "off"):
        with pytest.raises(
            BenchError, match=rf"policy\.json: serving\.mode is '{mode}', so that nothing exits: expected"
        ):
            plan(mode=mode)
    usual = plan()
    monkeypatch.setenv("SPECEXIT_SERVING", '{"mode": "shadow"}')
    with pytest.raises(BenchError, match=r"SPECEXIT_SERVING='.*shadow.*', .* in force is 'shadow', .*unset SPECEXIT"):
        plan()
    monkeypatch.setenv("SPECEXIT_SERVING", '{"transition": "So:"}')
    told = {name for name, value in plan().items() if value != usual[name]}
    monkeypatch.delenv("SPECEXIT_SERVING")
    assert told == {"draft.serving"}
    for change in ({"thinking_margin": 3}, {"loop_period": 5}):
        assert plan(**change)["draft.serving"] not in (usual["draft.serving"], plan(transition="So:")["draft.serving"])
    assert plan(audit_rate=0.5, requests="none") == usual


@pytest.mark.parametrize("ended", ENDED)
def test_whatever_ends_the_thinking_in_the_engine_is_no_natural_end(ended: str) -> None:
    """Counted as the model's own, a policy's maximum would be a baseline without exits."""
    request = written({"outcome": ended, "thinking_tokens": 5, "signals": {}})
    assert (request.reason, request.ended_by, request.thinking_tokens) == ("exit", ended, 5)
    assert set(ENDED) == set(comparison.ENDED)


@pytest.mark.vllm
def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    setup = {
        "target": TARGET.model_copy(update={"path": str(tmp_path / "nowhere")}).model_dump(mode="json"),
        "engine": {},
        "draft": None,
        "num_speculative_tokens": 3,
        "seed": 0,
    }
    with (
        BenchProcess("none", "torch_specexit.bench_worker", setup, tmp_path / "log") as engine,
        pytest.raises(BenchError, match="nowhere"),
    ):
        engine.wait_ready()
    assert engine.process.returncode != 0


def test_too_few_traces_are_refused_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"traces.parquet: traces of 4 different prompts, expected at least n=300"):
        bench(config(inputs, n=300, out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_traces_without_references_are_refused(inputs: Path, tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.parquet", [replace(trace, reference=None) for trace in generated_traces(N)])
    with pytest.raises(BenchError, match="test-0 has no reference"):
        bench(config(inputs, traces=tmp_path / "traces.parquet", out=tmp_path / "new"))


def test_traces_without_any_thinking_are_refused(inputs: Path, tmp_path: Path) -> None:
    """Shares of no thinking at all do not exist: it was found out behind hours of measuring, as a division by zero."""
    nothing = {"boundaries": [], "boundary_answers": [], "boundary_agrees": [], "boundary_confidence": []}
    nothing |= {"think_ids": [], "boundary_state": [], "boundary_trial_tokens": []}
    traces = [replace(trace, **nothing) for trace in generated_traces(N)]
    write_traces(tmp_path / "traces.parquet", traces)
    with pytest.raises(BenchError, match=r"traces\.parquet: think_ids are empty in all 4 traces"):
        read_problems(config(inputs, traces=tmp_path / "traces.parquet"))
    write_traces(tmp_path / "traces.parquet", [*traces[1:], generated_traces(1)[0]])
    assert len(read_problems(config(inputs, traces=tmp_path / "traces.parquet"))) == N


def test_samples_of_a_problem_are_one_problem(inputs: Path, tmp_path: Path) -> None:
    """Counted each for itself, they would make intervals narrower than the problems allow."""
    sampled = [replace(trace, sample=i, seed=i) for trace in generated_traces(N) for i in range(3)]
    write_traces(tmp_path / "traces.parquet", sampled)
    changes = {"traces": tmp_path / "traces.parquet", "out": tmp_path / "new"}
    assert [(t.id, t.sample) for t in read_problems(config(inputs, **changes, n=3))] == [
        ("test-0", 0),
        ("test-1", 0),
        ("test-2", 0),
    ]
    assert len(read_problems(config(inputs, **changes, n=None))) == N
    with pytest.raises(BenchError, match=r"traces of 4 different prompts, expected at least n=5"):
        bench(config(inputs, **changes, n=5))


def test_a_prompt_under_many_ids_is_one_problem(inputs: Path, tmp_path: Path) -> None:
    """Its answer would count as many times as it is there, and prove what one problem cannot."""
    copies = [replace(trace, id=f"{trace.id}-{i}") for i in range(3) for trace in generated_traces(2)]
    write_traces(tmp_path / "traces.parquet", copies)
    found = read_problems(config(inputs, traces=tmp_path / "traces.parquet", n=None))
    assert [trace.id for trace in found] == ["test-0-0", "test-1-0"]
    with pytest.raises(BenchError, match=r"traces of 2 different prompts, expected at least n=3"):
        read_problems(config(inputs, traces=tmp_path / "traces.parquet", n=3))


@pytest.mark.parametrize("which", ["draft", "draft_fc"])
def test_problems_that_a_draft_was_trained_on_are_refused(inputs: Path, tmp_path: Path, which: str) -> None:
    write_random_draft(tmp_path / "draft")
    write_prompts(tmp_path / "draft", [*outlines([generated_traces(N)[2]]).prompts()])
    with pytest.raises(OverlapError, match=r"1 of 4 prompts were trained on according to .*prompts\.npy"):
        bench(config(inputs, out=tmp_path / "new", **{which: tmp_path / "draft"}))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("which", ["draft", "draft_fc"])
def test_problems_that_chose_a_checkpoint_are_refused(inputs: Path, tmp_path: Path, which: str) -> None:
    """As `calibrate` refuses them: of several checkpoints the best on some problems looks better there than it is."""
    write_random_draft(tmp_path / "draft")
    selection = Selection(by="auroc", prompts=tuple(prompt_sha256(trace)[:16] for trace in generated_traces(2)))
    write_policy(tmp_path / "draft", PolicyFile(selection=selection))
    with pytest.raises(OverlapError, match=r"2 of 4 prompts chose the checkpoint of .*draft \(by auroc\)"):
        read_problems(config(inputs, **{which: tmp_path / "draft"}))


def test_the_draft_of_another_target_is_refused(inputs: Path, tmp_path: Path) -> None:
    write_random_draft(tmp_path / "draft", hidden=128)
    with pytest.raises(DraftError, match="target_hidden_size is 128, but target tiny-reasoner has hidden_size 192"):
        bench(config(inputs, draft=tmp_path / "draft", out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_run_is_refused_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    for changes, message in (
        (
            {"methods": ("eagle3", "oracle"), "sampling": {"temperature": 0.6}},
            "oracle replays a recording, and sampled",
        ),
        ({"methods": ("none", "specexit")}, "methods are none, specexit: expected different ones, with eagle3 among"),
        ({"methods": ("eagle3", "specexit-fc")}, "specexit-fc runs on a draft with signals of source fc: draft_fc is"),
        (
            {"methods": ("eagle3", "exits-alone"), "scores": None},
            "exits-alone replays the signals of the traces: scores is missing",
        ),
    ):
        with pytest.raises(InputError, match=message):
            bench(config(inputs, out=tmp_path / "new", **changes))
        assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_left_alone(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(FileExistsError, match="not empty"):
        bench(config(inputs, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


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
