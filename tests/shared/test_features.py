"""Stored features as files: what a type keeps, what a kill leaves, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from specexit.data.features import (
    FILE,
    FeatureError,
    Features,
    Manifest,
    alone_in,
    begin,
    bytes_per_token,
    check,
    decode,
    encode,
    read_manifest,
    stored_layers,
    write_shard,
)
from specexit.data.sequences import Example
from specexit.errors import lasts

WANTED = Manifest(
    target="small",
    target_sha256="aa",
    target_dtype="bfloat16",
    tokenizer_sha256="bb",
    data="cc",
    n=5,
    length=6,
    layers=(1, 4),
    hidden_size=8,
    dtype="float32",
    shard_rows=2,
    engine="none",
)
EXPECTED = {"target": "small", "target_sha256": "aa", "tokenizer_sha256": "bb", "data": "cc"}


def example(row: int) -> Example:
    tokens = np.arange(6, dtype=np.int32) + 100 * row
    return {"tokens": tokens, "segment_ids": np.ones(6, np.int32), "positions": np.arange(6, dtype=np.int32)}


def states(row: int) -> np.ndarray:
    return np.random.default_rng(row).normal(size=(6, 2, 8)).astype(np.float32)


def write(folder: Path, manifest: Manifest, shards: range) -> Manifest:
    for shard in shards:
        rows = manifest.rows(shard)
        stored = [encode(states(i), manifest.dtype) for i in rows]
        manifest = write_shard(folder, manifest, shard, [example(i) for i in rows], stored)
    return manifest


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    write(tmp_path / "features", begin(tmp_path / "features", WANTED), range(3))
    return tmp_path / "features"


@given(st.integers(0, 1000), st.floats(1e-3, 1e4), st.sampled_from([1.0, 30.0, 1000.0]))
def test_what_a_type_keeps_of_a_state(seed: int, size: float, outlier: float) -> None:
    x = (size * np.random.default_rng(seed).normal(size=(3, 2, 16))).astype(np.float32)
    x[:, :, 3] *= outlier  # hidden states have channels like that
    np.testing.assert_array_equal(decode(encode(x, "float32")), x)
    # Half of the last place of 8 bits of mantissa.
    np.testing.assert_array_less(np.abs(decode(encode(x, "bfloat16")) - x), 2.0**-8 * np.abs(x))
    # Half of the last place of 4 bits; below 2^-6 of e4m3 steps are equal, 2^-9, of which half, and 448 is the largest.
    step = 2.0**-10 * np.abs(x).max(axis=-1, keepdims=True) / 448
    np.testing.assert_array_less(np.abs(decode(encode(x, "float8")) - x), 2.0**-4 * np.abs(x) + 1.001 * step)


def test_padding_and_what_is_not_finite() -> None:
    assert (decode(encode(np.zeros((2, 1, 4), np.float32), "float8")) == 0).all()
    with pytest.raises(FeatureError, match="NaN or infinite"):
        encode(np.array([[1.0, np.inf]], np.float32), "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
def test_rows_come_back(tmp_path: Path, dtype: str) -> None:
    wanted = Manifest.model_validate(WANTED.model_dump() | {"dtype": dtype})
    write(tmp_path / "features", begin(tmp_path / "features", wanted), range(3))
    features = Features(tmp_path / "features", check(tmp_path / "features", EXPECTED, {1, 4}))
    for row in (4, 0, 3):
        found = features.read(row, example(row))
        assert set(found) == ({"states", "scales"} if dtype == "float8" else {"states"})
        np.testing.assert_array_equal(decode(found), decode(encode(states(row), wanted.dtype)))


def test_a_killed_run_goes_on_with_the_shards_that_are_whole(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    write(folder, begin(folder, WANTED), range(2))
    first, second = (folder / name for name in WANTED.names[:2])
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(FeatureError, match="1 of 3 shards are not written, the first of them features-00002"):
        check(folder, EXPECTED, {1})
    assert list(begin(folder, WANTED).shards) == [first.name]


def test_a_shard_that_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    """safetensors gives it a name of its own: a gibibyte for each kill stayed for ever, where nobody looks."""
    folder = tmp_path / "features"
    manifest = begin(folder, WANTED)
    with alone_in(folder):
        write(folder, manifest, range(1))
        (begun,) = (path for path in folder.iterdir() if path.is_dir())
        assert not [*begun.iterdir()]
    begun.mkdir()
    (begun / ".tmpUOnrFj").write_bytes(b"half")
    with alone_in(folder):
        assert not begun.exists()
    assert {path.name for path in folder.iterdir()} == {FILE, ".lock", WANTED.names[0]}


def test_a_second_process_writes_into_no_folder_of_features(tmp_path: Path) -> None:
    """Both computed every shard, and the hashes were those of the other's."""
    begin(tmp_path / "features", WANTED)
    refused = pytest.raises(FeatureError, match="another process writes features there: wait for it, or")
    with alone_in(tmp_path / "features"), refused, alone_in(tmp_path / "features"):
        pass
    with alone_in(tmp_path / "features"):
        pass


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback: safetensors' error is no `OSError`."""

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    manifest = write(tmp_path, begin(tmp_path, WANTED), range(1))
    monkeypatch.setattr("safetensors.numpy.save_file", full)
    said = rf"{WANTED.names[1]}: cannot be written: .*No space left on device .*; what is finished stays, and the same"
    with pytest.raises(FeatureError, match=said):
        write(tmp_path, manifest, range(1, 2))
    assert list(begin(tmp_path, WANTED).shards) == [WANTED.names[0]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_a_shard_of_another_type_than_the_manifest_says(whole: Path, dtype: str) -> None:
    manifest = Manifest.model_validate(read_manifest(whole).model_dump() | {"dtype": dtype})
    with pytest.raises(FeatureError, match=f"states are float32, expected {dtype} as features.json says"):
        Features(whole, manifest).read(0, example(0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digests": None}, "holds states, but no digests$"),
        ({"states": None}, "holds digests, but no states$"),
        (
            {"states": (2, 6, 1, 8)},
            r"states of a row have the shape \[6, 1, 8\], expected \[6, 2, 8\] as features\.json",
        ),
        (
            {"states": (2, 5, 2, 8)},
            r"states of a row have the shape \[5, 2, 8\], expected \[6, 2, 8\] as features\.json",
        ),
    ],
)
def test_a_shard_that_another_program_wrote_otherwise_is_named(
    whole: Path, changes: dict[str, tuple[int, ...] | None], said: str
) -> None:
    path = whole / WANTED.names[0]
    tensors = load_file(path)
    for name, shape in changes.items():
        del tensors[name]
        if shape is not None:
            tensors[name] = np.zeros(shape, np.float32)
    save_file(tensors, path)
    with pytest.raises(FeatureError, match=f"^{path}: {said}"):
        Features(whole, WANTED).read(0, example(0))


@pytest.mark.parametrize("field", ["target_sha256", "target_dtype", "data", "layers", "dtype", "shard_rows", "engine"])
def test_a_folder_of_something_else_is_not_continued(whole: Path, field: str) -> None:
    other = {"layers": (2, 4), "dtype": "bfloat16", "shard_rows": 3}.get(field, "other")
    before = (whole / FILE).read_text()
    with pytest.raises(FeatureError, match=f"{FILE}: {field} is .* choose another `out`"):
        begin(whole, WANTED.model_copy(update={field: other}))
    assert (whole / FILE).read_text() == before


def test_a_folder_of_an_older_version_which_kept_no_arguments_is_continued(whole: Path) -> None:
    said = json.loads((whole / FILE).read_text())
    del said["arguments"]
    (whole / FILE).write_text(json.dumps(said))
    assert len(begin(whole, WANTED.model_copy(update={"arguments": {"quantization": "fp8"}})).shards) == 3


def test_a_folder_that_holds_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FeatureError, match=r"holds notes\.txt but no features\.json"):
        begin(tmp_path, WANTED)
    with pytest.raises(FeatureError, match=r"notes\.txt: is a file, expected a new folder or one of features$"):
        begin(tmp_path / "notes.txt", WANTED)


@pytest.mark.parametrize("field", EXPECTED)
def test_features_of_something_else_are_not_read(whole: Path, field: str) -> None:
    with pytest.raises(FeatureError, match=f"{FILE}: {field} is '{EXPECTED[field]}', expected 'other'"):
        check(whole, EXPECTED | {field: "other"}, {1, 4})


def test_what_is_missing_or_damaged_is_said(whole: Path) -> None:
    with pytest.raises(FeatureError, match=r"layers is \[1, 4\], but the draft reads \[2, 3\], too"):
        check(whole, EXPECTED, {1, 2, 3})
    features = Features(whole, check(whole, EXPECTED, {1, 4}))
    with pytest.raises(FeatureError, match="row 1 is of other tokens than row 3 of the packed data"):
        features.read(3, example(2))
    shard = whole / WANTED.names[1]
    content = shard.read_bytes()
    shard.write_bytes(b"\xff" * len(content))
    with pytest.raises(FeatureError, match="cannot be read as safetensors") as damaged:
        features.read(3, example(3))
    assert lasts(damaged.value)  # as docs/training.md says
    shard.write_bytes(content[:100])
    with pytest.raises(FeatureError, match=f"{shard.name}: has 100 bytes, expected {len(content)}"):
        check(whole, EXPECTED, {1, 4})
    shard.unlink()
    with pytest.raises(FeatureError, match=f"{shard.name}: is missing"):
        check(whole, EXPECTED, {1, 4})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("dtype", "int4", "dtype is 'int4'"),
        ("format_version", 9, "format_version is 9, expected 1"),
        ("n", 0, "n is 0"),
    ],
)
def test_a_manifest_that_is_not_understood(whole: Path, field: str, value: object, said: str) -> None:
    fields = json.loads((whole / FILE).read_text()) | {field: value}
    (whole / FILE).write_text(json.dumps(fields))
    with pytest.raises(FeatureError, match=said):
        read_manifest(whole)


def test_disk_space_of_a_token() -> None:
    layers = stored_layers((2, 18, 36), 36)
    assert layers == (2, 18, 36), "the last layer is stored once, whether the draft reads it or not"
    assert stored_layers((2, 18, 33), 36) == (2, 18, 33, 36)
    assert bytes_per_token("bfloat16", 3, 2560) == 15_360
    assert bytes_per_token("float8", 3, 2560) == 7_692
