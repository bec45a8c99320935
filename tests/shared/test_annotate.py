"""Annotation: exit points, the hard boundary, and statistics that can be checked by hand."""

import json
import random
import re

import pytest

from specexit import tiny
from specexit.config import ConfigError
from specexit.data.annotate import annotate, hard_boundary, label
from specexit.data.rows import fill_untried, infer_agrees
from specexit.data.summary import Ending, summarise
from specexit.data.traces import Trace, TraceError, data_sha256, read_labelled, write_traces
from specexit.report.page import LONGEST_ANSWER
from specexit.report.traces import KINDS, example_of
from specexit.schemas.annotate import AnnotateConfig
from specexit.schemas.target import load_target_config, save_target
from specexit.tiny.traces import PARAGRAPH


@pytest.fixture(scope="module")
def tokenizer():
    return load_target_config("tiny-reasoner").tokenizer()


@pytest.fixture(scope="module")
def think(make_trace, tokenizer):
    """A trace made of (step, trial answer) pairs; the answer of the last one is that of the trace."""

    def make(*steps: tuple[str, str | None], reference: str | None = None, id: str = "a") -> Trace:
        ids: list[int] = []
        boundaries = []
        for text, _ in steps:
            ids += tokenizer.encode(text + PARAGRAPH)
            boundaries.append(len(ids))
        answers = [answer for _, answer in steps]
        return make_trace(
            id=id,
            think_ids=ids,
            boundaries=boundaries,
            answer=answers[-1],
            boundary_answers=answers,
            boundary_agrees=[answer == answers[-1] for answer in answers],
            boundary_confidence=[0.5] * len(answers),
            reference=reference,
            correct=None if reference is None else reference == answers[-1],
        )

    return make


def test_hard_boundary_is_the_first_stated_answer(think, tokenizer):
    trace = think(
        ("Okay, I need to find the value of g. d is 11.", "11"),
        ("Since d = y - 2, y is 11+2=13.", "13"),
        ("So the answer should be 13.", "13"),
        ("Wait, let me double-check. 11+2=13. The answer is 13.", "13"),
        ("Therefore, the answer is 13.", "13"),
    )
    assert hard_boundary(trace, tokenizer, "answer") == 2


def test_another_number_in_a_step_is_no_stated_answer(think, tokenizer):
    trace = think(("The answer is not 13.", "3"), ("The answer is 13.5 now.", "13"), ("So the answer is 4.", "4"))
    assert hard_boundary(trace, tokenizer, "answer") is None  # 4 is stated at the natural end: nothing to decide
    longer = think(("The answer is not 13.", "3"), ("So the answer is 4.", "4"), ("Yes.", "4"))
    assert hard_boundary(longer, tokenizer, "answer") == 1


def test_hard_boundary_of_the_tiny_reasoners_own_traces(think, tokenizer):
    """The generic definition finds the paragraph that the generator knows to state the tentative answer."""
    rng = random.Random(0)
    for problem in tiny.problems("test", 200):
        written = tiny.write_trace(rng, problem)
        # What a target would answer: the last result so far, once there is one.
        tentative, n_first = str(written.tentative), written.first_pass
        steps = [(p, tentative if i >= n_first else None) for i, p in enumerate(written.paragraphs)]
        expected = n_first if len(steps) > n_first + 1 else None
        assert hard_boundary(think(*steps), tokenizer, "answer") == expected


def test_labels_of_a_trace_that_wavers(think, tokenizer):
    trace = think(("One.", "7"), ("Two.", "8"), ("Three.", "7"), ("Four.", "7"))
    labelled = label(trace, tokenizer, "answer")
    assert labelled.exit_earliest == trace.boundaries[0]
    assert labelled.exit_stable == trace.boundaries[2]


def test_statistics_by_hand(think, tokenizer):
    right = think(("x.", "1"), ("The answer is 2.", "2"), ("y.", "2"), ("z.", "2"), reference="2")
    wrong = think(("x.", None), ("The answer is 4.", "4"), ("y.", "3"), ("z.", "3"), reference="4")
    unknown = think(("The answer is 5.", "5"), ("y.", "5"))
    traces = [label(trace, tokenizer, "answer") for trace in (right, wrong, unknown)]
    statistics = summarise(traces, {})
    total = sum(len(trace.think_ids) for trace in traces)
    assert statistics.n == 3
    assert statistics.boundaries_per_trace == pytest.approx(10 / 3)
    assert (statistics.full.thinking_cut, statistics.full.agreement, statistics.full.accuracy) == (0, 1, 0.5)
    kept = right.boundaries[1] + wrong.boundaries[2] + unknown.boundaries[0]
    assert statistics.oracle_earliest.thinking_cut == pytest.approx(1 - kept / total)
    assert statistics.oracle_earliest.agreement == 1
    assert statistics.oracle_stable == statistics.oracle_earliest
    assert (statistics.first_boundary.agreement, statistics.first_boundary.accuracy) == (pytest.approx(1 / 3), 0)
    # At the first stated answer the wavering trace is still right: 2 and 4 are the references.
    assert (statistics.hard_boundaries, statistics.hard_valid) == (3, pytest.approx(2 / 3))
    assert (statistics.hard_boundary.agreement, statistics.hard_boundary.accuracy) == (pytest.approx(2 / 3), 1)
    # Before the natural end: no yes yes, no no yes, yes.
    assert statistics.valid_boundaries == pytest.approx(4 / 7)


def test_the_oracle_curve_ends_at_the_full_trace(think, tokenizer):
    trace = think(("One.", "1"), ("Two.", "2"), ("Three.", "2"), reference="2")
    curve = summarise([label(trace, tokenizer, "answer")], {}).curve
    assert [point.fraction for point in curve][-1] == 1.0
    assert [point.settled for point in curve] == sorted(point.settled for point in curve)
    assert (curve[-1].settled, curve[-1].ending.agreement, curve[-1].ending.thinking_cut) == (1, 1, 0)
    assert (curve[0].settled, curve[0].ending.agreement) == (0, 0)


def test_the_curve_counts_a_boundary_at_a_share_of_the_thinking(make_trace, tokenizer):
    """To the token, whatever 0.7 * 90 is in floating point."""
    for tenth in range(1, 10):
        trace = make_trace(think_ids=[20] * 90, boundaries=[9 * tenth - 1, 9 * tenth, 90])
        curve = summarise([label(trace, tokenizer, "answer")], {}).curve
        assert [point.settled for point in curve] == [float(i >= tenth) for i in range(1, 11)]


def test_annotate_writes_what_training_reads(think, make_trace, tmp_path):
    kept = think(("x.", "1"), ("y.", "2"), ("z.", "2"), reference="2", id="kept")
    nothing = {"boundaries": [], "boundary_answers": [], "boundary_agrees": [], "boundary_confidence": []}
    dropped = [
        make_trace(id="cut", finish_reason="length", answer=None, **nothing),
        make_trace(id="silent", answer=None, **nothing),
        make_trace(id="one piece", **nothing),
        make_trace(id="another", **nothing),
    ]
    write_traces(tmp_path / "traces" / "traces.parquet", [kept, *dropped])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    (labelled,) = read_labelled(tmp_path / "labelled")
    assert (labelled.id, labelled.exit_earliest) == ("kept", kept.boundaries[1])
    statistics = json.loads((tmp_path / "labelled" / "statistics.json").read_text())
    assert statistics["dropped"] == {"unfinished": 1, "no answer": 1, "no boundary": 2}
    assert statistics["oracle_earliest"]["accuracy"] == 1
    assert (tmp_path / "labelled" / "run.yaml").exists()


@pytest.mark.parametrize("word", ["think", "answer"])
def test_a_target_that_never_says_answer_has_no_first_stated_answer(think, tmp_path, capsys, word):
    """Not one at the natural end, which cuts nothing and is always right."""
    trace = think(("Here.", "1"), ("I think that it is 2.", "2"), ("So it is 2.", "2"), reference="2")
    write_traces(tmp_path / "traces" / "traces.parquet", [trace])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled", answer_word=word))
    shown, page = capsys.readouterr().err, (tmp_path / "labelled" / "statistics.html").read_text()
    assert ("first stated answer" in shown, "first stated answer" in page) == (word == "think",) * 2
    assert ("answer_word=answer" in shown) == (word == "answer")


def test_nothing_to_label_is_an_error_that_counts_reasons(make_trace, tmp_path):
    write_traces(tmp_path / "traces" / "traces.parquet", [make_trace(finish_reason="length")])
    with pytest.raises(TraceError, match="none of 1 traces can be labelled: 1 unfinished, 0 no answer, 0 no boundary"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    assert not (tmp_path / "labelled").exists()


def test_a_row_that_no_server_answered_is_left_out_as_that(think, make_trace, tmp_path):
    nothing = {"boundaries": [], "boundary_answers": [], "boundary_agrees": [], "boundary_confidence": []}
    failed = make_trace(id="failed", finish_reason="failed", answer=None, **nothing)
    write_traces(tmp_path / "traces" / "traces.parquet", [think(("x.", "1"), ("y.", "1")), failed])
    found = annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    assert found.dropped == {"failed": 1, "unfinished": 0, "no answer": 0, "no boundary": 0}
    write_traces(tmp_path / "traces" / "traces.parquet", [failed])
    with pytest.raises(TraceError, match="none of 1 traces can be labelled: 1 failed, 0 unfinished, 0 no answer"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "none"))


def test_traces_without_a_boundary_are_an_error_that_names_the_key(make_trace, tmp_path):
    nothing = {"boundaries": [], "boundary_answers": [], "boundary_agrees": [], "boundary_confidence": []}
    write_traces(tmp_path / "traces" / "traces.parquet", [make_trace(**nothing)])
    with pytest.raises(TraceError, match="1 no boundary; do split_endings and split_connectors of the target occur"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))


def test_a_trace_that_is_there_twice_is_named(make_trace, tmp_path):
    for file in ("a", "b"):
        write_traces(tmp_path / "traces" / f"{file}.parquet", [make_trace(id="p", sample=i) for i in range(2)])
    with pytest.raises(TraceError, match=r"traces: trace 'p', sample 0, is there twice"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    assert not (tmp_path / "labelled").exists()


def test_a_file_that_is_not_the_one_that_collect_wrote_is_named(think, tmp_path):
    file = tmp_path / "traces" / "a.parquet"
    write_traces(file, [think(("x.", "1"), ("y.", "1"))])
    manifest = {"files": {"a.parquet": {"sha256": data_sha256(file)}}}
    (tmp_path / "traces" / "manifest.json").write_text(json.dumps(manifest))
    config = AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled")
    assert annotate(config).n == 1
    write_traces(file, [think(("x.", "1"), ("z.", "1"))])
    with pytest.raises(TraceError, match=r"a\.parquet: its content is not what manifest\.json says; where it"):
        annotate(config.model_copy(update={"out": tmp_path / "again"}))
    (tmp_path / "traces" / "manifest.json").write_text('{"files": ["a.parquet"]}')
    with pytest.raises(TraceError, match=r"manifest\.json: cannot be read as what `collect` writes: remove it"):
        annotate(config.model_copy(update={"out": tmp_path / "again"}))
    assert not (tmp_path / "again").exists()


def test_traces_of_several_targets_name_their_folder(make_trace, tmp_path):
    write_traces(tmp_path / "traces" / "a.parquet", [make_trace(), make_trace(id="b", target="tiny-mixed")])
    with pytest.raises(TraceError, match=r"traces: traces of several targets \(tiny-mixed, tiny-reasoner\), expected"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))


def test_the_output_folder_must_be_empty(think, tmp_path):
    write_traces(tmp_path / "traces" / "traces.parquet", [think(("x.", "1"), ("y.", "1"))])
    with pytest.raises(FileExistsError, match="output folder is not empty"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "traces"))
    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["traces.parquet"]


def test_blocks_in_processes_give_the_same_labels(think, tmp_path, monkeypatch):
    monkeypatch.setattr("specexit.data.annotate.BLOCK_TOKENS", 60)
    traces = [
        think(("One.", "1"), ("The answer is 2.", "2"), (f"Step {i}.", "2"), reference="2", id=str(i))
        for i in range(150)
    ]
    for name, part in (("a", traces[:70]), ("b", traces[70:])):
        write_traces(tmp_path / "traces" / f"{name}.parquet", part)
    found = {}
    for workers in (1, 2):
        out = tmp_path / f"labelled{workers}"
        found[workers] = annotate(AnnotateConfig(traces=tmp_path / "traces", out=out, workers=workers))
    assert found[1] == found[2]
    assert read_labelled(tmp_path / "labelled1") == read_labelled(tmp_path / "labelled2")
    tokenizer = load_target_config("tiny-reasoner").tokenizer()
    expected = [label(trace, tokenizer, "answer") for trace in traces]
    assert read_labelled(tmp_path / "labelled1") == expected
    assert found[1] == summarise(expected, {"unfinished": 0, "no answer": 0, "no boundary": 0})


def test_parts_by_task_and_length(think, make_trace, tokenizer):
    at_once = think(("The answer is 2.", "2"), ("y.", "2"), ("z.", "2"))
    wavering = think(("x.", "2"), ("y.", "3"), ("z.", "2"), ("w.", "2"))
    never = think(("x.", "1"), ("z.", "2"))
    tasks = ("sums", "sums", None)
    traces = [
        label(make_trace(**vars(trace) | {"task": task, "prompt_ids": [1] * n}), tokenizer, "answer")
        for trace, task, n in zip((at_once, wavering, never), tasks, (1, 1, 2), strict=True)
    ]
    statistics = summarise(traces, {})
    assert statistics.prompts == 2  # two are samples of one prompt
    sums, other = statistics.by_task["sums"], statistics.by_task["all"]
    assert (sums.n, sums.at_once, sums.wavering, sums.never) == (2, 0.5, 0.5, 0)
    assert (other.n, other.at_once, other.wavering, other.never, other.redundant) == (1, 0, 0, 1, 0)
    thinking = sum(len(trace.think_ids) for trace in traces[:2])
    assert sums.redundant == pytest.approx(1 - (at_once.boundaries[0] + wavering.boundaries[0]) / thinking)
    assert sums.redundant_stable == pytest.approx(1 - (at_once.boundaries[0] + wavering.boundaries[2]) / thinking)
    assert sum(part.n for part in statistics.by_length.values()) == statistics.whole.n == 3
    assert statistics.lengths["shortest"] == len(never.think_ids)


def test_undecided_and_free_trials_are_counted(make_trace, tokenizer):
    free = [
        {"boundary": 0, "answer": "7", "same": True, "tokens": 5},
        {"boundary": 1, "answer": "8", "same": False, "tokens": 5},
        {"boundary": 2, "answer": None, "same": None, "tokens": 9},
    ]
    trace = make_trace(
        boundary_state=["undecided", "untried", "agrees"],
        boundary_trial_tokens=[24, 0, 6],
        trial=json.dumps({"free": free}),
    )
    statistics = summarise([label(trace, tokenizer, "answer")], {})
    assert (statistics.trials, statistics.undecided, statistics.trial_tokens) == (2, 1, 30)
    assert (statistics.free_trials, statistics.free_same) == (2, 0.5)


@pytest.mark.parametrize(
    ("states", "wavering", "valid"),
    [
        ("agrees differs agrees", 1, 1 / 2),
        ("agrees differs differs", 1, 1 / 2),  # the natural end has the answer, whatever a trial there says
        ("differs agrees differs", 0, 1 / 2),
        ("agrees undecided agrees", 0, 1),
        ("undecided differs agrees", 0, 0),
        ("agrees untried undecided", 0, 1),
        ("undecided undecided agrees", 0, None),
    ],
)
def test_an_undecided_trial_neither_differs_nor_wavers(make_trace, tokenizer, states, wavering, valid):
    fields = {"boundary_state": states.split(), "boundary_agrees": infer_agrees(states.split())}
    one = label(make_trace(**fields), tokenizer, "answer")
    statistics = summarise([one], {})
    assert (statistics.whole.wavering, statistics.valid_boundaries) == (wavering, valid)
    shown = {kind for kind in KINDS if example_of(one, tokenizer, KINDS.keys() - {kind})}
    assert ("wavering" in shown) == bool(wavering)


@pytest.mark.parametrize("states", ["agrees undecided agrees", "undecided agrees agrees", "agrees agrees undecided"])
def test_an_undecided_trial_does_not_unsettle_a_trace(make_trace, tokenizer, states):
    fields = {"boundary_state": states.split(), "boundary_agrees": infer_agrees(states.split())}
    one = label(make_trace(**fields), tokenizer, "answer")
    assert one.exit_earliest == one.exit_stable < len(one.think_ids)
    statistics = summarise([one], {})
    assert statistics.whole.never == 0
    first = None if states.startswith("undecided") else 1
    assert (statistics.first_boundary.agreement, statistics.curve[0].ending.agreement) == (first, first)


@pytest.mark.parametrize(("how", "untried"), [("stable", True), ("bisect", True), ("bisect", False)])
def test_what_was_not_looked_for_is_unknown_and_not_zero(make_trace, think, tokenizer, how, untried, tmp_path):
    """Trials of ``boundaries=stable`` say nothing of what is in front of the exit point, and those about it are no
    sample of all."""
    whole = think(("The answer is 2.", "2"), ("w.", "2"), ("x.", "3"), ("y.", "2"), ("z.", "2"), reference="3")
    states = ["untried" if untried else "differs", "untried", "differs", "agrees", "agrees"]
    answers = fill_untried([None, None, "3", "2", "2"])
    fields = {"boundary_state": states, "boundary_agrees": infer_agrees(states), "boundary_answers": answers}
    one = make_trace(**vars(whole) | fields | {"trial": json.dumps({"boundaries": how})})
    statistics = summarise([label(one, tokenizer, "answer")], {})
    part = statistics.whole
    assert (part.redundant, part.wavering) == (None, None)
    assert part.redundant_stable == pytest.approx(1 - one.boundaries[3] / one.n_think)
    assert (statistics.first_boundary.agreement, statistics.first_boundary.accuracy) == (None, None)
    assert statistics.hard_boundaries == 0
    write_traces(tmp_path / "traces" / "traces.parquet", [one])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = " ".join((tmp_path / "labelled" / "statistics.html").read_text().split())
    assert "is unknown" in page
    assert "<dt>change after having settled</dt><dd>unknown" in page


def test_early_ends_are_those_of_the_traces_that_were_tried_throughout(think, make_trace, tokenizer, tmp_path, capsys):
    """Traces of ``boundaries=stable`` among them neither cut nothing nor are right there."""
    steps = ("x.", "3"), ("The answer is 3.", "3"), ("y.", "2"), ("w.", "2"), ("z.", "2")
    whole = think(*steps, reference="2")
    states = ["untried", "differs", "agrees", "agrees", "agrees"]
    fields = {"id": "b", "boundary_state": states, "trial": json.dumps({"boundaries": "stable"})}
    stable = make_trace(**vars(whole) | fields)
    alone, both, none = (
        summarise([label(trace, tokenizer, "answer") for trace in traces], {})
        for traces in ([whole], [whole, stable], [stable])
    )
    assert (alone.throughout, both.throughout, none.throughout) == (1, 1, 0)
    for name in ("oracle_earliest", "first_boundary", "hard_boundary"):
        assert getattr(both, name) == getattr(alone, name)
        assert getattr(none, name) == Ending(None, None, None, None)
    assert [(point.settled, point.ending) for point in both.curve] == [
        (point.settled, point.ending) for point in alone.curve
    ]
    assert both.oracle_earliest.thinking_cut == both.whole.redundant
    assert both.oracle_stable.thinking_cut == none.oracle_stable.thinking_cut == none.whole.redundant_stable
    assert {point.settled for point in none.curve} == {None}
    assert none.curve[-1].settled_stable == 1
    write_traces(tmp_path / "traces" / "traces.parquet", [whole, stable])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    assert "in the other 1 the point behind which" in page
    for name in ("oracle, earliest", "first stated answer", "first boundary"):
        assert f"{name} of 1 trace<" in page
    assert "early ends are those of 1 of the traces" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("states", "warned"),
    [
        ("untried untried differs agrees", "2 boundaries lie .*, and 1 are known to differ"),
        ("untried differs agrees", ""),
    ],
)
def test_traces_with_few_exits_that_are_known_to_be_wrong_are_a_warning(make_trace, tmp_path, capsys, states, warned):
    """Of the validity of boundaries that ``boundaries=stable`` did not try a draft learns nothing."""
    states = states.split()
    n = len(states)
    trace = make_trace(
        boundaries=[2 * i + 2 for i in range(n)],
        boundary_answers=["7"] * n,
        boundary_confidence=[0.5] * n,
        boundary_state=states,
        boundary_agrees=infer_agrees(states),
        trial=json.dumps({"boundaries": "stable"}),
    )
    write_traces(tmp_path / "traces" / "traces.parquet", [trace])
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    said = capsys.readouterr().err
    assert bool(re.search(rf"warning: {warned}.* collect with boundaries=refine", said)) == bool(warned)


def test_the_page_can_be_read_alone(think, tmp_path):
    traces = [
        think(("The answer is 2.", "2"), ("<b>y & z</b>", "2"), ("z.", "2"), reference="2", id="early"),
        think(("x.", "2"), ("y.", "3"), ("z.", "2"), ("w.", "2"), id="wavering"),
    ]
    write_traces(tmp_path / "traces" / "traces.parquet", traces)
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    page = (tmp_path / "labelled" / "statistics.html").read_text()
    for text in ("settle at once", "never settle", "change after having settled", "undecided trials", "By task"):
        assert text in page
    assert "&lt;b&gt;y &amp; z&lt;/b&gt;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


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


def test_a_model_that_moved_is_named_with_the_key_that_says_where_it_is(think, tmp_path):
    write_traces(tmp_path / "traces" / "traces.parquet", [think(("The answer is 2.", "2"), ("z.", "2"))])
    target = load_target_config("tiny-reasoner")
    save_target(tmp_path / "traces", target.model_copy(update={"path": str(tmp_path / "gone")}))
    config = AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled")
    with pytest.raises(
        ConfigError, match=r"gone/tokenizer\.json: target tiny-reasoner .* '.*gone'.*say target=FILE\.yaml"
    ):
        annotate(config)
    assert not (tmp_path / "labelled").exists()
    save_target(tmp_path / "mine", target)
    assert annotate(config.model_copy(update={"target": str(tmp_path / "mine" / "target.yaml")})).n == 1


def test_labels_that_leave_nothing_to_cut_are_refused(think, tmp_path):
    trace = think(("x.", None), ("y.", None), ("z.", "2"))
    write_traces(tmp_path / "traces" / "traces.parquet", [trace])
    config = AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled")
    with pytest.raises(
        TraceError, match=r"an ideal exit would cut 0.00% .* at least least_cut=0.001: of 3 trials 0 were"
    ):
        annotate(config)
    assert not (tmp_path / "labelled").exists()
    assert annotate(config.model_copy(update={"least_cut": 0.0})).oracle_earliest.thinking_cut == 0


def test_a_file_that_is_damaged_in_the_middle_leaves_nothing(think, tmp_path):
    trace = think(("The answer is 2.", "2"), ("z.", "2"))
    file = tmp_path / "traces" / "traces.parquet"
    write_traces(file, [trace] * 100)
    data = file.read_bytes()
    file.write_bytes(data[:100] + bytes(len(data) // 3) + data[100 + len(data) // 3 :])
    with pytest.raises(TraceError, match=r"traces\.parquet: cannot be read as Parquet"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    assert [path.name for path in tmp_path.iterdir()] == ["traces"]
