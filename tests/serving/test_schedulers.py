"""Both runners under both schedulers, and two ranks: the text, the outcomes and the signals are the same in all.

V1 without and V2 with asynchronous scheduling have files of their own; here are the other two, and a model that is
split over two processes. About 25 seconds for each engine.
"""

from __future__ import annotations

import pytest

from tests.marks import SLOW

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

either_source = pytest.mark.parametrize("source", ["draft", pytest.param("fc", marks=SLOW)])


def assert_same(batch, reference):
    """What two engines did with the same requests; some of them must have exited."""
    expected = reference["requests"][: len(batch["requests"])]
    for ours, theirs in zip(batch["requests"], expected, strict=True):
        assert ours["ids"] == theirs["ids"]
        assert ours["outcome"]["outcome"] == theirs["outcome"]["outcome"]
        assert ours["outcome"]["thinking_tokens"] == theirs["outcome"]["thinking_tokens"]
        # Two runners or a split sum, another order of summation in float32; `remaining` is an exponential.
        assert ours["outcome"]["signals"] == pytest.approx(theirs["outcome"]["signals"], rel=1e-3)
    assert sum(request["outcome"]["outcome"] == "exit" for request in expected) >= 2


@either_source
def test_v1_with_asynchronous_scheduling(engines, source):
    run = engines.v1_async(source)
    assert "vllm.v1.worker.gpu_model_runner.GPUModelRunner" in run["runner"]
    assert run["scheduler"] == "AsyncScheduler"
    assert run["log"] == []
    lively, off, _ = run["batches"]
    assert_same(lively, engines.main(source)[5])
    assert [r["ids"] for r in off["requests"]] == [r["ids"][:30] for r in engines.plain()["requests"]]


@SLOW
@pytest.mark.parametrize("source", ["draft", "fc"])
def test_v2_without_asynchronous_scheduling(engines, source):
    run = engines.v2_sync(source)
    assert "vllm.v1.worker.gpu.model_runner.GPUModelRunner" in run["runner"]
    assert run["scheduler"] == "Scheduler"
    assert run["log"] == []
    assert_same(run["batches"][0], engines.main(source)[5])


@either_source
def test_tensor_parallel(engines, source):
    run = engines.two_ranks(source)
    lively, off, perturbed, last, failed = run["batches"]
    assert_same(lively, engines.main(source)[5])
    assert [r["ids"] for r in off["requests"]] == [r["ids"][:30] for r in engines.plain()["requests"]]
    assert last["slots"] == 1  # on either rank
    assert all(steps > 0 for steps in last["checked"])
    # The second rank reads other signals; the first one's count, so the ranks write one text, and the same.
    assert [r["ids"] for r in perturbed["requests"]] == [r["ids"] for r in lively["requests"]]
    # Exits fail on the second rank alone, and end on both.
    assert [r["ids"] for r in failed["requests"]] == [r["ids"][:80] for r in engines.plain()["requests"][:4]]
    assert [status["active"] for status in failed["status"]] == [False, False]
    assert set(failed["inactive"]) == {"has failed on another rank"}


@either_source
def test_dropped_steps_change_no_text(engines, source):
    """All that runs is put back to where its tokens are, again and again; under asynchronous scheduling what is in
    flight then is dropped. In checking mode, as all engines here; and prompts are looked through where vLLM keeps them,
    while that mode, and those that come back, read them from their lists."""
    run = engines.v1_async(source)
    lively, _, reset = run["batches"]
    assert reset["metrics"]["num_preemptions"] > 10
    assert [r["ids"] for r in reset["requests"]] == [r["ids"] for r in lively["requests"][:8]]
    assert sum(r["outcome"]["outcome"] == "exit" for r in reset["requests"]) >= 2
