"""The weights of a target, which lie in the files that vLLM reads, and in the types that training can read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from specexit.drafts.files import TensorError, parse_json
from specexit.drafts.tensors import DTYPES, FLOATS, INDEX, Stored, entry_of, header_of, weight_map
from specexit.errors import shown

QUANTISED = (".weight_scale", ".weight_scale_inv", ".weight_packed", ".qweight", ".SCB", ".weight.absmax")
"""Ends of the names of tensors that lie beside, or in the place of, a quantised ``.weight``."""


def target_files(folder: Path) -> list[Path]:
    """The files of a target's weights, those that vLLM reads: what its index names, or without one all that are there.

    Beside those of an index may lie others, such as the same weights in the layout of their authors. Unlike a draft's,
    a target's index may name any number of tensors, and its files may be links to wherever somebody keeps them.

    Raises:
      TensorError: the index cannot be read, or names a file that is not there.
    """
    there, index = sorted(folder.glob("*.safetensors")), folder / INDEX
    if not index.exists():
        return there
    named = set(weight_map(parse_json(index.read_bytes(), index), index).values())
    lost = sorted(named - {path.name for path in there})
    if lost:
        raise TensorError(
            f"{index}: names {lost[0]}, which is not there: expected all of its files, or no index where the weights "
            "lie in others"
        )
    return [path for path in there if path.name in named]


def refuse_second(name: str, first: Path | None, second: Path) -> None:
    """Refuse a tensor that another file has as well: which of the two is served, nobody says.

    Raises:
      TensorError: ``first``, the file that it was found in before, is not None.
    """
    if first is not None:
        raise TensorError(
            f"{first.parent}: tensor {name} is in {first.name} and in {second.name}: expected it in one of them, or an "
            f"{INDEX} that names the files which count"
        )


def some_of(folder: Path, names: Collection[str]) -> dict[str, Stored]:
    """Where some of a model's tensors lie, by name; those that no file has are left out.

    Others may be of types that are unknown here: a target's embeddings are to be found beside quantised weights.

    Raises:
      TensorError: a file has no header of safetensors, or one of these tensors is in two files, of another type, or
        truncated; or see `target_files`.
    """
    found: dict[str, Stored] = {}
    for path in target_files(folder):
        raw, body, size = header_of(path)
        for name in names:
            if name in raw:
                refuse_second(name, found[name].file if name in found else None, path)
                found[name] = stored = entry_of(path, name, raw[name], body)
                if stored.start + stored.nbytes > size:
                    raise TensorError(f"{path}: ends within tensor {name}, so it is truncated")
    return found


def check_plain(folder: Path, name: str, names: Collection[str], code: str | None, method: str | None = None) -> None:
    """Refuse a quantised weight of which the reader does not know how it is: its numbers alone mean nothing.

    Args:
      folder: named in errors.
      name: of the weight.
      names: of all tensors of the folder.
      code: the weight's type, by its name in a header or numpy's; None where there is no tensor of that name.
      method: that ``config.json`` names and transformers does not read; None where it names none.

    Raises:
      TensorError: it is of whole numbers or float8, or another tensor says how it is quantised.
    """
    expected = "expected plain weights in F32, BF16 or F16, or a quantization_config in config.json that says how"
    if method is not None:
        expected = (
            f"of which config.json says quant_method {shown(method)}, and transformers does not read that: expected "
            "plain weights in F32, BF16 or F16, or a quantization_config of a method that it knows"
        )
    for end in QUANTISED:
        beside = name.removesuffix(".weight") + end
        if beside in names:
            raise TensorError(f"{folder}: {beside} says that {name} is quantised, {expected}")
    if code is not None and DTYPES.get(code, code) not in (*FLOATS, "float64"):
        raise TensorError(f"{folder}: {name} has dtype {code}, {expected}")


def check_all_plain(folder: Path, method: str | None = None) -> None:
    """`check_plain` of every weight of a model's folder.

    Raises:
      TensorError: one is quantised; or a file has no header of safetensors; or see `target_files`.
    """
    fields = {name: one for path in target_files(folder) for name, one in header_of(path)[0].items()}
    for name, said in fields.items():
        if name.endswith(".weight"):
            check_plain(folder, name, fields, str(said.get("dtype") if isinstance(said, dict) else said), method)
