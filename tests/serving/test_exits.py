"""What surrounds the rule in a worker: who is admitted, what comes back, what failing means. No engine."""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from specexit.config import ConfigError
from specexit.drafts.directory import Serving, SpecExitBlock
from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from tests.serving.simulation import CPU, END, IDS, START, given_step
from tests.serving.stand_ins import stand_in
from tests.serving.worker import Draft, alone, boundary_and_more, new, ready, runner, scheduled, text_of  # noqa: F401, a fixture for all
from torch_specexit.plugin import outcome
from torch_specexit.plugin.compat import wraps
from torch_specexit.plugin.worker import exits as module
from torch_specexit.plugin.worker import runner_v1, runner_v2
from torch_specexit.plugin.worker.checking import CheckError
from torch_specexit.plugin.worker.exits import Exits
from torch_specexit.plugin.worker.forbidden import forbids
from torch_specexit.plugin.worker.model import WithSignals
from torch_specexit.plugin.worker.protocols import (
    BufferV1,
    InputBatchV1,
    InputBatchV2,
    ProposerV1,
    RequestStateV2,
    RequestV1,
    RunnerV1,
    RunnerV2,
    SamplerOutput,
    SpecDecodeMetadata,
)
from torch_specexit.plugin.worker.slots import Slots
from torch_specexit.plugin.worker.weights import Weights

pytestmark = pytest.mark.vllm


def test_a_request_exits_and_its_row_is_given_back():
    exits = ready()
    exits.track(scheduled(new("a")))
    assert text_of(exits, *boundary_and_more()) == [[2], [END]]
    exits.track(scheduled(finished=["a"]))
    assert len(exits.slots) == 0


@pytest.mark.parametrize(
    ("margin", "expected"), [(2, [5, 5, 5, 5, 5, END, 5]), (0, [5, 5, 5, END, 5, 5, 5]), (None, [5] * 7)]
)
def test_where_the_operators_margin_is_used_up_thinking_ends_at_any_token(margin, expected):
    draft: Any = Draft()
    policy = Policy(thresholds={"validity": 1.0}, max_thinking_tokens=3)
    draft.block, draft.serving = (
        SpecExitBlock(source="draft", target="t", policy=policy),
        Serving(thinking_margin=margin),
    )
    exits = Exits(draft, runner())
    exits.prepare(given_step(["x"], [[5]]).none())
    exits.track(scheduled(new("a")))
    text = text_of(exits, *(given_step(["a"], [[5]], at=[at]) for at in range(7)))
    assert [token for (token,) in text] == expected


def behind_an_interrupt(serving, given):
    """The text of a request whose client waits for a boundary, behind its second token, where none comes."""
    draft: Any = Draft()
    policy = Policy(thresholds={"validity": 1.0}, max_thinking_tokens=3)
    draft.block, draft.serving = SpecExitBlock(source="draft", target="t", policy=policy), serving
    exits = Exits(draft, runner())
    exits.prepare(given_step(["x"], [[5]]).none())
    exits.track(scheduled(new("a", extra_args=given)))
    text = text_of(exits, *(given_step(["a"], [[5]], at=[at]) for at in range(2)))
    exits.slots.interrupt("a", now=False)
    text += text_of(exits, *(given_step(["a"], [[5]], at=[at]) for at in range(2, 7)))
    return [token for (token,) in text]


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [
        ("exit", {}, [5, 5, 5, 5, 5, END, 5]),
        ("exit", {"specexit_max_thinking_tokens": 4}, [5, 5, 5, 5, 5, 5, END]),
        ("exit", {"specexit": False}, [5] * 7),
        ("shadow", {}, [5] * 7),
    ],
)
def test_a_client_that_waits_for_a_boundary_leaves_the_operators_margin_in_force(mode, given, expected):
    """Where no boundary came behind its interrupt, thinking went on for ever."""
    assert behind_an_interrupt(Serving(mode=mode, thinking_margin=2), given) == expected


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [("exit", {}, [5, 5, END, 5, 5, 5, 5]), ("exit", {"specexit": False}, [5] * 7), ("shadow", {}, [5] * 7)],
)
def test_a_client_that_waits_for_a_boundary_waits_in_a_loop_that_ends_nothing(mode, given, expected):
    """In shadow mode, and with exits off, the guard against loops ended its thinking in mid-sentence."""
    assert behind_an_interrupt(Serving(mode=mode, loop_period=1, loop_repeats=2), given) == expected


def test_a_client_that_waits_for_a_boundary_waits_where_an_update_of_the_weights_has_ended_its_requests_exits():
    """It thinks past the margin, which is not in force: the interrupt ended it at the next token, mid-sentence."""
    draft: Any = Draft()
    policy = Policy(thresholds={"validity": 1.0}, max_thinking_tokens=3)
    draft.block = SpecExitBlock(source="draft", target="t", policy=policy)
    draft.serving = Serving(thinking_margin=2)
    exits = Exits(draft, runner())
    exits.prepare(given_step(["x"], [[5]]).none())
    exits.track(scheduled(new("a")))
    draft.weights.lose("an update is under way")
    text = text_of(exits, given_step(["a"], [[5]]))
    for name in ("a", "b"):
        draft.weights.arrived(name)
    text += text_of(exits, *(given_step(["a"], [[5]], at=[at]) for at in range(1, 7)))
    exits.slots.interrupt("a", now=False)
    text += text_of(exits, *(given_step(["a"], [[token]], at=[7 + at]) for at, token in enumerate([5, 2, 5])))
    assert [token for (token,) in text] == [5] * 8 + [2, END]


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_a_dummy_run_leaves_exits_on(source):
    """The V2 runner of an idle data-parallel rank makes them; with source fc the first one switched exits off."""
    draft: Any = Draft()
    draft.block = SpecExitBlock(source=source, target="t", policy=Policy(thresholds={}))
    of_target = SimpleNamespace(signal_weight=torch.zeros(len(NAMES), 6))
    draft.signals_of_target = partial(WithSignals.signals_of_target, of_target)
    exits = Exits(draft, runner())
    exits.prepare(given_step(["x"], [[5]]).none())
    exits.settle()
    assert exits.failure is None


def test_graphs_of_whole_draft_passes_would_leave_no_signals_and_are_refused(monkeypatch):
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    exits = ready()
    assert exits.failure is not None
    assert exits.failure.startswith("VLLM_USE_BREAKABLE_CUDAGRAPH is on, expected off")


@pytest.mark.parametrize(
    ("structured", "asks", "exits_at_all"),
    [
        ({}, True, True),  # the grammar binds behind the thinking
        ({"reasoning_parser": ""}, True, False),
        ({"enable_in_reasoning": True}, True, False),
        ({"reasoning_parser": ""}, False, True),
    ],
)
def test_a_grammar_that_binds_from_the_first_token_on_rules_exits_out(structured, asks, exits_at_all):
    """A forced end marker would end such a request in an error."""
    exits = ready(**structured)
    exits.track(scheduled(new("a", structured_outputs=object() if asks else None)))
    assert text_of(exits, *boundary_and_more()) == [[2], [END if exits_at_all else 5]]
    if not exits_at_all:
        assert exits.slots.admissions["a"].policy is None


@pytest.mark.parametrize(
    ("params", "exits_at_all"),
    [
        ({"bad_words_token_ids": [[7], [END]]}, False),
        ({"bad_words_token_ids": [[7, END]]}, False),  # 7 may come before it
        ({"bad_words_token_ids": [[END, 7]]}, True),
        ({"bad_words_token_ids": None}, True),
        ({"allowed_token_ids": [2, 5]}, False),
        ({"allowed_token_ids": [2, 5, END]}, True),
        ({"min_tokens": 9, "all_stop_token_ids": {END, 3}}, False),  # vLLM itself draws none of these before
        ({"min_tokens": 0, "all_stop_token_ids": {END, 3}}, True),
        ({"min_tokens": 9, "all_stop_token_ids": {3}}, True),
    ],
)
def test_an_exit_writes_nothing_that_its_client_has_forbidden(params, exits_at_all):
    """Who says `bad_words: ["</think>"]` wants more thinking, and got less."""
    exits = ready()
    exits.track(scheduled(new("a", **params)))
    assert text_of(exits, *boundary_and_more()) == [[2], [END if exits_at_all else 5]]


@pytest.mark.parametrize(
    ("written", "budget", "v2", "exits_at_all"),
    [
        ([2, 7, END], 100, False, False),
        ([2, 7, END], None, False, True),
        ([2, 7, END], 100, True, True),  # V2 looks at what stands there
        ([END, 2], 100, False, True),
        (None, 100, False, True),
    ],
)
def test_an_exit_does_not_cut_into_the_text_that_vllm_writes_where_a_thinking_budget_is_used_up(
    written, budget, v2, exits_at_all
):
    """Behind the marker of the exit stood the rest of that text, and the marker again."""
    of_runner = runner()
    of_runner.vllm_config.reasoning_config = SimpleNamespace(reasoning_end_token_ids=written)
    of_runner.vllm_config.use_v2_model_runner = v2
    exits = Exits(cast(Any, Draft()), of_runner)
    exits.prepare(given_step(["x"], [[5]]).none())
    exits.track(scheduled(new("a", thinking_token_budget=budget)))
    assert text_of(exits, *boundary_and_more()) == [[2], [END if exits_at_all else 5]]
    assert ("a" in exits.requests.owners) == exits_at_all  # nor does an interrupt


def test_a_forbidden_word_is_looked_for_in_all_that_an_exit_writes():
    """Here a transition text of two tokens, and the end marker."""
    forbidden = {(8,): True, (7, 8): True, (6, 7): True, (8, 7): True, (8, END): True, (5, 7, 8, END): True}
    forbidden |= {(7, 6): False, (7, END): False, (6, 8): False, (END, 5): False}
    for word, expected in forbidden.items():
        params = SimpleNamespace(bad_words_token_ids=[list(word)])
        assert forbids(params, (7, 8, END)) == expected, word


@pytest.mark.parametrize("v2", [True, False])
def test_a_request_that_comes_back_goes_on_and_one_whose_prompt_is_continued_begins_anew(v2):
    exits = ready()
    exits.track(scheduled(new("a")))
    text_of(exits, given_step(["a"], [[2]]))
    back = scheduled(new("a", prefill=[START, 2])) if v2 else scheduled(resumed={"a": [START, 2]})
    exits.track(back)
    assert text_of(exits, given_step(["a"], [[5]], at=[1])) == [[END]]
    continued = [START, 2, END, 5, START, 7]
    exits.track(scheduled(new("a", continued, prefill=continued if v2 else None)))
    assert text_of(exits, given_step(["a"], [[2]], at=[5]), given_step(["a"], [[5]], at=[6])) == [[2], [END]]


def test_a_step_that_fails_leaves_plain_eagle3_and_says_so_once(caplog):
    exits, output = ready(), SimpleNamespace()
    exits.track(scheduled(new("a")))

    def fails(*_args: Any) -> None:
        raise RuntimeError("no such kernel")

    vars(exits.rule)["step"] = fails
    with caplog.at_level(logging.ERROR, "vllm.specexit"):
        assert text_of(exits, *boundary_and_more()) == [[2], [5]]
    exits.close(output)
    assert vars(output) == {outcome.INACTIVE_KEY: exits.failure}
    assert "no such kernel" in str(exits.failure)
    assert sum("specexit is inactive" in record.getMessage() for record in caplog.records) == 1
    exits.track(scheduled())
    assert exits.status() == {"active": False, "reason": exits.failure, "requests": 0}


def test_a_rule_that_cannot_be_made_ready_leaves_plain_eagle3(monkeypatch):
    def fails(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("does not compile")

    monkeypatch.setattr(module, "Twin", fails)
    exits = ready()
    assert "does not compile" in str(exits.failure)
    exits.track(scheduled(new("a")))
    assert text_of(exits, *boundary_and_more()) == [[2], [5]]


def test_a_rule_that_cannot_be_made_ready_keeps_a_server_from_starting_that_must_have_exits(monkeypatch):
    def fails(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("does not compile")

    monkeypatch.setattr(module, "Twin", fails)
    draft: Any = Draft()
    draft.serving = Serving(required=True)
    served = runner()
    served.drafter = stand_in(ProposerV1, model=draft)
    wrapped = wraps.get_kv_cache_spec(lambda _: given_step(["x"], [[5]]).none())(lambda self: "spec")
    with pytest.raises(ConfigError, match=r"specexit.required is true, .*: could not be made ready: .*not compile"):
        wrapped(served)
    plain = runner()
    plain.drafter = stand_in(ProposerV1, model=Draft())
    assert wrapped(plain) == "spec"
    assert plain._specexit.failure is not None


@pytest.mark.parametrize("required", [False, True])
def test_a_draft_that_vllm_has_not_loaded_is_called_so_and_exits_begin_behind_all_of_its_tensors(required):
    """With load_format ipc_cache or dummy exits were called active, and then off because of another rank's weights."""
    draft: Any = Draft()
    draft.weights, draft.serving = Weights(["a", "b", "d2t"]), Serving(required=required)
    exits, empty = Exits(draft, runner()), given_step(["x"], [[5]]).none()
    if required:
        with pytest.raises(ConfigError, match=r"specexit\.required is true, .*vLLM has not loaded the draft's tensors"):
            exits.prepare(empty)
        return
    exits.prepare(empty)
    reason = exits.status()["reason"]
    assert "vLLM has not loaded the draft's tensors" in str(reason)
    assert exits.status()["active"] is False
    exits.track(scheduled(new("a")))
    assert text_of(exits, *boundary_and_more()) == [[2], [5]]
    exits.close(output := SimpleNamespace())
    assert vars(output)[outcome.AWAITING_KEY] == reason
    for name in ("a", "b"):  # as a trainer sends them
        draft.weights.arrived(name)
    exits.track(scheduled(new("b")))
    assert text_of(exits, given_step(["b"], [[2]]), given_step(["b"], [[5]], at=[1])) == [[2], [END]]
    exits.close(output := SimpleNamespace())
    assert vars(output)[outcome.REPLACED_KEY] is True  # nobody knows whether it is what was calibrated


def test_the_checking_mode_finds_a_step_of_another_kind_than_the_rule_was_made_ready_with(monkeypatch):
    """In real engines, too: on a GPU it would be compiled while requests wait."""
    monkeypatch.setenv("SPECEXIT_CHECK", "1")
    exits = ready()
    exits.track(scheduled(new("a")))
    step = given_step(["a"], [[5]])
    with pytest.raises(CheckError, match=r"a step is .*int32.* the rule was made ready for .*int64"):
        exits.step(step._replace(tokens=step.tokens.int()))


def test_a_report_is_written_again_only_behind_its_copy(monkeypatch):
    exits, did = ready(), []
    exits.track(scheduled(new("a")))
    step, start = exits.rule.step, exits.copies.start
    monkeypatch.setattr(exits.copies, "wait", lambda: did.append("wait"))
    monkeypatch.setattr(exits.rule, "step", lambda *given: did.append("step") or step(*given))
    monkeypatch.setattr(exits.copies, "start", lambda report: did.append("start") or start(report))
    exits.step(given_step(["a"], [[5]]))
    assert did == ["wait", "step", "start"]


def test_only_news_is_reported():
    exits = ready()
    exits.track(scheduled(new("a")))
    told = []
    for at, token in enumerate([5, 5, 2, 5, 5]):
        output = SimpleNamespace()
        exits.step(given_step(["a"], [[token]], at=[at]))
        exits.close(output)
        told.append(list(vars(output)[outcome.KEY]))
    assert told == [["a"], [], [], ["a"], []]  # it is new; its thinking has ended


class Recorder(Exits):
    """Exits that take a step down, as the runner describes it."""

    source = "draft"

    def __init__(self) -> None:
        self.slots, self.ids = Slots(CPU, capacity=1), IDS
        self.draft = SimpleNamespace(first_pass=SimpleNamespace(behind=None))
        self.opened, self.steps, self.named = [], [], []

    def look_through(self, requests: Any, opens: Any) -> None:
        self.opened.append((list(requests), bool(opens("b", 2))))

    def step(self, sampled: Any) -> bool:
        self.steps.append(sampled)
        return True

    def name_forced(self, *given: Any, by_request: bool) -> None:
        self.named.append(by_request)


READ = np.array([[5, 5, 5], [START, 5, END], [5, 5, 5]], np.int32)
"""Tokens of three requests, whose prompts are two long: the second has ended its thinking behind that."""


def on_device(values: torch.Tensor) -> Any:
    return stand_in(BufferV1, gpu=values, np=values.numpy())


@pytest.mark.parametrize(("drafts", "ends", "rows"), [(True, [3, 4, 7], [*range(7)]), (False, [1, 2, 3], [1, 4, 7])])
def test_a_step_of_v1_is_of_the_requests_that_run_and_reads_no_prompt_that_goes_on(drafts, ends, rows):
    tokens = torch.tensor([[START, 5, -1], [7, -1, -1], [5, 6, 7], [9, 9, 9]], dtype=torch.int32)
    served = runner(kind=RunnerV1)
    served.input_batch = stand_in(
        InputBatchV1, req_ids=["a", "b", "c", "gone"], num_reqs=3, req_id_to_index={"b": 1}, token_ids_cpu=READ
    )
    served.discard_request_mask = on_device(torch.tensor([False, True, False, False]))
    served.query_start_loc, served.input_ids = on_device(torch.tensor([0, 2, 5, 8, 8])), on_device(torch.arange(8))
    served.positions = torch.arange(8)
    no_tokens = stand_in(RequestV1, prompt_token_ids=None)
    served.requests = {"a": no_tokens, "b": CachedPrompt([4, 5, 6, 7]), "c": no_tokens}
    served.optimistic_seq_lens_cpu = torch.tensor([3, 2, 3, 0])
    indices = stand_in(
        SpecDecodeMetadata, cu_num_sampled_tokens=torch.tensor([3, 4, 7]), logits_indices=torch.arange(7).int()
    )
    output = stand_in(SamplerOutput, sampled_token_ids=tokens, logprobs_tensors=None)
    metadata: Any = indices if drafts else None
    runner_v1.rewrite(served, exits := Recorder(), output, None, metadata)
    (step,) = exits.steps
    assert (step.requests, step.n.tolist(), step.padded, step.rejected) == (["a", "b", "c"], [2, 0, 3], True, None)
    assert (step.ends.tolist(), step.logits_rows.tolist()) == (ends, rows)
    assert [step.n.dtype, step.ends.dtype, step.logits_rows.dtype] == [torch.int32, torch.int32, torch.int64]
    assert (step.tokens.data_ptr(), step.tokens.shape) == (tokens.data_ptr(), (3, 3))
    assert (exits.opened, exits.named) == ([(["a", "b", "c"], True)], [True])
    assert [values.tolist() for values in exits.draft.first_pass.behind] == [[1], [6]]  # vLLM takes 7, its last
    served.requests["b"] = no_tokens
    runner_v1.rewrite(served, exits, output, None, metadata)
    assert exits.draft.first_pass.behind is None


class CachedPrompt:
    """Stands for vLLM's ``CachedRequestState`` of a request without output."""

    def __init__(self, prompt_token_ids: list[int]):
        self.prompt_token_ids = prompt_token_ids

    def get_token_id(self, idx: int) -> int:
        return self.prompt_token_ids[idx]


def test_a_step_of_v2_is_of_the_requests_that_run():
    tokens = torch.tensor([[5, 6, 7], [5, 6, 7], [9, 9, 9]])
    served = runner(kind=RunnerV2)
    served.pcp_manager = None
    served.req_states = stand_in(
        RequestStateV2, all_token_ids=on_device(torch.from_numpy(READ)), req_id_to_index={"b": 1}
    )
    batch = stand_in(
        InputBatchV2,
        num_reqs=2,
        req_ids=["a", "b"],
        positions=torch.arange(5),
        input_ids=torch.arange(5),
        logits_indices=torch.arange(5),
        cu_num_logits=torch.tensor([0, 2, 5, 5], dtype=torch.int32),
    )
    output = stand_in(SamplerOutput, sampled_token_ids=tokens, logprobs_tensors=None)
    n, rejected = torch.tensor([1, 2, 9], dtype=torch.int32), torch.tensor([0, 1, 9], dtype=torch.int32)
    runner_v2.rewrite(served, exits := Recorder(), output, n, rejected, batch, None)
    (step,) = exits.steps
    assert (step.requests, step.n.tolist(), step.rejected.tolist()) == (["a", "b"], [1, 2], [0, 1])
    assert (step.ends.tolist(), step.padded) == ([2, 5], False)
    assert (step.tokens.data_ptr(), step.tokens.shape) == (tokens.data_ptr(), (2, 3))
    assert (exits.opened, exits.named) == ([(["a", "b"], True)], [False])
