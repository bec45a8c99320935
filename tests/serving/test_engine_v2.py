"""The plug-in with vLLM's V2 runner and asynchronous scheduling, which is what a GPU runs.

Here it runs on a CPU with Triton's interpreter (see ``interpreter/sitecustomize.py``): the real code, few tokens.
"""

from __future__ import annotations

import pytest

from tests.marks import SLOW
from torch_specexit.engine import has_v1_runner

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

either_source = pytest.mark.parametrize("source", ["draft", pytest.param("fc", marks=SLOW)])


def texts(batch):
    return [request["ids"] for request in batch["requests"]]


@either_source
def test_it_is_the_v2_runner_and_asynchronous(engines, source):
    run = engines.v2(source)
    assert "vllm.v1.worker.gpu.model_runner.GPUModelRunner" in run["runner"]
    assert run["scheduler"] == "AsyncScheduler"


@pytest.mark.skipif(not has_v1_runner(), reason="this vLLM has the V2 runner alone")
@either_source
def test_the_text_is_that_of_v1(engines, source):
    lively = engines.v2(source)["batches"][1]
    expected = engines.main(source)[5]["requests"][: len(lively["requests"])]
    assert [(r["ids"], r["outcome"]["outcome"]) for r in lively["requests"]] == [
        (r["ids"], r["outcome"]["outcome"]) for r in expected
    ]
    for ours, theirs in zip(lively["requests"], expected, strict=True):
        for entry, other in zip(ours["logprobs"], theirs["logprobs"], strict=True):
            assert entry == pytest.approx(other, abs=1e-3)  # float32 again, behind a softmax
        assert ours["outcome"]["thinking_tokens"] == theirs["outcome"]["thinking_tokens"]
        # Two runners, two orders of summation in float32; `remaining` is an exponential.
        assert ours["outcome"]["signals"] == pytest.approx(theirs["outcome"]["signals"], rel=1e-3)
    assert sum(r["outcome"]["outcome"] == "exit" for r in lively["requests"]) >= 3
    assert lively["metrics"]["num_preemptions"] > 0


@either_source
def test_exits_off_is_plain_eagle3_to_the_byte_and_to_the_accepted_token(engines, source):
    off, plain = engines.v2(source)["batches"][0], engines.v2("plain")["batches"][0]
    assert texts(off) == texts(plain)
    assert off["metrics"] == plain["metrics"]


@either_source
def test_prompts_that_are_looked_through_on_the_device_are_read_the_same(engines, source):
    """In checking mode, which reads them from their list."""
    _, lively, looked_through = engines.v2(source)["batches"]
    assert texts(looked_through) == [ids[:24] for ids in texts(lively)[:2]]
    assert all(r["outcome"]["thinking_tokens"] > 0 for r in looked_through["requests"])


@either_source
def test_finished_requests_leave_no_state_behind(engines, source):
    # Those that have finished in the last step are reported with the next one.
    assert engines.v2(source)["batches"][2]["slots"] <= 2
