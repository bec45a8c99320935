"""What is written at an exit where that is more than one token: a transition text, an end marker of several tokens; and
thinking that goes in circles, which ends so as well. On both runners, exact to the byte, and inside speculation."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from specexit.method.loops import LoopGuard, loop_position
from tests.serving.conftest import ASYNC, ON_A_CPU, V2, serve

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MARKER, TRANSITION = "</think>\n\n", "I should answer now."
GUARD = LoopGuard(period=6, repeats=3)
MARGIN = 3
SERVING = {
    "transition": TRANSITION,
    "loop_period": GUARD.period,
    "loop_repeats": GUARD.repeats,
    "thinking_margin": MARGIN,
    "requests": "any",
}
SETTINGS = {"SPECEXIT_SERVING": json.dumps(SERVING)}
EXITS = {"extra_args": {"specexit_validity": 0.0, "specexit_patience": 2}, "max_tokens": 80}
NEVER = {"extra_args": {"specexit_validity": 1.0}}
CIRCLES = NEVER | {"max_tokens": 40}
"""With one token that it may draw, a model can only go in circles; see `tests.serving.serve.forbid_nothing`."""
MOST = 5
CAPPED = {"extra_args": NEVER["extra_args"] | {"specexit_max_thinking_tokens": MOST}, "max_tokens": 40}
"""The same ends sooner, where there is no boundary: with the margin."""


@pytest.fixture(scope="module")
def draft(drafts: Path, shared: Path) -> Path:
    """The draft of a target whose answers begin behind two tokens."""
    folder = shared / "draft-with-a-long-marker"
    if not folder.exists():
        shutil.copytree(drafts / "draft", folder)
        config = json.loads((folder / "config.json").read_text())
        config["specexit"]["think_end"] = MARKER
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def answers(draft: Path, shared: Path, prompts: list[list[int]], target) -> dict[str, list[dict[str, Any]]]:
    """Of V1 and V2: four requests that exit, one that goes in circles, and one that does and has a maximum; of V1 two
    that end by themselves."""
    exits = [{"ids": ids, "params": EXITS} for ids in prompts[:4]]
    (only,) = target.tokenizer().encode("7")
    circles = [{"ids": prompts[0], "params": kind | {"allowed_token_ids": [only]}} for kind in (CIRCLES, CAPPED)]
    natural = [{"ids": ids, "params": NEVER} for ids in prompts[:2]]
    engine = {"draft": str(draft), "k": 3}
    job = {"engine": engine, "batches": [{"requests": exits + circles + natural, "before": "forbid_nothing"}]}
    v1 = serve(shared / "closing-v1", job, SETTINGS)
    job = {"engine": engine, "batches": [{"requests": exits + circles, "before": "forbid_nothing"}]}
    v2 = serve(shared / "closing-v2", job, ON_A_CPU | V2 | ASYNC | SETTINGS)
    assert "vllm.v1.worker.gpu_model_runner.GPUModelRunner" in v1["runner"]
    assert "vllm.v1.worker.gpu.model_runner.GPUModelRunner" in v2["runner"]
    assert v2["scheduler"] == "AsyncScheduler"
    found = {"V1": v1["batches"][0]["requests"], "V2": v2["batches"][0]["requests"]}
    loops = {f"{runner} in circles": answers[4] for runner, answers in found.items()}
    capped = {f"{runner} capped": answers[5] for runner, answers in found.items()}
    return {"V1": found["V1"][:4], "V2": found["V2"][:4], "natural": found["V1"][6:]} | loops | capped


@pytest.fixture(scope="module")
def closing(target) -> list[int]:
    tokenizer = target.tokenizer()
    tokens = [*tokenizer.encode(TRANSITION), *tokenizer.encode(MARKER)]
    assert len(tokenizer.encode(MARKER)) == 2
    return tokens


def end_of(answer) -> int:
    """Where a text goes on behind its marker of two tokens."""
    return answer["outcome"]["thinking_tokens"] + answer["outcome"]["transition_tokens"] + 2


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_transition_and_marker_are_written_once_token_by_token(answers, closing, runner, target):
    for answer in answers[runner]:
        assert answer["outcome"]["outcome"] == "exit"
        kept, end = answer["outcome"]["thinking_tokens"], end_of(answer)
        assert answer["ids"][kept:end] == closing
        assert target.tokenizer().decode(answer["ids"]).count(TRANSITION + MARKER) == 1


def test_both_runners_write_the_same(answers):
    assert [answer["ids"] for answer in answers["V2"]] == [answer["ids"] for answer in answers["V1"]]


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_thinking_that_goes_in_circles_is_ended_where_the_definition_says(answers, closing, runner):
    answer = answers[f"{runner} in circles"]
    circle = answer["ids"][:1] * 40
    at = loop_position(circle, GUARD)
    assert at is not None
    assert answer["ids"][: at + 1 + len(closing)] == circle[: at + 1] + closing
    assert answer["outcome"]["outcome"] == "loop"
    assert answer["outcome"]["thinking_tokens"] == at + 1
    assert answer["outcome"]["transition_tokens"] == len(closing) - 2


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_where_the_margin_is_used_up_thinking_ends_at_any_token(answers, closing, runner):
    answer = answers[f"{runner} capped"]
    kept = MOST + MARGIN
    assert answer["ids"][: kept + len(closing)] == answer["ids"][:1] * kept + closing
    assert (answer["outcome"]["outcome"], answer["outcome"]["thinking_tokens"]) == ("cap", kept)


def test_the_model_goes_on_as_it_does_behind_that_text(answers, prompts, shared):
    """Plain vLLM, asked to go on from prompt, kept thinking, transition and marker."""
    ends = [end_of(answer) for answer in answers["V1"]]
    behind = [answer["ids"][end:] for answer, end in zip(answers["V1"], ends, strict=True)]
    asked = [
        {"ids": prompt + answer["ids"][:end], "params": {"max_tokens": len(text)}}
        for prompt, answer, end, text in zip(prompts, answers["V1"], ends, behind, strict=False)
    ]
    job = {"engine": {}, "batches": [{"requests": asked}]}
    written = serve(shared / "closing-plain", job)["batches"][0]["requests"]
    assert [other["ids"] for other in written] == behind


def test_a_marker_that_the_model_writes_itself_is_heard(answers, target):
    marker = tuple(target.tokenizer().encode(MARKER))
    for answer in answers["natural"]:
        place = list(pairwise(answer["ids"])).index(marker)
        assert answer["outcome"]["outcome"] == "natural_end"
        assert answer["outcome"]["thinking_tokens"] == place
        assert "transition_tokens" not in answer["outcome"]
