"""What is known of many traces at once: as a set, a dictionary or a list of objects would say it."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.data import scratch as scratch_module
from specexit.data.outlines import outlines
from specexit.data.rows import short_hash, why_not
from specexit.data.scratch import Scratch
from specexit.data.seen import Seen
from specexit.errors import InputError

KEYS = st.integers(-(2**63), 2**64 - 1)


@given(st.lists(st.lists(st.one_of(KEYS, st.integers(0, 5)))))
def test_what_was_seen_is_a_set(some):
    seen, expected = Seen(), set()
    for keys in some:
        new = {key % 2**64 for key in keys} - expected
        assert seen.update(keys) == len(new)
        expected |= new
        assert all(not seen.add(key) and key in seen for key in keys)
    assert len(seen) == len(expected)
    assert list(seen) == sorted(expected)
    assert not any(key in seen for key in set(range(9)) - expected)


def test_another_thread_may_be_the_one_that_lets_a_file_go(monkeypatch):
    """The garbage collector runs in whichever thread it is due."""
    failed = []
    monkeypatch.setattr(sys, "unraisablehook", failed.append)
    held = [Scratch("create table numbers (value)")]
    with ThreadPoolExecutor(1) as thread:
        thread.submit(held.clear).result()
    assert not held
    assert not failed


def test_a_full_disk_is_an_error_that_says_where():
    file = Scratch("create table numbers (value)")
    list(file.ask("pragma max_page_count = 8"))
    with pytest.raises(InputError, match=r"TMPDIR: a temporary file cannot be written: .*full"):
        file.write("insert into numbers values (?)", ((i,) for i in range(100_000)))


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


def hashes(traces):
    return sorted({short_hash(trace.prompt_hash) for trace in traces})


def test_columns_say_what_the_traces_say(traces):
    found = outlines(traces)
    assert len(found) == 4
    assert found.n_prompts() == 3
    assert list(found.prompts()) == hashes(traces)
    assert list(found.names()) == [("a", 0), ("b", 0), ("a", 1), ("c", 0)]
    asked = found.ask("n_boundaries, throughout, is_known, has_free", "order by row")
    assert list(asked) == [(3, 1, 1, 1), (3, 1, 1, 0), (3, 0, 0, 0), (3, 1, 1, 1)]
    assert found.number("max(n_prompt + n_think)") == max(trace.n_prompt + trace.n_think for trace in traces)
    assert found.counted("barred") == {None: 3, "unfinished": 1}
    assert found.counted("task") == {"sum": 2, None: 1, "product": 1}
    assert found.counted("part") == {"sum": 1, "old": 1, None: 1, "product": 1}
    assert found.different("trial") == ['{"text": "x"}', "{}", '{"text": "x", "boundaries": "stable"}']


@pytest.mark.parametrize("texts", [{"barred": None}, {"barred": "unfinished"}, {"task": "sum", "barred": None}])
def test_some_of_the_traces_are_as_if_there_were_no_others(traces, texts):
    some = outlines(traces).only(**texts)
    kept = [
        t for t in traces if all((why_not(t) if name == "barred" else t.task) == text for name, text in texts.items())
    ]
    expected = outlines(kept)
    assert kept
    assert len(some) == len(kept)
    assert list(some.names()) == list(expected.names())
    assert list(some.prompts()) == hashes(kept)
    for name in ("barred", "task", "part", "trial"):
        assert some.counted(name) == expected.counted(name)
    assert some.number("sum(n_think)") == sum(trace.n_think for trace in kept)


def test_of_no_traces_nothing_is_known(traces):
    none = outlines(traces).only(task="nobody's")
    assert (len(none), none.n_prompts(), none.number("max(n_think)"), none.different("task")) == (0, 0, 0, [])
    assert none.among(np.array(hashes(traces), np.uint64)) == (0, None)


@pytest.mark.parametrize("at_once", [1, 1 << 16])
def test_prompts_that_are_known_are_found_with_the_first_of_their_traces(traces, at_once, monkeypatch):
    monkeypatch.setattr(scratch_module, "AT_ONCE", at_once)
    found = outlines(traces)
    for known, first in ((traces, "a"), (traces[1:2], "b"), (traces[1:], "a"), ([traces[1], traces[3]], "b")):
        assert found.among(np.array(hashes(known), np.uint64)) == (len(hashes(known)), first)
    for known in (np.zeros(0, np.uint64), np.arange(9, dtype=np.uint64), ~np.arange(9, dtype=np.uint64)):
        assert found.among(known) == (0, None)
    falling = np.array([*hashes(traces)[::-1], 7], np.uint64)
    assert found.among(falling) == (3, "a")
