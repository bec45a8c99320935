"""Packing: no token is lost or made up, labels travel with their tokens, and damaged data is refused."""

import json
import resource
from typing import get_args

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from specexit.config import ConfigError, load
from specexit.data import packing
from specexit.data.packed import PackError, check_target, open_rows, read_example, read_meta, write_example
from specexit.data.packing import pack
from specexit.data.rows import infer_agrees
from specexit.data.sequences import (
    COLUMNS,
    TraceArrays,
    TrainingSequence,
    arrays_of,
    assemble,
    best_fit,
    make_sequence,
)
from specexit.data.stream import read_batches
from specexit.data.traces import WEIGHTS, LabelledTrace, TraceError, data_sha256, write_traces
from specexit.data.written_by import doubt_weights
from specexit.drafts.fingerprints import target_fingerprint
from specexit.errors import lasts
from specexit.method.labels import ExitKind, exit_point, token_labels
from specexit.method.signals import SIGNALS, column
from specexit.schemas.pack import PackConfig
from specexit.schemas.target import load_target_config

END = 9


def labelled(trace) -> LabelledTrace:
    n = trace.n_think
    exits = {
        f"exit_{kind}": exit_point(trace.boundaries, trace.boundary_agrees, n, kind) for kind in get_args(ExitKind)
    }
    return LabelledTrace(**vars(trace), **exits, hard_boundary=None)


@st.composite
def sequence(draw: st.DrawFn) -> TrainingSequence:
    """A sequence in which every value is telling, as its labels are made from its tokens."""
    tokens = np.array(draw(st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=30)), np.int32)
    labels = (tokens[:, None] % 1000 + np.arange(len(SIGNALS))).astype(np.float32)
    return TrainingSequence(tokens, tokens % 3 == 0, labels, labels % 2 == 0)


@given(st.lists(sequence(), min_size=1, max_size=20), st.integers(30, 60))
def test_packing_neither_loses_nor_duplicates(sequences, length):
    bins = best_fit([len(s) for s in sequences], length)
    assert sorted(item for items in bins for item in items) == list(range(len(sequences)))
    for items in bins:
        example = assemble([sequences[i] for i in items], length)
        used = sum(len(sequences[i]) for i in items)
        segments = example["segment_ids"]
        # Segments stand behind one another, 1, 2, ..., and padding only behind the last.
        assert segments[:used].tolist() == [n for n, i in enumerate(items, 1) for _ in range(len(sequences[i]))]
        assert all(not values[used:].any() for values in example.values())
        for number, item in enumerate(items, 1):
            at = segments == number
            assert example["positions"][at].tolist() == list(range(len(sequences[item])))
            for name in ("tokens", "loss_mask", "signal_labels", "signal_mask"):
                np.testing.assert_array_equal(example[name][at], getattr(sequences[item], name))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_no_two_rows_are_half_empty(lengths):
    # The last sequence of a bin that is at most half full would have gone into another such bin.
    loads = [sum(lengths[i] for i in items) for items in best_fit(lengths, 50)]
    assert max(loads) <= 50
    assert sum(load <= 25 for load in loads) <= 1


def test_too_many_tokens_for_a_row(make_trace):
    one = make_sequence(labelled(make_trace()), END)
    with pytest.raises(ValueError, match="32 tokens do not fit a row of 31"):
        assemble([one, one], 31)


def test_layout_of_a_whole_trace(make_trace):
    trace = labelled(make_trace())
    laid_out = make_sequence(trace, END)
    assert laid_out.tokens.tolist() == [1, 2, 3, *range(20, 30), END, 5, 6]
    assert laid_out.loss_mask.tolist() == [False] * 3 + [True] * 13
    labels, mask = token_labels(trace.boundaries, trace.boundary_agrees, trace.boundary_confidence, 10, exit_at=7)
    np.testing.assert_array_equal(laid_out.signal_labels[3:13], labels)
    np.testing.assert_array_equal(laid_out.signal_mask[3:13], mask)
    # Neither the prompt nor the marker nor the answer is thinking, so they have no signals.
    assert not laid_out.signal_mask[[0, 1, 2, 13, 14, 15]].any()


def test_layout_of_a_truncated_trace(make_trace):
    laid_out = make_sequence(labelled(make_trace()), END, truncate=True)
    assert laid_out.tokens.tolist() == [1, 2, 3, *range(20, 27), END, 5, 6]
    assert laid_out.signal_labels[9, column("remaining")] == 0
    assert laid_out.signal_labels[3, column("remaining")] == 6
    assert not laid_out.signal_mask[10:].any()


def test_rows_are_filled_with_what_is_left_in_front_of_the_exit_points(make_trace, tmp_path):
    """Two to a row; as long as they were, they would fill twice as many, and be called cut."""
    traces = [labelled(make_trace(id=str(i), think_ids=[20 + i] * 10)) for i in range(4)]
    write_traces(tmp_path / "labelled" / "traces.parquet", traces)
    meta = pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=26, truncate=True))
    assert (meta.n, meta.traces, meta.fill, meta.tokens) == (2, 4, 1, 4 * 13)
    assert (meta.cut, meta.tokens_cut) == (0, 0)
    end = load_target_config("tiny-reasoner").think_tokens().end
    found = {example["tokens"][at].item(): (example, at) for example in read_all(tmp_path / "packed") for at in (3, 16)}
    for trace in traces:
        (example, at), alone = found[trace.think_ids[0]], make_sequence(trace, end, truncate=True)
        for name in ("tokens", "loss_mask", "signal_labels", "signal_mask"):
            np.testing.assert_array_equal(example[name][at - 3 : at + 10], getattr(alone, name))


def test_stable_exit_point_counts_further(make_trace):
    laid_out = make_sequence(labelled(make_trace(boundary_agrees=[False, True, False])), END, "stable")
    assert laid_out.signal_labels[3, column("remaining")] == 9


@given(sequence())
def test_a_record_survives_and_a_damaged_one_does_not(one):
    record = write_example(assemble([one], 40))
    for name, values in read_example(record).items():
        np.testing.assert_array_equal(values, assemble([one], 40)[name])
        assert values.dtype == assemble([one], 40)[name].dtype
    with pytest.raises(PackError, match=f"of {len(record) // 2} bytes cannot be read"):
        read_example(record[: len(record) // 2])


@pytest.fixture
def packed(make_trace, tmp_path):
    """Twelve traces in rows of 40 tokens: two to a row, in two shards."""
    traces = [labelled(make_trace(id=str(i), think_ids=[30 + i] * 10)) for i in range(12)]
    write_traces(tmp_path / "labelled" / "traces.parquet", traces)
    pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40, shards=2))
    return tmp_path / "packed"


def test_a_trace_that_is_there_twice_is_not_trained_on_twice(make_trace, tmp_path):
    traces = [labelled(make_trace(id=name)) for name in "aba"]
    write_traces(tmp_path / "labelled" / "traces.parquet", traces)
    with pytest.raises(TraceError, match=r"labelled: trace 'a', sample 0, is there twice, expected every sample"):
        pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40))
    assert not (tmp_path / "packed").exists()


def test_traces_of_another_tokenizer_are_not_packed(make_trace, tmp_path):
    write_traces(tmp_path / "labelled" / "traces.parquet", [labelled(make_trace())], "0" * 64)
    with pytest.raises(TraceError, match="written with the tokenizer 000000000000"):
        pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40))
    assert not (tmp_path / "packed").exists()


def test_traces_of_other_weights_are_not_packed_and_trained_on_with_a_warning(make_trace, tmp_path, capsys):
    """Labels of one model were learnt from the states of another; a quantised copy may well write for the original."""
    target, file = load_target_config("tiny-reasoner"), tmp_path / "labelled" / "traces.parquet"
    config = PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40)
    write_traces(file, [labelled(make_trace())], said={WEIGHTS: "0" * 64})
    with pytest.raises(TraceError, match=r"written by weights with the fingerprint 0{12}\.\.\., but those of"):
        pack(config)
    write_traces(file, [labelled(make_trace())], said={WEIGHTS: target_fingerprint(target.folder)})
    meta = pack(config)
    assert read_meta(config.out) == meta
    doubt_weights(config.out / "meta.json", meta.target_sha256, target)
    assert "warning" not in capsys.readouterr().err
    doubt_weights(config.out / "meta.json", "0" * 64, target)
    said = capsys.readouterr().err
    assert f"warning: {config.out / 'meta.json'}: written by weights with the fingerprint 000000000000..., but" in said


def test_a_seed_that_gives_no_order_is_refused_at_once():
    """It was a traceback out of a worker, behind the reading of all traces."""
    with pytest.raises(ConfigError, match=r"seed is -1: .*greater than or equal to 0"):
        load(PackConfig, None, ["traces=labelled", "out=packed", "seed=-1"])


def test_a_shard_that_was_damaged_in_place_is_named_with_the_row(packed):
    meta = read_meta(packed)
    rows = open_rows(packed, meta)
    assert [len(rows), set(map(type, rows))] == [meta.n, {bytes}]
    damage(packed / max(meta.shards))
    with pytest.raises(PackError, match=r"examples-00001-of-00002\.array_record: row 0 cannot be read, .*: pack again"):
        [rows[i] for i in range(meta.n)]


@pytest.fixture
def limit_files():
    """Has this process open 256 files at most, as a login does 1,024, unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_shards_may_be_as_many_as_the_files_that_may_be_open(make_trace, tmp_path, monkeypatch, limit_files):
    """Each is an open file; where there were too many, the data was blamed."""
    monkeypatch.setattr(packing, "BLOCK_TOKENS", 1)  # a row to each shard
    traces = [labelled(make_trace(id=str(i), think_ids=[30 + i // 20] * 9 + [30 + i % 20])) for i in range(300)]
    write_traces(tmp_path / "labelled" / "traces.parquet", traces)
    config = PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40, shards=300, workers=1)
    limit_files()
    meta = pack(config)
    limit_files()
    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", lambda *_: None)  # as where a process may not ask for more
        rows = open_rows(config.out, meta)
        said = r"packed: 300 shards are as many open files, .* 256 open in all: expected a higher limit \(ulimit -n\)"
        with pytest.raises(PackError, match=said) as refused:
            [rows[i] for i in range(meta.n)]
        assert lasts(refused.value)  # a restart has the same limit
        with pytest.raises(PackError, match=r"shards=300: .* 256 files open in all: expected at most 192 shards, or a"):
            pack(config.model_copy(update={"out": tmp_path / "again"}))
        assert not (tmp_path / "again").exists()
    rows = open_rows(config.out, meta)
    assert len({rows[i] for i in range(meta.n)}) == 300


def damage(shard) -> None:
    """Another byte in the middle of its first record; size and index stay as they are."""
    content = bytearray(shard.read_bytes())
    content[100] ^= 255
    shard.write_bytes(content)


def read_all(folder) -> list[dict[str, np.ndarray]]:
    from array_record.python.array_record_module import ArrayRecordReader

    examples = []
    for name in read_meta(folder).shards:
        reader = ArrayRecordReader(str(folder / name))
        examples += [read_example(record) for record in reader.read_all()]
        reader.close()
    return examples


def test_a_packed_folder_holds_every_trace_once(packed):
    examples, meta = read_all(packed), read_meta(packed)
    assert (meta.n, meta.traces, meta.dropped, len(examples)) == (6, 12, 0, 6)
    assert meta.fill == pytest.approx(32 / 40)
    found = sorted(t for e in examples for t in e["tokens"][e["loss_mask"] & (e["signal_mask"][:, 1])].tolist())
    target = load_target_config("tiny-reasoner")
    assert found == sorted([30 + i for i in range(12) for _ in range(10)])
    assert meta.token_counts[target.think_tokens().end] == 12
    assert sum(meta.token_counts) == 12 * 13
    assert len(meta.token_counts) == target.hf_config()["vocab_size"]
    assert meta.data_sha256 == data_sha256(packed.parent / "labelled")
    check_target(meta, packed, target)


def test_the_same_seed_gives_the_same_bytes(packed):
    again = PackConfig(traces=packed.parent / "labelled", out=packed.parent / "again", length=40, shards=2)
    pack(again)
    for name in read_meta(packed).shards:
        assert (packed / name).read_bytes() == (again.out / name).read_bytes()
    other = again.model_copy(update={"out": packed.parent / "other", "seed": 1})
    pack(other)
    rows, shuffled = read_all(packed), read_all(other.out)
    assert [r["tokens"].tolist() for r in rows] != [r["tokens"].tolist() for r in shuffled]
    assert sorted(r["tokens"].tolist() for r in rows) == sorted(r["tokens"].tolist() for r in shuffled)


def test_rows_of_another_length_are_other_data(packed, tmp_path):
    """The target's YAML chose the length and said another one by the next time: a run went on, with other rows."""
    target, found = load_target_config("tiny-reasoner").model_dump(mode="json"), []
    asked = {"traces": packed.parent / "labelled", "target": str(tmp_path / "t.yaml")}
    for length in (512, 1024):
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(target | {"max_model_len": length}))
        found.append(pack(PackConfig(**asked, out=tmp_path / f"chosen-{length}")))
    assert [meta.length for meta in found] == [512, 1024]
    assert found[0].identity != found[1].identity
    said = pack(PackConfig(**asked, out=tmp_path / "said", length=512))
    assert said.identity == found[0].identity  # whoever says it: the rows are the same


def test_a_row_holds_the_beginning_of_a_long_trace(make_trace, tmp_path):
    long = labelled(make_trace(id="long", answer_ids=[5] * 30))
    write_traces(tmp_path / "labelled" / "traces.parquet", [labelled(make_trace()), long])
    meta = pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40))
    assert (meta.traces, meta.dropped, meta.cut) == (2, 0, 1)
    assert (meta.tokens, meta.tokens_cut, meta.tokens_dropped) == (16 + 44, 4, 0)
    row = next(example for example in read_all(tmp_path / "packed") if example["segment_ids"].sum() == 40)
    whole = make_sequence(long, END)
    for name in ("tokens", "loss_mask", "signal_labels", "signal_mask"):
        if name != "tokens":  # the target has another end marker than END
            np.testing.assert_array_equal(row[name], getattr(whole, name)[:40])
    assert sum(meta.token_counts) == row["loss_mask"].sum() + 13


def test_labels_of_a_cut_trace_are_those_of_the_whole(make_trace):
    trace = labelled(make_trace())
    whole, cut = make_sequence(trace, END), make_sequence(trace, END, length=6)
    np.testing.assert_array_equal(cut.signal_labels, whole.signal_labels[:6])
    assert cut.signal_labels[3, column("remaining")] == 6  # it counts down to an exit that is not in the row
    assert len(make_sequence(trace, END, length=100)) == len(whole)


def test_a_prompt_that_fills_a_row_is_counted(make_trace, tmp_path, capsys):
    full = labelled(make_trace(id="full", prompt_ids=[1] * 12))
    write_traces(tmp_path / "labelled" / "traces.parquet", [labelled(make_trace()), full])
    meta = pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=12))
    assert (meta.traces, meta.dropped, meta.tokens_dropped, meta.tokens_cut) == (1, 1, 25, 4)
    said = capsys.readouterr().err
    for words in (
        "1 trace in 1 example of 12",
        "of 1 trace longer than one (a greater length keeps them), ",
        "of 1 trace whose prompt alone fills a row.",
    ):
        assert words in said
    with pytest.raises(PackError, match="no trace's prompt fits an example of 3 tokens, expected a greater length"):
        pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "none", length=3))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("how", ["stable", "bisect"])
def test_traces_tried_for_the_stable_exit_point_have_no_earliest_one(make_trace, tmp_path, how):
    trial = json.dumps({"boundaries": how})
    write_traces(tmp_path / "labelled" / "a.parquet", [labelled(make_trace())])
    write_traces(tmp_path / "labelled" / "b.parquet", [labelled(make_trace(id="b", trial=trial))])
    asked = {"traces": tmp_path / "labelled", "out": tmp_path / "packed", "length": 40}
    with pytest.raises(
        PackError, match=f"trace 'b' was collected with boundaries={how}, .* exit_point is earliest, expected stable"
    ):
        pack(PackConfig(**asked))
    assert not (tmp_path / "packed").exists()
    assert pack(PackConfig(**asked, exit_point="stable")).traces == 2


def test_the_first_traces_alone_are_packed_and_remembered(make_trace, tmp_path):
    some = [labelled(make_trace(id=str(i), prompt_ids=[i])) for i in range(5)]
    write_traces(tmp_path / "labelled" / "a.parquet", some[:2])
    write_traces(tmp_path / "labelled" / "b.parquet", some[2:])
    asked = {"traces": tmp_path / "labelled", "out": tmp_path / "packed", "length": 40}
    assert pack(PackConfig(**asked, n=3)).traces == 3
    assert len(np.load(tmp_path / "packed" / "prompts.npy")) == 3  # the others may be held out
    assert pack(PackConfig(**asked | {"out": tmp_path / "all"}, n=9)).traces == 5


def test_an_undecided_trial_gives_no_label(make_trace):
    trace = labelled(make_trace(boundary_state=["undecided", "agrees", "agrees"]))
    mask = make_sequence(trace, END).signal_mask[3:13]
    assert mask[:, column("validity")].tolist() == [False] * 4 + [True] * 6
    assert mask[:, column("confidence")].tolist() == [False] * 4 + [True] * 6
    assert mask[:, [column("progress"), column("remaining")]].all()


def test_a_boundary_in_front_of_the_first_trial_gives_no_label(make_trace, tmp_path):
    """``boundaries=stable`` tried nothing there: that would be learnt as an exit that is wrong."""
    states = ["untried", "differs", "agrees"]
    trace = labelled(make_trace(boundary_state=states, boundary_agrees=infer_agrees(states)))
    write_traces(tmp_path / "traces.parquet", [trace])
    [read] = arrays_of(next(read_batches(tmp_path / "traces.parquet", LabelledTrace, COLUMNS)))
    for source in (trace, read):
        mask = make_sequence(source, END, "stable").signal_mask[3:13]
        assert mask[:, column("validity")].tolist() == [False] * 4 + [True] * 6
        assert mask[:, column("confidence")].tolist() == [False] * 4 + [True] * 6
        assert mask[:, [column("progress"), column("remaining")]].all()


def test_neither_does_an_untried_boundary_beside_it(make_trace):
    """Trials at 0, 2 and 4 of five boundaries, the middle one cut off: nothing has said that 1 and 3 differ."""
    states = ["agrees", "untried", "undecided", "untried", "agrees"]
    fields = {"boundary_answers": ["7"] * 5, "boundary_agrees": infer_agrees(states), "boundary_confidence": [0.5] * 5}
    trace = labelled(make_trace(boundaries=[2, 4, 6, 8, 10], boundary_state=states, **fields))
    mask = make_sequence(trace, END).signal_mask[3:13]
    for signal in ("validity", "confidence"):
        assert mask[:, column(signal)].tolist() == [True] * 2 + [False] * 6 + [True] * 2
    assert mask[:, [column("progress"), column("remaining")]].all()


def test_arrays_of_a_batch_are_those_of_its_traces(make_trace, tmp_path):
    states = ["untried", "undecided", "agrees"]
    second = make_trace(id="b", answer_ids=[], boundary_state=states, boundary_agrees=infer_agrees(states))
    traces = [labelled(make_trace()), labelled(second)]
    write_traces(tmp_path / "traces.parquet", traces)
    [batch] = read_batches(tmp_path / "traces.parquet", LabelledTrace, COLUMNS)
    for trace, found in zip(traces, arrays_of(batch.slice(0, 2)), strict=True):
        for name, value in vars(TraceArrays.of(trace)).items():
            np.testing.assert_array_equal(getattr(found, name), value)
    [second] = arrays_of(batch.slice(1))  # of a part of a batch as well
    assert second.decided.tolist() == [False, False, True]
    assert second.answer.tolist() == []


def test_blocks_in_processes_give_the_same_bytes(make_trace, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "BLOCK_TOKENS", 200)
    traces = [labelled(make_trace(id=str(i), think_ids=[30 + i] * 10)) for i in range(150)]
    write_traces(tmp_path / "labelled" / "traces.parquet", traces)
    for workers in (1, 2):
        out = tmp_path / f"packed{workers}"
        pack(PackConfig(traces=tmp_path / "labelled", out=out, length=40, shards=2, workers=workers))
    metas = [read_meta(tmp_path / f"packed{workers}") for workers in (1, 2)]
    assert metas[0] == metas[1]
    assert metas[0].traces == 150
    for name in metas[0].shards:
        assert (tmp_path / "packed1" / name).read_bytes() == (tmp_path / "packed2" / name).read_bytes()


def test_rows_are_dealt_to_the_shards_in_turn_over_all_blocks(make_trace, tmp_path, monkeypatch):
    """Of one row to a block all would else lie in the first shard."""
    monkeypatch.setattr(packing, "BLOCK_TOKENS", 1)
    traces = [labelled(make_trace(id=str(i), think_ids=[30 + i] * 10)) for i in range(7)]
    write_traces(tmp_path / "labelled" / "traces.parquet", traces)
    pack(PackConfig(traces=tmp_path / "labelled", out=tmp_path / "packed", length=40, shards=3, workers=1))
    meta = read_meta(tmp_path / "packed")
    assert meta.n == 7
    alone = [meta.model_copy(update={"shards": {name: size}}) for name, size in sorted(meta.shards.items())]
    assert [len(open_rows(tmp_path / "packed", one)) for one in alone] == [3, 2, 2]


def test_the_output_folder_must_be_empty(packed):
    before = {path.name: path.read_bytes() for path in packed.iterdir()}
    with pytest.raises(FileExistsError, match="output folder is not empty"):
        pack(PackConfig(traces=packed.parent / "labelled", out=packed))
    assert before == {path.name: path.read_bytes() for path in packed.iterdir()}


def test_truncated_and_missing_shards(packed):
    first = next(iter(read_meta(packed).shards))
    (packed / first).write_bytes((packed / first).read_bytes()[:1000])
    with pytest.raises(PackError, match=rf"{first}: has 1000 bytes, expected \d+"):
        read_meta(packed)
    (packed / first).unlink()
    with pytest.raises(PackError, match=f"{first}: is missing"):
        read_meta(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 0}, "format_version is 0, expected 1"),
        ({"signals": ["confidence"]}, "signals are confidence, expected confidence, progress, remaining, validity"),
        ({"length": "long"}, "length is 'long'"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_other_metadata_is_refused(packed, change, message):
    path = packed / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PackError, match=rf"meta\.json: {message}"):
        read_meta(packed)


def test_a_folder_without_metadata(tmp_path):
    with pytest.raises(PackError, match=r"meta\.json: cannot be read, expected the output of specexit pack"):
        read_meta(tmp_path)


def test_packed_data_of_another_target(packed):
    meta, target = read_meta(packed), load_target_config("tiny-reasoner")
    with pytest.raises(PackError, match="target is 'tiny-reasoner', expected 'other'"):
        check_target(meta, packed, target.model_copy(update={"name": "other"}))
    with pytest.raises(PackError, match=r"tokenizer_sha256 is 0000.*expected"):
        check_target(meta.model_copy(update={"tokenizer_sha256": "0" * 64}), packed, target)
