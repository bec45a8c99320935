"""Annotation: exit points, the hard boundary, and what the command writes or refuses."""

import json
import os
import random
import signal
import subprocess
import sys

import pyarrow as pa
import pytest

from specexit import tiny
from specexit.config import ConfigError
from specexit.data.annotate import annotate, hard_boundary, label
from specexit.data.engine import TYPES, types_in_metadata, types_written_with
from specexit.data.stream import in_parallel
from specexit.data.summary import summarise
from specexit.data.traces import WEIGHTS, TraceError, data_sha256, read_labelled, said_of, write_traces
from specexit.errors import InputError
from specexit.schemas.annotate import AnnotateConfig
from specexit.schemas.target import load_target_config, save_target


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


def test_traces_of_another_tokenizer_are_not_labelled(make_trace, tmp_path):
    """What is written names the target's own tokenizer, so nothing behind it would notice."""
    write_traces(tmp_path / "traces" / "traces.parquet", [make_trace()], "0" * 64)
    with pytest.raises(TraceError, match="written with the tokenizer 000000000000"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    assert not (tmp_path / "labelled").exists()


def test_labelled_traces_name_the_weights_and_types_that_wrote_them(think, tmp_path):
    """The copy of the target, of another dtype by then, took the place of the one that they had been written with."""
    ours, file = load_target_config("tiny-reasoner"), tmp_path / "traces" / "traces.parquet"
    edited = ours.model_copy(update={"dtype": "bfloat16"})
    save_target(tmp_path / "traces", ours)
    save_target(tmp_path / "edited", edited)
    told = types_in_metadata({"dtype": "torch.half", "kv_cache_dtype": "fp8"}, ours)
    for name, said, types in (
        ("old", {}, {"dtype": "float32"}),
        ("new", {WEIGHTS: "0" * 64, TYPES: told}, {"dtype": "float16", "kv_cache_dtype": "fp8"}),
    ):
        write_traces(file, [think(("The answer is 2.", "2"), ("z.", "2"))], said=said)
        given = str(tmp_path / "edited" / "target.yaml")
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / name, target=given))
        assert [said_of(tmp_path / name, key) for key in (WEIGHTS, TYPES)] == [said.get(WEIGHTS), said.get(TYPES)]
        assert types_written_with(tmp_path / name, edited).model_dump(exclude_none=True) == types


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


def test_many_blocks_are_several_files(think, tmp_path, monkeypatch):
    """The index of a file's row groups is in memory while it is written or read."""
    monkeypatch.setattr("specexit.data.annotate.BLOCK_TOKENS", 1)
    monkeypatch.setattr("specexit.data.parts.GROUPS", 3)
    traces = [think(("One.", "1"), ("Two.", "2"), (f"Step {i}.", "2"), id=str(i)) for i in range(8)]
    write_traces(tmp_path / "traces" / "traces.parquet", traces)
    out = tmp_path / "labelled"
    annotate(AnnotateConfig(traces=tmp_path / "traces", out=out, workers=1))
    names = ["traces.00000.parquet", "traces.00001.parquet", "traces.parquet"]
    assert sorted(path.name for path in out.glob("*.parquet")) == names
    for path in (out, out / "traces.parquet"):
        assert [trace.id for trace in read_labelled(path)] == [trace.id for trace in traces]
    assert len(read_labelled(out / names[1])) == 3
    (out / names[1]).rename(tmp_path / names[1])
    for path in (out, out / "traces.parquet"):
        with pytest.raises(TraceError, match=r"traces\.00001\.parquet: is gone, though traces\.parquet names it"):
            read_labelled(path)
    (out / "traces.parquet").unlink()
    with pytest.raises(TraceError, match=r"traces\.parquet: is gone, though traces\.00000\.parquet is a part of it"):
        read_labelled(out)


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
    (tmp_path / "traces" / "engine.yaml").write_text("kv_cache_dtype: fp8")
    assert annotate(config.model_copy(update={"target": str(tmp_path / "mine" / "target.yaml")})).n == 1
    assert (tmp_path / "labelled" / "engine.yaml").read_text() == "kv_cache_dtype: fp8\n"  # goes with the traces


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


def test_where_each_trace_has_one_boundary_no_share_of_them_is_made_up(think, tmp_path):
    """It said that 0.0% of the boundaries agree."""
    write_traces(tmp_path / "traces" / "traces.parquet", [think(("z.", "2"))])
    config = AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled")
    with pytest.raises(TraceError, match=r"of 1 trials 0 were cut off and no boundary .* has a verdict"):
        annotate(config)


def test_a_file_that_is_damaged_in_the_middle_leaves_nothing(think, tmp_path):
    trace = think(("The answer is 2.", "2"), ("z.", "2"))
    file = tmp_path / "traces" / "traces.parquet"
    write_traces(file, [trace] * 100)
    data = file.read_bytes()
    file.write_bytes(data[:100] + bytes(len(data) // 3) + data[100 + len(data) // 3 :])
    with pytest.raises(TraceError, match=r"traces\.parquet: cannot be read as Parquet"):
        annotate(AnnotateConfig(traces=tmp_path / "traces", out=tmp_path / "labelled"))
    assert [path.name for path in tmp_path.iterdir()] == ["traces"]


INTERRUPTED = """
import os, signal, sys, time
import pyarrow as pa
from specexit.data.stream import in_parallel

def work(number, data):
    os.write(1, b"working\\n")
    time.sleep(600 if signal.getsignal(signal.SIGINT) is signal.SIG_DFL else 1)

if __name__ == "__mp_main__":  # a worker that is on its way
    os.write(1, b"starting\\n")  # at once, as both do
    time.sleep(0.5)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
    batch = pa.RecordBatch.from_pydict({"n": [1]})
    try:
        list(in_parallel(work, [batch] * 4, workers=2))
        print("worked", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def interrupt(program, when, how):
    """Send it Ctrl-C at a moment: the line at which that was, its last line and what it has said of errors."""
    program.write_text(INTERRUPTED)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(program), how], **pipes, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) and line != when:
            pass
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, error = process.communicate(timeout=60)
    return line, said.splitlines()[-1], error


@pytest.mark.parametrize("when", ["starting", "working"])
def test_ctrl_c_ends_the_workers_without_tracebacks(tmp_path, when):
    assert interrupt(tmp_path / "program.py", when, "default_int_handler") == (when, "interrupted", "")


def test_workers_of_a_command_that_passes_over_ctrl_c_do_so_too(tmp_path):
    """As one that a script has begun in the background: its workers died, and it with them."""
    assert interrupt(tmp_path / "program.py", "working", "SIG_IGN") == ("working", "worked", "")


def killed(number, data):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_was_killed_is_told_in_a_line():
    """As the kernel does where memory runs out."""
    batch = pa.RecordBatch.from_pydict({"n": [1]})
    with pytest.raises(InputError, match=r"one of 2 worker processes was killed, .*: take fewer \(workers=1\), or a"):
        list(in_parallel(killed, [batch] * 3, workers=2))
