"""The reference `generate` in transformers writes what vLLM writes with the plug-in, exits included."""

from __future__ import annotations

import pytest

from specexit.method.decision import Policy
from torch_specexit import SpecExitDraft

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_the_text_is_vllms_with_its_exits(source, engines, drafts, prompts):
    model = SpecExitDraft.from_pretrained(drafts / source)
    served = engines.main(source)[0]["requests"]
    exits = [i for i, request in enumerate(served) if request["outcome"]["outcome"] == "exit"]
    others = [i for i in range(len(served)) if i not in exits]
    for i in (exits[0], others[0]):
        found = model.generate(prompts[i], max_new_tokens=300, draft_tokens=3)
        assert found.ids == served[i]["ids"]
        assert found.exited == (i in exits)
        assert found.thinking_tokens == served[i]["outcome"]["thinking_tokens"]
        assert sum(found.accepted) > 0.5 * len(found.accepted)  # the draft drafts


def test_without_a_draft_the_text_is_the_same(drafts, prompts):
    model = SpecExitDraft.from_pretrained(drafts / "plain", target="tiny-reasoner")
    drafted = model.generate(prompts[0], max_new_tokens=40)
    alone = model.generate(prompts[0], max_new_tokens=40, draft_tokens=0)
    assert drafted.ids == alone.ids
    assert set(alone.accepted) == {0}
    assert len(drafted.accepted) < len(alone.accepted) == 40


def test_a_transition_text_is_written_at_an_exit_and_no_thinking_of_the_target(drafts, prompts):
    model = SpecExitDraft.from_pretrained(drafts / "draft")
    model.policy = Policy(thresholds={"validity": 0.0})  # at the first boundary
    plain = model.generate(prompts[0], max_new_tokens=80)
    transition = model.tokenizer.encode("I should answer now.", add_special_tokens=False)
    model.closing = [*transition, *model.closing]
    found = model.generate(prompts[0], max_new_tokens=80)
    assert plain.exited
    assert found.exited
    assert found.thinking_tokens == plain.thinking_tokens
    kept = found.thinking_tokens
    assert found.ids[kept : kept + len(model.closing)] == model.closing
