"""What surrounds the rule in a worker: who is admitted, what failing means, one verdict for all ranks. No engine."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, get_ident
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from specexit.config import ConfigError
from specexit.drafts.directory import Serving, SpecExitBlock
from specexit.drafts.policy import Requests
from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from tests.serving.simulation import CPU, END, IDS, START, VOCAB
from tests.serving.test_rule import given_step
from torch_specexit.plugin import outcome
from torch_specexit.plugin.compat import wraps
from torch_specexit.plugin.compat.request_hooks import REQUEST_HOOKS
from torch_specexit.plugin.frontend.arguments import OFFLINE, RequestArguments, vouch
from torch_specexit.plugin.frontend.callers import response_of
from torch_specexit.plugin.step_cost import Made
from torch_specexit.plugin.worker import asked, interrupt, ranks
from torch_specexit.plugin.worker import exits as module
from torch_specexit.plugin.worker.checking import CheckError
from torch_specexit.plugin.worker.exits import Exits
from torch_specexit.plugin.worker.model import WithSignals
from torch_specexit.plugin.worker.rule import INTERRUPT, STATE
from torch_specexit.plugin.worker.runner_v2 import keep_logits, keep_restored
from torch_specexit.plugin.worker.weights import Weights

pytestmark = pytest.mark.vllm


class Draft:
    """Stands for the draft model."""

    def __init__(self) -> None:
        block = SpecExitBlock(source="draft", target="t", policy=Policy(thresholds={}))
        self.block, self.serving, self.think_tokens, self.vocab_size = block, Serving(), IDS, VOCAB
        self.signals, self.first_pass, self.transition = torch.zeros(8, 4, len(NAMES)), None, ()
        self.weights, self.head = Weights(["a", "b", "d2t"]), nn.Linear(2, 2)
        for name in ("a", "b"):
            self.weights.arrived(name)

    def remember_weights(self) -> None:
        self.weights.remember(self.head.named_parameters())

    def check_weights(self) -> None:
        self.weights.check(self.head.named_parameters())

    def record(self, passes: int, last_rows: Any = None) -> None: ...

    def leave_signals(self, hidden_states: Any) -> None:
        self.left = hidden_states

    def signals_of_target(self, aux: Any, rows: Any) -> torch.Tensor:
        return torch.zeros(len(rows), len(NAMES))


class Group:
    """Stands for vLLM's group of ranks."""

    device_group: Any = None

    def __init__(self, world_size: int = 1, rank: int = 0):
        self.world_size, self.rank_in_group = world_size, rank


def runner(logprobs_mode: str = "raw_logprobs", **structured: Any) -> Any:
    settings = {"reasoning_parser": "deepseek_r1", "enable_in_reasoning": False} | structured
    config = SimpleNamespace(
        model_config=SimpleNamespace(logprobs_mode=logprobs_mode),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        speculative_config=SimpleNamespace(num_speculative_tokens=3),
        structured_outputs_config=SimpleNamespace(**settings),
    )
    return SimpleNamespace(device=CPU, vllm_config=config, execute_model_state=None)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(module, "_ranks_of_model", Group)
    monkeypatch.setenv("SPECEXIT_CHECK", "0")


def ready(**settings: Any) -> Exits:
    draft: Any = Draft()
    found = Exits(draft, runner(**settings))
    found.prepare(given_step(["x"], [[5]]).none())
    return found


def new(name: str, prompt=(START,), prefill=None, **params: Any) -> Any:
    wanted = {"extra_args": None, "logprobs": None, "structured_outputs": None} | params
    return SimpleNamespace(
        req_id=name,
        prompt_token_ids=list(prompt),
        prompt_embeds=None,
        prefill_token_ids=prefill,
        sampling_params=SimpleNamespace(**wanted),
    )


def scheduled(*requests: Any, finished=(), resumed: dict[str, list[int]] | None = None) -> Any:
    cached = SimpleNamespace(resumed_req_ids=set(resumed or ()), all_token_ids=resumed or {})
    return SimpleNamespace(
        scheduled_new_reqs=list(requests),
        finished_req_ids=set(finished),
        num_scheduled_tokens={},
        scheduled_cached_reqs=cached,
    )


def text_of(exits: Exits, *steps: Any) -> list[list[int]]:
    return [step.tokens[0, : step.n[0]].tolist() for step in steps if exits.step(step) or True]


def boundary_and_more() -> tuple[Any, Any]:
    return given_step(["a"], [[2]]), given_step(["a"], [[5]], at=[1])


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


@pytest.mark.parametrize("v2", [True, False])
def test_a_request_that_comes_back_goes_on_and_one_whose_prompt_is_continued_begins_anew(v2):
    exits = ready()
    exits.track(scheduled(new("a")))
    text_of(exits, given_step(["a"], [[2]]))
    back = scheduled(new("a", prefill=[START, 2])) if v2 else scheduled(resumed={"a": [START, 2]})
    exits.track(back)
    assert text_of(exits, given_step(["a"], [[5]], at=[1])) == [[END]]
    exits.track(scheduled(new("a", prompt=[START, 2, END, 5, START, 7])))
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
    served: Any = SimpleNamespace(drafter=SimpleNamespace(model=draft), get_kv_cache_spec=None, **vars(runner()))
    wrapped = wraps.get_kv_cache_spec(lambda _: given_step(["x"], [[5]]).none())(lambda self: "spec")
    with pytest.raises(ConfigError, match=r"specexit.required is true, .*: could not be made ready: .*not compile"):
        wrapped(served)
    plain: Any = SimpleNamespace(drafter=SimpleNamespace(model=Draft()), **vars(runner()))
    assert wrapped(plain) == "spec"
    assert plain._specexit.failure is not None


class Pair:
    """Two ranks, one after the other: what the first has sent is added to what the second sends."""

    def __init__(self, monkeypatch):
        self.sent: list[torch.Tensor] = []
        self.sums: dict[int, torch.Tensor] = {}
        monkeypatch.setattr(ranks.torch.distributed, "all_reduce", lambda message, group: self.sent.append(message))

    def agree(self, both: list[ranks.Ranks], signals: Any, rows: int) -> list[Any]:
        results = [rank.agree(own, rows, whole=True) for rank, own in zip(both, signals, strict=True)]
        first, second = self.sent[-2:]
        total = first + second
        first.copy_(total)
        second.copy_(total)
        return results


def test_all_ranks_judge_by_what_the_first_has_read(monkeypatch):
    pair = Pair(monkeypatch)
    both = [ranks.Ranks(Group(2, rank), 4, CPU) for rank in range(2)]
    own = [torch.full((3, len(NAMES)), 0.25), torch.full((3, len(NAMES)), 0.25 + 1e-6)]
    (first, off), (second, also_off) = pair.agree(both, own, 3)
    assert torch.equal(first, own[0])
    assert torch.equal(second, own[0])
    assert (off.item(), also_off.item()) == (0, 0)


@pytest.mark.parametrize("failed", [0, 1])
def test_where_one_rank_fails_none_decides_any_more(monkeypatch, failed):
    pair = Pair(monkeypatch)
    both = [ranks.Ranks(Group(2, rank), 4, CPU) for rank in range(2)]
    own: list[torch.Tensor | None] = [torch.ones(2, len(NAMES)) for _ in range(2)]
    own[failed] = None
    results = pair.agree(both, own, 2)
    assert [off.item() for _, off in results] == [1, 1]


class Together:
    """Ranks in threads of their own: a collective waits for all of them, and not for ever."""

    def __init__(self, monkeypatch, size: int = 2):
        self.barrier = Barrier(size, timeout=20)
        self.messages: dict[int, torch.Tensor] = {}
        monkeypatch.setattr(ranks.torch.distributed, "all_reduce", self._add_up)
        numbers = iter(range(size))
        monkeypatch.setattr(module, "_ranks_of_model", lambda: Group(size, next(numbers)))
        self.exits = [Exits(Draft(), runner()) for _ in range(size)]  # pyright: ignore[reportArgumentType]
        self.all(lambda exits: exits.prepare(given_step(["x"], [[5]]).none()))

    def _add_up(self, message: torch.Tensor, group: Any) -> None:
        self.messages[get_ident()] = message.clone()
        self.barrier.wait()
        message.copy_(torch.stack(list(self.messages.values())).sum(dim=0))
        if self.barrier.wait() == 0:
            self.messages.clear()
        self.barrier.wait()

    def all(self, action: Any) -> list[Any]:
        with ThreadPoolExecutor(len(self.exits)) as pool:
            return list(pool.map(action, self.exits))

    def texts(self, *steps: Any) -> list[list[list[int]]]:
        """Of each rank, behind steps of its own copy."""
        return self.all(lambda exits: text_of(exits, *(step._replace(tokens=step.tokens.clone()) for step in steps)))

    def told(self) -> list[dict[str, Any]]:
        """What the outputs of the last step say."""
        outputs = [SimpleNamespace() for _ in self.exits]
        for exits, output in zip(self.exits, outputs, strict=True):
            exits.close(output)
        return [vars(output) for output in outputs]


@pytest.mark.parametrize("checking", ["0", "1"])
@pytest.mark.parametrize("behind", [0, 1])
def test_where_one_rank_has_not_got_its_weights_all_leave_the_step_alone(monkeypatch, behind, checking):
    """Its peers used to wait for it in a collective, alone: an update that fails on one rank was a hang."""
    monkeypatch.setenv("SPECEXIT_CHECK", checking)
    both = Together(monkeypatch)
    both.all(lambda exits: exits.track(scheduled(new("a"))))
    assert both.texts(given_step(["a"], [[2]])) == [[[2]]] * 2
    weights = both.exits[behind].draft.weights
    weights.lose("the update has failed")
    assert both.texts(given_step(["a"], [[5]], at=[1])) == [[[5]]] * 2
    reasons = [told[outcome.AWAITING_KEY] for told in both.told()]
    assert reasons[behind] == "the update has failed"
    assert reasons[1 - behind] == "the draft's weights are not whole on another rank"
    assert [exits.failure for exits in both.exits] == [None, None]
    for name in ("a", "b"):
        weights.arrived(name)
    assert both.texts(given_step(["a"], [[2]], at=[2]), given_step(["a"], [[5]], at=[3])) == [[[2], [5]]] * 2
    both.all(lambda exits: exits.track(scheduled(new("b"))))
    assert both.texts(given_step(["b"], [[2]]), given_step(["b"], [[5]], at=[1])) == [[[2], [END]]] * 2
    assert all(outcome.AWAITING_KEY not in told for told in both.told())


def test_a_failure_on_another_rank_is_seen_with_the_next_report():
    exits, output = ready(), SimpleNamespace()
    exits.track(scheduled(new("a")))
    exits.ranks._message.fill_(1.0)
    assert text_of(exits, given_step(["a"], [[5, 2, 5]])) == [[5, 2, 5]]
    exits.close(output)
    assert vars(output) == {outcome.INACTIVE_KEY: "has failed on another rank"}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
RESOLVED = st.fixed_dictionaries(
    {}, optional={key: ANYTHING for key in ("policy", "mode", "splits", "caller", "response", "other")}
)
GIVEN = {key: ANYTHING for key in (*RequestArguments.model_fields, OFFLINE, "specexit_other", "other")}
MODES = ("exit", "shadow", "off")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arguments=st.fixed_dictionaries({}, optional=GIVEN | {interrupt.RESOLVED: ANYTHING | RESOLVED}),
    rule=st.sampled_from(get_args(Requests)),
    mode=st.sampled_from(MODES),
    rust=st.booleans(),
)
def test_whatever_reaches_a_worker_as_arguments_ends_no_exits_and_asks_for_no_more_than_it_may(
    monkeypatch, arguments, rule, mode, rust
):
    """``specexit_resolved: 1`` from a front end without checks ended exits for everybody."""
    monkeypatch.setattr("vllm.envs.VLLM_USE_RUST_FRONTEND", rust, raising=False)
    exits = ready()
    own = exits.draft.block.policy
    exits.draft.serving = Serving(requests=rule, mode=mode)
    exits.track(scheduled(new("a", extra_args=arguments), new("b")))
    exits.step(given_step(["a", "b"], [[2], [2]]))
    exits.close(output := SimpleNamespace())
    assert outcome.INACTIVE_KEY not in vars(output)
    admission = exits.slots.admissions["a"]
    if (rule == "any" or arguments.get(OFFLINE) or interrupt.RESOLVED in arguments) and not (rust and rule != "any"):
        return
    assert mode != "off" or admission.policy is None
    assert mode != "shadow" or admission.policy is None or admission.shadow
    if admission.policy is not None:
        assert admission.policy.thresholds.items() >= own.thresholds.items() or rule == "stricter"
        assert all(admission.policy.thresholds[name] >= limit for name, limit in own.thresholds.items())
        assert admission.policy.patience >= own.patience
        assert admission.policy.min_thinking_tokens >= own.min_thinking_tokens
        assert admission.policy.max_thinking_tokens is None


ALLOWED = {
    "none": {},
    "off-only": {"specexit": False},
    "stricter": {"specexit": False, "specexit_validity": 0.95, "specexit_patience": 3},
}
MORE = {"specexit_max_thinking_tokens": 1, "specexit_risk": 0.5}


@pytest.mark.parametrize("rule", ALLOWED)
def test_where_no_front_end_has_checked_a_request_the_worker_holds_it_to_what_is_permitted(rule, caplog):
    asked._say_once.cache_clear()
    exits = ready()
    exits.draft.block = SpecExitBlock(source="draft", target="t", policy=Policy(thresholds={"validity": 0.9}))
    exits.draft.serving = Serving(requests=rule)
    given = {"specexit_validity": 0.1, "specexit_patience": 1} | MORE | ALLOWED["stricter"]
    bold = {"specexit_validity": 0.1, "specexit_mode": "exit"} | MORE
    for name, arguments in (("a", given), ("b", bold), ("c", bold)):
        exits.track(scheduled(new(name, extra_args=arguments)))
    own = exits.draft.block.policy
    assert (exits.slots.admissions["a"].policy is None) == ("specexit" in ALLOWED[rule])
    for name in "bc":
        assert exits.slots.admissions[name].policy == own
    assert len([line for line in caplog.messages if "specexit_max_thinking_tokens" in line]) == 1
    exits.track(scheduled(new("d", extra_args={key: given[key] for key in given if key != "specexit"})))
    found = exits.slots.admissions["d"].policy
    assert found is not None
    assert (found.thresholds, found.patience) == (
        ({"validity": 0.95}, 3) if rule == "stricter" else ({"validity": 0.9}, 1)
    )


def test_behind_a_front_end_without_plug_ins_nobody_is_taken_at_their_word(monkeypatch):
    told = {"policy": {"thresholds": {"validity": 0.0}}, "mode": "exit", "splits": None}
    exits = ready()
    exits.draft.serving = Serving(mode="shadow")
    for rust, shadow in ((False, False), (True, True)):
        monkeypatch.setattr("vllm.envs.VLLM_USE_RUST_FRONTEND", rust, raising=False)
        exits.track(scheduled(new("a", extra_args={interrupt.RESOLVED: told})))
        assert exits.slots.admissions["a"].shadow == shadow


def test_in_vllm_llm_who_asks_is_the_operator():
    """Whose parameters stay as they are: they may serve many requests."""
    params = SimpleNamespace(extra_args={"specexit_validity": 0.1})
    request = SimpleNamespace(sampling_params=params)
    vouch(request)
    assert params.extra_args == {"specexit_validity": 0.1}
    exits = ready()
    exits.track(scheduled(new("a", extra_args=request.sampling_params.extra_args)))
    policy = exits.slots.admissions["a"].policy
    assert policy is not None
    assert policy.thresholds == {"validity": 0.1}
    plain = SimpleNamespace(sampling_params=SimpleNamespace(extra_args=None))
    vouch(plain)
    assert plain.sampling_params.extra_args is None


@pytest.mark.parametrize(
    ("queue", "thresholds"), [(None, {"validity": 0.1}), (object(), {})], ids=["vllm.LLM", "a server"]
)
def test_who_asks_a_server_without_a_front_end_of_ours_is_no_operator(queue, thresholds):
    """Whoever asked one that the plug-in had not opened might ask for anything."""
    (hook,) = (hook for hook in REQUEST_HOOKS if hook.method == "add_request")
    request = SimpleNamespace(request_id="a", sampling_params=SimpleNamespace(extra_args={"specexit_validity": 0.1}))
    processor, exits = SimpleNamespace(request_states={}), ready()
    hook.wrap(lambda self, request, *given: given)(processor, request, "prompt", None, 0, queue)
    exits.draft.serving = Serving(requests="none")
    exits.track(scheduled(new("a", extra_args=request.sampling_params.extra_args)))
    policy = exits.slots.admissions["a"].policy
    assert policy is not None
    assert policy.thresholds == thresholds


def test_the_checking_mode_finds_a_step_of_another_kind_than_the_rule_was_made_ready_with(monkeypatch):
    """In real engines, too: on a GPU it would be compiled while requests wait."""
    monkeypatch.setenv("SPECEXIT_CHECK", "1")
    exits = ready()
    exits.track(scheduled(new("a")))
    step = given_step(["a"], [[5]])
    with pytest.raises(CheckError, match=r"a step is .*int32.* the rule was made ready for .*int64"):
        exits.step(step._replace(tokens=step.tokens.int()))


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


class Model(torch.nn.Module):
    """Stands for a target: logits are four times the hidden states."""

    def __init__(self):
        super().__init__()
        self.computed = 0

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.computed += 1
        return 4 * hidden_states


def test_logits_are_kept_where_they_are_computed_anyway():
    model = Model()
    result, logits = keep_logits(model, lambda: model.compute_logits(torch.ones(2, 3)).argmax(dim=1).tolist())
    assert logits is not None
    assert (result, logits.tolist(), model.computed) == ([0, 0], [[4.0] * 3] * 2, 1)
    assert "compute_logits" not in vars(model)


def test_under_context_parallel_the_signals_are_read_off_the_whole_batch():
    exits, whole = ready(), [torch.ones(4, 2)]
    manager: Any = SimpleNamespace(
        restore_for_sampling=lambda hidden, aux: (hidden, whole, None),
        restore_draft_prefill=lambda last, hidden: (whole[0], hidden),
    )
    keep_restored(exits, manager)
    manager.restore_for_sampling(torch.zeros(2, 2), [torch.zeros(2, 2)])
    manager.restore_draft_prefill(torch.zeros(2, 2), torch.zeros(2, 2))
    draft: Any = exits.draft
    keep_restored(exits, manager)  # at the next step
    assert exits.aux is whole
    assert draft.left is whole[0]


def test_the_installed_vllm_starts_no_eagle3_draft_under_context_parallel():
    """As the developer's page says; what is done there is tested on stand-ins alone."""
    from vllm.v1.worker.gpu.pcp_manager import PCPManager

    draft = SimpleNamespace(method="eagle3", use_dspark=lambda: False, use_multi_module_mtp=lambda: False)
    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(prefill_context_parallel_size=2),
        model_config=SimpleNamespace(use_mla=True, is_encoder_decoder=False),
        lora_config=None,
        speculative_config=draft,
    )
    with pytest.raises(NotImplementedError, match="speculative"):
        PCPManager.validate_config(config, False)


def test_a_vllm_that_hands_no_hidden_states_on_under_context_parallel_is_served_without_exits():
    exits = ready()
    keep_restored(exits, SimpleNamespace(restore_for_sampling=lambda hidden: hidden))
    assert "prefill context parallel" in str(exits.failure)


@pytest.mark.parametrize("mode", ["processed_logprobs", "processed_logits"])
def test_whom_nobody_could_tell_the_logprob_of_a_forced_token_has_no_exits(mode):
    """They used to get one of the raw logits, on another scale than those around it."""
    exits = ready(logprobs_mode=mode)
    exits.track(scheduled(new("a", logprobs=1), new("b")))
    assert [exits.slots.admissions[name].policy is None for name in ("a", "b")] == [True, False]
    assert text_of(exits, *boundary_and_more()) == [[2], [5]]


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits"])
def test_forced_tokens_are_named_for_those_who_ask_and_nothing_is_looked_at_for_others(mode):
    exits = ready(logprobs_mode=mode)
    exits.track(scheduled(new("a", logprobs=1), new("b")))
    names = ["b", "a"]
    exits.step(given_step(names, [[2], [2]]))
    step = given_step(names, [[5], [5]], at=[1, 1])
    tensors = SimpleNamespace(
        logprob_token_ids=torch.tensor([[5, 6], [5, 6]]),
        logprobs=torch.zeros(2, 2),
        selected_token_ranks=torch.ones(2, dtype=torch.int64),
    )
    logits = torch.arange(2 * VOCAB).view(2, VOCAB).float()
    assert exits.step(step)
    output: Any = SimpleNamespace(sampled_token_ids=step.tokens, logprobs_tensors=tensors)
    exits.name_forced(output, step, logits, by_request=True)
    assert tensors.logprob_token_ids.tolist() == [[5, 6], [END, 6]]
    assert tensors.selected_token_ranks.tolist() == [1, VOCAB - END]
    expected = logits[1] if mode == "raw_logits" else logits[1].log_softmax(0)
    assert tensors.logprobs[1, 0].item() == pytest.approx(expected[END].item())
    exits.track(scheduled(finished=["a"]))
    assert exits.asking == set()


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits"])
def test_a_step_of_v1_without_drafts_names_forced_tokens_though_it_samples_in_place_and_reads_one_row(mode):
    exits, vocab = ready(logprobs_mode=mode), 1000
    exits.track(scheduled(new("a", logprobs=1), *(new(f"b{i}") for i in range(7))))
    names = [*(f"b{i}" for i in range(7)), "a"]
    exits.step(given_step(names, [[2]] * 8))
    logits = torch.randn(8, vocab, generator=torch.Generator().manual_seed(0))
    expected, read = (logits[7] if mode == "raw_logits" else logits[7].log_softmax(0))[END].item(), []

    def samples_in_place(self: Any, logits: torch.Tensor, metadata: Any) -> Any:
        read.extend(made.bytes)
        tensors = SimpleNamespace(
            logprob_token_ids=torch.full((8, 2), 5),
            logprobs=torch.zeros(8, 2),
            selected_token_ranks=torch.ones(8, dtype=torch.int64),
        )
        logits.fill_(0.0)
        return SimpleNamespace(sampled_token_ids=torch.full((8, 1), 5), logprobs_tensors=tensors)

    def on_device(values: torch.Tensor) -> Any:
        return SimpleNamespace(gpu=values)

    served: Any = SimpleNamespace(
        _specexit=exits,
        input_batch=SimpleNamespace(
            req_ids=names, num_reqs=8, req_id_to_index={}, token_ids_cpu=torch.zeros(8, 1).numpy()
        ),
        vllm_config=None,
        execute_model_state=None,
        discard_request_mask=on_device(torch.zeros(8, dtype=torch.bool)),
        query_start_loc=on_device(torch.arange(9)),
        positions=torch.ones(8, dtype=torch.int64),
        input_ids=on_device(torch.full((8,), 2)),
        device=CPU,
    )
    with Made() as made:
        output = wraps.sample_v1(samples_in_place)(served, logits, None)
    assert sum(read) < 4 * 4 * vocab
    assert output.sampled_token_ids[7].tolist() == [END]
    assert output.logprobs_tensors.logprob_token_ids[:, 0].tolist() == [5] * 7 + [END]
    assert output.logprobs_tensors.logprobs[7, 0].item() == pytest.approx(expected, rel=1e-6)  # float32


def interruptible(name: str, caller: str | None, response: str = "chat", **params: Any) -> Any:
    told = {"caller": caller, "response": response}
    return new(name, extra_args={"specexit": False, interrupt.RESOLVED: told}, **params)


@pytest.mark.parametrize(("now", "expected"), [(True, [[5], [END], [2], [5]]), (False, [[5], [5], [2], [END]])])
def test_a_client_ends_the_thinking_of_its_own_request_though_exits_are_off(monkeypatch, now, expected):
    monkeypatch.setattr(
        module, "request_policy_or_default", lambda *_: SimpleNamespace(mode_under=lambda _: "off", splits=None)
    )
    exits = ready()
    exits.track(scheduled(interruptible("chat-0123abcd", "me")))
    steps = [given_step(["chat-0123abcd"], [[token]], at=[at]) for at, token in enumerate([5, 5, 2, 5])]
    text = text_of(exits, steps[0])
    worker: Any = SimpleNamespace(model_runner=SimpleNamespace(_specexit=exits))
    assert not interrupt.end_thinking(worker, "chat", "somebody else", now)
    assert not interrupt.end_thinking(worker, "cha", "me", now)
    assert interrupt.end_thinking(worker, "chat", "me", now)
    text += text_of(exits, *steps[1:])
    assert text == expected
    assert not interrupt.end_thinking(worker, "chat", "me", now)  # it thinks no more
    row = dict(zip(STATE, exits.slots.tables.state[0].tolist(), strict=True))
    assert (row["exited"], row["on"]) == (INTERRUPT, 1)


@pytest.mark.parametrize(
    ("asked", "ended"),
    [
        ("chatcmpl", []),  # used to end them all, where clients number their requests
        ("chatcmpl-1", ["chatcmpl-1-0123abcd"]),
        ("chatcmpl-10", ["0_chatcmpl-10-0123abcd", "1_chatcmpl-10-0123abcd"]),  # two samples
        ("cmpl-job", ["cmpl-job-0-0123abcd", "cmpl-job-1-0123abcd"]),  # two prompts
        ("cmpl-job-1", ["cmpl-job-1-0-0123abcd"]),  # another request, not the second prompt of that one
        ("cmpl-job-1-0", []),
        ("", []),
    ],
)
def test_an_interrupt_ends_the_requests_of_exactly_one_response(monkeypatch, asked, ended):
    monkeypatch.setattr(
        module, "request_policy_or_default", lambda *_: SimpleNamespace(mode_under=lambda _: "off", splits=None)
    )
    exits, interrupted = ready(), []
    monkeypatch.setattr(exits.slots, "interrupt", lambda name, now: interrupted.append(name))
    requests = {
        f"{sample}{external}-0123abcd": response_of(external)
        for sample, external in (
            ("", "chatcmpl-1"),
            ("", "chatcmpl-1-0"),
            ("0_", "chatcmpl-10"),
            ("1_", "chatcmpl-10"),
            ("", "cmpl-job-0"),
            ("", "cmpl-job-1"),
            ("", "cmpl-job-1-0"),
        )
    }
    for name, response in requests.items():
        exits.track(scheduled(interruptible(name, "me", response)))
        exits.step(given_step([name], [[5]]))
    assert exits.end_thinking(asked, "me", now=True) == bool(ended)
    assert interrupted == ended


def test_a_request_whose_grammar_binds_its_thinking_cannot_be_interrupted():
    exits = ready(reasoning_parser="")
    exits.track(scheduled(interruptible("a-0123abcd", None, "a", structured_outputs=object())))
    exits.step(given_step(["a-0123abcd"], [[5]]))
    assert not exits.end_thinking("a", None, now=True)


class Request(SimpleNamespace):
    """Stands for the scheduler's request."""


def output(name: str, finish_reason: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(request_id=name, finish_reason=finish_reason, kv_transfer_params=None)


def test_the_engine_core_looks_at_requests_of_which_there_is_news_and_forgets_those_that_are_gone():
    requests = {
        f"r{i}": Request(sampling_params=SimpleNamespace(stop=[], extra_args=None), num_output_tokens=4)
        for i in range(200)
    }
    reporter, row = outcome.Reporter(), [float(value) for value in (1, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0)]
    reporter.take({name: row for name in requests}, requests)
    step = {0: SimpleNamespace(outputs=[output("r0"), output("r1", "stop"), output("r2")], finished_requests=None)}
    reporter.report({"r0": row}, step, None)
    reports = [(o.kv_transfer_params or {}).get(outcome.KEY, {}).get("outcome") for o in step[0].outputs]
    assert reports == ["thinking", "natural_end", None]
    assert "r1" not in reporter.requests
    reporter.take({}, {"r0": requests["r0"]})  # all others were aborted
    assert list(reporter.requests) == ["r0"]


def test_what_was_told_of_an_exit_stands_where_nothing_is_known_of_the_request_any_more():
    """Such as while the draft's weights are replaced, and behind that."""
    request = Request(sampling_params=SimpleNamespace(stop=[], extra_args=None), num_output_tokens=6)
    reporter, unknown = outcome.Reporter(), [0.0] * 11
    exited = [float(value) for value in (2, 3, 0, 1, 1, 1, 0, 0, 0, 0, 0)]
    reporter.take({"r": exited}, {"r": request})
    reporter.take({"r": unknown}, {"r": request})
    step = {0: SimpleNamespace(outputs=[output("r", "stop")], finished_requests=None)}
    reporter.report({"r": unknown}, step, None)
    assert step[0].outputs[0].kv_transfer_params[outcome.KEY]["outcome"] == "exit"


def test_why_the_draft_is_not_whole_goes_with_every_output_and_each_client_hears_when_it_is_again():
    reporter = outcome.Reporter()

    def said(clients: list[int], awaiting: str | None) -> dict[int, Any]:
        step = {i: SimpleNamespace(outputs=[output(f"r{i}")], finished_requests=None) for i in clients}
        reporter.report({}, step, None, awaiting)
        return {i: client.outputs[0].kv_transfer_params for i, client in step.items()}

    assert said([0, 1], "asleep") == {i: {outcome.AWAITING_KEY: "asleep"} for i in (0, 1)}
    assert said([0], None) == {0: {outcome.AWAITING_KEY: None}}
    assert said([0, 1], None) == {0: None, 1: {outcome.AWAITING_KEY: None}}
    assert said([0, 1], None) == {0: None, 1: None}


def test_why_exits_have_failed_goes_with_every_output():
    step = {0: SimpleNamespace(outputs=[output("r0")], finished_requests=None)}
    outcome.Reporter().report({}, step, "no such kernel")
    assert step[0].outputs[0].kv_transfer_params == {outcome.INACTIVE_KEY: "no such kernel"}
