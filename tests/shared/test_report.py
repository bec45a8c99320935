"""The report: one file, complete in itself, saying what was measured and no more."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from specexit.bench.comparison import Request, Run, summarise, write_requests
from specexit.bench.results import Comparison, Latency, Oracle, Results, TaskResult, read_results, write_results
from specexit.data.scores import Scores, write_scores
from specexit.data.traces import Trace, write_traces
from specexit.drafts.policy import Certificate, OperatingPoint, PolicyFile, policy_sha256, write_policy
from specexit.method.decision import Policy
from specexit.method.simulate import Point, Simulation
from specexit.report.charts import PALETTE
from specexit.report.page import ReportError, read_evaluation, read_metrics, report
from specexit.report.readme import BEGIN, END, ReadmeError
from specexit.report.shown import choose, show
from specexit.report.verdict import verdict
from specexit.schemas.report import ReportConfig
from specexit.schemas.target import load_target_config

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


@pytest.fixture
def bench(tmp_path: Path, trace: Trace) -> Path:
    """A benchmark folder: one problem, exited behind its third step."""
    kept = trace.boundaries[2]
    end = load_target_config("tiny-reasoner").think_tokens().end

    def run(thinking: int, reason: str) -> Run:
        ids = [*trace.think_ids[:thinking], end, *trace.answer_ids]
        request = Request("a", ids, thinking, reason, "7", True, {})  # pyright: ignore[reportArgumentType]
        found = Run()
        found.add(1, [request], [2.0], 10, 19)
        found.add(16, [request], [1.0], 0, 0)
        return found

    runs = {"eagle3": run(len(trace.think_ids), "natural_end"), "specexit": run(kept, "exit")}
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
        methods={name: summarise(run) for name, run in runs.items()},
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
    point = Point(policy=Policy(), thinking_cut=0.5, total_cut=0.4, agreement=0.9, accuracy=0.9, exits=0.8)
    other = point.model_copy(update={"thinking_cut": 0.6, "accuracy": 0.8})
    simulation = Simulation(
        n=1, prompts=1, full_accuracy=1, oracle=point, named={}, curves={"validity": (point, other)}
    )
    (bench / "simulation.json").write_text(simulation.model_dump_json())
    lines = [
        {"step": 10, "token_loss": [3.0], "top1": [0.1], "signal_loss": {"validity": 0.7}},
        {"step": 20, "token_loss": [1.0, 2.0], "top1": [0.6, 0.4], "signal_loss": {"validity": 0.1}},
    ]
    (bench / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (bench / "evaluation.json").write_text(json.dumps({"top1": [0.6, 0.4], "hard_boundaries": {"auroc": 0.98765}}))
    return config(
        bench,
        scores=bench / "scores.parquet",
        simulation=bench / "simulation.json",
        metrics=bench / "metrics.jsonl",
        evaluation=bench / "evaluation.json",
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
    assert html.count("<svg") == 6  # accuracy, threshold, signals, three of training
    assert len(re.findall(r'role="img" aria-label="[^"]{20,}"><svg', html)) == 6
    assert not [stand_in for stand_in in PALETTE.values() if stand_in in html]
    assert "prefers-color-scheme: dark" in html


def test_headline_and_intervals(bench: Path) -> None:
    report(config(bench))
    html = (bench / "report.html").read_text().replace("\N{NARROW NO-BREAK SPACE}", " ")
    for expected in ("−58.1 %", "56.0 to 60.0", "96.8 %", "−1.0", "2.04×", "1.90 to 2.20", "1.70×", "a slow one"):
        assert expected in html
    assert "installed, not emergent" in html


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
        f"| EAGLE-3 | 100.0 % | {len(trace.think_ids)}.0 | 0 % | 1x | 1x |\n"
        f"| **SpecExit** | 100.0 % (-1.0 points, -2.0..0.0) | {trace.boundaries[2]}.0 (-58.1 %, 56.0..60.0) | 96.8 % | "
        "2.04x (1.90..2.20) | 1.70x (1.60..1.80) |\n",
    )
    names = sorted(path.name for path in (bench / "images").iterdir())
    assert names == ["accuracy-against-thinking.svg", "how-much-hangs-on-the-threshold.svg", "the-best-cut.svg"]
    for name in names:
        drawing = ElementTree.parse(bench / "images" / name).getroot()
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        style = drawing.find("{http://www.w3.org/2000/svg}style")
        assert style is not None
        assert "prefers-color-scheme:dark" in (style.text or "")
    (bench / "README.md").write_text("no marks")
    with pytest.raises(ReadmeError, match=r"README\.md: expected one line"):
        report(found)


def test_the_readme_has_its_marks() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1


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
    assert len(shown.chart) < 300_000


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


def test_the_trace_that_was_benched_is_shown_among_samples_of_its_prompt(bench: Path, trace: Trace) -> None:
    report(config(bench))
    page = (bench / "report.html").read_text()
    write_traces(bench / "traces.parquet", [trace, replace(trace, sample=1, think_ids=trace.think_ids[::-1])])
    report(config(bench))
    assert (bench / "report.html").read_text() == page


def test_a_trace_that_did_not_exit_cannot_be_shown(bench: Path) -> None:
    with pytest.raises(ReportError, match="'nowhere' did not exit, expected one of a"):
        report(config(bench, trace_id="nowhere"))
    assert not (bench / "report.html").exists()


def test_a_step_done_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "token_loss": [loss]} for step, loss in ((10, 3.0), (20, 2.0), (20, 1.5), (30, 1.0))]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [(row["step"], row["token_loss"][0]) for row in read_metrics(path)] == [(10, 3.0), (20, 1.5), (30, 1.0)]


@pytest.mark.parametrize("text", ["", '{"step": 1', '{"loss": 1}', "[1]"])
def test_unusable_metrics_name_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(ReportError, match=re.escape(str(path))):
        read_metrics(path)


def test_an_evaluation_is_flattened(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"n": 3, "top1": [0.5, 0.25], "hard_boundaries": {"auroc": 0.98765}}))
    assert read_evaluation(path) == {"n": "3", "top1": "0.5, 0.25", "hard boundaries auroc": "0.9877"}


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
