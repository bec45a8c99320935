"""README's and the docs' tables and pictures come from the same results as the page."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from specexit.bench.results import (
    TaskResult,
    read_results,
    write_results,
)
from specexit.data.traces import Trace
from specexit.report.page import report
from specexit.report.readme import BEGIN, END, ReadmeError, family_table, write_table
from specexit.report.regenerate import PLACES, Place, regenerate
from tests.shared.report.pages import everything


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
        f"| EAGLE-3 | 100.0 % (all alike) | {len(trace.think_ids)}.0 | 0 % | 1x | 1x |\n"
        "| **SpecExit** | 100.0 % (all alike; -1.0 points, -2.0..0.0) "
        f"| {trace.boundaries[2]}.0 (-58.1 %, -60.0..-56.0) | 96.8 % | "
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
    (bench / "README.md").unlink()
    with pytest.raises(
        ReadmeError, match=r"README\.md: cannot be read, expected a Markdown file with a line '<!-- res"
    ):
        report(found)


def test_a_table_is_one_whatever_its_methods_are_called_and_the_files_line_ends_stay(bench: Path, trace: Trace) -> None:
    """A bar in a name moved each number of its row by a column, and every line of the file ended otherwise."""
    results = read_results(bench / "results.json")
    named = dict(results.methods)
    named["top|k"] = named["specexit"]
    against = results.against_eagle3 | {"top|k": results.against_eagle3["specexit"]}
    reached = results.oracle.fraction_reached | {"top|k": results.oracle.fraction_reached["specexit"]}
    oracle = results.oracle.model_copy(update={"fraction_reached": reached})
    changed = results.model_copy(update={"methods": named, "against_eagle3": against, "oracle": oracle})
    readme = bench / "README.md"
    readme.write_bytes(f"before\r\n{BEGIN}\r\nold\r\n{END}\r\nafter\r\n".encode())
    write_table(readme, changed)
    text = readme.read_bytes().decode()
    assert text.count("\n") == text.count("\r\n")
    assert text.startswith("before\r\n")
    assert text.endswith("after\r\n")
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {8}
    assert any(row[1] == r" top\|k " for row in rows)


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
    # New numbers used to stand over an old machine and commit, without a word.
    assert (
        "README.md: table of runs/demo/results.json, 1 problems, measured on a slow one (cores: unknown), vllm 0.0: see"
        in said
    )
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


def test_a_family_without_thinking_has_no_cut_and_one_without_specexit_no_row(bench: Path) -> None:
    """It was a division by zero, and a `KeyError`."""
    results = read_results(bench / "results.json")
    theirs = TaskResult(n=7, accuracy=1, thinking_tokens=0, exits=results.methods["eagle3"].exits)
    tasks = {"at once": {"eagle3": theirs, "specexit": theirs}, "sums": {"eagle3": theirs}}
    _, _, *rows = family_table(results.model_copy(update={"tasks": tasks})).splitlines()
    assert rows == ["| `at once` | 7 | – | 100 % -> 100 % | not measured | not measured |"]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.results)
def test_docs_have_the_marks_of_their_tables(place: Place) -> None:
    text = (Path(__file__).parents[3] / place.page).read_text()
    assert text.count(place.begin) == text.count(place.end) == 1
    heading = text.split(place.begin)[1].split("\n")[1]
    assert heading.startswith("| family | problems |" if place.table is family_table else "| method | accuracy |")
