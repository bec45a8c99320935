"""What is known of many traces at once: as a set, a dictionary or a list of objects would say it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.data import outlines as outlines_module
from specexit.data import seen as seen_module
from specexit.data.outlines import outlines
from specexit.data.rows import prompt_sha256, why_not
from specexit.data.seen import Seen

KEYS = st.integers(-(2**63), 2**64 - 1)


@given(st.lists(st.one_of(KEYS, st.integers(0, 5))), st.integers(1, 4))
def test_what_was_seen_is_a_set(keys, merged):
    seen, expected = Seen(), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen_module, "MERGED", merged)
        for key in keys:
            assert seen.add(key) == (key % 2**64 not in expected)
            expected.add(key % 2**64)
    assert len(seen) == len(expected)
    assert seen.hashes().tolist() == sorted(expected)


def free(*boundaries):
    return [{"boundary": at, "answer": "7", "same": same, "tokens": 3} for at, same in boundaries]


@pytest.fixture
def traces(make_trace):
    """Of two groups and without one, one that cannot judge, two whose answer was also written in full."""
    return [
        make_trace(id="a", task="sum", trial=json.dumps({"text": "x", "free": free((0, True), (2, None))})),
        make_trace(id="b", prompt_ids=[9], finish_reason="length", task="sum", group="old"),
        make_trace(id="a", sample=1, reference=None, trial='{"text": "x", "boundaries": "stable"}'),
        make_trace(id="c", prompt_ids=[8], task="product", trial=json.dumps({"text": "x", "free": free((1, False))})),
    ]


def test_columns_say_what_the_traces_say(traces, monkeypatch):
    monkeypatch.setattr(outlines_module, "IDS_AT_ONCE", 2)
    found = outlines(traces)
    assert [f"{prompt:016x}" for prompt in found["prompt"].tolist()] == [prompt_sha256(t)[:16] for t in traces]
    assert found["n_boundaries"].tolist() == [3, 3, 3, 3]
    assert found["throughout"].tolist() == [True, True, False, True]
    assert found["has_reference"].tolist() == [True, True, False, True]
    assert list(found.names()) == [("a", 0), ("b", 0), ("a", 1), ("c", 0)]
    assert found.has("barred", None).tolist() == [why_not(trace) is None for trace in traces]
    assert found.counted("task") == {"sum": 2, None: 1, "product": 1}
    number, names = found.groups()
    assert [names[at] if at >= 0 else None for at in number] == ["sum", "old", None, "product"]
    assert found.different("trial") == ['{"text": "x"}', "{}", '{"text": "x", "boundaries": "stable"}']
    # The first boundary, behind four tokens, is there as 0 as well; an answer that was cut off says nothing.
    assert found.whole.tolist() == [[0, 4, 1], [0, 0, 1], [0, 10, -1], [3, 7, 0]]


def test_some_of_the_traces_are_what_they_were(traces):
    every = outlines(traces)
    kept = np.array([False, True, True, True])
    some, expected = every.only(kept), outlines(traces[1:])
    assert list(some.names()) == list(expected.names())
    assert some.id_of(2) == "c"
    assert some.whole.tolist() == expected.whole.tolist()
    assert some.different("task") == ["sum", None, "product"]
    assert some.counted("barred") == expected.counted("barred") == {"unfinished": 1, None: 2}
    assert not some.only(np.zeros(3, bool)).different("task")
