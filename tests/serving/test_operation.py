"""What a server lets requests ask for, and what each of them gets: points, efforts, tenants, shares, switches."""

from __future__ import annotations

import itertools
import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from specexit.drafts.certified import doubts
from specexit.drafts.policy import PolicyError, PolicyFile, Serving
from specexit.method.decision import Policy, exit_position
from specexit.method.splits import ThinkTokens
from tests.serving.points import BLOCK, BOLDER, POINTS, RARER, get, operation, point
from torch_specexit.plugin.frontend.arguments import RESOLVED, ArgumentError
from torch_specexit.plugin.frontend.callers import mark_of
from torch_specexit.plugin.frontend.efforts import with_effort
from torch_specexit.plugin.frontend.operation import Operation


@pytest.mark.parametrize("arguments", RARER, ids=str)
def test_by_default_a_request_may_make_exits_rarer(arguments):
    operation().resolve(arguments)


@pytest.mark.parametrize(("arguments", "expected"), BOLDER, ids=str)
def test_by_default_no_request_may_make_exits_bolder(arguments, expected):
    with pytest.raises(ArgumentError, match=f"{expected}: this server lets requests make exits rarer only"):
        operation().resolve(arguments)
    operation(requests="any").resolve(arguments)


@pytest.mark.parametrize("patience", [1, 2])
def test_fewer_split_strings_are_let_through_where_no_trace_can_exit_earlier_by_them(patience):
    """With patience they were, too, though a boundary that is none any more breaks no row of those that pass."""
    usual = point("usual", 0.9, 0.02, patience=patience, min_thinking_tokens=0, max_thinking_tokens=None)
    policy = Policy.model_validate(usual["policy"])
    ends, wait, rest = 5, 6, 7
    all_of_them = ThinkTokens(start=1, end=2, split=frozenset({ends, wait}))
    fewer = ThinkTokens(start=1, end=2, split=frozenset({ends}))
    found = []
    for passing in itertools.product([0.2, 0.95], repeat=3):
        signals = np.array([[0.5, 0.5, 9.0, validity] for validity in passing])
        for tokens in itertools.product([ends, wait, rest], repeat=3):
            first, then = (exit_position(tokens, signals, policy, ids) for ids in (all_of_them, fewer))
            found.append(then is None or (first is not None and first <= then))
    server = Operation(BLOCK, PolicyFile.model_validate({"points": [usual], "default": "usual"}), Serving())
    with nullcontext() if all(found) else pytest.raises(ArgumentError, match="specexit_splits is"):
        get(server, splits=["\n\n"])
    assert all(found) == (patience == 1)


def test_a_stricter_threshold_leaves_the_others_in_force_and_a_free_one_does_not():
    """Giving `confidence` alone used to drop `validity`, on which the certificate stands."""
    assert get(operation(), confidence=0.3).policy.thresholds == {"validity": 0.9, "confidence": 0.3}
    assert get(operation(requests="any"), confidence=0.3).policy.thresholds == {"confidence": 0.3}


def test_of_what_is_left_to_think_a_stricter_threshold_is_a_lower_one():
    usual = point("usual", 0.9, 0.02, thresholds={"validity": 0.9, "remaining": 20})
    server = Operation(BLOCK, PolicyFile.model_validate({"points": [usual], "default": "usual"}), Serving())
    assert get(server, remaining=19).policy.thresholds == {"validity": 0.9, "remaining": 19}
    with pytest.raises(ArgumentError, match=r"specexit_remaining is 21\.0, expected at most 20: this server lets"):
        get(server, remaining=21)


@pytest.mark.parametrize("arguments", [*RARER[2:], *(bold for bold, _ in BOLDER)], ids=str)
def test_a_server_may_let_requests_switch_exits_off_and_nothing_else(arguments):
    server = operation(requests="off-only")
    assert server.resolve({"specexit": False}).mode == "off"
    with pytest.raises(ArgumentError, match="lets requests switch exits off, and nothing else") as error:
        server.resolve(arguments)
    assert error.value.parameter == next(iter(arguments))


def test_a_server_may_take_no_arguments_but_the_effort_that_it_offers_itself():
    server = operation(requests="none", efforts={"low": "careful"})
    for arguments in ({"specexit": False}, {"specexit": True}, {"specexit_validity": 1.0}):
        with pytest.raises(ArgumentError, match="takes no specexit arguments"):
            server.resolve(arguments)
    assert get(server, effort="low").point == "careful"


@pytest.mark.parametrize("rule", ["none", "off-only", "stricter", "any"])
def test_what_the_operator_has_switched_off_stays_off(rule):
    server = operation(mode="off", requests=rule)
    assert server.resolve(None).mode == "off"
    if rule in ("stricter", "any"):
        assert get(server, mode="shadow").mode == "off"
    if rule != "none":
        assert server.resolve({"specexit": True}).mode == "off"


@pytest.mark.parametrize("rule", ["stricter", "any"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"specexit": True},
        {"specexit_effort": "low"},
        {"specexit_mode": "exit"},
        {"specexit_risk": 0.9},
        {"specexit_risk": 0.9, "specexit_validity": 0.0, "specexit_mode": "exit"},
    ],
    ids=str,
)
def test_nothing_that_a_request_says_gives_exits_to_whom_the_operator_has_none_for(arguments, rule):
    """A risk used to: it chose a point of its own, and nothing else of the request was looked at."""
    off = {"tenants": {mark_of("cut off"): "off"}, "loras": {"raw": "off", "poet": "careful"}}
    for mode in ("exit", "shadow"):
        server = operation(requests=rule, mode=mode, efforts={"low": "bold"}, **off)
        for who in ({"caller": mark_of("cut off")}, {"lora": "raw"}, {"caller": mark_of("cut off"), "lora": "poet"}):
            assert (server.resolve(arguments, **who).mode, server.resolve(arguments, **who).point) == ("off", None)


def test_a_risk_is_no_way_from_a_point_without_a_certificate_to_a_bolder_one():
    server = operation(tenants={mark_of("guarded"): "untested"})
    with pytest.raises(ArgumentError, match=r"expected none, as nothing says how large the risk of .* untested is"):
        server.resolve({"specexit_risk": 0.9}, caller=mark_of("guarded"))


def test_what_is_said_beside_a_risk_is_compared_with_the_point_of_that_risk():
    """Patience of the one point beside thresholds of the other is bolder than both."""
    patient = point("patient", 0.8, 0.005, patience=9)
    file = PolicyFile.model_validate({"points": (POINTS[1], patient), "default": "usual"})
    server = Operation(BLOCK, file, Serving())
    assert get(server, risk=0.005, patience=9).policy.patience == 9
    with pytest.raises(ArgumentError, match="specexit_patience is 2, expected at least 9"):
        get(server, risk=0.005, patience=2)


def test_a_point_is_chosen_by_risk_effort_tenant_or_adapter():
    """What is narrower goes first: an adapter before a tenant, what the request says before both."""
    server = operation(
        requests="any",
        efforts={"low": "bold", "high": "careful"},
        tenants={mark_of("secret"): "bold", mark_of("other"): "off"},
        loras={"poet": "careful", "raw": "off"},
    )
    assert server.resolve(None).point == "usual"
    assert [get(server, risk=risk).point for risk in (0.5, 0.04, 0.005)] == ["bold", "usual", "careful"]
    assert [get(server, effort=effort).point for effort in ("low", "medium", "high")] == ["bold", "usual", "careful"]
    assert [get(server, effort=effort).point for effort in ("xhigh", "max")] == ["careful"] * 2  # not bolder than high
    assert server.resolve(None, caller=mark_of("secret")).point == "bold"
    assert server.resolve(None, caller=mark_of("other")).mode == "off"
    assert server.resolve(None, caller=mark_of("secret"), lora="poet").point == "careful"
    assert server.resolve({"specexit_effort": "low"}, lora="raw").mode == "off"
    with pytest.raises(ArgumentError, match=r"specexit_risk is 0.001, .*: 0.005, 0.02, 0.05"):
        get(server, risk=0.001)


def test_a_risk_is_of_the_kind_that_the_server_is_certified_for():
    """Another answer and a wrong one are two risks: a client that asks for less of the one is not given the other."""
    other = point("accurate", 0.6, 0.03, "accuracy_lost")
    file = PolicyFile.model_validate({"points": [*POINTS, other], "default": "bold"})
    server = Operation(BLOCK, file, Serving())
    assert get(server, risk=0.04).point == "usual"
    server.switch(point="accurate")
    assert get(server, risk=0.03).point == "accurate"
    with pytest.raises(ArgumentError, match=r"specexit_risk is 0.02, .*: 0.03$"):
        get(server, risk=0.02)


def test_no_risk_leads_to_a_point_whose_certificate_is_void_nor_away_from_one():
    """Who asked for half a per cent got a threshold of 0.1, which nothing had been calibrated with."""
    edited = point("careful", 0.1) | {"certificate": POINTS[2]["certificate"]}
    file = PolicyFile.model_validate({"points": [*POINTS[:2], edited], "default": "usual"})
    server = Operation(BLOCK, file, Serving())
    assert get(server, risk=0.02).point == "usual"
    with pytest.raises(ArgumentError, match=r"specexit_risk is 0.005, .*: 0.02, 0.05$"):
        get(server, risk=0.005)
    server.switch(point="careful")
    with pytest.raises(ArgumentError, match=r"expected none, as nothing says how large the risk of .* careful is"):
        get(server, risk=0.02)


def test_reasoning_effort_becomes_an_argument_and_ours_goes_before_it():
    chat = SimpleNamespace(reasoning_effort="high")
    responses = SimpleNamespace(reasoning=SimpleNamespace(effort="low"))
    assert with_effort(None, chat) == {"specexit_effort": "high"}
    assert with_effort({"specexit_effort": "low"}, chat) == {"specexit_effort": "low"}
    assert with_effort(None, SimpleNamespace(reasoning_effort="max")) == {"specexit_effort": "max"}
    assert with_effort({"a": 1}, responses) == {"specexit_effort": "low", "a": 1}
    assert with_effort({"a": 1}, SimpleNamespace(reasoning=None)) == {"a": 1}


def test_only_a_share_of_the_requests_exits_and_the_rest_is_plain():
    server = operation(share=0.1)
    modes = [server.resolve(None, f"chatcmpl-{i}").mode for i in range(4000)]
    # One fixed draw of hashes, within three standard errors of the share.
    assert abs(np.mean([mode == "exit" for mode in modes]) - 0.1) < 3 * np.sqrt(0.1 * 0.9 / 4000)
    assert set(modes) == {"exit", "off"}


def test_of_the_requests_in_a_share_no_more_are_audited_than_of_all():
    """With one draw for both, all audits would be of requests in the share: there five times the rate."""
    server = operation(share=0.2, audit_rate=0.1)
    found = [server.resolve(None, f"chatcmpl-{i}") for i in range(10_000)]
    audited = [one.audited for one in found if one.mode != "off"]
    assert abs(np.mean(audited) - 0.1) < 0.02  # one fixed draw of hashes, within three standard errors
    assert not any(one.audited for one in found if one.mode == "off")


def test_of_several_choices_for_a_prompt_the_first_alone_is_audited():
    """Certificates count prompts."""
    server = operation(audit_rate=1.0)
    found = [server.resolve(None, "chatcmpl-1", choice=choice) for choice in range(3)]
    assert [(one.audited, one.mode) for one in found] == [(True, "shadow"), (False, "exit"), (False, "exit")]


def test_certified_is_what_runs_under_a_certified_point_on_what_it_was_calibrated_with():
    assert operation().resolve(None).certified
    assert not get(operation(), validity=0.95).certified
    for mode in ("exit", "shadow"):
        said = get(operation(mode=mode, audit_rate=1), mode="exit")  # what the server does anyway
        assert (said.mode, said.point, said.certified, said.audited) == (mode, "usual", True, False)
    assert get(operation(), mode="shadow").point is None
    assert get(operation(mode="shadow", requests="any"), mode="exit").point is None
    assert not operation(reasons=["dtype is float16, calibrated with bfloat16"]).resolve(None).certified
    assert not operation(loras={"poet": "careful"}).resolve(None, lora="poet").certified
    assert not operation().resolve(None, lora="poet").certified  # another target than the calibrated one
    server = operation()
    server.switch(point="untested")
    assert server.resolve(None) == server.resolve(None)._replace(point="untested", certified=False)


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        ({"policy": {"thresholds": {"validity": 0.5}}}, r"policy of point usual is [0-9a-f]{16}, calibrated was "),
        ({"policy": {"max_thinking_tokens": 37, "min_thinking_tokens": 0}}, "policy of point usual is"),
        ({"policy": {"smoothing": "ewma"}}, "policy of point usual is"),
        ({"certificate": {"policy_sha256": None}}, "certificate of point usual does not say of which policy it is"),
    ],
    ids=["threshold", "cap", "smoothing", "older file"],
)
def test_a_certificate_is_of_the_policy_that_it_was_made_for_alone(edited, message):
    """A threshold, a cap or a smoothing edited by hand used to be served as certified, with `required`, too."""
    usual = POINTS[1] | {key: POINTS[1][key] | value for key, value in edited.items()}
    server = Operation(BLOCK, PolicyFile.model_validate({"points": [usual], "default": "usual"}), Serving())
    (doubt,) = server.uncertified_because()
    assert re.search(f"{message}.*: calibrate again$", doubt)
    assert server.resolve(None)._replace(certified=None) == operation().resolve(None)._replace(
        certified=None, policy=server.served().policy
    )
    assert not server.resolve(None).certified
    server.load(PolicyFile.model_validate({"points": POINTS, "default": "usual"}), Serving())
    assert server.resolve(None).certified


def test_an_operator_switches_and_lifts_what_audits_have_imposed():
    server = operation()
    server.reject(server.file.point("usual"))
    assert server.resolve(None).point == "careful"
    server.switch("shadow", "bold")
    assert (server.resolve(None).point, server.resolve(None).mode) == ("bold", "shadow")
    with pytest.raises(PolicyError, match="operating point 'boldest' does not exist, expected one of bold, usual"):
        server.switch(point="boldest")
    assert server.name == "bold"


def test_where_the_stricter_point_was_rejected_too_the_next_one_serves():
    server = operation(efforts={"low": "bold", "medium": "usual"})
    server.switch(point="untested")
    for name in ("bold", "usual"):
        server.reject(server.file.point(name))
    assert [get(server, effort=effort).point for effort in ("low", "medium")] == ["careful"] * 2
    assert server.resolve(None).point == "untested"


def test_under_a_ceiling_nothing_bolder_is_served_however_it_is_asked_for():
    server = operation(requests="any", efforts={"low": "bold"}, loras={"poet": "untested"})
    server.switch(point="bold")
    server.reject(server.file.point("bold"))
    found = [get(server, effort="low"), get(server, risk=0.5), server.resolve(None, lora="poet")]
    assert [admitted.point for admitted in found] == ["usual"] * 3
    assert get(server, risk=0.01).point == "careful"


def test_a_void_certificate_lets_no_point_go_below_a_ceiling():
    """A threshold of 0.1, edited by hand, was served on as if it changed half a per cent of the answers."""
    edited = point("edited", 0.1) | {"certificate": POINTS[2]["certificate"]}
    file = PolicyFile.model_validate({"points": [*POINTS[:2], edited], "default": "bold"})
    server = Operation(BLOCK, file, Serving.model_validate({"loras": {"poet": "edited"}}))
    assert server.resolve(None, lora="poet").point == "edited"
    server.reject(file.point("bold"))
    assert server.resolve(None, lora="poet").point == "usual"


def test_workers_get_all_that_is_decided_and_nothing_that_a_client_wrote():
    given = {"specexit_validity": 0.95, "other": 3}
    sent = operation().resolve(given, "r", caller="abc").extra_args(given)
    assert sent["other"] == 3
    assert sent[RESOLVED]["policy"]["thresholds"] == {"validity": 0.95}
    assert sent[RESOLVED]["caller"] == "abc"
    assert json.loads(json.dumps(sent)) == sent | {RESOLVED: sent[RESOLVED] | {"splits": None}}


def test_a_certificate_holds_for_what_it_was_made_with():
    made = {"draft": "a" * 64, "dtype": "bfloat16", "kv_cache_dtype": "auto", "target": None}
    file = PolicyFile.model_validate({"fingerprints": made})
    assert doubts(file, {"draft": "a" * 64, "dtype": "bfloat16", "kv_cache_dtype": "auto", "target": "t"}) == []
    assert doubts(file, {"draft": "b" * 64, "dtype": "bfloat16", "kv_cache_dtype": "fp8"}) == [
        "draft is bbbbbbbbbbbb, calibrated with aaaaaaaaaaaa",
        "kv_cache_dtype is fp8, calibrated with auto",
    ]


@pytest.mark.parametrize(
    ("made", "served", "holds"),
    [
        ("gptq", "auto_gptq", True),
        ("awq", "awq_marlin", True),
        ("fp8", "fp8", True),
        ("fp8", "deepseek_v4_fp8", True),
        ("modelopt", "modelopt_fp4", True),
        ("auto_gptq", "auto_gptq", True),
        ("none", "auto_gptq", False),
        ("none", "fp8", False),
        ("gptq", "auto_awq", False),
        ("gptq", "none", False),
        ("gptq", "moe_wna16", False),
    ],
)
def test_a_quantised_target_is_known_by_what_vllm_calls_its_method(made, served, holds):
    """vLLM calls GPTQ, AWQ and DeepSeek V4's FP8 by names of its own, so that no certificate of such a target held."""
    file = PolicyFile.model_validate({"fingerprints": {"quantization": made}})
    differs = [f"quantization is {served}, calibrated with {made}"]
    assert doubts(file, {"quantization": served}) == ([] if holds else differs)


def test_a_certificate_that_does_not_say_what_it_was_made_with_is_doubted():
    """A directory of an older version used to be certified for whatever was served."""
    served = {"draft": "a" * 64, "target": "b" * 64, "tokenizer": None, "dtype": "bfloat16"}
    points = {"points": POINTS, "default": "usual", "sampling": {"temperature": 0.6}}
    for made, missing in (({}, "draft, target, dtype"), ({"draft": "a" * 64, "dtype": "bfloat16"}, "target")):
        assert doubts(PolicyFile.model_validate(points | {"fingerprints": made}), served) == [
            f"policy.json does not say with which {missing} it was calibrated: calibrate again"
        ]
    known = {"fingerprints": served}
    for sampling in (None, {}, {"max_tokens": 768}):
        assert doubts(PolicyFile.model_validate(points | known | {"sampling": sampling}), served) == [
            "policy.json does not say at which temperature its traces were sampled: calibrate again"
        ]
    assert doubts(PolicyFile.model_validate(points | known), served) == []
    certified = PolicyFile.model_validate(points | known)
    # What is written at each exit used to be in no certificate, and under all of them.
    assert doubts(certified, served, "Answer now.") == ["serving.transition is 'Answer now.', calibrated without"]
    untested = {"points": POINTS[3:], "default": "untested"}  # which says itself that nothing is certified
    assert doubts(PolicyFile.model_validate(untested), served) == []
