"""The report: one file, complete in itself, saying what was measured and no more."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from specexit.bench.ablate import Ablation, Ablations, Variant
from specexit.bench.comparison import Request, Run, summarise, write_requests
from specexit.bench.inputs import draft_inputs, file_sha256
from specexit.bench.replay import Difference, ReplayCheck
from specexit.bench.results import (
    Comparison,
    Identity,
    Latency,
    MethodResult,
    Oracle,
    Results,
    TaskResult,
    read_results,
    result_tables,
    write_results,
)
from specexit.data.scores import Scores, write_scores
from specexit.data.traces import Trace, data_sha256, write_traces
from specexit.drafts.policy import Certificate, OperatingPoint, PolicyFile, policy_sha256, write_policy
from specexit.method.decision import Policy
from specexit.method.policies.validity import policy_at
from specexit.method.simulate import Part, Point, Simulation
from specexit.report import readme
from specexit.report.charts import PALETTE
from specexit.report.page import report
from specexit.report.readme import BEGIN, END, ReadmeError, family_table
from specexit.report.regenerate import PLACES, Place, regenerate
from specexit.report.shown import ReportError, choose, show
from specexit.report.verdict import verdict
from specexit.schemas.report import ReportConfig
from specexit.schemas.target import load_target_config
from tests.shared.test_report_run import cells, write_run

STEPS = ("First I add.\n\n", "So it is 8.\n\n", "Wait, it is 7.\n\n", "Yes, 7 again.\n\n")


@pytest.fixture(scope="module")
def trace(make_trace: Callable[..., Trace]) -> Trace:
    """Four steps: a confident wrong answer behind the second, the right one from the third on."""
    tokenizer = load_target_config("tiny-reasoner").tokenizer()
    steps = [tokenizer.encode(step) for step in STEPS]
    boundaries = np.cumsum([len(step) for step in steps]).tolist()
    return make_trace(
        prompt="What is 3 + 4 <script>alert(1)</script>?",
        think_ids=[token for step in steps for token in step],
        boundaries=boundaries,
        boundary_answers=[None, "8", "7", "7"],
        boundary_agrees=[False, False, True, True],
        boundary_confidence=[0.1, 0.9, 1.0, 1.0],
    )


@pytest.fixture(scope="module")
def runs(trace: Trace) -> dict[str, Run]:
    """One problem, exited behind its third step."""
    kept = trace.boundaries[2]
    end = load_target_config("tiny-reasoner").think_tokens().end

    def run(thinking: int, reason: str) -> Run:
        ids = [*trace.think_ids[:thinking], end, *trace.answer_ids]
        request = Request("a", ids, thinking, reason, "7", True, {}, seconds=thinking / 10)  # pyright: ignore[reportArgumentType]
        found = Run()
        found.add(1, [request], [2.0], 10, 19)
        found.add(16, [request], [1.0], 0, 0)
        return found

    return {"eagle3": run(len(trace.think_ids), "natural_end"), "specexit": run(kept, "exit")}


@pytest.fixture(scope="module")
def summaries(runs: dict[str, Run]) -> dict[str, MethodResult]:
    """Resampled once."""
    return {name: summarise(run) for name, run in runs.items()}


@pytest.fixture
def bench(tmp_path: Path, trace: Trace, runs: dict[str, Run], summaries: dict[str, MethodResult]) -> Path:
    """A benchmark's folder."""
    versus = Comparison(
        accuracy_delta=(-0.01, -0.02, 0.0),
        thinking_cut=(0.581, 0.56, 0.6),
        total_cut=(0.5, 0.48, 0.52),
        speedup={"1": (2.04, 1.9, 2.2), "16": (1.7, 1.6, 1.8)},
    )
    folder = tmp_path / "bench"
    results = Results(
        n=1,
        n_seconds={"1": 1, "16": 1},
        target="tiny-reasoner",
        hardware={"processor": "a slow one", "accelerator": None},
        versions={"vllm": "0.0"},
        seed=0,
        num_speculative_tokens=3,
        methods=summaries,
        against_eagle3={"specexit": versus},
        oracle=Oracle(thinking_cut=0.6, fraction_reached={"specexit": 0.968}),
        lossless={},
    )
    write_results(folder / "results.json", results)
    write_requests(folder / "requests.jsonl", runs)
    write_traces(folder / "traces.parquet", [trace])
    return folder


def config(bench: Path, **more: Path | str) -> ReportConfig:
    return ReportConfig.model_validate(
        {"bench": bench, "traces": bench / "traces.parquet", "out": bench / "report.html"} | more
    )


def everything(bench: Path, trace: Trace) -> ReportConfig:
    """A report with all its optional parts."""
    signals = np.linspace(0.1, 0.9, 4 * len(trace.think_ids), dtype=np.float32).reshape(-1, 4)
    write_scores(bench / "scores.parquet", Scores("draft", "hash", {"a": signals}))
    point = Point(
        policy=Policy(), setting="half", thinking_cut=0.5, total_cut=0.4, agreement=0.9, accuracy=0.9, exits=0.8
    )
    other = point.model_copy(update={"setting": "more", "thinking_cut": 0.6, "accuracy": 0.8})
    simulation = Simulation(
        n=1, prompts=1, full_accuracy=1, oracle=point, named={}, curves={"validity": (point, other)}
    )
    (bench / "simulation.json").write_text(simulation.model_dump_json())
    lines = [
        {"step": 10, "token_loss": [3.0], "top1": [0.1], "signal_loss": {"validity": 0.7}},
        {"step": 20, "token_loss": [1.0, 2.0], "top1": [0.6, 0.4], "signal_loss": {"validity": 0.1}},
    ]
    judged = {"top1": [0.6, 0.4], "hard_boundaries": {"auroc": 0.98765}}
    write_run(bench / "train", lines, judged)
    return config(
        bench,
        scores=bench / "scores.parquet",
        simulation=bench / "simulation.json",
        run=bench / "train",
    )


class Outline(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


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
    assert html.count("1.00 · 3.50 · 0.75</small><small>1.75× (1.50 to 2.00)</small></td>") == len(against)
    for name in ("throughput", "answer_tokens"):
        assert results.definitions[name].replace("<", "&lt;").replace(">", "&gt;") in html


def test_energy_is_told_or_said_not_to_be(bench: Path) -> None:
    report(config(bench))
    assert "does not tell its energy" in (bench / "report.html").read_text()
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
    html = (bench / "report.html").read_text()
    assert html.count("0.98× (0.97 to 1.00) at batch 1") == 2
    assert "68.0 tokens" in html


def test_charts_take_the_colours_of_the_page_and_say_what_they_show(bench: Path, trace: Trace) -> None:
    report(everything(bench, trace))
    html = (bench / "report.html").read_text()
    assert html.count("<svg") == 7  # accuracy, threshold, latency, signals, three of training, none of the machine
    assert len(re.findall(r'role="img" aria-label="[^"]{20,}"><svg', html)) == 7
    assert html.count("The numbers behind it") == 7
    assert not [stand_in for stand_in in PALETTE.values() if stand_in in html]
    assert "prefers-color-scheme: dark" in html


def test_headline_and_intervals(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text().replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert html.count("100.0 %<small>100.0 to 100.0</small>") == 2  # accuracy of each method
    for expected in ("−58.1 %", "56.0 to 60.0", "96.8 %", "−1.0", "2.04×", "1.90 to 2.20", "1.70×", "a slow one"):
        assert expected in html
    assert "installed, not emergent" in html


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


def test_the_trace_is_cut_where_the_request_exited(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text()
    listed = re.findall(r'<li class="(\w+)"><span[^>]*>(.*?)</span>', html)
    assert [kind for kind, _ in listed] == ["kept", "kept", "kept", "exit", "cut"]
    assert [text for kind, text in listed if kind != "exit"] == [step.strip("\n") for step in STEPS]


def test_text_of_a_prompt_is_text(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_what_is_not_given_is_left_out(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text()
    assert "Training of the draft" not in html
    assert "Signals of every thinking token" not in html


def test_readme_and_pictures_come_from_the_same_results(bench: Path, trace: Trace) -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    (bench / "README.md").write_text(text)
    found = everything(bench, trace).model_copy(update={"readme": bench / "README.md", "images": bench / "images"})
    report(found)
    report(found)  # again: the same
    assert (bench / "README.md").read_text() == text.replace(
        "old\n",
        "| method | accuracy | thinking tokens | of the oracle's cut | speed-up, batch 1 | speed-up, batch 16 |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        f"| EAGLE-3 | 100.0 % (100.0..100.0) | {len(trace.think_ids)}.0 | 0 % | 1x | 1x |\n"
        "| **SpecExit** | 100.0 % (100.0..100.0; -1.0 points, -2.0..0.0) "
        f"| {trace.boundaries[2]}.0 (-58.1 %, 56.0..60.0) | 96.8 % | "
        "2.04x (1.90..2.20) | 1.70x (1.60..1.80) |\n",
    )
    names = sorted(path.name for path in (bench / "images").iterdir())
    assert names == [
        "accuracy-against-thinking.svg",
        "how-much-hangs-on-the-threshold.svg",
        "seconds-to-an-answer-one-request-at-a-time.svg",
        "the-best-cut.svg",
    ]
    for name in names:
        drawing = ElementTree.parse(bench / "images" / name).getroot()
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        style = drawing.find("{http://www.w3.org/2000/svg}style")
        assert style is not None
        assert "prefers-color-scheme:dark" in (style.text or "")
    (bench / "README.md").write_text("no marks")
    with pytest.raises(ReadmeError, match=r"README\.md: expected one line"):
        report(found)


def exited(trace: Trace, behind: int, *, correct: bool = True) -> Request:
    kept = trace.boundaries[behind] if behind < len(trace.boundaries) else len(trace.think_ids)
    reason = "exit" if kept < len(trace.think_ids) else "natural_end"
    return Request(trace.id, trace.think_ids[:kept], kept, reason, "7", correct, {})


def test_three_traces_are_worth_looking_at(trace: Trace) -> None:
    """The one that saved the most, the one that lost the most by it, the one that could have been cut the most."""
    names = ("best", "good", "wrong", "missed", "whole", "elsewhere")
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
    }
    assert choose(list(traces.values()), requests) == {"best": "best", "wrong": "wrong", "missed": "missed"}
    assert choose([traces["whole"]], requests) == {}


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


def test_the_verdict_claims_what_was_tested(bench: Path) -> None:
    results = read_results(bench / "results.json")
    versus = results.against_eagle3["specexit"]

    def says(p_loss: float, faster: dict[str, float]) -> str:
        against = {"specexit": versus.model_copy(update={"p_loss": p_loss})}
        changed = {"against_eagle3": against, "specexit_faster": {"1": faster}}
        return " ".join(verdict(results.model_copy(update=changed), None))

    proven = says(0.0004, {"eagle3": 0.001, "deer": 0.01})
    assert proven.startswith("Ruled out: a loss of accuracy of a point or more (p < 0.001 on 1 problems).")
    assert "At batch 1 it answers sooner than eagle3, deer: every other method measured." in proven
    open_ = says(0.2, {"eagle3": 0.001, "deer": 0.06})
    assert "Not ruled out: a loss of accuracy of a point or more (p = 0.200 on 1 problems; more problems would" in open_
    assert "it answers sooner than eagle3; not shown of deer." in open_


def test_a_speed_up_over_eagle3_alone_is_said_with_its_test(bench: Path) -> None:
    """As the demo without other methods has it: a number above 1 is not yet faster."""
    results = read_results(bench / "results.json")
    tested = {"specexit_faster": {"1": {"eagle3": 0.0004}, "16": {"eagle3": 0.2}}}
    (said,) = verdict(results.model_copy(update=tested), None)
    assert said == (
        "Against EAGLE-3 with the same draft, end to end: 2.04× as fast at batch 1 (it answers sooner, p < 0.001); "
        "1.70× as fast at batch 16 (that it answers sooner is not shown, p = 0.200)."
    )
    (said,) = verdict(results, None)
    assert said.endswith("2.04× as fast at batch 1 (not tested); 1.70× as fast at batch 16 (not tested).")


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
    with pytest.raises(ReportError, match="'nowhere' did not exit, expected one of a"):
        report(config(bench, trace_id="nowhere"))
    assert not (bench / "report.html").exists()


def test_the_guarantee_is_said_of_problems_with_what_it_is_for(
    bench: Path, trace: Trace, write_random_draft: Callable[..., Path]
) -> None:
    draft = write_random_draft(bench / "draft", "draft")
    certificate = Certificate(
        risk="answer_changed", epsilon=0.05, delta=0.1, n=390, errors=8, bound=0.03, data_sha256="0", n_unjudged=10
    )
    certificate = certificate.model_copy(update={"policy_sha256": policy_sha256(Policy())})
    point = OperatingPoint(name="risk-0.05", policy=Policy(), certificate=certificate)
    write_policy(draft, PolicyFile(default="risk-0.05", points=(point,)))
    report(config(bench, draft=draft))
    text = " ".join((bench / "report.html").read_text().split())
    assert "calibrated on 390 problems (8 of them wrong): with probability at least 90 %" in text
    assert "the answer changes in at most 5.0 % of problems like these, decoded like these" in text
    assert (
        "counted on trial answers; 10 traces could not judge and were left out; whether the measured problems" in text
    )
    results = read_results(bench / "results.json").model_copy(update={"inputs": {"calibration_traces": "0"}})
    write_results(bench / "results.json", results)  # a benchmark that was given those traces has compared the prompts
    report(config(bench, draft=draft))
    text = " ".join((bench / "report.html").read_text().split())
    assert "calibrated on 390 other problems (8 of them wrong)" in text
    assert "was not checked" not in text
    edited = point.model_copy(update={"policy": Policy(thresholds={"validity": 0.5})})
    write_policy(draft, PolicyFile(default="risk-0.05", points=(edited,)))
    report(config(bench, draft=draft))
    assert "Its policy is not certified, so nothing is guaranteed of it." in (bench / "report.html").read_text()
    assert "of exits" not in text


@pytest.mark.parametrize("changed", ["weights", "policy"])
def test_a_certificate_of_today_is_not_ascribed_to_what_another_draft_measured(
    bench: Path, write_random_draft: Callable[..., Path], changed: str
) -> None:
    draft = write_random_draft(bench / "draft", "draft")
    results = read_results(bench / "results.json").model_copy(update={"inputs": draft_inputs(draft)})
    write_results(bench / "results.json", results)
    report(config(bench, draft=draft))
    page = (bench / "report.html").read_text()
    if changed == "policy":
        bolder = OperatingPoint(name="default", policy=Policy(thresholds={"validity": 0.5}))
        write_policy(draft, PolicyFile(points=(bolder,)))
    else:
        results = results.model_copy(update={"inputs": results.inputs | {"draft.weights": "0" * 64}})
        write_results(bench / "results.json", results)
    told = rf"results\.json: measured with inputs\.draft\.{changed} \w+ \(now \w+\), expected .*draft as it was"
    with pytest.raises(ReportError, match=told):
        report(config(bench, draft=draft))
    assert (bench / "report.html").read_text() == page


def test_what_was_replayed_for_another_draft_or_benchmark_is_no_part_of_the_page(bench: Path, trace: Trace) -> None:
    """And what is of other traces says so."""
    inputs = {"draft.weights": "a" * 64, "traces": data_sha256(bench / "traces.parquet")}
    results = read_results(bench / "results.json").model_copy(update={"inputs": inputs})
    write_results(bench / "results.json", results)
    found = everything(bench, trace)
    assert found.simulation
    simulation = Simulation.model_validate_json(found.simulation.read_text())
    check = ReplayCheck(n=1, same=1, share=1, method="specexit", policy=Policy(), differences=())
    parts = {
        "simulation": simulation,
        "ablations": Ablations(n=9, full_accuracy=1.0, ablations={}),
        "replay": check,
    }

    def write(name: str, **changes: str) -> ReportConfig:
        hashes = inputs | ({"requests": file_sha256(bench / "requests.jsonl")} if name == "replay" else {})
        part = parts[name].model_copy(update={"inputs": hashes | changes})
        (bench / f"{name}.json").write_text(part.model_dump_json())
        return config(bench, **{name: bench / f"{name}.json"})

    for name in parts:
        report(write(name))
        with pytest.raises(
            ReportError, match=rf"{name}\.json: made from inputs\.draft\.weights b+ \(now a+\), expected"
        ):
            report(write(name, **{"draft.weights": "b" * 64}))
    with pytest.raises(ReportError, match=r"replay\.json: made from inputs\.requests b+ \(now \w+\), expected"):
        report(write("replay", requests="b" * 64))
    of = {"shape": {"of": inputs | {"draft.weights": "b" * 64}}}
    write_results(bench / "full-size.json", results.model_copy(update=of))
    with pytest.raises(ReportError, match=r"full-size\.json: made from inputs\.draft\.weights b+ \(now a+\), expected"):
        report(config(bench, full_size=bench / "full-size.json"))
    said = "are of another file of traces than the benchmark."
    assert said not in (bench / "report.html").read_text()
    report(write("simulation", traces="b" * 64))
    assert f"The curves {said}" in (bench / "report.html").read_text()


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


def test_text_behind_the_last_boundary_is_shown(trace: Trace) -> None:
    tokenizer = load_target_config("tiny-reasoner").tokenizer()
    rest = tokenizer.encode("So 7 it is.")
    longer = replace(trace, think_ids=[*trace.think_ids, *rest])
    shown = show("missed", longer, exited(longer, 9), tokenizer, None, None)
    assert [step.text for step in shown.steps] == [*(step.strip("\n") for step in STEPS), "So 7 it is."]
    assert [step.judged for step in shown.steps] == [True] * 4 + [False]
    assert shown.steps[-1].kept
    assert not show("best", longer, exited(longer, 2), tokenizer, None, None).steps[-1].kept


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


def test_curves_of_other_traces_than_the_responses_are_said_to_be(bench: Path, trace: Trace) -> None:
    found = everything(bench, trace)
    report(found)
    assert "They are of" not in (bench / "report.html").read_text()
    results = read_results(bench / "results.json")
    oracle = results.oracle.model_copy(update={"sampling": {"temperature": 0.0}})
    write_results(
        bench / "results.json", results.model_copy(update={"sampling": {"temperature": 0.6}, "oracle": oracle})
    )
    report(found)
    html = (bench / "report.html").read_text()
    assert "They are of 1 greedy traces of 1 prompts." in html
    assert "no-thinking cannot be replayed: a trace records answers behind step boundaries alone" in html


def test_docs_are_written_anew_from_what_is_there_and_what_is_absent_is_said(tmp_path: Path, bench: Path) -> None:
    root = tmp_path / "repository"
    pages = {place.page for place in PLACES}
    for page in pages:
        marks = "".join(f"{p.begin}\nold {p.results}\n{p.end}\n" for p in PLACES if p.page == page)
        (root / page).parent.mkdir(parents=True, exist_ok=True)
        (root / page).write_text(marks)
    results = read_results(bench / "results.json")
    exits = results.methods["eagle3"].exits
    theirs = TaskResult(n=7, accuracy=1, thinking_tokens=80, exits=exits)
    ours = theirs.model_copy(
        update={"thinking_tokens": 20, "accuracy": 0.9, "speedup": {"1": (1.5, 1.5, 1.5), "16": (1.6, 1.4, 1.8)}}
    )
    tasks = {"sums": {"eagle3": theirs, "specexit": ours}}
    write_results(root / "runs" / "demo" / "results.json", results)
    write_results(root / "runs" / "families" / "results.json", results.model_copy(update={"tasks": tasks}))
    said = "\n".join(regenerate(root))
    assert "runs/field/greedy/results.json is absent: docs/evidence.md keeps its table" in said
    assert "runs/field/sampled/results.json is absent: docs/evidence.md keeps its table" in said
    assert f"{root / 'docs' / 'images'} keeps its pictures" in said
    assert "| **SpecExit** | 100.0 %" in (root / "README.md").read_text()
    evidence = (root / "docs" / "evidence.md").read_text()
    assert "old runs/field/greedy/results.json" in evidence
    assert "old runs/field/sampled/results.json" in evidence
    method = (root / "docs" / "method.md").read_text()
    assert "old" not in method
    assert "| `sums` | 7 | 75 % | 100 % -> 90 % | 1.50x (no interval) | 1.60x (1.40..1.80) |\n" in method


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.results)
def test_docs_have_the_marks_of_their_tables(place: Place) -> None:
    text = (Path(__file__).parents[2] / place.page).read_text()
    assert text.count(place.begin) == text.count(place.end) == 1
    heading = text.split(place.begin)[1].split("\n")[1]
    assert heading.startswith("| family | problems |" if place.table is family_table else "| method | accuracy |")
