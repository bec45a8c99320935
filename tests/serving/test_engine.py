"""The plug-in in a real vLLM engine, V1 runner (what a CPU runs): what a user relies on."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch

from specexit.drafts.directory import read_config
from specexit.method.decision import exit_position
from specexit.method.signals import NAMES, activate
from tests.marks import SLOW
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures

pytestmark = pytest.mark.vllm

both_sources = pytest.mark.parametrize("source", ["draft", "fc"])


def texts(batch):
    return [request["ids"] for request in batch["requests"]]


def outcomes(batch):
    return [request["outcome"]["outcome"] for request in batch["requests"]]


@both_sources
def test_exits_off_is_plain_eagle3_to_the_byte_and_to_the_accepted_token(engines, source):
    off, plain = engines.main(source)[1], engines.plain()
    assert texts(off) == texts(plain)
    assert off["metrics"] == plain["metrics"]
    assert set(outcomes(off)) == {"off"}


def test_greedy_eagle3_writes_what_plain_decoding_writes(engines):
    assert texts(engines.plain()) == texts(engines.none()[0])
    # Else the comparison would say little: a draft whose tokens are never accepted cannot spoil anything.
    accepted = engines.plain()["metrics"]["num_accepted_tokens"] / engines.plain()["metrics"]["num_drafts"]
    assert accepted > 0.8


@both_sources
def test_the_text_does_not_depend_on_speculation_or_batching(engines, source):
    batch, _, alone, *_ = engines.main(source)
    assert texts(engines.one_token(source)[0]) == texts(batch)
    assert texts(alone) == texts(batch)
    # Else the comparison would say little: there must be exits, and not all in the same place.
    exits = [r["outcome"]["thinking_tokens"] for r in batch["requests"] if r["outcome"]["outcome"] == "exit"]
    assert len(exits) >= 4
    assert len(set(exits)) >= 4


@pytest.mark.parametrize("source", ["draft", pytest.param("fc", marks=SLOW)])
def test_nor_on_chunked_prompts_preemption_and_the_end_of_the_context(engines, source, prompts):
    pressed, batch = engines.pressed(source)[0], engines.main(source)[0]
    assert pressed["metrics"]["num_preemptions"] > 3
    room = [288 - len(prompt) for prompt in prompts]
    limit = [min(280, n) for n in room]
    assert texts(pressed) == [text[:n] for text, n in zip(texts(batch), limit, strict=True)]
    # The draft has read the right token behind each chunk: V1 gives it the last of the prompt, and signals were others.
    both = [(p, b) for p, b in zip(pressed["requests"], batch["requests"], strict=True) if p["finish"] == b["finish"]]
    exits = [(p["outcome"]["signals"], b["outcome"]["signals"]) for p, b in both if b["outcome"]["outcome"] == "exit"]
    assert len(exits) >= 4
    for found, expected in exits:
        assert found == pytest.approx(expected, rel=1e-3)
    # Some request must have met the end of the context, where vLLM stops drafting for the whole batch.
    assert any(len(text) == n < 280 for text, n in zip(texts(pressed), room, strict=True))


@both_sources
def test_behind_an_exit_the_text_is_what_plain_vllm_writes_there(engines, source):
    behind = engines.none()[1 if source == "draft" else 2]
    continuations = [result["ids"][result["outcome"]["thinking_tokens"] + 1 :] for _, result in engines.exited(source)]
    assert len(continuations) >= 4
    assert texts(behind) == continuations


@both_sources
def test_verdicts_are_those_of_the_reference(engines, source, drafts, prompts, target):
    features = TargetFeatures(target, target.aux_layers)
    draft = Draft.load(drafts / source, features.embedding)
    policy, ids = read_config(drafts / source).specexit.policy, target.think_tokens()
    plain = texts(engines.none()[0])
    for prompt, text, request in zip(prompts, plain, engines.main(source)[0]["requests"], strict=True):
        thinking = text[: text.index(ids.end)] if ids.end in text else text
        tokens = torch.tensor([prompt + thinking])
        values = activate(draft(tokens, features(tokens).clone()).raw_signals[0].numpy())[len(prompt) :]
        position = exit_position(thinking, values, policy, ids)
        outcome = request["outcome"]
        assert (outcome["outcome"] == "exit") == (position is not None)
        if position is not None:
            assert request["ids"][: position + 2] == [*thinking[: position + 1], ids.end]
            assert outcome["thinking_tokens"] == position + 1
            if policy.smoothing == "none":
                # Two implementations of six layers in float32; `remaining` is an exponential.
                expected = dict(zip(NAMES, values[position].tolist(), strict=True))
                assert outcome["signals"] == pytest.approx(expected, rel=1e-3)


@both_sources
def test_outcomes_count_the_thinking_that_the_client_sees(engines, source, target):
    end = target.think_tokens().end
    for request in engines.main(source)[0]["requests"]:
        ids, outcome = request["ids"], request["outcome"]
        if outcome["outcome"] == "length":
            assert end not in ids
            assert outcome["thinking_tokens"] == len(ids)
        else:
            assert outcome["thinking_tokens"] == ids.index(end)
        assert set(outcome["signals"]) == set(NAMES)


@both_sources
def test_llms_own_metrics_count_the_outcomes(engines, source):
    for batch in engines.main(source)[:-1]:  # in the last one exits fail, and nothing is reported
        if "requests" in batch:
            assert batch["counted"] == Counter(outcomes(batch))
    assert engines.plain()["counted"] == {}  # no draft of ours: nothing is added to vLLM


@both_sources
def test_requests_have_policies_of_their_own(engines, source, target):
    ids = target.think_tokens()
    requests = dict(zip(engines.special, engines.main(source)[3]["requests"], strict=True))
    plain = texts(engines.none()[0])[0]
    splits = [i for i, token in enumerate(plain) if token in ids.split]
    counts = {name: request["outcome"]["thinking_tokens"] for name, request in requests.items()}
    for name in ("off", "never", "remaining", "shadow"):  # no exponential is at most 0
        assert requests[name]["ids"] == plain
    assert counts["always"] == splits[0] + 1
    assert counts["minimum"] == next(i for i in splits if i + 1 >= 60) + 1
    assert counts["maximum"] == next(i for i in splits if i + 1 >= 50) + 1
    assert counts["splits"] == splits[0] + 1
    assert counts["patience"] == splits[2] + 1
    # Nothing is judged behind a would-be exit, so the last verdict is that of the exit that was not made.
    assert requests["shadow"]["outcome"]["signals"] == pytest.approx(requests["always"]["outcome"]["signals"], rel=1e-3)
    assert requests["short"]["outcome"] | {"signals": {}} == {
        "outcome": "length",
        "thinking_tokens": 12,
        "signals": {},
    }
    # A stop string is found by the front end, when the engine core has not yet finished the request.
    assert requests["stop string"]["outcome"]["outcome"] == "exit"
    assert requests["stop string"]["finish"] == "stop"


@both_sources
def test_logprobs_name_the_forced_token_with_the_models_own_probability(engines, source, prompts, target):
    features, end = TargetFeatures(target, target.aux_layers), target.think_tokens().end
    for prompt, request in zip(prompts, engines.main(source)[5]["requests"], strict=True):
        ids, entries = request["ids"], request["logprobs"]
        assert [str(token) in entry for token, entry in zip(ids, entries, strict=True)] == [True] * len(ids)
        if request["outcome"]["outcome"] == "exit":
            at = ids.index(end)
            with torch.inference_mode():
                state = features.model(input_ids=torch.tensor([prompt + ids[:at]])).last_hidden_state[0, -1]
            expected = (state @ features.embedding.t()).log_softmax(dim=-1)[end].item()
            assert entries[at][str(end)] == pytest.approx(expected, abs=1e-3)  # float32, four layers, two kernels


def test_bad_arguments_are_refused_at_admission(engines):
    errors = engines.main("draft")[4]["errors"]
    assert "specexit_validity is 1.5" in errors[0]
    assert "specexit_patience is 'often'" in errors[1]
    assert "unknown key 'specexit_certainty'" in errors[2]
    assert "specexit_splits has 'Wait', expected some of the draft's: '\\n\\n'" in errors[3]


@both_sources
def test_finished_requests_leave_no_state_behind(engines, source):
    # The scheduler reports a finished request with the next step, so the last request of all still has its row.
    assert engines.main(source)[6]["slots"] == 1


def test_where_the_operator_says_off_there_are_no_exits_for_those_who_ask_either(engines, drafts):
    asks = {"extra_args": {"specexit": True, "specexit_validity": 0.0}}
    extra = {"additional_config": {"specexit": {"mode": "off"}}}
    batches = [engines.batch(n=4), engines.batch(asks, n=4)]
    silent, asked = engines.serve("off", batches, draft=str(drafts / "draft"), k=3, extra=extra)
    for batch in (silent, asked):
        assert texts(batch) == texts(engines.plain())[:4]
        assert set(outcomes(batch)) == {"off"}


@SLOW
def test_a_draft_of_another_target_keeps_the_engine_from_starting(engines, drafts, tmp_path):
    folder = shutil.copytree(drafts / "draft", tmp_path / "other")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"target_num_hidden_layers": 4', '"target_num_hidden_layers": 6'))
    with pytest.raises(AssertionError, match=r"DraftError: .*config.json: target_num_hidden_layers is 6, but target"):
        engines.serve("other-target", [], draft=str(folder))


def test_a_truncated_draft_keeps_the_engine_from_starting(engines, drafts, tmp_path):
    folder = shutil.copytree(drafts / "fc", tmp_path / "truncated")
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(AssertionError, match=r"DraftError: .*model.safetensors: cannot be read as safetensors"):
        engines.serve("truncated", [], draft=str(folder))
