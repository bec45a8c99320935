"""What a server lets requests ask for, and what each of them gets: points, efforts, tenants, shares, switches."""

from __future__ import annotations

import copy
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from specexit.config import ConfigError
from specexit.drafts.directory import SpecExitBlock
from specexit.drafts.policy import FILE, PolicyError, PolicyFile, Serving, policy_sha256, write_policy
from specexit.method.decision import Policy
from torch_specexit.plugin.certified import doubts
from torch_specexit.plugin.frontend import watch as watching
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.arguments import RESOLVED, ArgumentError
from torch_specexit.plugin.frontend.callers import mark_of
from torch_specexit.plugin.frontend.efforts import with_effort
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.server import FrontEnd
from torch_specexit.plugin.frontend.watch import PolicyWatch, policies_for

BLOCK = SpecExitBlock(target="t", split_connectors=("Wait",))
POLICY = Policy(thresholds={"validity": 0.9}, patience=2, min_thinking_tokens=30, max_thinking_tokens=900)


def certificate(epsilon, risk="answer_changed"):
    return {"risk": risk, "epsilon": epsilon, "delta": 0.1, "n": 400, "errors": 0, "bound": epsilon, "data_sha256": "0"}


def point(name, threshold, epsilon=None, **changes):
    policy = POLICY.model_copy(update={"thresholds": {"validity": threshold}} | changes)
    return {
        "name": name,
        "policy": policy.model_dump(),
        "certificate": None if epsilon is None else certificate(epsilon) | {"policy_sha256": policy_sha256(policy)},
    }


POINTS = (point("bold", 0.7, 0.05), point("usual", 0.9, 0.02), point("careful", 0.97, 0.005), point("untested", 0.5))


def operation(*, reasons=(), **serving):
    file = PolicyFile.model_validate({"points": POINTS, "default": "usual"})
    return Operation(BLOCK, file, Serving.model_validate(serving), reasons)


def get(server, **arguments):
    return server.resolve({f"specexit_{name}" if name else "specexit": value for name, value in arguments.items()})


RARER = [
    {"specexit": False},
    {"specexit": True},
    {"specexit_mode": "shadow"},
    {"specexit_mode": "exit"},
    {"specexit_validity": 0.95},
    {"specexit_confidence": 0.3},
    {"specexit_remaining": 5},
    {"specexit_min_thinking_tokens": 31},
    {"specexit_max_thinking_tokens": 900},
    {"specexit_patience": 2},
    {"specexit_alpha": 0.1},
    {"specexit_splits": ["Wait"]},
    {"specexit_risk": 0.01},
]
BOLDER = [
    ({"specexit_validity": 0.89}, "expected at least 0.9"),
    ({"specexit_min_thinking_tokens": 29}, "expected at least 30"),
    ({"specexit_max_thinking_tokens": 899}, "expected at least 900"),
    ({"specexit_patience": 1}, "expected at least 2"),
    ({"specexit_alpha": 0.2}, "expected the server's 0.1"),
    ({"specexit_risk": 0.05}, "expected at most 0.02"),
]


@pytest.mark.parametrize("arguments", RARER, ids=str)
def test_by_default_a_request_may_make_exits_rarer(arguments):
    operation().resolve(arguments)


@pytest.mark.parametrize(("arguments", "expected"), BOLDER, ids=str)
def test_by_default_no_request_may_make_exits_bolder(arguments, expected):
    with pytest.raises(ArgumentError, match=f"{expected}: this server lets requests make exits rarer only"):
        operation().resolve(arguments)
    operation(requests="any").resolve(arguments)


def test_a_stricter_threshold_leaves_the_others_in_force_and_a_free_one_does_not():
    """Giving `confidence` alone used to drop `validity`, on which the certificate stands."""
    assert get(operation(), confidence=0.3).policy.thresholds == {"validity": 0.9, "confidence": 0.3}
    assert get(operation(requests="any"), confidence=0.3).policy.thresholds == {"confidence": 0.3}


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
    other = point("accurate", 0.6) | {"certificate": certificate(0.03, "accuracy_lost")}
    file = PolicyFile.model_validate({"points": [*POINTS, other], "default": "bold"})
    server = Operation(BLOCK, file, Serving())
    assert get(server, risk=0.04).point == "usual"
    server.switch(point="accurate")
    assert get(server, risk=0.03).point == "accurate"
    with pytest.raises(ArgumentError, match=r"specexit_risk is 0.02, .*: 0.03$"):
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


def test_certified_is_what_runs_under_a_certified_point_on_what_it_was_calibrated_with():
    assert operation().resolve(None).certified
    assert not get(operation(), validity=0.95).certified
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
    server.ceiling = "careful"
    assert server.resolve(None).point == "careful"
    server.switch("shadow", "bold")
    assert (server.resolve(None).point, server.resolve(None).mode) == ("bold", "shadow")
    with pytest.raises(PolicyError, match="operating point 'boldest' does not exist, expected one of bold, usual"):
        server.switch(point="boldest")
    assert server.name == "bold"


def test_under_a_ceiling_nothing_bolder_is_served_however_it_is_asked_for():
    server = operation(requests="any", efforts={"low": "bold"}, loras={"poet": "untested"})
    server.ceiling = "usual"
    found = [get(server, effort="low"), get(server, risk=0.5), server.resolve(None, lora="poet")]
    assert [admitted.point for admitted in found] == ["usual"] * 3
    assert get(server, risk=0.01).point == "careful"


def test_workers_get_all_that_is_decided_and_nothing_that_a_client_wrote():
    given = {"specexit_validity": 0.95, "other": 3}
    sent = operation().resolve(given, "r", caller="abc").extra_args(given)
    assert sent["other"] == 3
    assert sent[RESOLVED]["policy"]["thresholds"] == {"validity": 0.95}
    assert sent[RESOLVED]["caller"] == "abc"
    assert json.loads(json.dumps(sent)) == sent | {RESOLVED: sent[RESOLVED] | {"splits": None}}


def written(folder, **changes):
    write_policy(folder, PolicyFile.model_validate({"points": POINTS, "default": "usual"} | changes))


@pytest.fixture
def draft(write_random_draft, tmp_path):
    folder = write_random_draft(tmp_path / "draft", "draft")
    written(folder)
    return folder


def test_a_changed_file_is_in_force_for_the_next_request_and_a_bad_one_is_not(draft, monkeypatch, caplog):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    file, serving = policies_for(draft, BLOCK, {})
    server, watch = Operation(BLOCK, file, serving), PolicyWatch(draft, BLOCK, {}, {"dtype": "bfloat16"})
    assert not watch.changed(server)
    written(draft, default="careful", serving={"mode": "shadow"}, fingerprints={"dtype": "float16"})
    assert watch.changed(server)
    assert (server.resolve(None).point, server.mode) == ("careful", "shadow")
    assert server.doubts == ("dtype is bfloat16, calibrated with float16",)
    for text, message in (
        ("{", "cannot be read as JSON"),
        (json.dumps({"points": [point("ewma", 0.9, smoothing="ewma")], "default": "ewma"}), "smoothing 'ewma'"),
        (json.dumps({"points": [point("all", 0.9, thresholds={})], "default": "all"}), "point all has no thresholds"),
        (json.dumps({"points": POINTS, "default": "usual", "serving": {"loras": {"a": "b"}}}), "serving.loras.a"),
    ):
        (draft / FILE).write_text(text)
        assert not watch.changed(server)
        assert message in caplog.text
        assert server.resolve(None).point == "careful"


@pytest.fixture
def watched(draft, monkeypatch):
    """An operation, and the watch of its file, which looks at once."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    file, serving = policies_for(draft, BLOCK, {})
    return Operation(BLOCK, file, serving), PolicyWatch(draft, BLOCK, {}, {})


@pytest.mark.parametrize("way", ["removed", "a link to nothing"])
def test_a_file_that_is_gone_changes_nothing(way, draft, watched, caplog):
    """A moment without it, as between `rm` and `cp`, used to put an invented policy without a certificate in force."""
    server, watch = watched
    (draft / FILE).unlink()
    if way != "removed":
        (draft / FILE).symlink_to(draft / "nothing")
    assert not watch.changed(server)
    assert "policy.json: is not there, expected the file to read again" in caplog.text
    with pytest.raises(PolicyError, match="is not there"):
        watch.reload(server)
    assert (server.resolve(None).point, len(server.file.points)) == ("usual", 4)
    (draft / FILE).unlink(missing_ok=True)
    written(draft, default="careful")
    assert watch.changed(server)
    assert server.resolve(None).point == "careful"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("thinking_margin", 0, "is 0, expected None"),
        ("transition", "Done.", "is 'Done.', expected ''"),
        ("loop_period", 5, "is 5, expected None"),
        ("loop_repeats", 3, "is 3, expected 4"),
        ("audit_rate", 1.0, "is 1, expected 0"),
    ],
)
def test_a_file_that_changes_what_only_a_start_can_change_is_refused(key, value, expected, draft, watched, caplog):
    """It used to be taken without a word: a margin without effect, requests held back for audits that nobody made."""
    server, watch = watched
    written(draft, default="careful", serving={key: value})
    assert not watch.changed(server)
    assert f"policy.json: serving.{key} {expected}, with which the " in caplog.text
    assert (server.resolve(None).point, server.resolve(None).mode) == ("usual", "exit")


def test_a_server_that_makes_audits_may_stop_and_begin_again(draft, monkeypatch):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    written(draft, serving={"audit_rate": 0.5})
    file, serving = policies_for(draft, BLOCK, {})
    server, watch = Operation(BLOCK, file, serving), PolicyWatch(draft, BLOCK, {}, {})
    for rate in (0.0, 1.0):
        written(draft, serving={"audit_rate": rate})
        assert watch.changed(server)
        assert server.resolve(None).audited == (rate == 1.0)


def test_a_file_with_nothing_new_lifts_nothing(draft, watched):
    """A touch, by `rsync` or by another image of the volume, used to undo a kill switch."""
    server, watch = watched
    server.switch("off")
    for copied in range(2):
        if copied:
            text = (draft / FILE).read_text()
            (draft / FILE).unlink()
            (draft / FILE).write_text(text)
        os.utime(draft / FILE, ns=(copied, copied))
        assert not watch.changed(server)
        assert server.resolve(None).mode == "off"
    server.switch("exit")
    server.ceiling = "careful"  # audits have imposed it
    os.utime(draft / FILE, ns=(9, 9))
    assert not watch.changed(server)
    assert server.resolve(None).point == "careful"


def test_what_an_operator_has_set_stays_until_the_file_says_something_else_about_it(draft, watched):
    server, watch = watched
    server.switch("off", "careful")
    written(draft, serving={"share": 0.5})
    assert watch.changed(server)
    assert (server.serving.share, server.mode, server.name) == (0.5, "off", "careful")
    written(draft, serving={"mode": "shadow"})
    assert watch.changed(server)
    assert (server.mode, server.name) == ("shadow", "careful")
    written(draft, default="bold", serving={"mode": "shadow"})
    assert watch.changed(server)
    assert server.name == "bold"
    server.switch(point="untested")
    written(draft, points=POINTS[:3], default="bold")
    assert watch.changed(server)
    assert (server.mode, server.name) == ("exit", "bold")


def test_a_word_of_an_operator_that_is_refused_changes_nothing(draft, watched):
    """A misspelt point used to be refused when the file had been read again, and exits were on again."""
    server, watch = watched
    front = FrontEnd(server, Activity(), watch=watch)
    front.switch(mode="off")
    written(draft, default="bold", serving={"share": 0.5})
    with pytest.raises(PolicyError, match="operating point 'boldest' does not exist"):
        front.switch(reload=True, point="boldest")
    assert (server.mode, server.name, server.serving.share) == ("off", "usual", 1.0)
    front.switch(reload=True, point="careful")
    assert (server.mode, server.name, server.serving.share) == ("off", "careful", 0.5)


@pytest.mark.parametrize("word", [{}, {"reload": True}], ids=str)
def test_a_word_that_says_nothing_new_lifts_nothing_that_audits_have_imposed(word, draft, watched, caplog):
    server, watch = watched
    front = FrontEnd(server, Activity(), watch=watch)

    def imposed():
        return server.ceiling, server.mode, server.stepped, server.shadowed, front.hold.summary()["points"]

    server.ceiling, server.in_shadow = "careful", True
    server.stepped["bold"] = "usual"
    server.shadowed.add("careful")
    front.audited("careful", "changed", server.file.point("careful").policy)
    before = copy.deepcopy(imposed())
    front.switch(**word)
    assert imposed() == before
    assert "an operator has set" not in caplog.text
    written(draft, serving={"share": 0.5})
    front.switch(reload=True)
    assert imposed() == (None, "exit", {}, set(), {})


def test_settings_come_from_the_file_then_the_command_line_then_the_environment(draft, monkeypatch):
    written(draft, serving={"mode": "shadow", "audit_rate": 0.5, "share": 0.5})
    monkeypatch.setenv("SPECEXIT_SERVING", '{"share": 0.1}')
    _, serving = policies_for(draft, BLOCK, {"specexit": {"audit_rate": 0.02, "share": 0.2}})
    assert (serving.mode, serving.audit_rate, serving.share) == ("shadow", 0.02, 0.1)
    for text, message in (
        ("{", "SPECEXIT_SERVING: cannot be read as JSON"),
        (
            '{"efforts": {"low": "lowest"}}',
            "SPECEXIT_SERVING, over .*: serving.efforts.low is 'lowest', expected a point",
        ),
        ('{"share": 2}', "SPECEXIT_SERVING: specexit.share is 2"),
    ):
        monkeypatch.setenv("SPECEXIT_SERVING", text)
        with pytest.raises(ConfigError, match=message):
            policies_for(draft, BLOCK, {})


@pytest.mark.parametrize("where", ["file", "command line", "environment"])
@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_what_is_switched_off_in_one_place_stays_off_whatever_another_says(where, mode, draft, monkeypatch, caplog):
    """A `mode` of the start used to go over that of the file: its kill switch was without effect, without a word."""
    modes = dict.fromkeys(("file", "command line", "environment"), "exit") | {where: mode}
    written(draft, serving={"mode": modes["file"]})
    monkeypatch.setenv("SPECEXIT_SERVING", json.dumps({"mode": modes["environment"]}))
    _, serving = policies_for(draft, BLOCK, {"specexit": {"mode": modes["command line"]}})
    assert serving.mode == mode
    overruled = f"has no effect: --additional-config or policy.json says {mode}, and the stricter one is in force"
    assert (overruled in caplog.text) == (where != "environment")


def test_the_kill_switch_of_the_file_works_in_a_server_that_was_started_with_a_mode(draft, monkeypatch, caplog):
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    for started in ("exit", "shadow", "off"):
        monkeypatch.setenv("SPECEXIT_SERVING", json.dumps({"mode": started}))
        written(draft)
        server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, {})), PolicyWatch(draft, BLOCK, {}, {})
        server.switch("exit")
        written(draft, serving={"mode": "off"})
        assert watch.changed(server)
        assert server.resolve(None).mode == "off"


def test_a_tenant_or_an_adapter_that_is_off_in_the_file_is_off_whatever_the_start_says(draft, monkeypatch):
    key, other = mark_of("cut off"), mark_of("served")
    written(draft, serving={"tenants": {key: "off", other: "careful"}, "loras": {"raw": "off"}})
    settings = {"tenants": {key: "bold", other: "bold"}, "loras": {"raw": "bold"}}
    monkeypatch.setenv("SPECEXIT_SERVING", json.dumps(settings))
    _, serving = policies_for(draft, BLOCK, {})
    assert (serving.tenants, serving.loras) == ({key: "off", other: "bold"}, {"raw": "off"})


def test_what_the_file_says_in_vain_is_logged(draft, monkeypatch, caplog):
    """A change that the settings of the start go over used to be swallowed."""
    monkeypatch.setattr(watching, "SECONDS", 0.0)
    monkeypatch.setenv("SPECEXIT_SERVING", json.dumps({"share": 0.5, "requests": "none"}))
    server, watch = Operation(BLOCK, *policies_for(draft, BLOCK, {})), PolicyWatch(draft, BLOCK, {}, {})
    written(draft, serving={"share": 0.1, "requests": "none", "required": True})
    assert watch.changed(server)
    assert (server.serving.share, server.serving.required) == (0.5, True)
    said = [line.getMessage() for line in caplog.records if "has no effect" in line.message]
    assert said == [
        f"specexit: serving.share of {draft / FILE} has no effect: --additional-config or SPECEXIT_SERVING goes over it"
    ]


def test_a_certificate_holds_for_what_it_was_made_with():
    made = {"draft": "a" * 64, "dtype": "bfloat16", "kv_cache_dtype": "auto", "target": None}
    file = PolicyFile.model_validate({"fingerprints": made})
    assert doubts(file, {"draft": "a" * 64, "dtype": "bfloat16", "kv_cache_dtype": "auto", "target": "t"}) == []
    assert doubts(file, {"draft": "b" * 64, "dtype": "bfloat16", "kv_cache_dtype": "fp8"}) == [
        "draft is bbbbbbbbbbbb, calibrated with aaaaaaaaaaaa",
        "kv_cache_dtype is fp8, calibrated with auto",
    ]


def test_a_certificate_that_does_not_say_what_it_was_made_with_is_doubted():
    """A directory of an older version used to be certified for whatever was served."""
    served = {"draft": "a" * 64, "target": "b" * 64, "tokenizer": None, "dtype": "bfloat16"}
    points = {"points": POINTS, "default": "usual"}
    for made, missing in (({}, "draft, target, dtype"), ({"draft": "a" * 64, "dtype": "bfloat16"}, "target")):
        assert doubts(PolicyFile.model_validate(points | {"fingerprints": made}), served) == [
            f"policy.json does not say with which {missing} it was calibrated: calibrate again"
        ]
    untested = {"points": POINTS[3:], "default": "untested"}  # which says itself that nothing is certified
    assert doubts(PolicyFile.model_validate(untested), served) == []
