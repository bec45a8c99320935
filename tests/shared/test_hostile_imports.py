"""A stranger's folder: whatever lies in it, one clear line, nothing executed, nothing written, nothing waited for."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from specexit.cli import run
from specexit.drafts.config import DraftError, read_config
from specexit.drafts.export import export
from specexit.drafts.inspect import describe, inspect
from specexit.drafts.policy import PolicyError
from specexit.drafts.published import import_draft
from specexit.drafts.tensors import INDEX, WEIGHTS, weights_hash
from specexit.drafts.verified import doubt_of, geometry_sha256
from specexit.errors import InputError
from specexit.schemas.export import ExportConfig
from specexit.schemas.inspect import InspectConfig
from specexit.schemas.published import ImportConfig
from tests.shared.published import CONFIGS, VOCAB, tensors_of, write_published, write_target


def config(**changes):
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIGS["angelslim"] | changes))


def header(name="norm.weight", **changes):
    """A damage of what the header says of ``norm.weight``, or of its name."""

    def damage(folder):
        data = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + length])
        one = found.pop("norm.weight")
        text = json.dumps(found | {name: one | changes}).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return damage


def raw_header(change):
    """A damage of all that the header says."""

    def damage(folder):
        data = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        text = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return damage


def instead(name, put):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        put(folder / name)

    return damage


def outside(path):
    (path.parent.parent / "secret").write_text(json.dumps(CONFIGS["angelslim"]))
    path.symlink_to(path.parent.parent / "secret")


def zeros(path):
    path.symlink_to("/dev/zero")


def index(name):
    return instead(INDEX, lambda path: path.write_text(json.dumps({"weight_map": {"norm.weight": name}})))


def only_bin(put):
    def damage(folder):
        (folder / WEIGHTS).unlink()
        put(folder / "pytorch_model.bin")

    return damage


def endless_t2d(folder):
    """A ``t2d``, which is the last of the file, of 4 GiB: a hole that takes no room on the disk, but does in memory."""

    def endless(found):
        begin = found["t2d"]["data_offsets"][0]
        return found | {"t2d": found["t2d"] | {"shape": [2**32], "data_offsets": [begin, begin + 2**32]}}

    raw_header(endless)(folder)
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate((folder / WEIGHTS).stat().st_size - VOCAB + 2**32)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
HOSTILE = {
    "a config that never comes": (instead("config.json", os.mkfifo), r"config\.json: is no regular file"),
    "a config without end": (instead("config.json", zeros), "is a link out of its folder, to /dev/zero"),
    "a config of somebody else": (instead("config.json", outside), "is a link out of its folder"),
    "an index that never comes": (instead(INDEX, os.mkfifo), r"index\.json: is no regular file"),
    "an index without end": (instead(INDEX, zeros), "is a link out of its folder, to /dev/zero"),
    "an index with a NUL": (index("x\0y"), r"'x\\x00y' is named as a file of weights"),
    "an index with an endless name": (index("x" * 100_000), "x{150}.* is named as a file of weights"),
    "an index to the config": (index("config.json"), r"config\.json: cannot be read as safetensors"),
    "weights that never come": (instead(WEIGHTS, os.mkfifo), r"model\.safetensors: is no regular file"),
    "a pointer to weights": (
        instead(WEIGHTS, lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")),
        r"model\.safetensors: is a pointer of Git LFS, expected the weights: `git lfs pull`, or `hf download NAME",
    ),
    "a bin that never comes": (only_bin(os.mkfifo), r"pytorch_model\.bin: is no regular file"),
    "a bin without end": (only_bin(zeros), "is a link out of its folder, to /dev/zero"),
    "a bin of somebody else": (only_bin(outside), "is a link out of its folder"),
    "a name of two lines": (header(name="a\nb"), r"a tensor is named 'a\\nb', expected up to 255 printable"),
    "a name that moves the cursor": (header(name="\x1b[2Jnorm"), r"a tensor is named '\\x1b\[2Jnorm'"),
    "a name that is half a character": (header(name="\ud800"), r"safetensors: holds '\\ud800', half a character"),
    "half a character": (
        config(surprise=["\ude00"]),
        r"config\.json: holds '\\ude00', half a character, expected text",
    ),
    "an endless name": (header(name="x" * 100_000), "a tensor is named 'x{150}"),
    "no name": (header(name=""), "a tensor is named ''"),
    "a t2d without end": (endless_t2d, r"t2d is bool \[4294967296\], expected true or false \[200\]"),
    "a dtype that is an object": (header(dtype={}), r"norm\.weight has dtype {}"),
    "a shape of truths": (header(shape=[True]), r"norm\.weight has shape \[True\]"),
    "a key of two lines": (config(**{"a\nb": 1}), r"'a\\nb' is 1, which is unknown"),
    "an endless value": (config(surprise="x" * 100_000), "surprise is 'x{150}"),
    "an infinite theta": (config(rope_theta=float("inf")), "rope_theta is inf"),
    "an eps that is no number": (config(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    "an infinite factor": (config(rope_scaling={"rope_type": "linear", "factor": float("inf")}), "factor is inf"),
    "a division by zero": (
        config(rope_scaling=LLAMA3 | {"low_freq_factor": 4.0, "high_freq_factor": 4.0}),
        "high_freq_factor is 4, expected more than low_freq_factor, 4",
    ),
    "a value in five hundred lists": (
        config(auto_map=json.loads("[" * 500 + "]" * 500)),
        r"config\.json: holds a value in more than 64 lists and objects",
    ),
    "a factor beyond all floats": (
        config(rope_scaling={"rope_type": "linear", "factor": 10**400}),
        "of 401 digits, 1000",
    ),
    "a yarn beyond all positions": (
        config(rope_scaling=YARN | {"original_max_position_embeddings": 10**90, "factor": 1e250}),
        r"rope_scaling is .*factor is 1e\+250 and original_max_position_embeddings 1e\+90, expected a product",
    ),
    "a yarn that turns for ever": (config(rope_scaling=YARN | {"beta_fast": 1e308}), r"beta_fast is 1e\+308, expected"),
    "a yarn without a sharpness": (
        config(rope_scaling=YARN | {"mscale": 1e308, "mscale_all_dim": 1e308, "factor": 1e99}),
        "expected numbers of which there is a ratio",
    ),
    "a yarn of no base": (config(rope_theta=1, rope_scaling=YARN), "rope_theta is 1, expected another one"),
    "heads beyond all numbers": (config(num_attention_heads=10**4000), "of 4001 digits, 1000"),
    "an architecture of two lines": (config(architectures="a\nb\x1b[2J"), r"architectures is 'a\\nb\\x1b\[2J'"),
    "an endless architecture": (config(architectures="x" * 500_000), "architectures is 'x{150}"),
    "a header of too many names": (
        raw_header(lambda found: found | {f"norm.{i}": found["norm.weight"] for i in range(2 * 10**5)}),
        r"its header has \d+ bytes, expected at most 10000000",
    ),
    "positions beyond 32 bits": (config(max_position_embeddings=2**31), "max_position_embeddings is 2147483648"),
    "no aux layers": (config(eagle_aux_hidden_state_layer_ids=[]), r"eagle_aux_hidden_state_layer_ids is \[\]"),
    "an aux layer below the embedding": (config(eagle_aux_hidden_state_layer_ids=[-1, 2, 3]), r"is \[-1, 2, 3\]"),
    "a size beyond all numbers": (config(intermediate_size=10**30), "expected .*1000000000000000000000000000000"),
    "a truth for a number": (config(num_key_value_heads=True), "num_key_value_heads is True, expected int"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_folder_is_one_short_line(what, tmp_path):
    damage, message = HOSTILE[what]
    source, target = write_published(tmp_path / "published", "angelslim"), write_target(tmp_path / "of")
    damage(source)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DraftError, match=message) as error:
        import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    assert sorted(tmp_path.rglob("*")) == before


def test_none_of_them_takes_memory(tmp_path):
    """All of them in one process that may hold 300 MB more than it does before the first."""
    target = write_target(tmp_path / "of")
    for i, (what, (damage, _)) in enumerate(HOSTILE.items()):
        if "bin" not in what:  # opened by a process of its own, with a limit of its own
            damage(write_published(tmp_path / "all" / str(i) / "published", "angelslim"))
    script = """
import resource, sys
from pathlib import Path
from specexit.drafts.published import DraftError, ImportConfig, import_draft
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 300 * 2**20,) * 2)
for home in Path(sys.argv[1]).iterdir():
    try:
        import_draft(ImportConfig(draft=home / "published", target=sys.argv[2], out=home / "draft"))
    except DraftError:
        continue
    sys.exit(f"{home} was read")
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "all", target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # this process is not limited


# ---------------------------------------------------------------------------------------------------------------------
# What lies beside the weights of a draft directory


@pytest.fixture
def imported(tmp_path):
    source, target = write_published(tmp_path / "published", "angelslim"), write_target(tmp_path / "of")
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    return tmp_path / "draft"


VERIFIED = {"weights_blake3": "", "passed": True, "n": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"it is \[\]: "),
        ("{", "cannot be read as JSON"),
        (json.dumps({"weights_blake3": ""}), "passed is .*Field required"),
        (json.dumps(VERIFIED | {"acceptance": {"rows": 1, "length": 1.0, "by_position": "abc"}}), "acceptance.by_posi"),
        (json.dumps(VERIFIED | {"differences": [1]}), r"differences is \[1\]"),
        (" " * 2_000_000, "more than the 1000000 bytes"),
    ],
)
def test_a_verification_that_cannot_be_read_is_none(text, message, imported, tmp_path):
    (imported / "verify.json").write_text(text)
    doubt = str(doubt_of(imported))
    assert doubt.startswith("unreadable: ")
    assert re.search(message, doubt)
    assert describe(imported)["verified"] == doubt
    export(ExportConfig(draft=imported, out=tmp_path / "out", format="original"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n\nNot verified.\n\n" in card
    assert str(tmp_path) not in card  # it is for others


def test_a_verification_is_of_the_weights_and_of_their_geometry(imported):
    marks = {"weights_blake3": weights_hash(imported), "geometry_sha256": geometry_sha256(read_config(imported))}
    (imported / "verify.json").write_text(json.dumps(VERIFIED | marks))
    assert doubt_of(imported) is None
    path = imported / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"architectures": ["Another"]}))  # who runs it, not what it computes
    assert doubt_of(imported) is None
    path.write_text(json.dumps(said | {"rope_theta": 5e5}))
    assert str(doubt_of(imported)).startswith("stale: config.json says another geometry by now")


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**30 + 1)  # a hole: it takes no room


BESIDE = {
    "somebody else's": (outside, "is a link out of its folder"),
    "without end": (zeros, "is a link out of its folder, to /dev/zero"),
    "never coming": (os.mkfifo, "is no regular file"),
    "a folder": (Path.mkdir, "is no regular file"),
    "too large": (huge, "holds more than the"),
}


@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("name", ["policy.json", "hold.json", "verify.json", "prompts.npy", "target.yaml"])
def test_what_lies_beside_the_weights_is_not_copied_out_of_another_folder(name, what, tmp_path, write_random_draft):
    put, message = BESIDE[what]
    layers = {"eagle_aux_hidden_state_layer_ids": (2, 6, 9), "target_num_hidden_layers": 12}
    draft = write_random_draft(tmp_path / "draft", "draft", **layers)
    target = None if name == "target.yaml" else write_target(tmp_path / "of")
    put(draft / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"{re.escape(name)}: .*{message}") as error:
        export(ExportConfig(draft=draft, out=tmp_path / "out", format="plugin", target=target))
    assert str(error.value).isprintable()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["{", "\xff\xfe", "[]", '{"sampling": {"top_k": "\\ud800"}}'])
def test_a_policy_that_is_none_is_one_line(damage, tmp_path, write_random_draft):
    draft = write_random_draft(tmp_path / "draft", "draft")
    (draft / "policy.json").write_text(damage, "latin-1")
    with pytest.raises(PolicyError, match=r"policy\.json: (cannot be read as JSON|holds a list|holds '\\ud800')"):
        describe(draft)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * 1000, ""])
def test_a_name_that_moves_the_cursor_is_no_operating_point(name, tmp_path, write_random_draft):
    draft = write_random_draft(tmp_path / "draft", "draft")
    point = {"name": name, "policy": {"thresholds": {"validity": 0.9}}}
    (draft / "policy.json").write_text(json.dumps({"default": name, "points": [point]}))
    with pytest.raises(PolicyError, match=r"policy\.json: field points\.0\.name is ") as error:
        describe(draft)
    assert str(error.value).isprintable()


def test_inspect_prints_no_control_characters(imported, capsys):
    path = imported / "import.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layout": "a\x1b[2Jb"}))
    inspect(InspectConfig(draft=imported))
    said = capsys.readouterr().out
    assert "a\\x1b[2Jb" in said
    assert "\x1b[2J" not in said


@pytest.mark.parametrize("key", ["layout", "target", "target_said"])
def test_inspect_prints_the_beginning_of_an_endless_name(key, imported, capsys):
    path = imported / "import.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "x" * 100_000}))
    inspect(InspectConfig(draft=imported))
    said = capsys.readouterr().out.replace(" ", "").replace("\n", "")
    assert "x" * 80 + "..." in said
    assert "x" * 81 not in said


@pytest.mark.parametrize("said", ["a`\n\n# Safe\n\n[take it](https://elsewhere)", "\U0001f600" * 100_000])
@pytest.mark.parametrize("key", ["layout", "target_said"])
def test_a_model_card_holds_no_text_of_a_stranger_but_as_code(key, said, imported, tmp_path):
    path = imported / "import.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: said}))
    export(ExportConfig(draft=imported, format="eagle3", out=tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert len(card) < 3000
    assert "# Safe" not in card.splitlines()
    assert not re.sub("`[^`]*`", "", card).count("elsewhere")


def test_an_error_prints_no_control_characters(imported, tmp_path, capsys):
    """A stranger's `target.yaml` names a path, and what is wrong with it is said with that path."""
    (tmp_path / "t.yaml").write_text('name: small\npath: "/x\\e[2J"\naux_layers: [2, 6, 9]\nmax_model_len: 512\n')
    with pytest.raises(SystemExit):
        run("inspect", [f"draft={imported}", f"target={tmp_path / 't.yaml'}"])
    said = capsys.readouterr().err
    assert "error: /x\\x1b[2J/config.json: target small cannot be read" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": {"x": "y"}}, "names tensor 'y', which the draft does not have"),
        ({"names": {"a\nb": "fc.weight"}}, r"names is .*: 'a\\nb' is no tensor's name, expected up to 255 printable"),
        ({"names": {"x" * 256: "fc.weight"}}, "'x{150}.* is no tensor's name, expected up to 255 printable"),
        ({"names": {"": "fc.weight"}}, "'' is no tensor's name"),
        # It was written, and safetensors could not read the file.
        ({"names": {"__metadata__": "fc.weight"}}, r"import\.json: names is .*: '__metadata__' is no tensor's name"),
        ({"types": {"d2t": "object"}}, r"types\.d2t is 'object'"),
        ({"types": {"fc.weight": "int8"}}, r"types\.fc\.weight"),
        ({"config": 3}, "config is 3"),
        ({"format_version": 2}, "format_version is 2"),
    ],
)
def test_an_origin_that_cannot_be_read_is_refused(changes, message, imported, tmp_path):
    path = imported / "import.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DraftError, match=message):
        export(ExportConfig(draft=imported, out=tmp_path / "out", format="original"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (lambda i: "lm_head.weight", "tensor 'lm_head.weight' has 600 names, expected one"),
        (lambda i: f"tensor {i % 599}", "tensor 'tensor 0' has 2 names, expected one"),
        (lambda i: f"tensor {i}", None),
    ],
)
def test_a_tensor_of_an_origin_has_one_name(ours, message, imported, tmp_path):
    """It was written under each, and hashed for each: a few lines of text made 141 MB of a draft of 2.5."""
    path = imported / "import.json"
    names = {f"copy {i}": ours(i) for i in range(600)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"names": names}))
    said = rf"import\.json: names is {{'copy 0': .*: {message}" if message else "which the draft does not have"
    with pytest.raises(DraftError, match=said) as error:
        export(ExportConfig(draft=imported, out=tmp_path / "out", format="original"))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    assert not (tmp_path / "out").exists()
    if message:
        with pytest.raises(DraftError, match=said):
            describe(imported)


def test_an_origin_names_no_more_tensors_than_a_draft_may_have(imported):
    path = imported / "import.json"
    names = {f"copy {i}": f"tensor {i}" for i in range(10_001)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"names": names}))
    with pytest.raises(DraftError, match=r"import\.json: names is .*: 10001 names, expected at most 10000"):
        describe(imported)


def test_an_output_that_is_a_file_is_refused(imported, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(FileExistsError, match="is a file, expected a new or empty folder"):
        export(ExportConfig(draft=imported, out=tmp_path / "out", format="original"))


def test_an_output_that_is_a_broken_link_is_refused(imported, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match="is a link to nothing, expected a new or empty folder"):
        export(ExportConfig(draft=imported, out=tmp_path / "out", format="original"))


@pytest.mark.parametrize("below", [".", "draft"])
def test_a_published_draft_in_the_hub_s_cache_is_read_through_its_links(below, tmp_path):
    """``snapshots/REVISION`` and the folders in it link into ``blobs`` beside it, and nowhere else."""
    hub = tmp_path / "models--a--b"
    blobs, folder = hub / "blobs", hub / "snapshots" / "0123" / below
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    (blobs / "c").write_text(json.dumps(CONFIGS["angelslim"]))
    save_file(tensors_of("angelslim"), blobs / "w")
    up = "../" * len(folder.relative_to(hub).parts)
    (folder / "config.json").symlink_to(f"{up}blobs/c")
    (folder / WEIGHTS).symlink_to(f"{up}blobs/w")
    target = write_target(tmp_path / "of")
    import_draft(ImportConfig(draft=folder, target=target, out=tmp_path / "draft"))
    assert describe(tmp_path / "draft")["origin"] == "imported, layout angelslim"
    shutil.copy(blobs / "w", hub / "other")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(f"{up}other")
    with pytest.raises(DraftError, match="is a link out of its folder"):
        import_draft(ImportConfig(draft=folder, target=target, out=tmp_path / "no"))
