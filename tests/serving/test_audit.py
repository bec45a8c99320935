"""A server that audits every request: what its clients get, and whether its numbers are true. A minute or two."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from specexit.data.answers import extract_answer, same_answer
from specexit.method.statistics import binomial_interval
from specexit.tiny import problems, prompt_text

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

OWN: dict[str, bool] = {}
"""Requests under the server's own policy: others are not audited."""
OFF = {"specexit": False}


@pytest.fixture(scope="module")
def auditing(start_server, drafts):
    settings = {"specexit": {"audit_rate": 1.0}}
    with start_server("auditing", drafts / "draft", "--additional-config", json.dumps(settings)) as server:
        yield server


def complete(server, prompt, arguments, max_tokens=300):
    body = {"model": "tiny", "prompt": prompt, "temperature": 0.0, "max_tokens": max_tokens, "return_token_ids": True}
    response = server.post("/v1/completions", body | {"vllm_xargs": arguments})
    return response["choices"][0], response["kv_transfer_params"]["specexit"]


def settled(server):
    """The server's state once no audit is waiting."""
    for _ in range(600):
        state = json.loads(server.get("/v1/specexit"))
        if not state["audit"]["waiting"]:
            return state
        time.sleep(0.1)
    raise AssertionError("audits still wait after a minute")


def expected_result(server, target, choice, report):
    """What the audit of a request must come to, asked over HTTP."""
    end = target.think_tokens().end
    ids = choice["token_ids"]
    if end not in ids:
        return "no_answer"
    full = extract_answer(choice["text"].partition("</think>")[2])
    if full is None:
        return "no_answer"
    kept = report["would_exit"]
    early, _ = complete(server, [*choice["prompt_token_ids"], *ids[:kept], end], OFF, 300 - kept - 1)
    return "same" if same_answer(full, extract_answer(early["text"])) else "changed"


def test_audits_come_to_what_a_client_can_find_out_and_nobody_is_cut(auditing, target):
    server, expected = auditing, Counter()
    for problem in problems("test", 8):
        prompt = prompt_text(problem.question)
        choice, report = complete(server, prompt, OWN)
        plain, _ = complete(server, prompt, OFF)
        assert choice["text"] == plain["text"]
        assert report["outcome"] in ("natural_end", "length")
        if "would_exit" in report:
            assert 0 < report["would_exit"] <= report["thinking_tokens"]
            expected[expected_result(server, target, choice, report)] += 1
    assert expected["same"] + expected["changed"] >= 3  # else this would show little
    audit = settled(server)["audit"]
    assert {name: audit[name] for name in ("changed", "no_answer", "failed", "skipped")} == {
        name: expected[name] for name in ("changed", "no_answer", "failed", "skipped")
    }
    assert audit["audited"] == expected["same"] + expected["changed"]
    assert audit["interval"] == list(binomial_interval(audit["changed"], audit["audited"]))


def test_metrics_have_the_audits_and_not_their_requests(auditing):
    state, metrics = settled(auditing), auditing.metrics()
    audit = state["audit"]
    assert metrics["audits_total changed"] == audit["changed"]
    assert metrics["audits_total same"] == audit["audited"] - audit["changed"]
    assert metrics["shadow_exits_total"] == audit["audited"] + audit["no_answer"]
    assert metrics["requests_total exit"] == 0
    told = sum(metrics[f"requests_total {outcome}"] for outcome in ("natural_end", "length", "off"))
    assert told == sum(state["requests"].values()) == 16 + audit["audited"]  # two for each problem, one for each audit
