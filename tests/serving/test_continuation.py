"""1,500 exits over runners, schedulers, draft lengths, chunked prompts, preemption, dropped steps, resets, a transition
text, and prompts that another engine has read: behind each exit the text is what plain vLLM writes from prompt, kept
reasoning and what closes it. ``make continuation``; the first ten settings take eleven minutes."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from specexit.tiny import problems, prompt_text
from tests.serving.conftest import ANY_RUNNER, ASYNC, ON_A_CPU, V2, serve

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif("SPECEXIT_CONTINUATION" not in os.environ, reason="minutes: make continuation"),
]

EXITS = 1500
CHUNKED = {"max_num_batched_tokens": 64}
PRESSED = {"num_gpu_blocks_override": 20, "max_model_len": 320}
"""Blocks for a few requests at a time: the others are preempted."""
TRANSITION = {"SPECEXIT_SERVING": json.dumps({"transition": "I should answer now."})}
DROPPED, RESET = {"delivers": True}, {"resets": 11}
"""Of a batch: what is in flight is dropped where a request is preempted; all requests are put back every 11 steps."""


class Setting(NamedTuple):
    """An engine and its share of the requests."""

    name: str
    source: str
    k: int
    requests: int
    environment: dict[str, str]
    extra: dict[str, Any]
    batch: dict[str, Any] | None = None


SETTINGS = [
    Setting("V1, synchronous", "draft", 3, 380, {}, {}),
    Setting("V1, synchronous, chunked, preempted", "draft", 5, 160, {}, CHUNKED | PRESSED),
    Setting("V1, synchronous, chunked, preempted", "fc", 1, 160, {}, CHUNKED | PRESSED),
    Setting("V1, synchronous", "fc", 5, 380, {}, {}),
    Setting("V1, asynchronous", "draft", 3, 300, ON_A_CPU | ASYNC, {}),
    Setting("V1, asynchronous, chunked, preempted", "fc", 3, 240, ON_A_CPU | ASYNC, CHUNKED | PRESSED),
    Setting("V2, asynchronous", "draft", 3, 60, ON_A_CPU | V2 | ASYNC, {}),
    Setting("V2, asynchronous, chunked, preempted", "draft", 5, 40, ON_A_CPU | V2 | ASYNC, CHUNKED | PRESSED),
    Setting("V2, synchronous", "draft", 1, 40, ON_A_CPU | V2, {}),
    Setting("V2, synchronous, chunked, preempted", "fc", 3, 40, ON_A_CPU | V2, CHUNKED | PRESSED),
    Setting("V1, asynchronous, preempted, dropped", "draft", 3, 160, ON_A_CPU | ASYNC, PRESSED, DROPPED),
    Setting("V1, asynchronous, reset", "fc", 3, 120, ON_A_CPU | ASYNC, {}, RESET),
    Setting("V2, asynchronous, preempted, dropped", "draft", 3, 30, ON_A_CPU | V2 | ASYNC, PRESSED, DROPPED),
    Setting("V2, asynchronous, reset", "draft", 3, 30, ON_A_CPU | V2 | ASYNC, {}, RESET),
    Setting("V1, synchronous, transition", "draft", 3, 160, TRANSITION, {}),
    Setting("V2, asynchronous, transition", "draft", 3, 30, ON_A_CPU | V2 | ASYNC | TRANSITION, {}),
    Setting("V1, synchronous, handed over", "draft", 3, 160, {}, {}),
    Setting("V2, synchronous, handed over", "draft", 3, 30, ON_A_CPU | V2, {}),
    Setting("V2, asynchronous, handed over", "fc", 3, 30, ON_A_CPU | V2 | ASYNC, {}),
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


def with_prompts_of_another(folder: Path, setting: Setting, engine: dict[str, Any], sent: list[dict]) -> dict[str, Any]:
    """The engine of a setting, which takes the prompts' KV from an engine that has read them and written one token."""
    (folder / "kv").mkdir(parents=True)
    connector = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    connector["kv_connector_extra_config"] = {"shared_storage_path": str(folder / "kv")}
    engine = engine | {"extra": setting.extra | {"kv_transfer_config": connector}}
    prompts = [request | {"params": request["params"] | {"max_tokens": 1}} for request in sent]
    serve(folder / "prefill", {"engine": engine, "batches": [{"requests": prompts}]}, setting.environment)
    # The connector keeps whole blocks of what stands in front of the last two tokens, once where prompts begin alike.
    kept = {tuple(request["ids"][: (len(request["ids"]) - 2) // 32 * 32]) for request in sent}
    assert len(list((folder / "kv").iterdir())) == len(kept)
    return engine


settings = pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.name}, {s.source}, {s.k} tokens")
COUNTS: dict[str, dict[str, int]] = {}


@settings
def test_behind_each_exit_the_text_is_what_plain_vllm_writes_there(shared, drafts, target, setting):
    tokenizer, end = target.tokenizer(), target.think_tokens().end
    questions = [tokenizer.encode(prompt_text(problem.question)) for problem in problems("test", 400)]
    number = SETTINGS.index(setting)
    sent = requests(setting, questions, number)
    engine = {"draft": str(drafts / setting.source), "k": setting.k, "extra": setting.extra}
    if "handed over" in setting.name:
        engine = with_prompts_of_another(shared / f"handed-over-{number}", setting, engine, sent)
    job = {"engine": engine, "batches": [{"requests": sent} | (setting.batch or {})]}
    batch = serve(shared / f"continuation-{number}", job, setting.environment)["batches"][0]
    preempted = batch["metrics"]["num_preemptions"]
    assert (preempted > 0) == ("preempted" in setting.name or "reset" in setting.name)
    exits = [(r, a) for r, a in zip(sent, batch["requests"], strict=True) if a["outcome"]["outcome"] == "exit"]
    behind = []
    for request, answer in exits:
        kept = answer["outcome"]["thinking_tokens"] + answer["outcome"].get("transition_tokens", 0) + 1
        assert answer["ids"][kept - 1] == end
        behind.append((request["ids"] + answer["ids"][:kept], answer["ids"][kept:]))
    plain = [{"ids": ids, "params": {"max_tokens": max(len(text), 1)}} for ids, text in behind]
    job = {"engine": {}, "batches": [{"requests": plain}]}
    written = serve(shared / f"continuation-plain-{number}", job, ANY_RUNNER)["batches"][0]["requests"]
    wrong = sum(text != other["ids"][: len(text)] for (_, text), other in zip(behind, written, strict=True))
    label = f"{setting.name}, {setting.source}, {setting.k} tokens"
    COUNTS[label] = {"requests": len(sent), "exits": len(exits), "preemptions": preempted, "mismatches": wrong}
    print(label, COUNTS[label], flush=True)
    assert exits
    assert not wrong


def test_there_were_enough_exits():
    if len(COUNTS) < len(SETTINGS):
        pytest.skip("a part of the settings was run")
    total = {name: sum(count[name] for count in COUNTS.values()) for name in next(iter(COUNTS.values()))}
    print(json.dumps(total))
    assert total["exits"] >= EXITS
