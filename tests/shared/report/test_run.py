"""What the report says of a training run, on a page of its own or on that of a benchmark."""

import json
import re
from pathlib import Path

import pytest

from specexit.config import ConfigError
from specexit.report.charts import SIGNAL_LOSSES, training_lines
from specexit.report.page import report
from specexit.report.run import newest_evaluation, read_lines, training_rows
from specexit.report.shown import ReportError
from specexit.schemas.report import ReportConfig
from tests.shared.report.pages import cells, write_run


def page_of(run: Path) -> str:
    """The page of a run alone."""
    report(ReportConfig(run=run, out=run / "page.html"))
    return (run / "page.html").read_text().replace("\N{NARROW NO-BREAK SPACE}", " ")


def test_a_step_done_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "token_loss": [loss]} for step, loss in ((10, 3.0), (20, 2.0), (20, 1.5), (30, 1.0))]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = training_rows(path, read_lines(path)[0])
    assert [(row["step"], row["token_loss"][0]) for row in found] == [(10, 3.0), (20, 1.5), (30, 1.0)]


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    """As `train` does when it goes on; a run that was killed, or is at work, has a page all the same."""
    run = write_run(tmp_path / "train", watched_lines())
    whole = read_lines(run / "metrics.jsonl")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "token_lo')
    assert read_lines(run / "metrics.jsonl") == whole


@pytest.mark.parametrize("damaged", [b"\0\0\n", b"\xff\n", b'{"loss": 1.0}\n', b'{"step": "40"}\n'])
def test_a_damaged_line_is_left_out_and_named(tmp_path: Path, damaged: bytes) -> None:
    """As a power failure leaves them, in a run that has ended as in one that `train` goes on with."""
    run = write_run(tmp_path / "train", watched_lines())
    assert "cannot be read" not in page_of(run)
    first, *others = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(first + damaged + b"".join(others) + damaged)
    html = page_of(run)
    assert "Left out, as metrics.jsonl cannot be read there: line 2, 5." in html
    assert cells(html, "Goodput, %")[1:] == [["10", "1"], ["20", "50"], ["30", "60"]]


def watched_lines() -> list[dict]:
    """Metric lines of a run on a chip that says all: one that compiles, one that trains, one that saves and judges."""
    spent = ("compile", "data", "step", "save", "evaluate")
    times = [(50.0, 1.0, 0.0, 0.0, 0.0), (0.0, 5.0, 95.0, 0.0, 0.0), (0.0, 5.0, 85.0, 4.0, 6.0)]
    told = [(None, 1.0, 0.01), (2000.0, 101.0, 0.5), (2500.0, 191.0, 0.6)]
    return [
        {
            "step": 10 * (i + 1),
            "token_loss": [],  # of a frozen trunk
            "top1": [],
            "signal_loss": {"validity": 0.7},
            "seconds": dict(zip(spent, seconds, strict=True)),
            "tokens_per_second": speed,
            "trained_seconds": trained,
            "goodput": goodput,
            "learning_rate": {"muon": 0.01 / (i + 1), "head": 0.03},
            **({"mfu": 0.4 + i / 100, "hbm_peak_gib": 12.25 + i} if i else {}),
        }
        for i, (seconds, (speed, trained, goodput)) in enumerate(zip(times, told, strict=True))
    ]


def test_the_page_shows_what_a_pod_owner_watches(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path / "train", watched_lines()))
    assert "<h1>A draft for tiny-reasoner: running, step 30 of 1,500</h1>" in html
    assert "overthinking is installed, not emergent" in html
    table = html.split('id="watched"')[1].split("</table>")[0]
    assert re.findall(r"<th scope=\"row\">(.*?)</th><td>(.*?)</td><td>(.*?)</td>", table) == [
        ("computing", "180.0", "56.5 %"),
        ("waiting for data", "11.0", "3.5 %"),
        ("saving", "4.0", "1.3 %"),
        ("evaluating", "6.0", "1.9 %"),
        ("compiling", "50.0", "15.7 %"),
        ("starting, stopped", "67.3", "21.2 %"),  # of 191 / 0.6 seconds
    ]
    share = cells(html, "Share of the time, %")
    assert share[0] == ["optimizer step", "computing", "waiting for data", "saving", "evaluating", "compiling"]
    assert share[2:] == [["20", "95", "5", "0", "0", "0"], ["30", "85", "5", "4", "6", "0"]]
    for title, numbers in {
        "Tokens a second, without the pauses": [["20", "2000"], ["30", "2500"]],
        "Goodput, %": [["10", "1"], ["20", "50"], ["30", "60"]],
        "MFU, %": [["20", "41"], ["30", "42"]],
        "HBM peak, GiB": [["20", "13.25"], ["30", "14.25"]],
        "Learning rate": [["10", "0.01", "0.03"], ["20", "0.005", "0.03"], ["30", "0.003333", "0.03"]],
    }.items():
        assert cells(html, title)[1:] == numbers, title
        assert f"<figcaption>{title}</figcaption>" in html
    assert "not shown" not in html
    assert "Token loss" not in html


def test_what_a_run_did_not_say_of_the_machine_is_named(tmp_path: Path) -> None:
    """On a CPU neither MFU nor HBM; and an older version's lines hold losses alone."""
    lines = [{key: row[key] for key in row if key not in ("mfu", "hbm_peak_gib")} for row in watched_lines()]
    html = page_of(write_run(tmp_path / "cpu", lines))
    assert "Not in metrics.jsonl, so not shown: MFU, %; HBM peak, GiB. A run" in html
    old = {"step": 10, "token_loss": [3.0], "top1": [0.1], "signal_loss": {"validity": 0.7}}
    html = page_of(write_run(tmp_path / "old", [old]))
    assert "so not shown: Share of the time, %; Tokens a second, without the pauses; Goodput, %; MFU, %;" in html
    assert "starting, stopped" not in html


def test_a_step_that_counts_nothing_has_no_point() -> None:
    """A zero would be drawn, and take a logarithmic axis with it."""
    of_nothing = {"token_loss": [1.0, None], "top1": [0.5, None], "signal_loss": {"validity": None, "progress": None}}
    rows = [{"step": 10, **of_nothing}, {"step": 20, **of_nothing, "signal_loss": {"validity": 0.7, "progress": None}}]
    assert training_lines(rows) == {
        "Token loss, nats": {"draft token 1": [(10, 1.0), (20, 1.0)]},
        "Draft token top-1, %": {"draft token 1": [(10, 50.0), (20, 50.0)]},
        SIGNAL_LOSSES: {"validity": [(20, 0.7)]},
    }


def test_one_line_of_metrics_is_a_mark(tmp_path: Path) -> None:
    """A line of one point would not be seen."""
    html = page_of(write_run(tmp_path / "train", watched_lines()[1:2]))
    goodput = html.split("<figcaption>Goodput, %</figcaption>")[1].split("</svg>")[0]
    assert re.search(r'<use [^>]*style="fill: var\(--c1\)', goodput)


def test_a_run_that_goes_on_shows_its_newest_evaluation(tmp_path: Path) -> None:
    """`evaluation.json` comes with the last step."""
    run = write_run(tmp_path / "train", watched_lines())
    assert "No step has been evaluated" in page_of(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(
            f'{{"step": {step}, "evaluation": {{"acceptance_length": {step / 10}}}}}\n' for step in (20, 30)
        )
    html = page_of(run)
    assert "No step has been evaluated" not in html
    assert "<dt>acceptance length</dt><dd>3</dd>" in html
    (run / "evaluation.json").write_text('{"acceptance_length": 3.25}')
    assert "<dt>acceptance length</dt><dd>3.25</dd>" in page_of(run)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither bench nor run is given"),
        ({"bench": "bench"}, "bench without traces"),
        ({"run": "run", "scores": "scores", "draft": "draft"}, "draft, scores without bench"),
    ],
)
def test_a_page_of_nothing_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReportConfig.model_validate(given | {"out": "page.html"})


@pytest.mark.parametrize("file", ["status.json", "metrics.jsonl", "target.yaml"])
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, file: str) -> None:
    run = write_run(tmp_path / "train", watched_lines())
    (run / file).unlink()
    with pytest.raises((ReportError, ConfigError), match=re.escape(str(run / file))):
        page_of(run)
    assert not (run / "page.html").exists()


@pytest.mark.parametrize("text", [None, ""])
def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path, text: str | None) -> None:
    """Whoever looked before the first step was logged was told of a damaged file."""
    run = write_run(tmp_path / "train", [])
    (run / "status.json").write_text(json.dumps({"status": "running", "step": 0, "steps": 30}))
    if text is None:
        (run / "metrics.jsonl").unlink()
    html = page_of(run)
    assert "running, step 0 of 30" in html
    assert "No step is on record yet." in html
    assert "Where the time went" not in html


@pytest.mark.parametrize("text", ["", '{"step": 1\n', '{"loss": 1}\n', "[1]\n", '{"step": 1, "loss": 2}\n'])
def test_unusable_metrics_name_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(ReportError, match=re.escape(str(path))):
        training_rows(path, read_lines(path)[0])


def test_an_evaluation_is_flattened_and_each_number_explained_once(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    numbers = {"n": 3, "top1": [0.5, 0.25], "hard_boundaries": {"auroc": 0.98765}, "cut": {"0": 0.5, "1": 0.625}}
    path.write_text(json.dumps(numbers | {"definitions": {"auroc": "how well", "cut": "at that loss"}}))
    assert newest_evaluation(path, []) == {
        "n": ("3", ""),
        "top1": ("0.5, 0.25", ""),
        "hard boundaries auroc": ("0.9877", "how well"),
        "cut 0": ("0.5", "at that loss"),
        "cut 1": ("0.625", ""),
    }


def test_a_mean_over_nothing_is_a_dash(tmp_path: Path) -> None:
    """As where all held-out texts are shorter than the TTT steps."""
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"top1": [None, 0.5], "signal_loss": {"validity": None}}))
    assert newest_evaluation(path, []) == {"top1": ("–, 0.5", ""), "signal loss validity": ("–", "")}


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_an_unusable_evaluation_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=re.escape(str(path))):
        newest_evaluation(path, [])
