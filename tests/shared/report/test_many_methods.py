"""Pages of as many methods, with as long names, as somebody may measure."""

import re
from pathlib import Path

import numpy as np

from specexit.bench.methods import NAMES
from specexit.bench.results import TaskResult, read_results, write_results
from specexit.method.policies import METHODS
from specexit.method.signals import NAMES as SIGNALS
from specexit.report.charts import (
    Spot,
    accuracy_chart,
    curves_chart,
    latency_chart,
    longest_drawn,
    signals_chart,
    steps_chart,
    style_of,
    threshold_chart,
)
from specexit.report.figures import what_is_beyond
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


def lines_of(svg: str) -> set[tuple[str, str]]:
    """(dashes in widths of the line, colour) of the lines in a colour of a series."""
    found = set()
    for style in re.findall(r'style="(fill: none; [^"]*stroke: var\(--c\d\)[^"]*)"', svg):
        said = dict(one.split(": ") for one in style.split("; "))
        lengths = [float(length) for length in said.get("stroke-dasharray", "").split(",") if length]
        dashes = ",".join(f"{length / float(said.get('stroke-width', 1)):.3g}" for length in lengths)
        found.add((dashes, said["stroke"]))
    return found


def test_lines_are_told_apart_without_colour_and_a_signal_looks_the_same_everywhere() -> None:
    """All were solid; and validity, c2 in a trace, was c4 in the losses of its training."""
    two = [(1, 0.5), (2, 0.25)]
    signals = lines_of(signals_chart(np.full((9, 4), 0.5, np.float32), [3, 6], 6, None, "exit"))
    assert signals == lines_of(steps_chart(dict.fromkeys(SIGNALS, two)))
    assert ("", "var(--c2)") in signals
    of_time = lines_of(steps_chart(dict.fromkeys("abcde", two)))
    ablated = lines_of(curves_chart(dict.fromkeys("abcde", two), "x", "y", 9.0))
    thresholds = lines_of(threshold_chart([(0.5, 0.6, 0.7), (0.9, 0.4, 0.9)]))
    kinds = [len({dashes for dashes, _ in lines}) for lines in (signals, of_time, ablated, thresholds)]
    assert kinds == [len(SIGNALS), 5, 5, 2]


def test_a_method_that_thinks_nothing_and_is_mostly_wrong_is_whole_and_moves_no_axis_below_zero() -> None:
    """Its mark was cut in half by the axis of accuracy, which began at -18 %."""
    svg = accuracy_chart([Spot("eagle3", "served", 9, 0, 0.98), Spot("no-thinking", "served", 0, 0, 0.019)], None, {})
    assert "\N{MINUS SIGN}" not in svg
    assert not re.findall(r'id="PathCollection_\d+">\s*(?:<defs>.*?</defs>\s*)?<g clip-path', svg, re.DOTALL)


def test_one_methods_tail_leaves_the_others_their_room() -> None:
    """A response of 40 s took half of the figure; and what is beyond its edge is told below it."""
    times = {"eagle3": [1.0, 2.0] * 50, "no-thinking": [*[0.25] * 98, 30.0, 40.0]}
    assert longest_drawn(times) == 3.0
    assert ">3.0</text>" in latency_chart(times)
    assert longest_drawn({"eagle3": [1.0, 2.0], "none": []}) is None
    assert what_is_beyond(times) == " Beyond its right edge are 2 of no-thinking (up to 40.0 s)."
    assert what_is_beyond({"eagle3": [1.0]}) == what_is_beyond({}) == ""


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
