"""Pages of as many methods, with as long names, as somebody may measure."""

import re
from pathlib import Path

from specexit.bench.methods import NAMES
from specexit.bench.results import TaskResult, read_results, write_results
from specexit.method.policies import METHODS
from specexit.report.charts import Spot, accuracy_chart, latency_chart, style_of
from specexit.report.page import report
from specexit.report.verdict import verdict
from tests.shared.report.pages import config

LONG = "long-" * 16


def test_however_many_methods_a_table_is_no_wider(bench: Path) -> None:
    """With 14 of them, each a column of the table of tasks, most were beyond the edge of a screen, and of the paper."""
    results = read_results(bench / "results.json")
    one = TaskResult(n=9, accuracy=1, thinking_tokens=70, exits=results.methods["eagle3"].exits)
    names = ["eagle3", *(f"{LONG}{i}" for i in range(12))]
    tasks = {task: dict.fromkeys(names, one) for task in ("sums", "late")}
    write_results(bench / "results.json", results.model_copy(update={"tasks": tasks}))
    report(config(bench))
    html = (bench / "report.html").read_text()
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html.split('id="tasks"')[1].split("</table>")[0], re.DOTALL)
    assert len(rows) == 1 + 2 * (1 + len(names))
    assert {len(re.findall("<t[hd]", row)) for row in rows} == {1, 5}  # a task's name stands over all of its columns
    assert ".scroll { overflow: visible; }" in html.split("@media print {")[1].split("</style>")[0]  # nobody can there
    assert html.count("<caption>") == html.count("<caption><span>")  # a table, and so its caption, may be wider


def test_methods_are_told_apart_by_what_a_chart_draws() -> None:
    """Of 14 methods that were measured nine had one line, and two pairs of them one mark."""
    assert len({style_of(name) for name in NAMES}) == len(NAMES)
    svg = latency_chart({name: [1.0, 2.0] for name in NAMES})
    lines = re.findall(r'style="(fill: none; [^"]*stroke-width: 1.4[^"]*)"', svg)
    assert len(lines) == 2 * len(NAMES)  # in the plane and in the legend
    assert len({line.split("; stroke-linecap")[0] for line in lines}) == len(NAMES)


def test_replayed_curves_are_told_apart_and_validity_alone_is_solid_in_its_colour() -> None:
    """`trio` was a solid line as well, in a colour next to it and all along it."""
    names = [name for name, method in METHODS.items() if method.tuned]
    svg = accuracy_chart(
        [Spot("none", "served", 9, None, 0.5)],
        None,
        {name: [Spot(name, "", 5.0 * i, None, i / 3) for i in (1, 2)] for name in names},
    )
    lines = re.findall(r'style="(fill: none; [^"]*stroke-width: 1.2[^"]*)"', svg)
    assert len(lines) == 2 * len(names)  # in the plane and in the legend
    kinds = {line.split("; stroke-linecap")[0] for line in lines}
    assert len(kinds) == len(names)
    assert len([kind for kind in kinds if "dasharray" not in kind]) == 2  # validity and budget


def test_a_legend_has_the_names_of_all_methods_and_room_for_them() -> None:
    """Long ones left nothing of the figure; formulas were typeset, and what begins with an underscore was left out."""
    names = ["_hidden", "$x_1$ or $", *(f"{i}-{LONG}" for i in range(24))]
    spots = [Spot(name, "served", 10.0 * i, None, 0.5) for i, name in enumerate(names)]
    few, many = (accuracy_chart(some, None, {}) for some in (spots[:3], spots))
    for svg in (many, latency_chart({name: [1.0, 2.0] for name in names})):
        assert all(name[:23].removesuffix("-") in svg for name in names)
        assert f"0-{LONG}" not in svg
    few_high, many_high = (float(re.findall(r'viewBox="0 0 \S+ (\S+)"', svg)[0]) for svg in (few, many))
    assert many_high - few_high > 60


def test_the_verdict_names_a_dozen_methods_and_counts_the_others(bench: Path) -> None:
    results = read_results(bench / "results.json")

    def says(others: dict[str, float], **methods: object) -> str:
        changed = {"specexit_faster": {"1": others}, "methods": results.methods | methods}
        return " ".join(verdict(results.model_copy(update=changed), None))

    many = says({"eagle3": 0.001} | {f"other{i}": 0.001 for i in range(20)} | {f"slow{i}": 0.9 for i in range(13)})
    assert "other10, 9 more (P-values below); not shown of slow0," in many
    assert "slow11, 1 more (P-values below)." in many
    one = results.methods["eagle3"]
    said = says({"none": 0.001, "eagle3": 0.001}, none=one, oracle=one)
    assert "sooner than no speculation, eagle3: every other method measured but the oracle." in said
