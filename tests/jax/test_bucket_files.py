"""``gs://`` as a place of files and folders, against a storage server that the tests start."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specexit.buckets import BucketError, BucketPath, location
from specexit.config import ConfigError, append_text, load, write_text
from specexit.data import parts
from specexit.data.parts import PartsWriter, parts_of
from specexit.outputs import MoveError, new_folder
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.score import ScoreConfig

pytestmark = pytest.mark.usefixtures("storage_server")


def names(folder: BucketPath) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.objects())


def test_a_path_keeps_its_two_slashes(bucket: BucketPath) -> None:
    path = location("gs://open/run//x/") / "run.yaml"
    assert str(path) == "gs://open/run/x/run.yaml"
    assert location(Path("gs://open/run")) == location("gs://open/run")  # pathlib has made one slash of two
    assert isinstance(path.parent, BucketPath)
    assert pickle.loads(pickle.dumps(path)) == path
    assert path.absolute() == path.resolve() == path
    assert isinstance(location("gs"), Path)
    assert not isinstance(location("gs"), BucketPath)
    for wrong in ("s3://bucket/x", "hf://model"):
        with pytest.raises(ValueError, match="expected a path on disk, or gs://"):
            location(wrong)
    with pytest.raises(ValueError, match="name of a bucket"):
        location("gs://")


@pytest.mark.parametrize("name", ["h#1", "h?1", "h#1/run", "h/?"])
def test_a_sign_that_ends_the_name_in_an_address_is_refused_in_a_bucket_alone(name: str) -> None:
    """The weights of several runs went to one place beside their folders, and nothing could read packed data there."""
    with pytest.raises(ValueError, match=r"has a '[#?]'.*expected gs:// without '#' and '\?'"):
        location(f"gs://open/odd/{name}")
    with pytest.raises(ConfigError, match=rf"out is 'gs://open/odd/{re.escape(name)}': has a '[#?]'"):
        load(ConvertConfig, None, [f"out=gs://open/odd/{name}", "draft=draft"])
    assert str(location(f"runs/{name}")) == f"runs/{name}"
    assert load(ConvertConfig, None, [f"out=runs/{name}", "draft=draft"]).out == Path("runs") / name


def test_what_is_written_is_read(bucket: BucketPath) -> None:
    assert not bucket.exists()
    write_text(bucket / "a.txt", "héllo")
    assert (bucket / "a.txt").read_text() == "héllo"
    assert (bucket / "a.txt").stat().st_size == 6
    assert (bucket / "a.txt").is_file()
    assert bucket.is_dir()
    with (bucket / "deep" / "b.bin").open("wb") as file:
        file.write(bytes(range(256)))
    with (bucket / "deep" / "b.bin").open("rb") as file:
        file.seek(250)
        assert file.read() == bytes(range(250, 256))
    assert (bucket / "deep" / "b.bin").read_range(3, 5) == b"\x03\x04"
    assert sorted(path.name for path in bucket.iterdir()) == ["a.txt", "deep"]
    assert list(bucket.glob("*.txt")) == [bucket / "a.txt"]
    for line in ("1\n", "2\n", "3\n"):
        append_text(bucket / "lines", line)
    assert (bucket / "lines").read_text() == "1\n2\n3\n"
    assert names(bucket) == ["a.txt", "deep/b.bin", "lines"]
    with pytest.raises(FileNotFoundError, match=r"no such object in the bucket.*'gs://open/.*/none'"):
        (bucket / "none").read_text()


def cut_short(write: Callable[..., object], *what: object) -> NoReturn:
    write(*what)
    raise KeyError


def test_half_an_object_or_folder_is_never_seen(bucket: BucketPath) -> None:
    with pytest.raises(KeyError), (bucket / "file").open("wb") as file:
        cut_short(file.write, bytes(1000))
    with pytest.raises(KeyError), new_folder(bucket / "folder") as beside:
        cut_short(write_text, beside / "meta.json", "{}")
    assert names(bucket) == []
    with new_folder(bucket / "folder") as beside:
        for name in ("meta.json", "weights", "deep/meta.json"):
            write_text(beside / name, name)
    assert names(bucket) == ["folder/deep/meta.json", "folder/meta.json", "folder/weights"]
    with (
        pytest.raises(FileExistsError, match=r"gs://open/.*/folder: output folder is not empty"),
        new_folder(bucket / "folder"),
    ):
        pass


def test_a_folder_s_entry_is_moved_last(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between two objects leaves a folder that nothing takes for whole."""
    moved, move = [], BucketPath.move
    monkeypatch.setattr(BucketPath, "move", lambda self, to: (moved.append(self.name), move(self, to)))
    with new_folder(bucket / "draft") as beside:
        for name in ("config.json", "model.safetensors", "zzz", "aaa"):
            write_text(beside / name, name)
    assert moved[-1] == "config.json"


def test_what_cannot_be_moved_is_kept_and_named(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: BucketPath, to: BucketPath) -> NoReturn:
        raise BucketError(f"{to}: cannot be written: Forbidden")

    monkeypatch.setattr(BucketPath, "move", refused)
    with (
        pytest.raises(MoveError, match=r"folder: .*Forbidden; what is not there yet lies"),
        new_folder(bucket / "folder") as beside,
    ):
        write_text(beside / "weights", "of hours")
    assert (beside / "weights").read_text() == "of hours"


def test_a_file_in_parts_lies_in_a_bucket_as_on_disk(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "GROUPS", 2)
    schema = pa.schema([pa.field("i", pa.int64())])
    with PartsWriter(bucket / "traces.parquet", schema) as writer:
        for i in range(5):
            writer.write(pa.record_batch([[i]], schema=schema))
    assert names(bucket) == ["traces.00000.parquet", "traces.00001.parquet", "traces.parquet"]
    found = []
    for part in parts_of(bucket / "traces.parquet"):
        with part.open("rb") as file:
            found += pq.read_table(file)["i"].to_pylist()
    assert found == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError), PartsWriter(bucket / "half.parquet", schema) as writer:
        cut_short(writer.write, pa.record_batch([[0]], schema=schema))
    assert "half.parquet" not in names(bucket)


def test_what_cannot_be_in_a_bucket_says_so(bucket: BucketPath) -> None:
    with pytest.raises(BucketError, match=r"gs://open/.*needed as a file on disk: copy it there"):
        os.listdir(bucket)
    with pytest.raises(BucketError, match="cannot be opened as 'a' in a bucket"):
        (bucket / "x").open("a")
    wrong = [f"{key}=gs://open/x" for key in ("draft", "traces", "out")]
    with pytest.raises(ConfigError, match=r"out is 'gs://open/x'.*expected a path on disk: copy it, or mount the bu"):
        load(ScoreConfig, None, wrong)
