"""What requests may ask for, and get, while audits or an operator's kill switch hold exits back."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.drafts.policy import PolicyFile, Serving
from specexit.method.decision import Policy, exit_position
from specexit.method.splits import ThinkTokens
from tests.serving.points import BLOCK, BOLDER, RARER, get, operation, point
from torch_specexit.plugin.frontend.arguments import ArgumentError
from torch_specexit.plugin.frontend.operation import Operation
from torch_specexit.plugin.frontend.permissions import stricter_of


def held(server):
    server.reject(server.file.point("usual"))


def held_in_shadow(server):
    held(server)
    server.reject(server.file.point("careful"))


def switched_in_the_file(server):
    server.load(server.file, Serving(mode="shadow"))


INCIDENTS = {
    "audits": (held, "exit"),
    "all audits": (held_in_shadow, "shadow"),
    "off": (lambda server: server.switch("off"), "off"),
    "shadow": (lambda server: server.switch("shadow"), "shadow"),
    "file": (switched_in_the_file, "shadow"),
}


@pytest.mark.parametrize("arguments", RARER, ids=str)
@pytest.mark.parametrize("incident", INCIDENTS)
def test_what_a_client_may_ask_it_may_ask_in_an_incident_too_and_gets_no_more_than_others(incident, arguments):
    """Answered with HTTP 400 from one request to the next, clients would have made two incidents of one."""
    happens, mode = INCIDENTS[incident]
    server = operation()
    happens(server)
    usual, found = server.resolve(None), server.resolve(arguments)
    assert usual.mode == mode
    order = ("exit", "shadow", "off")
    assert order.index(found.mode) >= order.index(mode)
    assert stricter_of(found.policy, usual.policy) == found.policy


def test_who_asks_for_less_than_audits_have_imposed_gets_what_they_have_and_its_certificate():
    server = operation()
    held(server)
    for arguments in ({"validity": 0.95}, {"risk": 0.02}, {"risk": 0.01, "validity": 0.97}):
        found = get(server, **arguments)
        assert (found.point, found.certified, found.policy) == ("careful", True, server.served().policy)
    both = get(server, validity=0.95, confidence=0.3, max_thinking_tokens=1000)
    assert (both.policy.thresholds, both.policy.max_thinking_tokens) == ({"validity": 0.97, "confidence": 0.3}, 1000)
    for arguments, expected in BOLDER:
        with pytest.raises(ArgumentError, match=expected):
            server.resolve(arguments)


@pytest.mark.parametrize(
    ("arguments", "least", "most"),
    [
        ({"specexit_max_thinking_tokens": 50}, 64, 64),
        ({"specexit_min_thinking_tokens": 500}, 500, 500),
        ({"specexit_max_thinking_tokens": 70}, 64, 70),
    ],
    ids=str,
)
def test_what_fits_the_operators_point_is_no_error_beside_that_of_audits_where_requests_may_ask_for_anything(
    arguments, least, most
):
    """They were an HTTP 400 from one request to the next: a maximum below the other point's minimum."""
    usual = point("usual", 0.9, 0.02, min_thinking_tokens=0, max_thinking_tokens=None)
    careful = point("careful", 0.97, 0.005, min_thinking_tokens=64, max_thinking_tokens=400)
    file = PolicyFile.model_validate({"points": (usual, careful), "default": "usual"})
    server = Operation(BLOCK, file, Serving(requests="any"))
    server.resolve(arguments)
    held(server)
    found = server.resolve(arguments)
    assert (found.policy.min_thinking_tokens, found.policy.max_thinking_tokens) == (least, most)
    assert (found.point, found.certified, found.policy.thresholds) == (None, False, {"validity": 0.97})
    server.switch(point="careful")
    with nullcontext() if most == 70 else pytest.raises(ArgumentError, match="specexit_max_thinking_tokens is"):
        server.resolve(arguments)


def test_fewer_split_strings_are_not_cut_at_where_audits_want_boundaries_in_a_row():
    patient = point("careful", 0.97, 0.005, patience=2)
    file = PolicyFile.model_validate({"points": (point("usual", 0.9, 0.02, patience=1), patient), "default": "usual"})
    server = Operation(BLOCK, file, Serving())
    assert get(server, splits=["\n\n"]).mode == "exit"
    held(server)
    assert (get(server, splits=["\n\n"]).mode, server.resolve(None).mode) == ("shadow", "exit")


probabilities = st.floats(0, 1, width=16)
limits = st.dictionaries(st.sampled_from(["validity", "confidence", "remaining"]), probabilities)
rules = st.builds(
    Policy,
    thresholds=limits,
    early=limits,
    patience=st.integers(1, 3),
    min_thinking_tokens=st.integers(0, 6),
    max_thinking_tokens=st.none() | st.integers(6, 30),
)


@given(asked=rules, imposed=rules, seed=st.integers(0, 2**32 - 1))
def test_the_stricter_of_two_policies_exits_nowhere_before_either(asked, imposed, seed):
    draws = np.random.default_rng(seed)
    tokens, signals = draws.integers(5, 7, 40).tolist(), draws.random((40, 4))
    ids = ThinkTokens(start=1, end=2, split=frozenset({5}))
    both = exit_position(tokens, signals, stricter_of(asked, imposed), ids)
    for policy in (asked, imposed):
        first = exit_position(tokens, signals, policy, ids)
        assert both is None or (first is not None and first <= both)
