"""The report: one file, complete in itself, saying what was measured and no more."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from specexit.bench.ablate import Ablation, Ablations, Variant
from specexit.bench.replay import Difference, ReplayCheck
from specexit.bench.results import (
    Identity,
    Latency,
    TaskResult,
    read_results,
    result_tables,
    write_results,
)
from specexit.config import REPOSITORY
from specexit.data.traces import Trace
from specexit.drafts.policy import OperatingPoint, PolicyFile, write_policy
from specexit.method.decision import Policy
from specexit.method.policies.validity import policy_at
from specexit.method.simulate import Part, Point, Simulation
from specexit.report import readme
from specexit.report.charts import PALETTE
from specexit.report.page import report
from specexit.report.shown import ReportError
from tests.shared.report.pages import Outline, cells, config, everything


def test_the_file_fetches_nothing(bench: Path, trace: Trace) -> None:
    report(everything(bench, trace))
    html = (bench / "report.html").read_text()
    tags = Outline(html).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "base"}
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in html
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", html))


def test_tokens_a_second_answers_and_arrivals_are_shown(bench: Path) -> None:
    results = read_results(bench / "results.json")
    wait = Latency(mean=1.25, p50=1.0, p95=3.5, first_answer=0.75, n=1)
    ours = {
        "answer_tokens": 21.5,
        "throughput": {"1": 77.0, "16": 333.0},
        "latency": {"1": wait},
        "open_loop": {"4": wait},
    }
    methods = {name: method.model_copy(update=ours) for name, method in results.methods.items()}
    against = {
        name: versus.model_copy(update={"open_loop": {"4": (1.75, 1.5, 2.0)}})
        for name, versus in results.against_eagle3.items()
    }
    write_results(bench / "results.json", results.model_copy(update={"methods": methods, "against_eagle3": against}))
    report(config(bench))
    html = " ".join((bench / "report.html").read_text().split())
    assert html.count("<small>77 tokens/s</small>") == html.count("<small>333 tokens/s</small>") == len(methods)
    assert html.count("<td>21.5</td>") == len(methods)
    assert "4 arrivals a second" in html
    assert "As problems come in, below that the seconds" in html
    assert html.count("1.00 · 3.50 · 0.75</small><small>1.75× (1.50 to 2.00)</small></td>") == len(against)
    for name in ("throughput", "answer_tokens"):
        assert results.definitions[name].replace("<", "&lt;").replace(">", "&gt;") in html


def test_energy_is_told_or_said_not_to_be(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text()
    assert "does not tell its energy" in html
    assert "problems come in, below that" not in html, "nothing was measured as they do"
    results = read_results(bench / "results.json")
    told = {name: method.model_copy(update={"joules": {"16": 4.25}}) for name, method in results.methods.items()}
    write_results(bench / "results.json", results.model_copy(update={"methods": told}))
    report(config(bench))
    html = (bench / "report.html").read_text()
    assert "does not tell its energy" not in html
    assert html.count("4.2 (batch 16)") == 2


def test_tasks_show_what_each_gains(bench: Path) -> None:
    results = read_results(bench / "results.json")
    exits = results.methods["eagle3"].exits
    theirs = TaskResult(n=9, accuracy=1, thinking_tokens=70, exits=exits)
    ours = theirs.model_copy(update={"thinking_tokens": 68, "speedup": {"1": (0.984, 0.971, 0.997)}})
    tasks = {task: {"eagle3": theirs, "specexit": ours} for task in ("sums", "late")}
    write_results(bench / "results.json", results.model_copy(update={"tasks": tasks}))
    report(config(bench))
    html = re.sub(r"\n+", "", (bench / "report.html").read_text())
    assert html.count("<td>0.98×<small>0.97 to 1.00</small></td><td>–</td>") == 2  # batch 16 was not timed
    assert html.count("<td>68.0</td>") == 4  # in the table, and in the numbers behind each figure
    assert "<bdi>sums</bdi>, 9 problems</th>" in html


def test_charts_take_the_colours_of_the_page_and_say_what_they_show(bench: Path, trace: Trace) -> None:
    report(everything(bench, trace))
    html = (bench / "report.html").read_text()
    assert html.count("<svg") == 7  # accuracy, threshold, latency, signals, three of training, none of the machine
    assert len(re.findall(r'role="img" aria-label="[^"]{20,}"><svg', html)) == 7
    assert html.count("The numbers behind it") == 7
    assert not [stand_in for stand_in in PALETTE.values() if stand_in in html]
    assert "prefers-color-scheme: dark" in html


def test_a_phone_scrolls_tables_and_shrinks_drawings(bench: Path, trace: Trace) -> None:
    """The page itself never gets wider than the screen."""
    report(everything(bench, trace))
    html = (bench / "report.html").read_text()
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in html
    assert html.count("<table") == len(re.findall(r'<div class="scroll"[^>]*>\s*<table', html)) >= 10
    style = (REPOSITORY / "shared/specexit/report/templates/style.css").read_text()
    for rule in (".scroll { overflow-x: auto;", "figure svg { display: block; width: 100%;"):
        assert f"\n{rule}" in style
    assert all('tabindex="0"' in tag for tag in re.findall(r'<\w+ class="[^"]*scroll"[^>]*>', html))
    assert 'class="wide"' not in html, "a long trace's drawing is wider than a phone, and scrolls as tables do"


def test_headline_and_intervals(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text().replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert html.count("100.0 %<small>all alike</small>") == 2  # of one problem, accuracy of each method
    assert "<td>−1.0<small>−2.0 to 0.0</small></td>" in html  # points, in the table as in the headline
    for expected in (
        "58 % less thinking",
        "−58.1 %<small>−60.0 to −56.0",
        "56.0 to 60.0",
        "96.8 %",
        "−1.0",
        "2.04×",
        "1.90 to 2.20",
        "1.70×",
        "a slow one",
    ):
        assert expected in html
    assert "installed, not emergent" in html
    assert html.index("</header>") < html.index("Read this first") < html.index('<dl class="headline">')


def test_what_a_method_was_tuned_to_is_said_as_it_was_given(bench: Path) -> None:
    """A budget was of 149.0 tokens, and one of 1234567 of 1.23457e+06."""
    parameters = {"tokens": 149.0, "most": 1234567.0, "tau": 0.9999999, "by": "trial", "never": None}
    results = read_results(bench / "results.json")
    tuned = results.methods["specexit"].model_copy(update={"says": "tuned", "parameters": parameters})
    write_results(bench / "results.json", results.model_copy(update={"methods": results.methods | {"specexit": tuned}}))
    report(config(bench))
    said = "tuned; tokens = 149; most = 1234567; tau = 0.9999999; by = trial; never = None</dd>"
    assert said in (bench / "report.html").read_text()


def test_more_thinking_than_without_exits_is_called_so(bench: Path) -> None:
    results = read_results(bench / "results.json")
    versus = results.against_eagle3["specexit"].model_copy(update={"thinking_cut": (-0.013, -0.03, 0.01)})
    write_results(bench / "results.json", results.model_copy(update={"against_eagle3": {"specexit": versus}}))
    report(config(bench))
    html = (bench / "report.html").read_text().replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "tiny-reasoner: 1 % more thinking, " in html
    assert "against EAGLE-3</dt><dd>+1.3 %<small>−1.0 to 3.0</small>" in html
    assert "−−" not in html


def test_a_difference_that_rounds_to_nothing_has_no_sign_in_the_readme(bench: Path) -> None:
    """A loss of 0.03 points was `-0.0 points`, then `+0.0 points` beside 98.0 % and 98.1 %."""
    results = read_results(bench / "results.json")
    versus = results.against_eagle3["specexit"].model_copy(update={"accuracy_delta": (-0.0003, -0.0045, 0.004)})
    table = readme.table(results.model_copy(update={"against_eagle3": {"specexit": versus}}))
    assert "; 0.0 points, -0.4..0.4)" in table


def test_one_slice_of_problems_has_no_interval(bench: Path) -> None:
    """Both of its ends are the value, which looks as certain as nothing is."""
    results = read_results(bench / "results.json")
    one = {"speedup": {"1": (2.04, 1.9, 2.2), "16": (1.7, 1.7, 1.7)}, "open_loop": {"4": (1.5, 1.5, 1.5)}}
    against = {"specexit": results.against_eagle3["specexit"].model_copy(update=one)}
    wait = {"open_loop": {"4": Latency(mean=1.25, p50=1.0, p95=3.5, first_answer=0.75, n=1)}}
    methods = {name: method.model_copy(update=wait) for name, method in results.methods.items()}
    shape = {"name": "large", "is": "large", "is_not": "wise"}
    results = results.model_copy(update={"against_eagle3": against, "methods": methods, "shape": shape})
    write_results(bench / "results.json", results)
    report(config(bench))
    html = (bench / "report.html").read_text()
    assert "1.70 to 1.70" not in html
    assert html.count("1.70×<small>no interval</small>") == 2  # headline and comparison
    assert "1.50× (no interval)" in html
    assert "1.70× as fast as EAGLE-3 (no interval)" in html
    assert "| 2.04x (1.90..2.20) | 1.70x (no interval) |" in readme.table(results)
    console = Console(width=80, record=True, file=io.StringIO())
    for table in result_tables(results):
        console.print(table)
    text = console.export_text()
    assert text.count("no interval") == 2
    assert "1.70..1.70" not in text


def test_of_traces_that_were_not_tried_throughout_the_page_says_at_most(bench: Path) -> None:
    results = read_results(bench / "results.json")
    hedged = (
        "at most of what hindsight could cut",
        "at most of the oracle’s",
        "oracle: at least −",
        "It cuts at least",
    )
    for one_point in (0, 1):
        oracle = results.oracle.model_copy(update={"one_point": one_point})
        write_results(bench / "results.json", results.model_copy(update={"oracle": oracle}))
        report(config(bench))
        html = (bench / "report.html").read_text()
        assert [text in html for text in hedged] == [one_point > 0] * len(hedged)


def test_of_nothing_that_could_be_cut_there_is_no_share(bench: Path) -> None:
    """It was said to be 0 %, also of exits that had cut a half."""
    results = read_results(bench / "results.json")
    nothing = results.oracle.model_copy(update={"thinking_cut": 0.0, "fraction_reached": {"specexit": None}})
    write_results(bench / "results.json", results.model_copy(update={"oracle": nothing}))
    assert read_results(bench / "results.json").oracle == nothing
    report(config(bench))
    headline = (bench / "report.html").read_text().partition("of what hindsight could cut</dt>")[2]
    assert headline.startswith("<dd>–<small>oracle: ")
    assert [line.split(" | ")[3] for line in readme.table(read_results(bench / "results.json")).splitlines()[2:]] == [
        "–",
        "–",
    ]


def test_a_table_of_nothing_is_said_to_be_none(bench: Path) -> None:
    """Of EAGLE-3 alone there was a comparison's heading with nothing below it; without thinking, no page at all."""
    results = read_results(bench / "results.json")
    alone = results.methods["eagle3"].model_copy(update={"thinking_tokens": 0.0, "latency": {}})
    changed = {"methods": {"eagle3": alone}, "against_eagle3": {}}
    write_results(bench / "results.json", results.model_copy(update=changed))
    report(config(bench))
    html = (bench / "report.html").read_text()
    assert "No other method was measured" in html
    assert "Single responses were not timed." in html
    assert not re.findall(r"<tbody>\s*</tbody>", html)


def test_a_budget_that_the_file_does_not_name_has_no_number(bench: Path) -> None:
    """It was said to be of None tokens."""
    results = read_results(bench / "results.json")
    more = {"methods": results.methods | {"budget": results.methods["eagle3"]}}
    found = results.against_eagle3 | {"budget": results.against_eagle3["specexit"]}
    oracle = results.oracle.model_copy(update={"fraction_reached": results.oracle.fraction_reached | {"budget": 0.5}})
    for budget, title in ((None, "budget"), (149, "budget (149 tokens)")):
        more |= {"against_eagle3": found, "oracle": oracle, "budget": budget}
        write_results(bench / "results.json", results.model_copy(update=more))
        report(config(bench))
        assert f'<th scope="row">{title}</th>' in (bench / "report.html").read_text().split("Against plain EAGLE-3")[0]


def test_what_is_not_given_is_left_out(bench: Path, trace: Trace) -> None:
    """By names that are there where it is given; the signals were looked for by one that no page has any more."""
    parts = ("How much hangs on the threshold", 'Numbers behind: Signals"', "Training of the draft")
    for asked, there in ((config(bench), []), (everything(bench, trace), [*parts])):
        report(asked)
        html = (bench / "report.html").read_text()
        assert [part for part in parts if part in html] == there


def test_the_numbers_behind_a_figure_are_all_that_it_draws(bench: Path, trace: Trace) -> None:
    report(everything(bench, trace))
    html = (bench / "report.html").read_text()
    full, kept = len(trace.think_ids), trace.boundaries[2]
    heading, *plane = cells(html, "Accuracy against thinking")
    assert heading == ["method", "setting", "thinking tokens", "tokens of trial answers", "accuracy"]
    assert plane == [
        ["eagle3", "served", f"{full}.0", "0.0", "100.0 %"],
        ["specexit", "served", f"{kept}.0", "0.0", "100.0 %"],
        ["oracle", "in hindsight", f"{0.4 * full:.1f}", "0.0", "100.0 %"],
        ["validity", "half", f"{0.5 * full:.1f}", "0.0", "90.0 %"],
        ["validity", "more", f"{0.4 * full:.1f}", "0.0", "80.0 %"],
    ]
    assert cells(html, "Seconds to an answer, one request at a time") == [
        ["requests answered", "eagle3", "specexit"],
        ["1", f"{full / 10:.3f}", f"{kept / 10:.3f}"],
    ]
    heading, *at = cells(html, "Signals")
    assert heading == ["thinking token", "boundary", "confidence", "progress", "remaining", "validity"]
    assert [int(row[0]) for row in at] == list(range(1, full + 1))
    assert [int(row[0]) for row in at if row[1]] == trace.boundaries
    assert at[0][5] == f"{np.linspace(0.1, 0.9, 4 * full, dtype=np.float32)[3]:.4g}"
    assert cells(html, "Token loss, nats") == [
        ["optimizer step", "draft token 1", "draft token 2"],
        ["10", "3", "–"],
        ["20", "1", "2"],
    ]


def test_the_page_says_what_a_replay_counts_as_wrong(bench: Path, trace: Trace) -> None:
    """A demo's curve lay a point below what was served at the same threshold, three trials having been cut off."""
    report(everything(bench, trace))
    html = (bench / "report.html").read_text()
    assert len(re.findall("An exit where the trial was cut off counts (there )?as wrong", html)) == 2


def test_the_requests_are_read_for_all_methods_at_once(
    bench: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold all that was written: once for their hash, the times and the traces shown, not for each method."""
    opened, plain = [], Path.open

    def noted(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(path.name)
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", noted)
    report(everything(bench, trace))
    assert opened.count("requests.jsonl") == 3


def test_every_threshold_is_drawn_and_the_drafts_own_pointed_out(
    bench: Path, trace: Trace, write_random_draft: Callable[..., Path]
) -> None:
    title = "How much hangs on the threshold"
    found = everything(bench, trace)
    report(found)
    html = (bench / "report.html").read_text()
    assert "what thresholds that no other one beats in both (the rest was not kept) would have cut" in html

    taus = (0.9, 0.5, 0.1)
    points = [
        Point(policy=policy_at(tau, 0.5), thinking_cut=1 - tau, total_cut=0.1, agreement=0.5, accuracy=0.5, exits=1)
        for tau in taus
    ]
    assert found.simulation
    old = Simulation.model_validate_json(found.simulation.read_text())
    found.simulation.write_text(old.model_copy(update={"thresholds": tuple(points)}).model_dump_json())
    draft = write_random_draft(bench / "draft", "draft")
    write_policy(draft, PolicyFile(points=(OperatingPoint(name="default", policy=policy_at(0.5, 0.5)),)))
    report(found.model_copy(update={"draft": draft, "scores": None}))
    html = (bench / "report.html").read_text()
    assert cells(html, title)[1:] == [
        ["0.900", "0.45", "10.0 %", "50.0 %"],
        ["0.500", "0.25", "50.0 %", "50.0 %"],
        ["0.100", "0.05", "90.0 %", "50.0 %"],
    ]
    assert (
        "what every threshold would have cut, and what accuracy it would have left, early threshold included." in html
    )
    assert "The vertical line is the draft&#39;s own, 0.5." in html
    write_policy(draft, PolicyFile(points=(OperatingPoint(name="default", policy=policy_at(0.5, 0.0)),)))
    report(found.model_copy(update={"draft": draft, "scores": None}))
    assert "The vertical line" not in (bench / "report.html").read_text()  # that policy was not played


def test_the_policy_that_was_served_is_said_whole(bench: Path, write_random_draft: Callable[..., Path]) -> None:
    """Its thresholds alone would be another policy's: it exits at the third boundary in a row, or at 4,000 tokens."""
    draft = write_random_draft(bench / "draft", "draft")

    def says(**fields: object) -> str:
        policy = Policy.model_validate({"thresholds": {"validity": 0.75}} | fields)
        write_policy(draft, PolicyFile(points=(OperatingPoint(name="default", policy=policy),)))
        report(config(bench, draft=draft))
        return " ".join((bench / "report.html").read_text().split())

    said = "<p>Policy of the draft: exit where <code>validity ≥ 0.75</code>"
    assert f"{said}.</p>" in says()
    whole = says(patience=3, smoothing="ewma", alpha=0.25, min_thinking_tokens=500, max_thinking_tokens=4000)
    assert (
        f"{said}; 3 boundaries in a row have to pass; signals are averaged by token, the newest weighing 0.25; never "
        "before 500 thinking tokens; at the first boundary from 4000 thinking tokens on in any case.</p>"
    ) in whole
    assert "exit where a boundary is; never before 500 thinking" in says(thresholds={}, min_thinking_tokens=500)


def test_each_task_has_its_plane_beside_the_table(bench: Path, trace: Trace) -> None:
    found, results = everything(bench, trace), read_results(bench / "results.json")
    exits = results.methods["eagle3"].exits
    theirs = TaskResult(n=9, accuracy=1, thinking_tokens=70, exits=exits)
    ours = theirs.model_copy(update={"thinking_tokens": 60, "accuracy": 0.9})
    tasks = {task: {"eagle3": theirs, "specexit": ours} for task in ("sums", "late")}
    write_results(bench / "results.json", results.model_copy(update={"tasks": tasks}))
    assert found.simulation
    old = Simulation.model_validate_json(found.simulation.read_text())
    part = {name: getattr(old, name) for name in ("n", "prompts", "full_accuracy", "oracle", "curves")}
    found.simulation.write_text(old.model_copy(update={"tasks": {"late": Part(**part)}}).model_dump_json())
    report(found)
    html = (bench / "report.html").read_text()
    served = [["eagle3", "served", "70.0", "–", "100.0 %"], ["specexit", "served", "60.0", "–", "90.0 %"]]
    assert cells(html, "sums")[1:] == served
    assert cells(html, "late")[1:] == [
        *served,
        ["oracle", "in hindsight", "35.0", "0.0", "90.0 %"],
        ["validity", "half", "35.0", "0.0", "90.0 %"],
        ["validity", "more", "28.0", "0.0", "80.0 %"],
    ]


def test_the_page_lists_all_that_was_checked_or_says_what_was_not_given(bench: Path) -> None:
    results = read_results(bench / "results.json")
    versus = {"specexit": results.against_eagle3["specexit"].model_copy(update={"p_loss": 0.0123})}
    changes = {"against_eagle3": versus, "specexit_faster": {"1": {"eagle3": 0.0004}, "16": {"eagle3": 0.2}}}
    results = results.model_copy(update=changes | {"lossless": {"eagle3_vs_none": Identity(n=5, mismatches=1)}})
    write_results(bench / "results.json", results)
    report(config(bench))

    def text() -> str:
        found = (bench / "report.html").read_text().replace("\N{NARROW NO-BREAK SPACE}", " ")
        return " ".join(re.sub(r"<[^>]+>", " ", found.split('id="checks"')[1]).split())

    assert (
        "method it loses a point or more specexit answers sooner, batch 1 specexit answers sooner, batch 16" in text()
    )
    assert "eagle3 – &lt; 0.001 0.200 specexit 0.012 – –" in text()
    assert "eagle3 vs none 4 of 5 outputs identical, token for token" in text()
    assert "served exits against replayed ones not given (specexit bench-replay" in text()
    assert "at a real target&#39;s size not given (specexit bench-full-size" in text()

    apart = Difference(id="q", served=3, replayed=5, why="rounding of a signal")
    check = ReplayCheck(n=1000, same=999, share=0.999, method="specexit", policy=Policy(), differences=(apart,))
    (bench / "replay.json").write_text(check.model_dump_json())
    same = {"specexit: exits in bfloat16": (48, 50)}
    shape = {"name": "qwen3-0.6b", "same": same, "is": "large", "is_not": "wise"}
    write_results(bench / "full-size.json", results.model_copy(update={"shape": shape}))
    report(config(bench, replay=bench / "replay.json", full_size=bench / "full-size.json"))
    assert (
        "999 of 1000 requests of specexit exit where the replay does (99.90 %); the others: 1 rounding of a" in text()
    )
    assert "qwen3-0.6b, specexit: exits in bfloat16 48 of 50 are the small target&#39;s" in text()
    assert "qwen3-0.6b, batch 1 2.04× as fast as EAGLE-3 (1.90 to 2.20)" in text()
    assert "not given" not in text()


def test_ablations_are_on_the_page_with_all_that_they_draw(bench: Path) -> None:
    def variant(name: str, cut: float) -> Variant:
        point = Point(policy=Policy(), thinking_cut=cut, total_cut=cut, agreement=0.9, accuracy=0.99, exits=1)
        return Variant(name=name, curve=(point,), best={"0": None, "0.01": point}, full_accuracy=1.0)

    ablation = Ablation(question="Which signals <b>decide</b>?", variants=(variant("ours", 0.6), variant("other", 0.4)))
    found = Ablations(n=9, full_accuracy=1.0, ablations={"signals": ablation})
    (bench / "ablations.json").write_text(found.model_dump_json())
    report(config(bench, ablations=bench / "ablations.json"))
    html = (bench / "report.html").read_text().replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "<b>decide" not in html
    section = html.split('id="ablations"')[1]
    assert re.search(r">ours</th><td>none</td><td>60.0 %</td>", section)
    assert cells(html, "Which signals &lt;b&gt;decide&lt;/b&gt;?")[1:] == [
        ["ours", "validity 0.9", "60.0 %", "1.0 %"],
        ["other", "validity 0.9", "40.0 %", "1.0 %"],
    ]
    (bench / "ablations.json").write_text("{}")
    with pytest.raises(ReportError, match=r"ablations\.json: cannot be read as what ablate writes"):
        report(config(bench, ablations=bench / "ablations.json"))
    before = found.model_dump(mode="json")
    for one in before["ablations"]["signals"]["variants"]:
        del one["full_accuracy"]
    (bench / "ablations.json").write_text(json.dumps(before))
    told = r"\.variants\.0\.full_accuracy is .*: Field required; run `specexit ablate` anew$"
    with pytest.raises(ReportError, match=rf"ablations\.json: cannot be read as what ablate writes: .*{told}"):
        report(config(bench, ablations=bench / "ablations.json"))
