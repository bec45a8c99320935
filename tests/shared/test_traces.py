"""Trace files: what is written is what is read, and a file that cannot be used says why."""

import json
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specexit.config import ConfigError
from specexit.data.rows import (
    ADDED,
    LABELLED_SCHEMA,
    SCHEMA,
    FreeTrial,
    LabelledTrace,
    can_judge,
    fill_untried,
    free_trials,
    infer_agrees,
    infer_decided,
)
from specexit.data.stream import read_batches, trace_files
from specexit.data.traces import (
    WEIGHTS,
    TraceError,
    check_collected,
    check_tokenizer,
    data_sha256,
    read_labelled,
    read_traces,
    target_of_file,
    tokenizer_sha256,
    write_traces,
)
from specexit.data.written_by import check_weights
from specexit.drafts.fingerprints import target_fingerprint
from specexit.schemas.target import load_target_config, save_target


def test_round_trip_keeps_every_field(make_trace, tmp_path):
    traces = [make_trace(), make_trace(id="b", answer=None, reference=None, correct=None, finish_reason="length")]
    write_traces(tmp_path / "traces.parquet", traces)
    assert read_traces(tmp_path / "traces.parquet") == traces


def test_a_colon_in_a_relative_path_makes_no_address_of_it(make_trace, tmp_path, monkeypatch):
    """pyarrow took `run-10` for a scheme: an out= of that name ended in a traceback, at each resume anew."""
    monkeypatch.chdir(tmp_path)
    file = Path("run-10:30/traces.parquet")
    write_traces(file, [make_trace()])
    assert read_traces(file) == [make_trace()]
    check_tokenizer(file.parent, load_target_config("tiny-reasoner"))


def test_labelled_traces_can_be_read_as_plain_ones(make_trace, tmp_path):
    labelled = LabelledTrace(**vars(make_trace()), exit_earliest=7, exit_stable=7, hard_boundary=None)
    write_traces(tmp_path / "traces.parquet", [labelled])
    assert read_labelled(tmp_path) == [labelled]
    assert read_traces(tmp_path) == [make_trace()]


def test_a_folder_is_read_in_the_order_of_its_files(make_trace, tmp_path):
    for name in ("b", "a"):
        write_traces(tmp_path / f"{name}.parquet", [make_trace(id=name)])
    (tmp_path / "._a.parquet").write_bytes(b"what macOS leaves beside a copy")
    assert [trace.id for trace in read_traces(tmp_path)] == ["a", "b"]


def test_a_file_that_the_manifest_names_is_gone(make_trace, tmp_path):
    for name in ("a", "b"):
        write_traces(tmp_path / f"{name}.parquet", [make_trace(id=name)])
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"a.parquet": {}, "b.parquet": {}}}))
    assert len(read_traces(tmp_path)) == 2
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(TraceError, match=r"b\.parquet: is gone, though manifest\.json names it; the `collect` command"):
        read_traces(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(TraceError, match=r"manifest\.json: cannot be read"):
        read_traces(tmp_path)


@pytest.mark.parametrize(("asked", "failed", "said"), [(3, 0, 2), (2, 0, 0), (2, 1, 1), (None, 0, 0)])
def test_a_folder_that_collect_has_not_finished_is_said(make_trace, tmp_path, capsys, asked, failed, said):
    """Once, however often it is read, and rows of prompts that no server answered are not there yet; manifests of older
    versions do not say how much there should be."""
    for name in ("a", "b"):
        write_traces(tmp_path / f"{name}.parquet", [make_trace(id=name)])
    files = {f"{name}.parquet": {"counts": {"traces": 1}} for name in ("a", "b")}
    files["b.parquet"]["counts"]["failed"] = failed
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files} | ({"traces": asked} if asked else {})))
    for _ in range(2):
        assert len(read_traces(tmp_path)) == 2
    warning = f"has {said} of the {asked} traces that were asked for: `collect` has not finished"
    assert capsys.readouterr().err.count(warning) == bool(said)


def test_the_hash_follows_the_data(make_trace, tmp_path):
    for name, seed in (("a", 0), ("same", 0), ("other", 1)):
        write_traces(tmp_path / name / "traces.parquet", [make_trace(seed=seed)])
    assert data_sha256(tmp_path / "a") == data_sha256(tmp_path / "same") != data_sha256(tmp_path / "other")


def test_missing_column_is_named(make_trace, tmp_path):
    path = tmp_path / "traces.parquet"
    table = pa.Table.from_pylist([vars(make_trace())], schema=SCHEMA)
    pq.write_table(table.drop_columns(["boundary_agrees"]), path)
    with pytest.raises(TraceError, match=r"traces\.parquet: column 'boundary_agrees' \(list<.*bool.*>\) is missing"):
        read_traces(path)


def test_unlabelled_traces_say_what_to_run(make_trace, tmp_path):
    write_traces(tmp_path / "traces.parquet", [make_trace()])
    with pytest.raises(TraceError, match=r"column 'exit_earliest' .* run specexit annotate first"):
        read_labelled(tmp_path)


def test_column_of_another_type(make_trace, tmp_path):
    path = tmp_path / "traces.parquet"
    table = pa.Table.from_pylist([vars(make_trace())], schema=SCHEMA)
    pq.write_table(table.set_column(SCHEMA.get_field_index("seed"), "seed", pa.array(["zero"])), path)
    with pytest.raises(TraceError, match="column 'seed' has type string, expected int64"):
        read_traces(path)


def test_a_column_that_is_there_twice(make_trace, tmp_path):
    table = pa.Table.from_pylist([vars(make_trace())], schema=SCHEMA)
    pq.write_table(table.append_column(SCHEMA.field("id"), table["id"]), tmp_path / "traces.parquet")
    with pytest.raises(TraceError, match=r"traces\.parquet: column 'id' is there 2 times, expected once"):
        read_traces(tmp_path)


def test_other_schema_version(make_trace, tmp_path):
    path = tmp_path / "traces.parquet"
    schema = SCHEMA.with_metadata({"specexit.traces": "0"})
    pq.write_table(pa.Table.from_pylist([vars(make_trace())], schema=schema), path)
    with pytest.raises(TraceError, match="schema version is 0, expected 1 or 2"):
        read_traces(path)


def test_truncated_file(make_trace, tmp_path):
    path = tmp_path / "traces.parquet"
    write_traces(path, [make_trace()])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TraceError, match=r"traces\.parquet: cannot be read as Parquet"):
        read_traces(path)


def test_nothing_there(make_trace, tmp_path):
    with pytest.raises(TraceError, match=r"absent: no trace file there$"):
        read_traces(tmp_path / "absent")
    (tmp_path / "parts" / "test").mkdir(parents=True)
    with pytest.raises(TraceError, match=r"parts: no trace file there$"):
        read_traces(tmp_path / "parts")
    write_traces(tmp_path / "parts" / "test" / "traces-00000.parquet", [make_trace()])
    with pytest.raises(
        TraceError, match=r"parts: no trace file there, expected one of the folders .* as .*parts/test$"
    ):
        read_traces(tmp_path / "parts")


@pytest.mark.parametrize("boundaries", [[7, 4, 10], [4, 4, 10], [4, 7, 11], [0, 4, 7]])
def test_boundaries_that_cannot_be(make_trace, tmp_path, boundaries):
    write_traces(tmp_path / "traces.parquet", [make_trace(boundaries=boundaries)])
    with pytest.raises(TraceError, match=r"trace 'a' has boundaries .* expected rising offsets within its 10"):
        read_traces(tmp_path)


def test_verdicts_and_boundaries_differ_in_number(make_trace, tmp_path):
    write_traces(tmp_path / "traces.parquet", [make_trace(boundary_agrees=[True])])
    with pytest.raises(TraceError, match="trace 'a' has 1 boundary_agrees, expected 3"):
        read_traces(tmp_path)


def test_target_is_that_of_the_traces(make_trace, tmp_path):
    ours, others, mixed = (tmp_path / f"{name}.parquet" for name in ("ours", "others", "mixed"))
    write_traces(ours, [make_trace()])
    write_traces(others, [make_trace(target="other")])
    write_traces(mixed, [make_trace(), make_trace(id="b", target="other")])
    assert target_of_file(ours).name == "tiny-reasoner"
    with pytest.raises(TraceError, match=r"mixed\.parquet: traces of several targets \(other, tiny-reasoner\)"):
        target_of_file(mixed)
    with pytest.raises(
        ConfigError, match=r"target=tiny-reasoner is 'tiny-reasoner', but .*others\.parquet belongs to 'other'"
    ):
        target_of_file(others, "tiny-reasoner")


@pytest.mark.parametrize("place", ["t", "t/traces.parquet"])
def test_traces_with_boundaries_elsewhere_are_not_a_targets(make_trace, tmp_path, place):
    """A target's YAML was edited behind `collect`, and given: what was tried was labelled, packed and certified as if
    it had been tried where that has boundaries."""
    write_traces(tmp_path / "t" / "traces.parquet", [make_trace()])
    ours = load_target_config("tiny-reasoner")
    edited = ours.model_copy(update={"split_endings": ("\n",)})
    save_target(tmp_path, edited)
    given = str(tmp_path / "target.yaml")
    assert target_of_file(tmp_path / place, given) == edited  # of which the traces do not say more than the name
    save_target(tmp_path / "t", ours.model_copy(update={"path": str(tmp_path / "was there then")}))
    assert target_of_file(tmp_path / place, "tiny-reasoner") == ours
    with pytest.raises(ConfigError, match=r"t/target\.yaml: the traces have boundaries by split_endings=.*, not "):
        target_of_file(tmp_path / place, given)


def test_a_copy_beside_traces_that_is_another_targets_or_unreadable(make_trace, tmp_path):
    """A copy of another target says nothing of the traces. One that cannot be read may say that their boundaries are
    elsewhere; what was said of it, to give a target, did not help."""
    write_traces(tmp_path / "traces.parquet", [make_trace()])
    ours = load_target_config("tiny-reasoner")
    save_target(tmp_path, ours.model_copy(update={"name": "other", "split_endings": ("\n",)}))
    assert target_of_file(tmp_path / "traces.parquet", "tiny-reasoner") == ours
    save_target(tmp_path, ours)
    with (tmp_path / "target.yaml").open("a") as file:
        file.write("old_key: 1\n")
    with pytest.raises(ConfigError, match=r"target\.yaml: unknown key 'old_key'.*; mend or delete that copy"):
        target_of_file(tmp_path, "tiny-reasoner")
    (tmp_path / "target.yaml").unlink()
    assert target_of_file(tmp_path, "tiny-reasoner") == ours


def test_a_failed_write_leaves_the_old_file(make_trace, tmp_path):
    path = tmp_path / "traces.parquet"
    write_traces(path, [make_trace()])
    with pytest.raises(pa.ArrowInvalid):
        write_traces(path, [make_trace(prompt_ids=[2**40])])
    assert read_traces(path) == [make_trace()]


def test_traces_of_another_tokenizer_are_refused(make_trace, tmp_path):
    target = load_target_config("tiny-reasoner")
    path = tmp_path / "traces.parquet"
    write_traces(path, [make_trace()])
    check_tokenizer(path, target)  # an older file does not say
    write_traces(path, [make_trace()], tokenizer_sha256(target))
    check_tokenizer(path, target)
    assert read_traces(path) == [make_trace()]
    write_traces(path, [make_trace()], "0" * 64)
    with pytest.raises(TraceError, match=r"written with the tokenizer 000000000000..., expected \w+... of .*tokenizer"):
        check_tokenizer(path, target)


def test_traces_of_other_weights_are_refused(make_trace, tmp_path):
    """Under the same name and tokenizer: once `collect` had ended nobody knew what had written them."""
    target, path = load_target_config("tiny-reasoner"), tmp_path / "traces.parquet"
    gone = target.model_copy(update={"path": str(tmp_path / "gone")})
    write_traces(path, [make_trace()])
    check_weights(path, target)  # of servers, or of an older version
    write_traces(path, [make_trace()], said={WEIGHTS: target_fingerprint(target.folder)})
    write_traces(tmp_path / "servers.parquet", [make_trace(id="b")])
    check_weights(tmp_path, target)
    assert read_traces(path) == [make_trace()]
    write_traces(tmp_path / "old.parquet", [make_trace(id="c")], said={WEIGHTS: "0" * 64})
    several = r"traces\.parquet: specexit\.target_sha256 is \w{64}, but 0{64} in old\.parquet: expected traces that one"
    with pytest.raises(TraceError, match=several):
        check_weights(tmp_path, gone)
    path.unlink()
    check_weights(tmp_path, gone)
    with pytest.raises(
        TraceError, match=r"by weights with the fingerprint 0{12}\.\.\., but those of .* have \w{12}\.\.\.:"
    ):
        check_weights(tmp_path, target)


def test_files_of_version_one_are_read(make_trace, tmp_path):
    """Every boundary of such a file was tried, and a trial without an answer counts as another one, as it did."""
    columns = {name: [value] for name, value in vars(make_trace()).items() if name not in ADDED}
    old = pa.schema([field for field in SCHEMA if field.name not in ADDED], metadata={"specexit.traces": "1"})
    pq.write_table(pa.table(columns, schema=old), tmp_path / "traces.parquet")
    assert read_traces(tmp_path) == [make_trace()]
    (trace,) = read_traces(tmp_path)
    assert (trace.boundary_state, trace.boundary_trial_tokens) == (["differs", "agrees", "agrees"], [0, 0, 0])
    assert (trace.sample, trace.messages, trace.task, trace.answer_kind, trace.group) == (0, None, None, "math", None)


def test_files_of_version_two_are_read(make_trace, tmp_path):
    old = pa.schema([field for field in SCHEMA if field.name != "choices"], metadata={"specexit.traces": "2"})
    columns = {name: [value] for name, value in vars(make_trace(sample=1)).items() if name != "choices"}
    pq.write_table(pa.table(columns, schema=old), tmp_path / "traces.parquet")
    (trace,) = read_traces(tmp_path)
    assert (trace.sample, trace.choices) == (1, None)
    write_traces(tmp_path / "traces.parquet", [make_trace(choices=["a tree", "a metal"])])
    assert read_traces(tmp_path) == [make_trace(choices=["a tree", "a metal"])]


def test_a_new_column_is_missing(make_trace, tmp_path):
    table = pa.Table.from_pylist([vars(make_trace())], schema=SCHEMA)
    pq.write_table(table.drop_columns(["sample"]), tmp_path / "traces.parquet")
    with pytest.raises(TraceError, match=r"column 'sample' \(int32\) is missing"):
        read_traces(tmp_path)


def test_a_state_that_does_not_exist(make_trace, tmp_path):
    write_traces(tmp_path / "traces.parquet", [make_trace(boundary_state=["agrees", "maybe", "agrees"])])
    with pytest.raises(TraceError, match="trace 'a' has boundary_state 'maybe', expected one of agrees, differs, und"):
        read_traces(tmp_path)


def free_trial(**changes):
    """``trial`` with one answer written in full, any field of it replaced."""
    return json.dumps({"free": [{"boundary": 2, "answer": None, "same": None, "tokens": 9} | changes]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "trace number 1 has no id, expected a value of type string"),
        ({"target": None}, "trace 'b' has no target, expected"),
        ({"think_ids": None}, "trace 'b' has no think_ids, expected"),
        ({"think_ids": [20] * 9 + [None]}, "trace 'b' has null at 9 of think_ids, expected int32"),
        ({"boundary_agrees": [False, None, True]}, "trace 'b' has null at 1 of boundary_agrees, expected bool"),
        ({"boundary_state": ["differs", None, "agrees"]}, "trace 'b' has null at 1 of boundary_state, expected string"),
        ({"boundary_confidence": [0.5, 0.5, None]}, "trace 'b' has null at 2 of boundary_confidence, expected float"),
        ({"boundary_confidence": [float("nan"), 0.5, 0.5]}, "has nan at 0 of boundary_confidence, expected a probab"),
        (
            {"boundary_confidence": [0.5, 2.5, 0.5]},
            "has 2.5 at 1 of boundary_confidence, expected a probability from 0",
        ),
        ({"boundary_confidence": [0.5, 0.5, -0.1]}, "has -0.1 at 2 of boundary_confidence, expected"),
        ({"boundary_state": ["differs"] * 3}, "has True at 1 of boundary_agrees, expected False .* is 'differs'"),
        ({"boundary_agrees": [False, False, True]}, "has False at 1 of boundary_agrees, expected True .* is 'agrees'"),
        ({"boundary_state": ["differs", "undecided", "agrees"]}, "has True at 1 of boundary_agrees, .* 'undecided'"),
        ({"trial": "free"}, "trace 'b' has trial 'free', expected a JSON object"),
        ({"trial": "[1]"}, r"trace 'b' has trial '\[1\]', expected a JSON object"),
        ({"prompt_ids": [1, -1]}, "trace 'b' has -1 at 1 of prompt_ids, expected a token of the target, from 0 to 639"),
        ({"answer_ids": [640]}, "trace 'b' has 640 at 0 of answer_ids, expected a token of the target, from 0 to 639"),
        ({"exit_earliest": 0}, "trace 'b' has exit_earliest 0, expected one of its boundaries or 10, its thinking"),
        ({"exit_earliest": -5}, "has exit_earliest -5, expected one of its boundaries"),
        ({"exit_earliest": 8}, "has exit_earliest 8, expected one of its boundaries"),
        (
            {"exit_stable": 100000},
            "has exit_stable 100000, expected one of its .* run specexit annotate again",
        ),
        ({"exit_earliest": 4}, "has exit_earliest 4, expected 7 by its boundary_agrees: run specexit annotate again"),
        ({"exit_earliest": 10}, "has exit_earliest 10, expected 7 by its boundary_agrees"),
        ({"exit_stable": 10}, "has exit_stable 10, expected 7 by its boundary_agrees"),
        ({"exit_stable": 4, "exit_earliest": 7}, "has exit_stable 4, expected 7 by its boundary_agrees"),
        ({"prompt_ids": []}, "trace 'b' has no prompt_ids, expected at least one token"),
        ({"sample": -1}, "trace 'b' has sample -1, expected 0 or more"),
        ({"answer_kind": "maths"}, "trace 'b' has answer_kind 'maths', expected math, choice, text, code or function:"),
        ({"sampling": "not json"}, "trace 'b' has sampling 'not json', expected a JSON object"),
        ({"sampling": "null"}, "trace 'b' has sampling 'null', expected a JSON object"),
        ({"trial": '{"free": 5}'}, "trace 'b' has free 5 in its trial, expected a list"),
        (
            {"trial": '{"free": [{"x": 1}]}'},
            r"has \{'x': 1\} in free of its trial, expected boundary \(the index of one",
        ),
        ({"trial": free_trial(boundary=3)}, "in free of its trial, expected boundary"),
        ({"trial": free_trial(answer=7)}, "in free of its trial, expected boundary"),
        ({"trial": free_trial(same="yes")}, "in free of its trial, expected boundary"),
        ({"trial": free_trial(tokens=None)}, "in free of its trial, expected boundary"),
        ({"trial": "[" * 20000}, r"trace 'b' has trial '\[\[.*, expected a JSON object"),
        ({"boundary_trial_tokens": [9, -5, 9]}, "has -5 at 1 of boundary_trial_tokens, expected 0 or more"),
        ({"hard_boundary": 3}, "has hard_boundary 3, expected the index of one of its 3 boundaries, or none"),
    ],
)
def test_rows_that_cannot_be(make_trace, tmp_path, changes, message):
    good = vars(make_trace()) | {"exit_earliest": 7, "exit_stable": 7, "hard_boundary": None}
    schema = pa.schema([field.with_nullable(True) for field in LABELLED_SCHEMA], metadata=SCHEMA.metadata)
    table = pa.Table.from_pylist([good, good | {"id": "b"} | changes, good], schema=schema)
    pq.write_table(table, tmp_path / "traces.parquet")
    with pytest.raises(TraceError, match=rf"traces\.parquet: .*{message}"):
        list(read_batches(tmp_path, LabelledTrace, vocab_size=640))


def test_rows_at_the_edges_can_be(make_trace, tmp_path):
    """Exit points at a boundary and at the natural end, no boundary at all, a log-probability rounded above 0, an
    answer kind of one's own, and an answer in full at the last boundary."""
    nothing = {f"boundar{end}": [] for end in ("ies", "y_answers", "y_agrees", "y_confidence")}
    ends = {"exit_stable": 10, "hard_boundary": None}
    edges = {"boundary_confidence": [0.0, 1.0, 1.0000001], "boundary_agrees": [True, False, False]}
    edges |= {"answer_kind": "function:mine:same", "trial": free_trial()}
    traces = [
        LabelledTrace(**vars(make_trace(**edges)), exit_earliest=4, **ends),
        LabelledTrace(**vars(make_trace(think_ids=[0] * 9 + [639], **nothing)), exit_earliest=10, **ends),
    ]
    write_traces(tmp_path / "traces.parquet", traces)
    assert sum(map(len, read_batches(tmp_path, LabelledTrace, vocab_size=640))) == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"boundary_state": ["differs", "untried", "agrees"]}, True),
        ({"boundary_state": ["undecided", "agrees", "agrees"]}, True),
        ({"finish_reason": "length"}, False),
        ({"answer": None}, False),
        ({f"boundar{end}": [] for end in ("ies", "y_answers", "y_agrees", "y_confidence")}, False),
    ],
)
def test_who_can_judge(make_trace, changes, expected):
    assert can_judge(make_trace(**changes)) is expected


def test_prompts_are_told_apart_by_their_tokens(make_trace):
    same = make_trace(id="other", sample=3, think_ids=[1]).prompt_hash
    assert make_trace().prompt_hash == same != make_trace(prompt_ids=[1, 2, 4]).prompt_hash


STATES = st.lists(st.sampled_from(["agrees", "differs", "undecided", "untried"]), min_size=1, max_size=12)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(STATES)
def test_nothing_agrees_that_no_trial_says(states):
    """An agreement is a trial's own, or lies between trials of which none says anything else."""
    tried = [i for i, state in enumerate(states) if state != "untried"]
    for i, agrees in enumerate(infer_agrees(states)):
        left, right = [k for k in tried if k <= i][-1:], [k for k in tried if k >= i][:1]
        assert agrees == (bool(left) and all(states[k] == "agrees" for k in left + right))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(STATES)
def test_no_boundary_has_a_verdict_that_an_undecided_trial_could_turn(states):
    """Whatever the trials that were cut off would have said, a boundary with a verdict keeps it."""
    decided = infer_decided(states)
    for verdict in ("agrees", "differs"):
        whole = infer_agrees([verdict if state == "undecided" else state for state in states])
        assert all(a == b for a, b, known in zip(infer_agrees(states), whole, decided, strict=True) if known)
    tried = [i for i, state in enumerate(states) if state != "untried"]
    for i, known in enumerate(decided):
        left, right = [k for k in tried if k <= i][-1:], [k for k in tried if k >= i][:1]
        assert known == all(states[k] != "undecided" for k in left + right)


def test_untried_boundaries_take_the_answer_before_them():
    assert fill_untried([None, "a", None, "b", None]) == ["a", "a", "a", "b", "b"]
    assert fill_untried([None, None]) == [None, None]


def test_free_trials_are_read_from_the_row(make_trace):
    free = FreeTrial(boundary=1, answer="7", same=True, tokens=12)
    assert free_trials(make_trace(trial=json.dumps({"text": "x", "free": [vars(free)]}))) == [free]
    assert free_trials(make_trace()) == []


def test_a_folder_of_many_files_is_looked_through_once(tmp_path, monkeypatch):
    """Each file was looked for in the list of all: seconds at some thousand, each time that the folder was read."""
    for number in range(200):
        (tmp_path / f"traces-{number:05d}.parquet").touch()
    compared, same = [], PurePath.__eq__
    monkeypatch.setattr(PurePath, "__eq__", lambda one, other: compared.append(one) or same(one, other))
    assert len(trace_files(tmp_path)) == 200
    assert len(compared) < 1000


def test_files_are_held_against_their_manifest_with_one_look_at_the_folder(make_trace, tmp_path, monkeypatch):
    """For each file all names were gone through: minutes at 10,000."""
    names = [f"traces-{number:05d}.parquet" for number in range(5)]
    for name in names:
        write_traces(tmp_path / name, [make_trace(id=name)])
    files = {name: {"sha256": data_sha256(tmp_path / name)} for name in names}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    looks, glob = [], Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: looks.append(pattern) or glob(path, pattern))
    check_collected(tmp_path)
    assert len(looks) == 1
    (tmp_path / names[3]).unlink()
    with pytest.raises(TraceError, match=r"traces-00003\.parquet: is gone, though manifest\.json names it"):
        check_collected(tmp_path)
