"""The page that annotate writes."""

import re

from specexit.data.annotate import annotate
from specexit.data.rows import fill_untried, infer_agrees
from specexit.data.traces import write_traces
from specexit.report.page import LONGEST_ANSWER
from specexit.schemas.annotate import AnnotateConfig


def test_the_page_can_be_read_alone(think, tmp_path, capsys):
    traces = [
        think(("The answer is 2.", "2"), ("<b>y & z</b>", "2"), ("z.", "2"), reference="2", id="early"),
        think(("x.", "2"), ("y.", "3"), ("z.", "2"), ("w.", "2"), id="wavering"),
    ]
    write_traces(tmp_path / "traces" / "traces.parquet", traces)
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    told = " ".join(capsys.readouterr().err.split())
    assert "accuracy is that of 1 of the traces: the others have no reference" in told
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    for text in ("settle at once", "never settle", "change after having settled", "undecided trials", "By task"):
        assert text in page
    assert "the right answer, of 1 with a reference</th>" in page
    assert "&lt;b&gt;y &amp; z&lt;/b&gt;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_page_says_first_that_overthinking_is_installed_and_can_be_read_without_eyes_or_mouse(think, tmp_path):
    """Its title, a share of redundant thinking, stood there alone, as on no other page."""
    traces = [think(("x.", "2"), ("y.", "2"), ("z.", "2"), reference="2")]
    write_traces(tmp_path / "traces" / "traces.parquet", traces)
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    assert "overthinking is installed, not emergent" in page
    assert page.index("</h1>") < page.index("Read this first") < page.index('class="headline"')
    assert re.findall(r'<div role="img" aria-label="[^"]{20,}"><svg', page)
    assert page.count("<svg") == 1
    scrolled = re.findall(r'<\w+ class="[^"]*scroll"[^>]*>', page)
    assert len(scrolled) == 4
    assert all('tabindex="0"' in tag and "aria-label=" in tag for tag in scrolled)
    assert "<th></th>" not in page
    assert len(re.findall("<th[ >]", page)) == len(re.findall('<th scope="(?:col|row)">', page))


def test_no_answer_is_shown_where_nobody_asked(think, make_trace, tmp_path):
    whole = think(*((text, "2") for text in ("u.", "v.", "w.", "x.", "y.", "z.")))
    states = ["untried", "differs", "agrees", "untried", "agrees", "agrees"]
    answers = fill_untried([None, "4", "2", None, "2", "2"])
    fields = {"boundary_state": states, "boundary_agrees": infer_agrees(states), "boundary_answers": answers}
    trace = make_trace(**vars(whole) | fields | {"think_ids": [*whole.think_ids, *whole.think_ids]})
    write_traces(tmp_path / "traces" / "traces.parquet", [trace])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    said = re.findall(r'<span class="says">(\w+)(?: <span class="answer">(\w+)</span>)?</span>', page)
    shown = ["", "4", "2", "", "2", "2"]
    assert said == list(zip(states, shown, strict=True))


def test_a_long_answer_is_shortened_on_the_page_and_keeps_its_lines(think, tmp_path):
    program = "def f(x):\n    return x\n" + "x = 1\n" * 100
    traces = [think(("x.", program), ("y.", program), ("z.", program))]
    write_traces(tmp_path / "traces" / "traces.parquet", traces)
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    shown = program[:LONGEST_ANSWER] + " \N{HORIZONTAL ELLIPSIS}</"
    assert page.count(shown) == 1 + 3  # the trace's, and those of its boundaries
    assert program not in page


def test_text_that_turns_its_direction_leaves_the_sentence_around_it_alone(think, tmp_path):
    """A right-to-left override works to the end of the element that it stands in."""
    turned = "\N{RIGHT-TO-LEFT OVERRIDE}2"
    traces = [think(("x.", turned), ("y.", turned), reference=turned, id=f"{turned}-id")]
    write_traces(tmp_path / "traces" / "traces.parquet", traces)
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    assert f"<bdi>{turned}-id</bdi>: " in page
    assert page.count(f"<code><bdi>{turned}</bdi></code>") == 2  # its answer, and the right one
