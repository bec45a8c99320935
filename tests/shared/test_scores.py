"""Score files: every sample of a prompt has a key of its own, and a file that cannot be used says why."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.data import parts
from specexit.data.scores import (
    ScoreError,
    Scores,
    ScoreWriter,
    key_of,
    open_scores,
    read_scores,
    sample_key,
    write_scores,
)

ENDS = st.lists(st.sampled_from(["#", "#0", "#1", "#01", "1"]), max_size=3).map("".join)


@given(st.lists(st.tuples(ENDS, st.integers(0, 2)), unique=True, min_size=20, max_size=60))
def test_no_two_samples_have_one_key(samples):
    keys = [sample_key(f"q{end}", sample) for end, sample in samples]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("id", "sample", "key"),
    [("q", 0, "q"), ("q", 3, "q#3"), ("math#12", 0, "math#12#0"), ("math#12", 1, "math#12#1"), ("c#", 0, "c#")],
)
def test_the_key_is_the_id_where_it_can_be(id, sample, key):
    assert sample_key(id, sample) == key


@pytest.fixture
def traces(make_trace):
    """A prompt whose id is what a second sample of another would be kept under."""
    return [make_trace(id="q"), make_trace(id="q", sample=1), make_trace(id="q#1")]


def scores_of(keys):
    """Signals that say whose they are."""
    return Scores("draft", "0" * 64, {key: np.full((10, 4), i, np.float32) for i, key in enumerate(keys)})


def read_both(path, traces):
    """First value of each trace, by either reader, which have to agree."""
    whole = [values[0, 0] for values in read_scores(path).of(traces)]
    stored = {i: values for i, values in open_scores(path).of(traces)}
    assert whole == [stored[i][0, 0] for i in range(len(traces))]
    return whole


def test_every_sample_gets_its_own_scores(traces, tmp_path):
    write_scores(tmp_path / "scores.parquet", scores_of(map(key_of, traces)))
    assert read_both(tmp_path, traces) == [0, 1, 2]
    assert read_both(tmp_path, traces[::-1]) == [2, 1, 0]


def test_a_colon_in_a_relative_path_makes_no_address_of_it(traces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("run-10:30")
    folder.mkdir()
    write_scores(folder / "scores.parquet", scores_of(map(key_of, traces)))
    assert read_both(folder, traces) == [0, 1, 2]


def rewritten(path, **metadata):
    """The file with other metadata; None leaves a key out."""
    table = pq.read_table(path)
    changed = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    changed |= {f"specexit.{name}": value for name, value in metadata.items()}
    kept = {key: value for key, value in changed.items() if value is not None}
    pq.write_table(table.replace_schema_metadata(kept), path)
    return path


def test_files_of_version_two_are_read(traces, tmp_path):
    """Their keys tell all traces apart but for the ones that no key can: these are refused."""
    write_scores(tmp_path / "scores.parquet", scores_of(["q", "q#1"]))
    path = rewritten(tmp_path / "scores.parquet", scores="2")
    first, second, other = traces
    assert read_both(path, [first, second]) == read_both(path, [first, other]) == [0, 1]
    for reader in (read_scores, open_scores):
        with pytest.raises(ScoreError, match=r"scores\.parquet: 2 traces have their scores under 'q#1', expected one"):
            reader(path).of(traces)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"scores": "1"}, "score schema version is 1, expected 2 or 3"),
        ({"scores": None}, "score schema version is none, expected 2 or 3"),
        ({"draft_blake3": None}, r"metadata has no specexit\.draft_blake3, expected what `score` writes"),
        ({"source": None}, r"metadata has no specexit\.source, expected what `score` writes"),
    ],
)
def test_metadata_that_cannot_be(tmp_path, metadata, message):
    write_scores(tmp_path / "scores.parquet", scores_of(["q"]))
    with pytest.raises(ScoreError, match=rf"scores\.parquet: {message}"):
        open_scores(rewritten(tmp_path / "scores.parquet", **metadata))


def test_many_row_groups_are_several_files(make_trace, tmp_path, monkeypatch):
    """Their index is in memory while one is written or read."""
    monkeypatch.setattr(parts, "GROUPS", 2)
    monkeypatch.setattr(ScoreWriter, "GROUP", 3)
    traces = [make_trace(id=f"{i:02d}") for i in range(20)]
    write_scores(tmp_path / "scores.parquet", scores_of(map(key_of, traces)))
    names = [*(f"scores.{i:05d}.parquet" for i in range(3)), "scores.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [pq.ParquetFile(tmp_path / name).num_row_groups for name in names] == [2, 2, 2, 1]
    assert read_both(tmp_path, traces) == list(range(20))
    assert read_both(tmp_path, traces[17:3:-3]) == [17, 14, 11, 8, 5]
    rewritten(tmp_path / names[0], draft_blake3="1" * 64)
    with pytest.raises(ScoreError, match=r"scores\.00000\.parquet: is no part of what `score` wrote into"):
        open_scores(tmp_path)
    (tmp_path / names[2]).unlink()
    with pytest.raises(ScoreError, match=r"scores\.00002\.parquet: is gone, though scores\.parquet names it"):
        open_scores(tmp_path)


def test_a_file_with_a_trace_twice(tmp_path):
    path = tmp_path / "scores.parquet"
    write_scores(path, scores_of("qr"))
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(2):
            writer.write_table(table)
    with pytest.raises(ScoreError, match=r"scores\.parquet: trace 'q' is there 2 times, expected every trace once"):
        open_scores(path)


def test_scores_of_other_traces_name_the_file(make_trace, tmp_path):
    path = tmp_path / "scores.parquet"
    write_scores(path, scores_of("a"))
    for reader in (read_scores, open_scores):
        with pytest.raises(ScoreError, match=r"scores\.parquet: trace 'b' is missing, expected scores of the same"):
            reader(path).of([make_trace(), make_trace(id="b")])
        with pytest.raises(ScoreError, match=r"scores\.parquet: trace 'a' has 10 rows, expected .* its 9 thinking"):
            list(reader(path).of([make_trace(think_ids=list(range(9)), boundaries=[4, 7, 9])]))
