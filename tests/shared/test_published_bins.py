"""Published drafts whose weights are a ``pytorch_model.bin``: read to the bit, and nothing in them is executed.

torch is never imported by this process, so the files are written and read by another.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from specexit.config import REPOSITORY
from specexit.drafts.config import DraftError
from specexit.drafts.directory import read_draft
from specexit.drafts.published import import_draft, safetensors_of
from specexit.drafts.tensors import FLOATS
from specexit.schemas.published import ImportConfig
from tests.shared.published import tensors_of, write_published, write_target

WRITE_BINS = """
import os, pickle, sys, zipfile, torch
from pathlib import Path
from safetensors.torch import load_file
def write(what, good, out):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (out.parent / "executed",))
    class Shell:
        def __reduce__(self):
            return (os.system, (f"touch {out.parent / 'executed'}",))
    if what == "good":
        torch.save(good, out)
    elif what == "payload":
        torch.save(good | {"evil": Payload()}, out)
    elif what == "shell":
        torch.save(good | {"evil": Shell()}, out)
    elif what == "quantised":
        scaled = torch.quantize_per_tensor(good["fc.weight"].float(), 0.1, 0, torch.qint8)
        torch.save(good | {"fc.weight": scaled}, out)
    elif what == "sparse":
        torch.save(good | {"fc.weight": good["fc.weight"].float().to_sparse()}, out)
    elif what == "meta":
        torch.save(good | {"fc.weight": good["fc.weight"].to("meta")}, out)
    elif what == "nameless":
        torch.save(good | {"": good["norm.weight"]}, out)
    elif what == "a pointer":
        out.write_text("version https://git-lfs.github.com/spec/v1\\noid sha256:ab\\nsize 3\\n")
    elif what == "negative":
        torch.save(good | {"norm.weight": torch._neg_view(-good["norm.weight"])}, out)
    elif what == "stretched":
        torch.save(good | {"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, out)
    elif what == "without checksums":
        torch.serialization.set_crc32_options(False)
        torch.save(good, out)
        torch.serialization.set_crc32_options(True)
    elif what == "one checksum gone":
        torch.save(good, out)
        with zipfile.ZipFile(out) as archive:
            part = max(archive.infolist(), key=lambda part: part.file_size)
        data = out.read_bytes()
        out.write_bytes(data.replace(part.CRC.to_bytes(4, "little"), bytes(4)))
    elif what == "flipped":
        torch.save(good, out)
        data = bytearray(out.read_bytes())
        data[len(data) // 2] ^= 1
        out.write_bytes(data)
    elif what == "a part too short":
        torch.save(good, out.with_suffix(".whole"))
        with zipfile.ZipFile(out.with_suffix(".whole")) as whole, zipfile.ZipFile(out, "w") as archive:
            for name in whole.namelist():
                archive.writestr(name, whole.read(name)[: 8 if name.endswith("data/2") else None])
        out.with_suffix(".whole").unlink()
    elif what == "tied":
        whole = torch.zeros(200, 64, dtype=torch.float16)
        torch.save(good | {"embed_tokens.weight": whole, "lm_head.weight": whole[:120]}, out)
    elif what == "bare pickle":
        out.write_bytes(pickle.dumps(Payload()))
    elif what == "legacy":
        torch.save(good | {"evil": Payload()}, out, _use_new_zipfile_serialization=False)
    elif what == "nested":
        torch.save({"model": good}, out)
    elif what == "a list":
        torch.save(list(good.values()), out)
    elif what == "truncated":
        torch.save(good, out)
        out.write_bytes(out.read_bytes()[:-1000])
    elif what == "bomb":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(4):
                archive.writestr(f"archive/data/{i}", bytes(2**24))
    elif what == "claims":
        torch.save({"a": torch.zeros(4)}, out)
        data = out.read_bytes()
        out.write_bytes(data.replace((16).to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "little")))
for folder in Path(sys.argv[1]).iterdir():
    write(folder.name, load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
"""

HOSTILE = {
    "payload": "is refused by PyTorch: Unsupported global: GLOBAL getattr",
    "shell": r"is refused by PyTorch: .*unsupported GLOBAL posix\.system",
    "quantised": r"holds 'fc\.weight', which is quantised to torch\.qint8, expected plain numbers",
    "sparse": r"holds 'fc\.weight', which is torch\.sparse_coo, expected plain numbers",
    "meta": r"holds 'fc\.weight', which is on the meta device and so without numbers, expected them",
    "bare pickle": "cannot be read as a checkpoint",
    "legacy": r"is in PyTorch's format from before 1\.6, .* expected the tensors saved anew",
    "nested": "holds 'model': dict, expected tensors by their names",
    "a list": "holds a list",
    "truncated": "cannot be read as a checkpoint",
    "bomb": "is compressed",
    "claims": "its parts claim more bytes than the file has",
    "a pointer": "is a pointer of Git LFS, expected the weights",
    "stretched": r"holds 'fc\.weight' of 4000000000000 bytes, expected no more than the file has",
    "flipped": r"data/\d+ holds other bytes than its checksum is of, so it is damaged: download it again",
    "one checksum gone": r"data/\d+ holds other bytes than its checksum is of, so it is damaged: download it again",
    "a part too short": r"holds '\S+' of \d+ bytes, but no part of that size: it is damaged",
}


@pytest.fixture(scope="module")
def bins(tmp_path_factory):
    """Folder of a published draft for every kind of ``.bin``."""
    folder = tmp_path_factory.mktemp("bins")
    for what in ("good", "negative", "without checksums", "tied", "nameless", *HOSTILE):
        write_published(folder / what, "safeailab")
    subprocess.run([sys.executable, "-c", WRITE_BINS, folder], check=True, capture_output=True)
    for path in folder.rglob("model.safetensors"):
        path.unlink()
    return folder


@pytest.mark.parametrize("what", ["good", "negative", "without checksums"])
def test_a_bin_is_read_to_the_bit(what, bins, tmp_path):
    source, target = bins / what, write_target(tmp_path / "of")
    import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    _, ours = read_draft(tmp_path / "draft")
    for name, tensor in tensors_of("safeailab").items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor)
    assert ours["fc.weight"].dtype == FLOATS["float16"]


def test_tensors_that_share_their_memory_are_read(bins, tmp_path):
    import_draft(ImportConfig(draft=bins / "tied", target=write_target(tmp_path / "of"), out=tmp_path / "draft"))
    _, ours = read_draft(tmp_path / "draft")
    assert ours["embed_tokens.weight"].shape == (200, 64)
    assert ours["lm_head.weight"].shape == (120, 64)
    assert not ours["lm_head.weight"].any()


def test_errors_about_the_tensors_of_a_bin_name_it_and_no_scratch_folder(bins, tmp_path):
    with pytest.raises(DraftError, match=r"nameless/pytorch_model\.bin: a tensor is named ''"):
        import_draft(
            ImportConfig(draft=bins / "nameless", target=write_target(tmp_path / "of"), out=tmp_path / "draft")
        )


def test_a_scratch_folder_without_room_is_what_is_named_and_not_the_bin(bins, tmp_path):
    """As where /tmp is small: the file itself can be read, and its own disk has room."""
    (tmp_path / "scratch").mkdir()
    command = 'ulimit -f 4; exec "$@"'  # blocks of 512 bytes, or of 1,024
    unpickle = [sys.executable, "-m", "torch_specexit.unpickle", bins / "good" / "pytorch_model.bin"]
    done = subprocess.run(["sh", "-c", command, "sh", *unpickle, tmp_path / "scratch"], capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    assert re.search(rf"tensors cannot be written into the temporary folder {tmp_path} \(TMPDIR .*File too large", said)
    assert "cannot be read" not in said


def test_what_lies_beside_a_bin_is_not_executed_either(bins, tmp_path, monkeypatch):
    """The working folder came first on the module path of the process that reads it."""
    home = Path(shutil.copytree(bins / "good", tmp_path / "home"))
    for name in ("torch", "pickle", "zipfile"):
        (home / f"{name}.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(home)
    with safetensors_of(Path()) as folder:
        assert (folder / "model.safetensors").exists()
    assert not (home / "ran").exists()


def test_no_process_of_ours_looks_in_the_working_folder_first():
    """All are started by `specexit.processes`, but that which compares answers and has a path of its own."""
    packages = (REPOSITORY / name for name in ("shared/specexit", "jax_specexit", "torch_specexit"))
    starting = {file.name for package in packages for file in package.rglob("*.py") if '"-m"' in file.read_text()}
    assert starting == {"processes.py", "apart.py"}


READ_BINS = """
import json, resource, sys
from pathlib import Path
from torch_specexit.unpickle import main
folder, *kinds = sys.argv[1:]
said = {}
for what in kinds:
    sys.argv[1:] = [str(Path(folder, what, "pytorch_model.bin")), folder]
    try:
        main()
    except SystemExit as refused:
        said[what] = refused.code
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def refusals(bins):
    """What is said of each, in one process: torch takes seconds to import."""
    done = subprocess.run([sys.executable, "-c", READ_BINS, bins, *HOSTILE], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_bin_is_refused_and_executes_nothing(bins, refusals, what):
    assert re.search(HOSTILE[what], refusals[what])
    assert "weights_only" not in refusals[what]  # PyTorch's advice to read it all the same
    assert not (bins / what / "executed").exists()
    assert sorted(path.name for path in (bins / what).iterdir()) == ["config.json", "pytorch_model.bin"]


def test_an_import_of_a_hostile_bin_writes_nothing(bins, tmp_path):
    source, target = bins / "payload", write_target(tmp_path / "of")
    with pytest.raises(DraftError, match=HOSTILE["payload"]) as error:
        import_draft(ImportConfig(draft=source, target=target, out=tmp_path / "draft"))
    assert str(error.value).isprintable()
    assert not (source / "executed").exists()
    assert not (tmp_path / "draft").exists()
