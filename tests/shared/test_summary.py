"""Statistics of labelled traces that can be checked by hand, and what they leave open."""

import json
import re

import pytest

from specexit.data.annotate import annotate, label
from specexit.data.rows import fill_untried, infer_agrees
from specexit.data.summary import Ending, summarise
from specexit.data.traces import write_traces
from specexit.report.traces import KINDS, example_of
from specexit.schemas.annotate import AnnotateConfig


def test_statistics_by_hand(think, tokenizer):
    right = think(("x.", "1"), ("The answer is 2.", "2"), ("y.", "2"), ("z.", "2"), reference="2")
    wrong = think(("x.", None), ("The answer is 4.", "4"), ("y.", "3"), ("z.", "3"), reference="4")
    unknown = think(("The answer is 5.", "5"), ("y.", "5"))
    traces = [label(trace, tokenizer, "answer") for trace in (right, wrong, unknown)]
    statistics = summarise(traces, {})
    total = sum(len(trace.think_ids) for trace in traces)
    assert statistics.n == 3
    assert statistics.boundaries_per_trace == pytest.approx(10 / 3)
    assert (statistics.full.thinking_cut, statistics.full.agreement, statistics.full.accuracy) == (0, 1, 0.5)
    kept = right.boundaries[1] + wrong.boundaries[2] + unknown.boundaries[0]
    assert statistics.oracle_earliest.thinking_cut == pytest.approx(1 - kept / total)
    assert statistics.oracle_earliest.agreement == 1
    assert statistics.oracle_stable == statistics.oracle_earliest
    assert (statistics.first_boundary.agreement, statistics.first_boundary.accuracy) == (pytest.approx(1 / 3), 0)
    # At the first stated answer the wavering trace is still right: 2 and 4 are the references.
    assert (statistics.hard_boundaries, statistics.hard_valid) == (3, pytest.approx(2 / 3))
    assert (statistics.hard_boundary.agreement, statistics.hard_boundary.accuracy) == (pytest.approx(2 / 3), 1)
    # Before the natural end: no yes yes, no no yes, yes.
    assert statistics.valid_boundaries == pytest.approx(4 / 7)


def test_the_oracle_curve_ends_at_the_full_trace(think, tokenizer):
    trace = think(("One.", "1"), ("Two.", "2"), ("Three.", "2"), reference="2")
    curve = summarise([label(trace, tokenizer, "answer")], {}).curve
    assert [point.fraction for point in curve][-1] == 1.0
    assert [point.settled for point in curve] == sorted(point.settled for point in curve)
    assert (curve[-1].settled, curve[-1].ending.agreement, curve[-1].ending.thinking_cut) == (1, 1, 0)
    assert (curve[0].settled, curve[0].ending.agreement) == (0, 0)


def test_the_curve_counts_a_boundary_at_a_share_of_the_thinking(make_trace, tokenizer):
    """To the token, whatever 0.7 * 90 is in floating point."""
    for tenth in range(1, 10):
        trace = make_trace(think_ids=[20] * 90, boundaries=[9 * tenth - 1, 9 * tenth, 90])
        curve = summarise([label(trace, tokenizer, "answer")], {}).curve
        assert [point.settled for point in curve] == [float(i >= tenth) for i in range(1, 11)]


def test_parts_by_task_and_length(think, make_trace, tokenizer):
    at_once = think(("The answer is 2.", "2"), ("y.", "2"), ("z.", "2"))
    wavering = think(("x.", "2"), ("y.", "3"), ("z.", "2"), ("w.", "2"))
    never = think(("x.", "1"), ("z.", "2"))
    tasks = ("sums", "sums", None)
    traces = [
        label(make_trace(**vars(trace) | {"task": task, "prompt_ids": [1] * n}), tokenizer, "answer")
        for trace, task, n in zip((at_once, wavering, never), tasks, (1, 1, 2), strict=True)
    ]
    statistics = summarise(traces, {})
    assert statistics.prompts == 2  # two are samples of one prompt
    sums, other = statistics.by_task["sums"], statistics.by_task["no task"]
    assert (sums.n, sums.at_once, sums.wavering, sums.never) == (2, 0.5, 0.5, 0)
    assert (other.n, other.at_once, other.wavering, other.never, other.redundant) == (1, 0, 0, 1, 0)
    thinking = sum(len(trace.think_ids) for trace in traces[:2])
    assert sums.redundant == pytest.approx(1 - (at_once.boundaries[0] + wavering.boundaries[0]) / thinking)
    assert sums.redundant_stable == pytest.approx(1 - (at_once.boundaries[0] + wavering.boundaries[2]) / thinking)
    assert sum(part.n for part in statistics.by_length.values()) == statistics.whole.n == 3
    assert statistics.lengths["shortest"] == len(never.think_ids)


def test_undecided_and_free_trials_are_counted(make_trace, tokenizer):
    free = [
        {"boundary": 0, "answer": "7", "same": True, "tokens": 5},
        {"boundary": 1, "answer": "8", "same": False, "tokens": 5},
        {"boundary": 2, "answer": None, "same": None, "tokens": 9},
    ]
    trace = make_trace(
        boundary_state=["undecided", "untried", "agrees"],
        boundary_trial_tokens=[24, 0, 6],
        trial=json.dumps({"free": free}),
    )
    statistics = summarise([label(trace, tokenizer, "answer")], {})
    assert (statistics.trials, statistics.undecided, statistics.trial_tokens) == (2, 1, 30)
    assert (statistics.free_trials, statistics.free_same) == (2, 0.5)


@pytest.mark.parametrize(
    ("states", "wavering", "valid"),
    [
        ("agrees differs agrees", 1, 1 / 2),
        ("agrees differs differs", 1, 1 / 2),  # the natural end has the answer, whatever a trial there says
        ("differs agrees differs", 0, 1 / 2),
        ("agrees undecided agrees", 0, 1),
        ("undecided differs agrees", 0, 0),
        ("agrees untried undecided", 0, 1),
        ("undecided undecided agrees", 0, None),
    ],
)
def test_an_undecided_trial_neither_differs_nor_wavers(make_trace, tokenizer, states, wavering, valid):
    fields = {"boundary_state": states.split(), "boundary_agrees": infer_agrees(states.split())}
    one = label(make_trace(**fields), tokenizer, "answer")
    statistics = summarise([one], {})
    assert (statistics.whole.wavering, statistics.valid_boundaries) == (wavering, valid)
    shown = {kind for kind in KINDS if example_of(one, tokenizer, KINDS.keys() - {kind})}
    assert ("wavering" in shown) == bool(wavering)


@pytest.mark.parametrize("states", ["agrees undecided agrees", "undecided agrees agrees", "agrees agrees undecided"])
def test_an_undecided_trial_does_not_unsettle_a_trace(make_trace, tokenizer, states):
    fields = {"boundary_state": states.split(), "boundary_agrees": infer_agrees(states.split())}
    one = label(make_trace(**fields), tokenizer, "answer")
    assert one.exit_earliest == one.exit_stable < len(one.think_ids)
    statistics = summarise([one], {})
    assert statistics.whole.never == 0
    first = None if states.startswith("undecided") else 1
    assert (statistics.first_boundary.agreement, statistics.curve[0].ending.agreement) == (first, first)


@pytest.mark.parametrize(("how", "untried"), [("stable", True), ("bisect", True), ("bisect", False)])
def test_what_was_not_looked_for_is_unknown_and_not_zero(make_trace, think, tokenizer, how, untried, tmp_path):
    """Trials of ``boundaries=stable`` say nothing of what is in front of the exit point, and those about it are no
    sample of all."""
    whole = think(("The answer is 2.", "2"), ("w.", "2"), ("x.", "3"), ("y.", "2"), ("z.", "2"), reference="3")
    states = ["untried" if untried else "differs", "untried", "differs", "agrees", "agrees"]
    answers = fill_untried([None, None, "3", "2", "2"])
    fields = {"boundary_state": states, "boundary_agrees": infer_agrees(states), "boundary_answers": answers}
    one = make_trace(**vars(whole) | fields | {"trial": json.dumps({"boundaries": how})})
    statistics = summarise([label(one, tokenizer, "answer")], {})
    part = statistics.whole
    assert (part.redundant, part.wavering) == (None, None)
    assert part.redundant_stable == pytest.approx(1 - one.boundaries[3] / one.n_think)
    assert (statistics.first_boundary.agreement, statistics.first_boundary.accuracy) == (None, None)
    assert statistics.hard_boundaries == 0
    write_traces(tmp_path / "traces" / "traces.parquet", [one])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = " ".join((tmp_path / "labelled" / "statistics.html").read_text().split())
    assert "is unknown" in page
    assert "<dt>change after having settled</dt><dd>unknown" in page


def test_early_ends_are_those_of_the_traces_that_were_tried_throughout(think, make_trace, tokenizer, tmp_path, capsys):
    """Traces of ``boundaries=stable`` among them neither cut nothing nor are right there."""
    steps = ("x.", "3"), ("The answer is 3.", "3"), ("y.", "2"), ("w.", "2"), ("z.", "2")
    whole = think(*steps, reference="2")
    states = ["untried", "differs", "agrees", "agrees", "agrees"]
    fields = {"id": "b", "boundary_state": states, "trial": json.dumps({"boundaries": "stable"})}
    stable = make_trace(**vars(whole) | fields)
    alone, both, none = (
        summarise([label(trace, tokenizer, "answer") for trace in traces], {})
        for traces in ([whole], [whole, stable], [stable])
    )
    assert (alone.throughout, both.throughout, none.throughout) == (1, 1, 0)
    for name in ("oracle_earliest", "first_boundary", "hard_boundary"):
        assert getattr(both, name) == getattr(alone, name)
        assert getattr(none, name) == Ending(None, None, None, None)
    assert [(point.settled, point.ending) for point in both.curve] == [
        (point.settled, point.ending) for point in alone.curve
    ]
    assert both.oracle_earliest.thinking_cut == both.whole.redundant
    assert both.oracle_stable.thinking_cut == none.oracle_stable.thinking_cut == none.whole.redundant_stable
    assert {point.settled for point in none.curve} == {None}
    assert none.curve[-1].settled_stable == 1
    write_traces(tmp_path / "traces" / "traces.parquet", [whole, stable])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    assert "in the other 1 the point behind which" in page
    for name in ("oracle, earliest", "first stated answer", "first boundary"):
        assert f"{name} of 1 trace<" in page
    assert "early ends are those of 1 of the traces" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("states", "warned"),
    [
        ("untried untried differs agrees", "2 boundaries lie .*, and 1 are known to differ"),
        ("untried differs agrees", ""),
    ],
)
def test_traces_with_few_exits_that_are_known_to_be_wrong_are_a_warning(make_trace, tmp_path, capsys, states, warned):
    """Of the validity of boundaries that ``boundaries=stable`` did not try a draft learns nothing."""
    states = states.split()
    n = len(states)
    trace = make_trace(
        boundaries=[2 * i + 2 for i in range(n)],
        boundary_answers=["7"] * n,
        boundary_confidence=[0.5] * n,
        boundary_state=states,
        boundary_agrees=infer_agrees(states),
        trial=json.dumps({"boundaries": "stable"}),
    )
    write_traces(tmp_path / "traces" / "traces.parquet", [trace])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    said = capsys.readouterr().err
    assert bool(re.search(rf"warning: {warned}.* collect with boundaries=refine", said)) == bool(warned)
