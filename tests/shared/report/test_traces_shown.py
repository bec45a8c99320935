"""The traces that the report shows: which ones, cut where the request exited, with their text as it is."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specexit.bench.requests import Reason, Request
from specexit.data.traces import Trace, write_traces
from specexit.method.decision import Policy
from specexit.method.signals import column
from specexit.report.charts import signals_chart
from specexit.report.page import report
from specexit.report.shown import ReportError, choose, show
from specexit.schemas.target import load_target_config
from tests.shared.report.pages import STEPS, config, exited


def test_the_trace_is_cut_where_the_request_exited(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text()
    listed = re.findall(r'<li class="(\w+)"><span[^>]*>(.*?)</span>', html)
    assert [kind for kind, _ in listed] == ["kept", "kept", "kept", "exit", "cut"]
    assert [text for kind, text in listed if kind != "exit"] == [step.strip("\n") for step in STEPS]


def test_only_a_trial_that_stated_an_answer_has_one_and_a_mark(bench: Path, trace: Trace) -> None:
    """An untried boundary was said to answer as its neighbour does, and a trial that was cut off to answer nothing."""
    states = ["undecided", "differs", "agrees", "untried"]
    write_traces(bench / "traces.parquet", [replace(trace, boundary_state=states)])
    report(config(bench))
    says = re.findall(
        r'<li class="(?:kept|cut)">.*?<span class="says">(.*)</span></li>', (bench / "report.html").read_text()
    )
    assert [re.sub("<[^>]*>", "", said) for said in says] == [
        "undecided",
        "would answer 8 ✗",
        "would answer 7 ✓",
        "not tried",
    ]


@pytest.mark.parametrize(("behind", "reason"), [(4, "exit"), (10, "natural_end"), (10, "exit")])
def test_the_chart_of_a_trace_says_how_its_thinking_ended(make_trace, behind: int, reason: Reason) -> None:
    """It said "exit", in bold, where the model had ended by itself; then "natural end" of an exit at the last step."""
    trace = make_trace()
    request = Request(trace.id, trace.think_ids[:behind], behind, reason, "7", True, {})
    tokenizer = load_target_config("tiny-reasoner").tokenizer()
    chart = show("asked", trace, request, tokenizer, np.full((10, 4), 0.5, np.float32), None).chart
    assert chart is not None
    assert (">exit<" in chart.svg, ">natural end<" in chart.svg) == (reason == "exit", reason == "natural_end")


def test_the_axis_of_tokens_left_ends_above_fractions_of_a_token() -> None:
    """One boundary behind the exit point took it down to a thousandth."""
    values = np.full((9, 4), 0.5, np.float32)
    for remaining in (100.0, 1e-3):  # down from a hundred, and never above
        values[:, column("remaining")] = np.geomspace(remaining, 1e-3, 9)
        exponents = re.findall(r"10\^\{(\S+?)\}", signals_chart(values, [3, 9], 3, None, "exit"))
        assert "-1" in exponents
        assert not {"-2", "-3", "-4"} & set(exponents)


def test_text_of_a_prompt_is_text(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_three_traces_are_worth_looking_at(trace: Trace) -> None:
    """The one that saved the most, the one that lost the most by it, the one that could have been cut the most."""
    names = ("best", "good", "wrong", "missed", "whole", "elsewhere", "looped", "circled")
    traces = {name: replace(trace, id=name) for name in names}
    traces["whole"] = replace(traces["whole"], boundary_agrees=[False] * 4)
    requests = {
        "best": exited(traces["best"], 1),
        "good": exited(traces["good"], 2),
        "wrong": exited(traces["wrong"], 0, correct=False),
        "missed": exited(traces["missed"], 9),
        "whole": exited(traces["whole"], 9),
        # It saved the most of all, on a path of its own, which the trace does not show.
        "elsewhere": Request("elsewhere", [0], 1, "exit", "7", True, {}),
        # The guard against loops ended them, where no exit is to be marked.
        "looped": replace(
            exited(traces["looped"], 0), token_ids=trace.think_ids[:1], thinking_tokens=1, ended_by="loop"
        ),
        "circled": replace(exited(traces["circled"], 0), ended_by="loop"),
    }
    responses = [(traces[name], requests[name]) for name in names]
    chosen = choose(responses)
    assert {kind: trace.id for kind, (trace, _) in chosen.items()} == {
        name: name for name in ("best", "wrong", "missed")
    }
    assert choose([(traces["whole"], requests["whole"])]) == {}


def test_every_sample_of_a_problem_is_looked_at(bench: Path, trace: Trace) -> None:
    """The last one alone was, and where it had taken another path there was nothing to be shown."""
    rows = [json.loads(line) for line in (bench / "requests.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if (row["method"], row["batch"]) == ("specexit", 16)]
    other = row | {"sample": 1, "token_ids": [trace.think_ids[0] + 1, *row["token_ids"][1:]], "correct": False}
    for samples, shown in (([row, other], 1), ([other | {"sample": 0}, row | {"sample": 1}], 2)):
        others = [one for one in rows if one is not row]
        (bench / "requests.jsonl").write_text("".join(json.dumps(one) + "\n" for one in [*others, *samples]))
        found = json.loads((bench / "results.json").read_text())
        (bench / "results.json").write_text(json.dumps(found | {"samples": 2}))
        report(config(bench))
        html = (bench / "report.html").read_text()
        assert f"<bdi>a</bdi>, response {shown} of 2</p>" in html
        assert html.count('<h2 id="trace-') == 1
        report(config(bench, trace_id="a"))
        assert f"<bdi>a</bdi>, response {shown} of 2</p>" in (bench / "report.html").read_text()


def test_a_trace_of_500_steps_is_folded_and_keeps_its_line_breaks(trace: Trace) -> None:
    tokenizer = load_target_config("tiny-reasoner").tokenizer()
    text = [f"Step {i}:\n  x = {i}\n\n" for i in range(500)]
    steps = [tokenizer.encode(one) for one in text]
    long = replace(
        trace,
        think_ids=[token for step in steps for token in step],
        boundaries=np.cumsum([len(step) for step in steps]).tolist(),
        boundary_answers=["7"] * 500,
        boundary_agrees=[True] * 500,
        boundary_confidence=[1.0] * 500,
        boundary_state=["agrees"] * 500,
        boundary_trial_tokens=[3] * 500,
    )
    signals = np.full((len(long.think_ids), 4), 0.5, np.float32)
    shown = show("best", long, exited(long, 200), tokenizer, signals, Policy())
    assert [step.text for step in shown.steps] == [one.strip("\n") for one in text]
    opened = [step for folded, group in shown.groups for step in group if not folded]
    assert sum(len(group) for _, group in shown.groups) == 500
    assert len(opened) < 20
    assert [step.last for step in shown.steps].index(True) == 200
    assert any(step.last for step in opened)
    assert shown.chart is not None
    assert len(shown.chart.svg) < 300_000


def test_the_trace_that_was_benched_is_shown_among_samples_of_its_prompt(bench: Path, trace: Trace) -> None:
    report(config(bench))
    page = (bench / "report.html").read_text()
    write_traces(bench / "traces.parquet", [trace, replace(trace, sample=1, think_ids=trace.think_ids[::-1])])
    report(config(bench))
    assert (bench / "report.html").read_text() == page


def test_kinds_of_traces_that_there_are_none_of_are_named(bench: Path) -> None:
    report(config(bench))
    assert "none is to be shown as a wrong exit, a missed exit." in (bench / "report.html").read_text()
    report(config(bench, trace_id="a"))
    assert "none is to be shown" not in (bench / "report.html").read_text()


def test_a_trace_that_did_not_exit_cannot_be_shown(bench: Path) -> None:
    with pytest.raises(ReportError, match="'nowhere' did not exit at a boundary, expected one of a"):
        report(config(bench, trace_id="nowhere"))
    assert not (bench / "report.html").exists()
    requests = bench / "requests.jsonl"
    requests.write_text(requests.read_text().replace('"ended_by": null', '"ended_by": "loop"'))
    with pytest.raises(ReportError, match=r"'a' did not exit at a boundary, and no other one can be shown$"):
        report(config(bench, trace_id="a"))


def test_a_trace_whose_response_took_another_path_cannot_be_asked_for(bench: Path, trace: Trace) -> None:
    """It was shown beside the response's cut and answer, and the refusal of another id offered it."""
    other = replace(trace, think_ids=[trace.think_ids[0] + 1, *trace.think_ids[1:]])
    write_traces(bench / "traces.parquet", [other])
    for asked, did in (("a", "took another path up to its exit"), ("nowhere", "did not exit at a boundary")):
        with pytest.raises(
            ReportError, match=rf"requests\.jsonl: trace '{asked}' {did}, and no other one can be shown$"
        ):
            report(config(bench, trace_id=asked))
    assert not (bench / "report.html").exists()


def test_traces_of_other_problems_are_refused(bench: Path, trace: Trace) -> None:
    """It was a page without traces; only some of them are what `annotate` leaves."""
    write_traces(bench / "traces.parquet", [replace(trace, id="b")])
    with pytest.raises(
        ReportError, match=r"traces\.parquet: holds none of the problems of .*requests\.jsonl, expected"
    ):
        report(config(bench))
    assert not (bench / "report.html").exists()


def test_text_behind_the_last_boundary_is_shown(trace: Trace) -> None:
    tokenizer = load_target_config("tiny-reasoner").tokenizer()
    rest = tokenizer.encode("So 7 it is.")
    longer = replace(trace, think_ids=[*trace.think_ids, *rest])
    shown = show("missed", longer, exited(longer, 9), tokenizer, None, None)
    assert [step.text for step in shown.steps] == [*(step.strip("\n") for step in STEPS), "So 7 it is."]
    assert [step.state for step in shown.steps] == ["differs", "differs", "agrees", "agrees", ""]
    assert shown.steps[-1].kept
    assert not show("best", longer, exited(longer, 2), tokenizer, None, None).steps[-1].kept
