"""`specexit bench` on real vLLM engines, small: what it measures has to hang together."""

import json
from collections import Counter
from pathlib import Path

import pytest

from specexit.bench.process import BenchError, BenchProcess
from specexit.bench.requests import read_requests
from specexit.bench.results import Results, read_results
from specexit.method.policies import METHODS as METHODS_REPLAYED
from specexit.method.simulate import Simulation
from tests.serving.benching import BUDGET, METHODS, N_LATENCY, TARGET, N, config, write_inputs
from torch_specexit.bench.run import bench
from torch_specexit.plugin.worker.checking import SWITCH

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("bench-inputs"))


@pytest.fixture(scope="module")
def results(inputs: Path) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_specexit.bench.turns.WARM_UP_TOKENS", 4)  # how fast engines are is not looked at here
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv(SWITCH, "1")
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
        BenchProcess("none", "torch_specexit.bench.worker", setup, tmp_path / "log") as engine,
        pytest.raises(BenchError, match="nowhere"),
    ):
        engine.wait_ready()
    assert engine.process.returncode != 0
