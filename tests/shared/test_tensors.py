"""Files of tensors: the library's own bytes, in shards with an index, and what a stranger's file is refused for."""

import contextlib
import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from specexit.drafts import tensors as tensors_module
from specexit.drafts.directory import DraftError, read_draft
from specexit.drafts.files import TensorError, parse_json
from specexit.drafts.target_weights import check_all_plain, some_of
from specexit.drafts.tensors import (
    FLOATS,
    INDEX,
    WEIGHTS,
    open_tensors,
    read_header,
    together,
    weights_hash,
    write_tensors,
)


def some_tensors():
    rng = np.random.default_rng(0)
    tensors = {f"w.{name}": rng.normal(size=(5, 7)).astype(dtype) for name, dtype in FLOATS.items()}
    return tensors | {
        "ids": np.arange(3),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 4), np.float32),
        "ä": np.ones((), np.float32),
    }


def write(folder, tensors, max_bytes=None):
    folder.mkdir()
    shapes = {name: (t.dtype, t.shape) for name, t in tensors.items()}
    return write_tensors(folder, shapes, lambda name: np.array_split(tensors[name].reshape(-1), 3), max_bytes)


def test_the_bytes_are_those_of_the_library(tmp_path):
    tensors = some_tensors()
    write(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours" / WEIGHTS).read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("max_bytes", [None, 1, 100, 200, 10_000])
def test_shards_hold_together_what_one_file_would(tmp_path, max_bytes):
    tensors = some_tensors()
    hashes = write(tmp_path / "ours", tensors, max_bytes)
    found = open_tensors(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].read().dtype == tensor.dtype
        np.testing.assert_array_equal(found[name].read(), tensor)
        assert b"".join(block.tobytes() for block in found[name].blocks()) == tensor.tobytes()
    write(tmp_path / "whole", tensors)
    assert together(hashes) == weights_hash(tmp_path / "ours") == weights_hash(tmp_path / "whole")
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert (files == [WEIGHTS]) == (max_bytes in (None, 10_000))
    if max_bytes == 100:  # one tensor may be larger than a file should be; apart from those, no file is
        sizes = [sum(stored.nbytes for stored in read_header(tmp_path / "ours" / file).values()) for file in files]
        assert all(size <= 140 for size in sizes)


@pytest.mark.parametrize("kernel", ["copies", "cannot", "gives up half-way", "copies nothing"])
def test_what_is_copied_is_what_would_be_written(kernel, tmp_path, monkeypatch):
    tensors = some_tensors()
    written = write(tmp_path / "ours", tensors)
    stored, seen = open_tensors(tmp_path / "ours"), {}
    copy = tensors_module.os.copy_file_range
    if kernel == "cannot":
        monkeypatch.delattr(tensors_module.os, "copy_file_range")
    elif kernel == "gives up half-way":

        def half(given, file, left, offset_src):
            if left <= 5:
                raise OSError(18, "Invalid cross-device link")
            return copy(given, file, left // 2, offset_src=offset_src)

        monkeypatch.setattr(tensors_module.os, "copy_file_range", half)
    elif kernel == "copies nothing":  # as some mounts do: good weights were called truncated
        monkeypatch.setattr(tensors_module.os, "copy_file_range", lambda *_, **__: 0)
    monkeypatch.setattr(tensors_module, "BLOCK", 16)
    (tmp_path / "copy").mkdir()
    shapes = {name: (place.dtype, place.shape) for name, place in stored.items()}
    hashes = write_tensors(
        tmp_path / "copy", shapes, stored.get, look=lambda name, values: seen.setdefault(name, []).append(values.copy())
    )
    assert hashes == written
    assert (tmp_path / "copy" / WEIGHTS).read_bytes() == (tmp_path / "ours" / WEIGHTS).read_bytes()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(np.concatenate([*seen.get(name, []), tensor.reshape(-1)[:0]]), tensor.reshape(-1))


def test_a_source_that_has_become_shorter_is_an_error(tmp_path):
    write(tmp_path / "ours", some_tensors())
    stored = open_tensors(tmp_path / "ours")
    file = tmp_path / "ours" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])
    shapes = {name: (place.dtype, place.shape) for name, place in stored.items()}
    with pytest.raises(TensorError, match="ends within a tensor, so it is truncated"):
        write_tensors(tmp_path, shapes, stored.get)


@pytest.mark.parametrize("max_bytes", [None, 100])
def test_the_name_that_the_library_keeps_for_text_is_no_tensor_s(max_bytes, tmp_path):
    """It stood in the header twice, and the library read no such file."""
    with pytest.raises(TensorError, match="ours: a tensor is named '__metadata__', expected another name"):
        write(tmp_path / "ours", some_tensors() | {"__metadata__": np.ones(3, np.float32)}, max_bytes)
    assert not [*(tmp_path / "ours").iterdir()]


def test_every_byte_counts_in_the_hash(tmp_path):
    write(tmp_path / "ours", some_tensors(), 100)
    before = weights_hash(tmp_path / "ours")
    shard = sorted((tmp_path / "ours").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert weights_hash(tmp_path / "ours") != before


# ---------------------------------------------------------------------------------------------------------------------
# What strangers' files do


def with_header(change):
    """A damage: the header of the draft's file, changed."""

    def damage(folder):
        path = folder / WEIGHTS
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        replaced = change(header)
        text = replaced if isinstance(replaced, bytes) else json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return damage


def field(name, key, value):
    return with_header(lambda header: header[name].update({key: value}))


def moved(name, begin, end):
    def change(header):
        offsets = header[name]["data_offsets"]
        header[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return with_header(change)


def twice(header):
    one = json.dumps({"norm.weight": header["norm.weight"]})[1:-1]
    return b"{" + one.encode() + b"," + json.dumps(header)[1:].encode()


def raw(change):
    def damage(folder):
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return damage


def index(text):
    def damage(folder):
        (folder / INDEX).write_text(text if isinstance(text, str) else json.dumps(text))

    return damage


def of_draft(folder, place):
    names = read_header(folder / WEIGHTS)
    return {"weight_map": {name: place for name in names}}


def linked(target):
    def damage(folder):
        (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
        (folder / WEIGHTS).symlink_to(target)

    return damage


def config(**changes):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def bits(name, value):
    """A damage of one tensor's values: its first eight bytes are replaced."""

    def damage(folder):
        stored = read_header(folder / WEIGHTS)[name]
        with (folder / WEIGHTS).open("r+b") as file:
            file.seek(stored.start)
            file.write(value)

    return damage


HOSTILE = {
    "no file": (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
    "an empty file": (raw(lambda data: b""), r"truncated\?"),
    "seven bytes": (raw(lambda data: data[:7]), r"truncated\?"),
    "a header longer than the file": (raw(lambda data: (1 << 62).to_bytes(8, "little") + data[8:]), "its header has"),
    "a negative header": (raw(lambda data: b"\xff" * 8 + data[8:]), "its header has"),
    "half the file": (raw(lambda data: data[: len(data) // 2]), r"truncated\?"),
    "a byte too few": (raw(lambda data: data[:-1]), r"truncated\?"),
    "a byte too many": (raw(lambda data: data + b"\0"), "its header describes"),
    "no JSON": (with_header(lambda header: b"{not json"), "cannot be read as JSON"),
    "JSON without end": (with_header(lambda header: b"[" * 200_000), "cannot be read as JSON"),
    "bytes that are no text": (with_header(lambda header: b"\xff\xfe{}"), "cannot be read as JSON"),
    "a list": (with_header(lambda header: b"[]"), "is no table"),
    "a number with a million digits": (with_header(lambda header: b'{"a":' + b"9" * 10**6 + b"}"), "of 1000000 dig"),
    "a name twice": (with_header(twice), "'norm.weight' is there twice"),
    "ten thousand and one tensors": (
        with_header(lambda header: json.dumps({str(i): header["norm.weight"] for i in range(10_001)}).encode()),
        "is of 10001 tensors, expected at most 10000",
    ),
    "a tensor that is a string": (with_header(lambda header: header.update({"norm.weight": "x"})), "has no dtype"),
    "no offsets": (with_header(lambda header: header["norm.weight"].pop("data_offsets")), "has no dtype, shape and"),
    "three offsets": (field("norm.weight", "data_offsets", [0, 1, 2]), "has no dtype, shape and data_offsets"),
    "an unknown dtype": (field("norm.weight", "dtype", "F8_E4M3"), "has dtype 'F8_E4M3', expected one of"),
    "a dtype that is a list": (field("norm.weight", "dtype", "object"), "has dtype 'object'"),
    "a dtype of another size": (field("norm.weight", "dtype", "F64"), "needs 512 bytes, but has 256"),
    "weights that are integers": (field("norm.weight", "dtype", "I32"), "norm.weight is int32, expected float32"),
    "a shape that is no list": (field("norm.weight", "shape", "64"), "expected sizes"),
    "a negative size": (field("norm.weight", "shape", [-64]), "expected sizes"),
    "a fraction": (field("norm.weight", "shape", [64.0]), "expected sizes"),
    "a size beyond all memory": (field("norm.weight", "shape", [2**61]), "needs .* bytes, but has 256"),
    "a product that overflows": (field("norm.weight", "shape", [2**32, 2**32, 2**32]), "needs .* bytes, but has"),
    "a hundred dimensions": (field("norm.weight", "shape", [1] * 100), "expected sizes"),
    "overlapping offsets": (moved("norm.weight", -64, -64), "overlaps the tensor before it"),
    "a gap": (moved("norm.weight", 4, 4), "leaves a gap before it"),
    "offsets backwards": (field("norm.weight", "data_offsets", [256, 0]), "needs 256 bytes, but has -256"),
    "offsets beyond the file": (field("norm.weight", "data_offsets", [2**40, 2**40 + 256]), "leaves a gap|overlaps"),
    "another shape than the config's": (field("norm.weight", "shape", [8, 8]), r"shape \[8, 8\], expected \[64\]"),
    "a tensor too many": (
        with_header(
            lambda header: header.update({"evil": header["norm.weight"] | {"shape": [0], "data_offsets": [0, 0]}})
        ),
        r"tensor evil \[0\] is not part of the draft",
    ),
    "NaN": (bits("norm.weight", np.float32(np.nan).tobytes()), "norm.weight holds NaN or infinity"),
    "d2t below zero": (bits("d2t", np.int64(-7).tobytes()), "d2t maps draft token 0 to target token -7"),
    "d2t beyond the vocabulary": (bits("d2t", np.int64(2**62).tobytes()), "d2t maps draft token 0 to target token"),
    "t2d of another draft": (bits("t2d", b"\1" * 8), "t2d says True of target token"),
    "a link out of the folder": (linked("../elsewhere.safetensors"), "is a link out of its folder"),
    "a link to itself": (linked(WEIGHTS), "cannot be read"),
    "a folder in its place": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()),
        "is no regular file",
    ),
    "an index that climbs out": (
        lambda folder: index(of_draft(folder, "../model.safetensors"))(folder),
        "expected the name",
    ),
    "an index to an absolute path": (
        lambda folder: index(of_draft(folder, "/etc/passwd"))(folder),
        "expected the name",
    ),
    "an index to no file": (lambda folder: index(of_draft(folder, "model-2.safetensors"))(folder), "cannot be read"),
    "an index that lies": (index({"weight_map": {"norm.weight": WEIGHTS}}), "the index says None"),
    "an index of other names": (index({"weight_map": {"x": 3}}), "expected a weight_map"),
    "an index without a map": (index([]), "expected a weight_map"),
    "an index of millions": (index("[" + "0," * 6_000_000 + "0]"), "expected at most"),
    "an index of too many": (index({"weight_map": {str(i): WEIGHTS for i in range(10_001)}}), "names 10001 tensors"),
    "a config beyond all sizes": (config(vocab_size=10**9, draft_vocab_size=10**9), r"expected \[1000000000"),
    "a config of a billion layers": (config(num_hidden_layers=10**9), "field num_hidden_layers is 1000000000"),
    "a config of a million aux layers": (
        config(eagle_aux_hidden_state_layer_ids=list(range(10**6)), num_aux_hidden_states=10**6),
        "holds more than the 1000000 bytes",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_or_damaged_draft_is_one_clear_error(what, tmp_path, write_random_draft):
    damage, message = HOSTILE[what]
    folder = write_random_draft(tmp_path / "draft", None)
    damage(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DraftError, match=message) as error:
        read_draft(folder)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_there_are_as_many_as_promised():
    assert len(HOSTILE) >= 40


def test_a_name_twice_behind_many_others_is_found_at_once(tmp_path):
    """Each of those took a look at all of them: hours, of a header of 10 MB."""
    names = "".join(f'"{i}":0,' for i in range(200_000))
    with pytest.raises(TensorError, match=r"^\S+: '199999' is there twice$"):
        parse_json(f'{{{names}"199999":0}}'.encode(), tmp_path / WEIGHTS)


def test_none_of_them_takes_memory(tmp_path, write_random_draft):
    """All of them in one process that may hold 300 MB more than it does before the first."""
    for i, (damage, _) in enumerate(HOSTILE.values()):
        home = tmp_path / str(i)
        home.mkdir()
        damage(write_random_draft(home / "draft", None))
    script = """
import resource, sys
from pathlib import Path
from specexit.drafts.directory import DraftError, read_draft
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 300 * 2**20,) * 2)
refused = 0
for home in Path(sys.argv[1]).iterdir():
    try:
        read_draft(home / "draft")
    except DraftError:
        refused += 1
print(refused)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == str(len(HOSTILE)), done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # this process is not limited


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fuzzed_headers_are_read_or_refused(tmp_path_factory, write_random_draft, data):
    """Any change of a few bytes of the header: tensors, or our own error, and never another exception."""
    folder = tmp_path_factory.mktemp("fuzz")
    good = write_random_draft(folder / "draft", None)
    path = good / WEIGHTS
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    places = data.draw(st.lists(st.integers(0, 8 + length - 1), min_size=1, max_size=4))
    for place in places:
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(DraftError):
        read_draft(good)


def test_a_file_that_shrinks_while_it_is_read_is_truncated(tmp_path, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", None)
    stored = open_tensors(folder)["t2d"]
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(stored.start + 3)
    for read in (stored.read, lambda: list(stored.blocks())):
        with pytest.raises(TensorError, match="truncated"):
            read()


def test_a_file_of_a_target_may_have_more_tensors_than_a_draft(tmp_path):
    """A mixture of 128 experts has 15,400 in its first 50 GB; it was no table of tensors."""
    names = [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in range(10_001)]
    save_file(dict.fromkeys(names, np.ones(1, np.float32)), tmp_path / WEIGHTS)
    check_all_plain(tmp_path)
    assert some_of(tmp_path, names[-1:]).keys() == {names[-1]}
    assert len(read_header(tmp_path / WEIGHTS)) == 10_001


@pytest.mark.parametrize("said", [3, {}, {"dtype": ["F32"]}, {"dtype": "F8_E5M2"}])
def test_a_weight_whose_header_names_no_plain_type_is_refused_by_its_name(tmp_path, said):
    header = json.dumps({"w.weight": said}).encode()
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(TensorError, match=r"w\.weight has dtype .*, expected plain weights"):
        check_all_plain(tmp_path)


def test_of_a_target_the_files_of_its_index_count(tmp_path):
    """As in vLLM: the weights of before, or of another layout, may lie beside them."""
    size = {name: np.full((2, 2), i, np.float32) for i, name in enumerate("ab", 1)}
    save_file({"a": size["a"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": size["b"]}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"b": -size["b"], "x.weight": np.ones(2, np.int8)}, tmp_path / "old.safetensors")
    with pytest.raises(TensorError, match=r"tensor b is in model-00002-of-00002\.safetensors and in old\.safetensors"):
        some_of(tmp_path, "ab")
    places = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate("ab", 1)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    for name, stored in some_of(tmp_path, "ab").items():
        np.testing.assert_array_equal(stored.read(), size[name])
    check_all_plain(tmp_path)
    (tmp_path / places["a"]).unlink()
    with pytest.raises(TensorError, match=r"index\.json: names model-00001-of-00002\.safetensors, which is not there"):
        some_of(tmp_path, "ab")
