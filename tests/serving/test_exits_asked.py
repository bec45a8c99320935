"""What a request may ask of a worker, whoever sent it and whatever it says. No engine."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from specexit.drafts.directory import Serving, SpecExitBlock
from specexit.drafts.policy import Requests
from specexit.method.decision import Policy
from tests.serving.simulation import given_step
from tests.serving.stand_ins import stand_in
from tests.serving.worker import alone, new, ready, scheduled  # noqa: F401, a fixture for all
from torch_specexit.plugin import outcome
from torch_specexit.plugin.compat.request_hooks import REQUEST_HOOKS
from torch_specexit.plugin.frontend.arguments import OFFLINE, ArgumentError, RequestArguments, vouch
from torch_specexit.plugin.frontend.protocols import EngineCoreRequest, OutputProcessor
from torch_specexit.plugin.protocols import SamplingParams
from torch_specexit.plugin.worker import asked, interrupt

pytestmark = pytest.mark.vllm


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
RESOLVED = st.fixed_dictionaries(
    {}, optional={key: ANYTHING for key in ("policy", "mode", "splits", "caller", "response", "other")}
)
GIVEN = {key: ANYTHING for key in (*RequestArguments.model_fields, OFFLINE, "specexit_other", "other")}
OWN = Policy(thresholds={"validity": 0.9, "remaining": 20}, patience=2, min_thinking_tokens=3)
MODES = ("exit", "shadow", "off")


@example(arguments={"specexit_validity": 0.8}, rule="stricter", mode="exit", rust=False)
@example(arguments={"specexit_remaining": 30}, rule="stricter", mode="exit", rust=False)
@example(arguments={"specexit_patience": 1}, rule="stricter", mode="exit", rust=True)
@example(arguments={"specexit_min_thinking_tokens": 0}, rule="stricter", mode="exit", rust=True)
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
    exits.draft.block = SpecExitBlock(source="draft", target="t", policy=OWN)
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
        assert admission.policy == OWN or rule == "stricter"
        assert admission.policy.thresholds["validity"] >= OWN.thresholds["validity"]
        assert admission.policy.thresholds["remaining"] <= OWN.thresholds["remaining"]
        assert admission.policy.patience >= OWN.patience
        assert admission.policy.min_thinking_tokens >= OWN.min_thinking_tokens
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


@pytest.mark.parametrize("rule", ["stricter", "any"])
def test_behind_a_front_end_without_plug_ins_a_risk_takes_no_other_word_of_its_request_away(rule, monkeypatch, caplog):
    """Where requests may ask for anything, one that opted out thought with exits."""
    asked._say_once.cache_clear()
    monkeypatch.setattr("vllm.envs.VLLM_USE_RUST_FRONTEND", True, raising=False)
    exits = ready()
    exits.draft.serving = Serving(requests=rule)
    exits.track(scheduled(new("a", extra_args={"specexit": False, "specexit_risk": 0.01})))
    assert exits.slots.admissions["a"].policy is None
    assert "specexit_risk of a request that no front end has checked is ignored" in caplog.text


@pytest.mark.parametrize("early", [{"confidence": 0.8}, {"validity": 0.95}], ids=str)
def test_where_no_front_end_has_checked_a_request_no_threshold_of_its_own_takes_an_early_one_away(early):
    """The server's own threshold, said by the client, made a boundary count that was passed over."""
    exits = ready()
    own = Policy(thresholds={"validity": 0.9}, early=early)
    exits.draft.block = SpecExitBlock(source="draft", target="t", policy=own)
    exits.draft.serving = Serving()
    exits.track(scheduled(new("a", extra_args={"specexit_validity": 0.9})))
    assert exits.slots.admissions["a"].policy == own


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
    params = stand_in(SamplingParams, extra_args={"specexit_validity": 0.1})
    request = stand_in(EngineCoreRequest, sampling_params=params)
    vouch(request)
    assert params.extra_args == {"specexit_validity": 0.1}
    exits = ready()
    exits.track(scheduled(new("a", extra_args=request.sampling_params.extra_args)))
    policy = exits.slots.admissions["a"].policy
    assert policy is not None
    assert policy.thresholds == {"validity": 0.1}
    plain = stand_in(EngineCoreRequest, sampling_params=stand_in(SamplingParams, extra_args=None))
    vouch(plain)
    assert plain.sampling_params.extra_args is None


@pytest.mark.parametrize(("key", "value"), [("specexit_risk", 0.01), ("specexit_effort", "high")])
@pytest.mark.parametrize("queue", [None, object()], ids=["vllm.LLM", "a server"])
def test_what_only_a_front_end_of_ours_knows_is_refused_in_vllm_llm_and_fails_no_request_of_a_server(key, value, queue):
    """An effort was passed over without a word in `vllm.LLM`; then both were refused by any server that the plug-in did
    not fit."""
    (hook,) = (hook for hook in REQUEST_HOOKS if hook.method == "add_request")
    params = stand_in(SamplingParams, extra_args={key: value})
    request = stand_in(EngineCoreRequest, request_id="a", sampling_params=params)
    add = hook.wrap(lambda self, *given: given)
    said = f"{key} is for servers, expected none without one"
    with pytest.raises(ArgumentError, match=said) if queue is None else nullcontext():
        add(stand_in(OutputProcessor, request_states={}), request, "prompt", None, 0, queue)


@pytest.mark.parametrize(
    ("queue", "thresholds"), [(None, {"validity": 0.1}), (object(), {})], ids=["vllm.LLM", "a server"]
)
def test_who_asks_a_server_without_a_front_end_of_ours_is_no_operator(queue, thresholds):
    """Whoever asked one that the plug-in had not opened might ask for anything."""
    (hook,) = (hook for hook in REQUEST_HOOKS if hook.method == "add_request")
    params = stand_in(SamplingParams, extra_args={"specexit_validity": 0.1})
    request = stand_in(EngineCoreRequest, request_id="a", sampling_params=params)
    processor, exits = stand_in(OutputProcessor, request_states={}), ready()
    hook.wrap(lambda self, request, *given: given)(processor, request, "prompt", None, 0, queue)
    exits.draft.serving = Serving(requests="none")
    exits.track(scheduled(new("a", extra_args=request.sampling_params.extra_args)))
    policy = exits.slots.admissions["a"].policy
    assert policy is not None
    assert policy.thresholds == thresholds
