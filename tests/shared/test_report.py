"""The report: one file, complete in itself, saying what was measured and no more."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from specexit.bench.comparison import Request, Run, summarise, write_requests
from specexit.bench.results import Comparison, Oracle, Results, write_results
from specexit.data.scores import Scores, write_scores
from specexit.data.traces import Trace, write_traces
from specexit.drafts.policy import Certificate, OperatingPoint, PolicyFile, write_policy
from specexit.method.decision import Policy
from specexit.method.simulate import Point, Simulation
from specexit.report.charts import PALETTE
from specexit.report.page import ReportError, read_evaluation, read_metrics, report, trickiest
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


def test_charts_take_the_colours_of_the_page_and_say_what_they_show(bench: Path, trace: Trace) -> None:
    report(everything(bench, trace))
    html = (bench / "report.html").read_text()
    assert html.count("<svg") == 5  # accuracy, signals, three of training
    assert len(re.findall(r'role="img" aria-label="[^"]{20,}"><svg', html)) == 5
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
    assert [text for kind, text in listed if kind != "exit"] == [step.strip() for step in STEPS]


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


def test_the_trickiest_trace_is_shown(trace: Trace, make_trace: Callable[..., Trace]) -> None:
    easy = make_trace(id="easy", boundary_confidence=[0.2, 1.0, 1.0])
    lost = make_trace(id="lost", boundary_confidence=[0.99, 1.0, 1.0])
    requests = {
        "a": Request("a", [], trace.boundaries[2], "exit", "7", True, {}),
        "easy": Request("easy", [], 7, "exit", "7", True, {}),
        "lost": Request("lost", [], 7, "exit", "8", False, {}),
    }
    assert trickiest({"easy": easy, "lost": lost, "a": trace}, requests) == "a"
    assert trickiest({"lost": lost}, requests) is None


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
    point = OperatingPoint(name="risk-0.05", policy=Policy(), certificate=certificate)
    write_policy(draft, PolicyFile(default="risk-0.05", points=(point,)))
    report(config(bench, draft=draft))
    text = " ".join((bench / "report.html").read_text().split())
    assert "calibrated on 390 other problems (8 of them wrong): with probability at least 90 %" in text
    assert "the answer changes in at most 5.0 % of problems like these, decoded like these" in text
    assert "counted on trial answers; 10 traces could not judge and were left out." in text
    assert "of exits" not in text
