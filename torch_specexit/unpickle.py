"""``python -m torch_specexit.unpickle FILE.bin FOLDER``: a PyTorch checkpoint as ``FOLDER/model.safetensors``.

Nothing of the file is executed: it is loaded with ``weights_only``, by a process of its own that may hold little more
than the file. A file that is compressed, or claims to hold more than it does, is refused before it is read.
"""

from __future__ import annotations

import pickle
import resource
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from specexit.drafts.files import NO_POINTER, POINTER
from specexit.errors import shown

LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""How PyTorch's format from before 1.6 begins, behind a few bytes of pickle. It is refused: unlike a zip archive it
has no parts that can be looked at before they are read."""
ROOM = 2 * 2**30
"""Bytes of address space beside three times the file: the interpreter's libraries and its threads."""


class BinError(Exception):
    """A checkpoint that is not read; the message says why."""


def read_bin(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint.

    Raises:
      BinError: it is no zip archive of PyTorch's, or a compressed or damaged one; it holds something else than tensors,
        or quantised or sparse ones; or it is a pointer of Git LFS.
    """
    with path.open("rb") as file:
        begin = file.read(32)
        if begin.startswith(POINTER):
            raise BinError(NO_POINTER)
        if LEGACY in begin:
            raise BinError(
                "is in PyTorch's format from before 1.6, which is not read: expected the tensors saved anew "
                "as torch.save writes them by now"
            )
    members = _checked_members(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise BinError(f"is refused by PyTorch: {_reason(error)}") from error
    if not isinstance(found, Mapping):
        raise BinError(f"holds a {type(found).__name__}, expected tensors by their names")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise BinError(f"holds {shown(name)}: {type(tensor).__name__}, expected tensors by their names")
        if tensor.is_quantized or tensor.layout is not torch.strided:
            kind = f"quantised to {tensor.dtype}" if tensor.is_quantized else str(tensor.layout)
            raise BinError(f"holds {shown(name)}, which is {kind}, expected plain numbers")
        if tensor.is_meta:
            raise BinError(f"holds {shown(name)}, which is on the meta device and so without numbers, expected them")
        if tensor.nbytes > path.stat().st_size:
            raise BinError(f"holds {shown(name)} of {tensor.nbytes} bytes, expected no more than the file has")
    _check_parts(found, members)
    return dict(_apart({name: tensor.detach().resolve_neg() for name, tensor in found.items()}))


def _checked_members(path: Path) -> list[zipfile.ZipInfo]:
    """The parts of an archive, checked against their checksums where it was written with any.

    Raises:
      BinError: the file is no archive; a part is compressed or damaged; or the parts claim more than the file has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    raise BinError(f"{member.filename} is compressed, expected an archive as torch.save writes it")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise BinError("its parts claim more bytes than the file has")
            if any(member.CRC for member in members):
                damaged = archive.testzip()
            else:  # as `torch.serialization.set_crc32_options(False)` has it: 0 for every part
                damaged = None
                for member in members:
                    archive.open(member).close()  # which looks at what stands in front of the part
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise BinError(f"cannot be read as a checkpoint of PyTorch (truncated?): {error}") from error
    if damaged is not None:
        raise BinError(f"{damaged} holds other bytes than its checksum is of, so it is damaged: download it again")
    return members


def _check_parts(tensors: Mapping[str, torch.Tensor], members: Iterable[zipfile.ZipInfo]) -> None:
    """Check that the memory of every tensor is a part of the archive, and not what lies behind a shorter one.

    Raises:
      BinError: names the tensor.
    """
    sizes, seen = Counter(member.file_size for member in members), set[int]()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        if memory.device.type != "cpu" or memory.data_ptr() in seen:
            continue
        seen.add(memory.data_ptr())
        sizes[memory.nbytes()] -= 1
        if memory.nbytes() and sizes[memory.nbytes()] < 0:
            raise BinError(f"holds {shown(name)} of {memory.nbytes()} bytes, but no part of that size: it is damaged")


def _apart(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, each in memory of its own: safetensors has no place for tied ones."""
    seen = set[int]()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        yield name, tensor.clone(memory_format=torch.contiguous_format) if memory in seen else tensor.contiguous()
        seen.add(memory)


def _reason(error: Exception) -> str:
    """What PyTorch does not read, on one line, and not its advice to read the file all the same."""
    lines = [line.partition("WeightsUnpickler error: ")[2] or line for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "unsupported" in line.lower()]
    said = said or [line for line in lines if "weights_only" not in line] or [type(error).__name__]
    first = said[0].strip().partition(" Please")[0]
    return "".join(letter for letter in first if letter.isprintable())[:200]


def limit_memory(path: Path) -> None:
    """Limit the address space of this process to what it has now, three times the checkpoint, and `ROOM`."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = held + 3 * path.stat().st_size + ROOM
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Command line, see the module; exits with 1 and one line for a file that is refused."""
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    limit_memory(path)
    try:
        tensors = read_bin(path)
    except BinError as error:
        raise SystemExit(f"{path}: {error}") from error
    except Exception as error:  # a stranger's file: whatever PyTorch does not expect of it
        raise SystemExit(f"{path}: cannot be read: {type(error).__name__}: {_reason(error)}") from error
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except Exception as error:  # what safetensors does not expect, or a full disk, which need not be the file's own
        raise SystemExit(
            f"{path}: its tensors cannot be written into the temporary folder {folder.parent} (TMPDIR names another): "
            f"{type(error).__name__}: {_reason(error)}"
        ) from error


if __name__ == "__main__":
    main()
