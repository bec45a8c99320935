"""``specexit convert``: an orbax checkpoint becomes a draft directory, and back, one tensor at a time.

``convert.json`` in what is written says where it came from, and the BLAKE3 hashes of what was read and written.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from flax.nnx.traversals import flatten_mapping
from rich.console import Console

from jax_specexit.export import read_parameter_of, tensor_pieces
from jax_specexit.model.draft import Draft
from jax_specexit.sharding import make_mesh
from jax_specexit.stored import ParameterHash, open_checkpoint, write_checkpoint
from jax_specexit.training.place import check_name
from jax_specexit.training.run import Start, read_start, save_start
from specexit.config import write_bytes, write_text
from specexit.data.overlap import copy_prompts
from specexit.drafts.begun import FILE, imported_as
from specexit.drafts.config import MAX_CONFIG, DraftConfig, DraftError
from specexit.drafts.directory import open_draft, target_ids, vocabulary_tensors, write_into
from specexit.drafts.files import read_bytes, read_json
from specexit.drafts.hold import FILE as HOLD_FILE
from specexit.drafts.names import tensor_names
from specexit.drafts.policy import FILE as POLICY_FILE
from specexit.drafts.policy import MAX_BYTES, Selection, read_policy, write_policy
from specexit.drafts.published import FILE as IMPORT_FILE
from specexit.drafts.selection import selection_of
from specexit.drafts.tensors import FLOATS, split_of, together, weights_hash
from specexit.drafts.verified import hand_on_verification
from specexit.errors import shown
from specexit.outputs import new_folder
from specexit.schemas.convert import ConvertConfig
from specexit.schemas.target import find_target, save_target

MAX_FILE_GIB = 5.0
"""Largest file of weights, unless ``max_file_gib`` says otherwise."""
FEW = 0.01
"""Share of weights that may become 0 in float16 without a word: some do in every draft of full size."""
logger = logging.getLogger(__name__)


def convert(config: ConvertConfig) -> None:
    """Write the draft directory, or with ``draft`` the run folder.

    It runs on the CPU unless ``JAX_PLATFORMS`` or a mesh is given. Nothing is computed, and on a host of a TPU pod JAX
    would wait for all other hosts, or ask for chips that another run holds.

    Raises:
      ConfigError: ``run`` is not a run folder or holds no checkpoint, or the target is unknown or not the one given.
      SelectionError: the best checkpoint is wanted, and the traces that chose it are gone.
      DraftError: the checkpoint does not fit the run's own description, or holds NaN or infinity; ``draft`` cannot be
        read.
      PolicyError: the ``policy.json`` that the run carries cannot be used.
      FileExistsError: ``out`` is there and not empty.
    """
    if not os.environ.get("JAX_PLATFORMS") and "mesh" not in config.model_fields_set:
        jax.config.update("jax_platforms", "cpu")
    said = _to_draft(config, config.run) if config.run is not None else _to_checkpoint(config)
    Console(stderr=True).print(f"{said} -> {config.out}", soft_wrap=True, markup=False, highlight=False)


def _to_draft(config: ConvertConfig, run: Path) -> str:
    start = read_start(run)
    target = find_target(config.target, run, name=start.shape.target_name)
    vocabulary, hashed = vocabulary_tensors(start.vocab, start.shape.vocab_size), ParameterHash()
    was, files = _as_before(run / FILE, start.shape)
    same = start.kept in (None, target.dtype)  # else float32, which holds every weight of a frozen trunk as it was
    was, dtype = was if config.dtype is None else {}, config.dtype or (target.dtype if same else "float32")
    with open_checkpoint(run, config.which) as checkpoint:
        # Runs of older versions do not record their selection.
        selection = (start.selection or selection_of(run)) if config.which == "best" else None
        if selection is not None and checkpoint.chosen_by is not None:  # `best_by` may have changed since that step
            selection = selection.model_copy(update={"by": checkpoint.chosen_by})
        if start.before is not None:
            now = start.before if selection is None else selection
            selection = Selection(by=now.by, prompts=tuple(sorted({*start.before.prompts, *now.prompts})))
        lost = sorted(tensor_names(start.shape).keys() ^ checkpoint.shapes.keys())
        if lost:
            raise DraftError(f"{run}: parameter {lost[0]} is in only one of its checkpoint and its draft.json")
        pieces = tensor_pieces(start.shape, lambda path: hashed.see(path, checkpoint.read(path)), start.aux_rms)
        shape = start.shape if was else start.shape.model_copy(update={"torch_dtype": dtype})
        types = {name: (FLOATS[was.get(name, dtype)], size) for name, size in shape.tensor_shapes().items()}
        types |= {name: (tensor.dtype, tensor.shape) for name, tensor in vocabulary.items()}

        def values(tensor: str) -> Iterator[np.ndarray]:
            found = [vocabulary[tensor]] if tensor in vocabulary else pieces(tensor)
            yield from (_cast(piece, types[tensor][0], tensor, run) for piece in found)

        with new_folder(config.out) as beside:
            largest = int((config.max_file_gib or MAX_FILE_GIB) * 2**30)
            split = files if config.max_file_gib is None else None
            written = write_into(beside, shape, types, values, max_bytes=largest, files=split, named=run)
            hand_on_verification(run, beside, together(written))
            save_target(beside, target)
            copy_prompts(run, beside)
            _hand_on(run / IMPORT_FILE, beside)
            if shape.specexit is not None:
                if (run / POLICY_FILE).exists():  # it has every point, draft.json only the one that serves
                    policy = read_policy(run)
                else:
                    policy = read_policy(beside).model_copy(update={"selection": selection})
                write_policy(beside, policy)
                _hand_on(run / POLICY_FILE, beside)  # byte for byte, whoever wrote it
                _hand_on(run / HOLD_FILE, beside)
            record = {"run": str(run), "which": config.which, "step": checkpoint.step, "aux_rms": list(start.aux_rms)}
            record |= {} if start.imported is None else {"imported": start.imported}
            hashes = {"parameters_blake3": hashed.hexdigest(), "weights_blake3": together(written)}
            write_text(beside / FILE, json.dumps(record | hashes, indent=2) + "\n")
    return f"checkpoint of step {checkpoint.step}, in {shape.torch_dtype}"


def _cast(piece: np.ndarray, dtype: np.dtype, tensor: str, run: Path) -> np.ndarray:
    """A piece of a tensor in the type that it is written in; it warns where over `FEW` of it become 0.

    Raises:
      DraftError: a weight is beyond what the type holds.
    """
    with np.errstate(over="ignore"):
        cast = piece.astype(dtype, copy=False)
    if cast.dtype == np.float16 and piece.dtype != np.float16:  # the exponents of the others are alike
        if (beyond := np.isinf(cast) & np.isfinite(piece)).any():
            raise DraftError(
                f"{run}: tensor {tensor} holds {float(piece[beyond][0]):g}, beyond float16, which ends at 65504: "
                "expected dtype=bfloat16 or dtype=float32"
            )
        lost = (np.count_nonzero(piece) - np.count_nonzero(cast)) / max(1, piece.size)
        if lost > FEW:
            logger.warning("%s: %.0f %% of a part of %s is 0 in float16; bfloat16 keeps it", run, 100 * lost, tensor)
    return cast


def _as_before(path: Path, shape: DraftConfig) -> tuple[dict[str, str], list[list[str]] | None]:
    """How the draft directory that a run was made from stored its tensors, by the run's ``convert.json``.

    Returns:
      The type of every tensor, and the names of the tensors in each file; empty and None for a run that was not made
      from a draft directory.

    Raises:
      DraftError: ``convert.json`` does not describe the tensors of this draft.
    """
    found = read_json(path, MAX_CONFIG) if path.exists() else {}
    said, files = (found.get("types", {}), found.get("files")) if isinstance(found, dict) else (found, None)
    names = shape.tensor_shapes().keys() - shape.vocabulary_shapes.keys()
    if said and not (isinstance(said, dict) and said.keys() == names and {*map(str, said.values())} <= FLOATS.keys()):
        raise DraftError(f"{path}: types is {shown(said)}, expected {', '.join(FLOATS)} for every tensor of the draft")
    lists = files if isinstance(files, list) and all(isinstance(file, list) and file for file in files) else [[None]]
    if files is not None and sorted(str(name) for file in lists for name in file) != sorted(shape.tensor_shapes()):
        raise DraftError(f"{path}: files is {shown(files)}, expected lists that name every tensor of the draft once")
    return said, files


def _hand_on(file: Path, folder: Path) -> None:
    """Copy a file into a folder, if it is there; such files belong to a draft, and no checkpoint holds them."""
    if file.exists():
        write_bytes(folder / file.name, read_bytes(file, MAX_BYTES))


def _aux_rms(path: Path, layers: int) -> tuple[float, ...]:
    """What a run divided its aux hidden states by, according to ``convert.json``; 1 for every layer without the file.

    Raises:
      DraftError: ``aux_rms`` in the file is not a number above 0 for every layer.
    """
    if not path.exists():
        return (1.0,) * layers
    found = read_json(path, MAX_CONFIG)
    said = found.get("aux_rms", [1.0] * layers) if isinstance(found, dict) else found
    divisors = [x for x in said if type(x) in (int, float) and 0 < x < math.inf] if isinstance(said, list) else []
    if len(divisors) != layers or said != divisors:
        raise DraftError(f"{path}: aux_rms is {shown(said)}, expected {layers} numbers above 0")
    return tuple(divisors)


def _to_checkpoint(config: ConvertConfig) -> str:
    assert config.draft is not None
    check_name(config.out)
    draft, stored = open_draft(config.draft)
    path, hashed = config.draft / FILE, ParameterHash()
    aux_rms = _aux_rms(path, draft.num_aux_hidden_states)
    read = read_parameter_of(draft, lambda name, begin, end: stored[name].rows(begin, end), aux_rms)
    parameters = {name: lambda name=name: hashed.see(name, read(name)) for name in tensor_names(draft)}
    abstract = flatten_mapping(nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Draft(draft, rngs=nnx.Rngs(0))))))
    shapes = {"/".join(key): leaf.shape for key, leaf in abstract.items()}
    with new_folder(config.out) as beside:
        write_checkpoint(beside, parameters, shapes, make_mesh(config.mesh))
        vocab = target_ids(draft, {name: stored[name].read() for name in ("d2t",) if name in stored})
        save_start(beside, Start(draft, vocab, aux_rms, imported=imported_as(config.draft)))
        save_target(beside, find_target(config.target, config.draft, name=draft.target_name))
        copy_prompts(config.draft, beside)
        _hand_on(config.draft / IMPORT_FILE, beside)
        if draft.specexit is not None:
            _hand_on(config.draft / POLICY_FILE, beside)
            _hand_on(config.draft / HOLD_FILE, beside)
        types = {name: place.dtype.name for name, place in stored.items() if name not in draft.vocabulary_shapes}
        record = {"draft": str(config.draft), "types": types, "files": split_of(stored)}
        hashes = {"weights_blake3": weights_hash(config.draft), "parameters_blake3": hashed.hexdigest()}
        hand_on_verification(config.draft, beside, hashes["weights_blake3"])
        write_text(beside / FILE, json.dumps(record | hashes, indent=2) + "\n")
    return f"{config.draft}"
