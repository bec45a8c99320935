"""1,000 exits over runners, schedulers, draft lengths, chunked prompts and preemption: behind each one the text is what
plain vLLM writes from prompt, kept reasoning and ``</think>``. A quarter of an hour; ``make continuation``."""

from __future__ import annotations

import json
import os
import random
from typing import Any, NamedTuple

import pytest

from specexit.tiny import problems, prompt_text
from tests.serving.conftest import ASYNC, ON_A_CPU, V2, serve

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif("SPECEXIT_CONTINUATION" not in os.environ, reason="minutes: make continuation"),
]

EXITS = 1000
CHUNKED = {"max_num_batched_tokens": 64}
PRESSED = {"num_gpu_blocks_override": 20, "max_model_len": 320}
"""Blocks for a few requests at a time: the others are preempted."""


class Setting(NamedTuple):
    """An engine and its share of the requests."""

    name: str
    source: str
    k: int
    requests: int
    environment: dict[str, str]
    extra: dict[str, Any]


SETTINGS = [
    Setting("V1, synchronous", "draft", 3, 320, {}, {}),
    Setting("V1, synchronous, chunked, preempted", "draft", 5, 160, {}, CHUNKED | PRESSED),
    Setting("V1, synchronous, chunked, preempted", "fc", 1, 160, {}, CHUNKED | PRESSED),
    Setting("V1, synchronous", "fc", 5, 320, {}, {}),
    Setting("V1, asynchronous", "draft", 3, 240, ON_A_CPU | ASYNC, {}),
    Setting("V1, asynchronous, chunked, preempted", "fc", 3, 200, ON_A_CPU | ASYNC, CHUNKED | PRESSED),
    Setting("V2, asynchronous", "draft", 3, 60, ON_A_CPU | V2 | ASYNC, {}),
    Setting("V2, asynchronous, chunked, preempted", "draft", 5, 40, ON_A_CPU | V2 | ASYNC, CHUNKED | PRESSED),
    Setting("V2, synchronous", "draft", 1, 40, ON_A_CPU | V2, {}),
    Setting("V2, synchronous, chunked, preempted", "fc", 3, 40, ON_A_CPU | V2, CHUNKED | PRESSED),
]


def wishes(rng: random.Random) -> dict[str, Any]:
    """Policies that exit early, late, and now and then not at all."""
    arguments: dict[str, Any] = {"specexit_validity": rng.choice([0.0, 0.0, 0.3, 0.5, 0.7])}
    others = [{}, {}, {"specexit_patience": 2}, {"specexit_min_thinking_tokens": 40}, {"specexit": False}]
    return arguments | rng.choice([*others, {"specexit_max_thinking_tokens": 30}])


def requests(setting: Setting, questions: list[list[int]], seed: int) -> list[dict[str, Any]]:
    """A mixed batch."""
    rng = random.Random(seed)
    prompts = rng.sample(questions, setting.requests)
    return [{"ids": ids, "params": {"extra_args": wishes(rng), "max_tokens": rng.randint(100, 160)}} for ids in prompts]


def test_a_thousand_exits_go_on_as_plain_vllm_does(shared, drafts, target):
    tokenizer, end = target.tokenizer(), target.think_tokens().end
    questions = [tokenizer.encode(prompt_text(problem.question)) for problem in problems("test", 400)]
    behind, counts = [], {}
    for number, setting in enumerate(SETTINGS):
        sent = requests(setting, questions, number)
        engine = {"draft": str(drafts / setting.source), "k": setting.k, "extra": setting.extra}
        job = {"engine": engine, "batches": [{"requests": sent}]}
        batch = serve(shared / f"continuation-{number}", job, setting.environment)["batches"][0]
        exits = [(r, a) for r, a in zip(sent, batch["requests"], strict=True) if a["outcome"]["outcome"] == "exit"]
        for request, answer in exits:
            kept = answer["outcome"]["thinking_tokens"] + 1
            assert answer["ids"][kept - 1] == end
            behind.append((setting.name, request["ids"] + answer["ids"][:kept], answer["ids"][kept:]))
        preempted = batch["metrics"]["num_preemptions"]
        assert (preempted > 0) == ("preempted" in setting.name)
        label = f"{setting.name}, {setting.source}, {setting.k} tokens"
        counts[label] = {"requests": len(sent), "exits": len(exits), "preemptions": preempted}
        print(label, counts[label], flush=True)
    plain = [{"ids": ids, "params": {"max_tokens": max(len(text), 1)}} for _, ids, text in behind]
    job = {"engine": {}, "batches": [{"requests": plain}]}
    written = serve(shared / "continuation-plain", job)["batches"][0]["requests"]
    wrong = [name for (name, _, text), other in zip(behind, written, strict=True) if text != other["ids"][: len(text)]]
    print(json.dumps({"exits": len(behind), "mismatches": len(wrong)}))
    assert not wrong
    assert len(behind) >= EXITS
