"""``specexit import``: an EAGLE-3 draft that somebody published becomes a draft directory, tensor by tensor.

The weights keep their type and every bit. ``import.json`` in the new directory says which layout they came in, under
which names and with which config, so that `specexit export` can write the original again. A list of the prompts
that it was trained on, as an export in format ``eagle3`` has it, goes along.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator
from rich.console import Console

from specexit.config import Config, write_text
from specexit.data.overlap import copy_prompts
from specexit.data.teacher import EMBEDDING, HEAD, is_tied
from specexit.drafts.config import MAX_CONFIG, PLAIN_ARCHITECTURES, DraftConfig, DraftError, check_target
from specexit.drafts.directory import check_shapes, vocabulary_tensors, weights_path, write_into
from specexit.drafts.files import MAX_NAME, TensorError, inside, odd, read_json
from specexit.drafts.layouts import LAYOUTS, Keys, Layout
from specexit.drafts.layouts.layout import OUTPUTS
from specexit.drafts.target_weights import some_of
from specexit.drafts.tensors import (
    FLOATS,
    INDEX,
    MAX_TENSORS,
    METADATA,
    WEIGHTS,
    Stored,
    open_tensors,
    tensor_hash,
    together,
)
from specexit.drafts.vocabulary import Form, read_vocabulary
from specexit.errors import dotted, first_problem, shown
from specexit.outputs import new_folder, removed_at_the_end
from specexit.processes import python
from specexit.schemas.published import ImportConfig
from specexit.schemas.target import TargetConfig, load_target_config, save_target

FILE = "import.json"
BIN = "pytorch_model.bin"
VOCABULARIES = {"offsets": "d2t holds offsets", "ids": "d2t holds ids", "whole": "the target's whole vocabulary"}
"""How the draft's tokens are stated, in words."""
OTHER_LAYERS = {
    ".experts.": "of a layer with experts",
    ".router.": "of a layer with experts",
    ".mlp.gate.": "of a layer with experts",
    ".qkv_proj.": "queries, keys and values in one",
    ".gate_up_proj.": "both halves of the MLP in one",
    ".sinks": "of attention with sinks",
}
"""Part of a tensor's name -> what it is of; the drafts here have no such layer."""


class Origin(Config):
    """``import.json``: where an imported draft came from."""

    format_version: Literal[1] = 1
    layout: str
    config: dict[str, Any] = Field(description="the published config.json")
    names: dict[str, str] = Field(description="published name of a tensor -> its name here; in the file's order")
    vocabulary: Form = Field(description="how d2t was published")
    types: dict[Literal["d2t", "t2d"], Literal["int64", "int32", "uint8", "int8", "bool"]] = Field(
        description="types of d2t and t2d as published"
    )
    weights_blake3: str | None = Field(
        default=None, description="of the published weights, see `specexit.drafts.tensors.weights_hash`"
    )
    sha256: str | None = Field(default=None, description="of the published file, by which older versions knew it")
    target: str = Field(description="the target it was imported for")
    target_said: str | None = Field(
        default=None, description="the target that its config names, where that is another than the one imported for"
    )

    @field_validator("names")
    @classmethod
    def _of_a_file(cls, names: dict[str, str]) -> dict[str, str]:
        """Refuse names that no file of weights has, and a second name of a tensor, which is written for each name."""
        if len(names) > MAX_TENSORS:
            raise ValueError(f"{len(names)} names, expected at most {MAX_TENSORS}")
        for name in names:
            if odd(name) or name == METADATA:
                raise ValueError(
                    f"{shown(name)} is no tensor's name, expected up to {MAX_NAME} printable characters other than "
                    f"{METADATA!r}, which safetensors keeps for text"
                )
        ours, count = max(Counter(names.values()).items(), key=lambda item: item[1], default=("", 0))
        if count > 1:
            raise ValueError(f"tensor {shown(ours)} has {count} names, expected one")
        return names


def read_origin(folder: Path) -> Origin | None:
    """What ``import.json`` says; None where there is none.

    Raises:
      DraftError: it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Origin.model_validate(read_json(path, 4 * MAX_CONFIG))
    except TensorError as error:
        raise DraftError(str(error)) from error
    except ValidationError as error:
        raise DraftError(f"{path}: {first_problem(error)}") from error


def check_keys(folder: Path) -> None:
    """Check that a folder's ``config.json`` has no key or value that `import_draft` would refuse.

    A config that no layout recognises without its tensors is not checked.

    Raises:
      DraftError: the file cannot be read, or has such a key, which is named with its value.
    """
    path = folder / "config.json"
    try:
        raw = read_json(path, MAX_CONFIG)
    except TensorError as error:
        raise DraftError(str(error)) from error
    layout = next((one for one in LAYOUTS.values() if one.recognises(raw, ())), None)
    if layout is not None:
        keys = Keys(raw, path)
        layout.fields(keys)
        keys.finish()


def import_draft(config: ImportConfig) -> Origin:
    """Read a published draft, check it against its target, and write it as a draft directory.

    Raises:
      DraftError: the layout is unknown, a key, a value or a tensor is not understood, or the target is another one.
      ConfigError: the target cannot be read, or does not say how many layers it has.
      FileExistsError: ``out`` is there and not empty.
      OverlapError, TensorError: its list of training prompts cannot be read, see `specexit.data.overlap.read_prompts`.
    """
    target = load_target_config(config.target)
    with safetensors_of(config.draft) as folder:
        draft = Published(config.draft, folder, config, target)
        with new_folder(config.out) as beside:
            written = write_into(beside, draft.config, draft.shapes, draft.pieces, named=weights_path(folder))
            origin = draft.origin(written)
            write_text(beside / FILE, json.dumps(origin.model_dump(mode="json"), indent=2) + "\n")
            save_target(beside, target)
            copy_prompts(config.draft, beside)
    layers, console = list(draft.config.eagle_aux_hidden_state_layer_ids), Console(stderr=True)
    for note in draft.notes:
        console.print(note, style="yellow", soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"{config.draft}: {draft.layout.about}\n{VOCABULARIES[origin.vocabulary]}; aux layers {layers} of "
        f"{draft.config.target_num_hidden_layers} ({draft.layers_from})\n-> {config.out}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return origin


@contextmanager
def safetensors_of(folder: Path) -> Iterator[Path]:
    """A folder with the draft's tensors as safetensors: its own, or a temporary one with what its ``.bin`` holds.

    Raises:
      DraftError: there is no such folder, it holds no weights, or the ``.bin`` is refused or needs torch.
    """
    if not folder.is_dir():
        raise DraftError(
            f"{folder}: no such folder; of a name on the Hub, `hf download NAME --local-dir FOLDER` makes one"
        )
    if (folder / WEIGHTS).exists() or (folder / INDEX).exists():
        yield folder
        return
    if not (folder / BIN).exists():
        raise DraftError(f"{folder}: no {WEIGHTS}, {INDEX} or {BIN}")
    try:
        path = inside(folder, BIN)
    except TensorError as error:
        raise DraftError(str(error)) from error
    if find_spec("torch") is None:
        raise DraftError(f"{path}: needs torch, which is not installed: pip install torch")
    with removed_at_the_end(), tempfile.TemporaryDirectory() as scratch:
        command = python("torch_specexit.unpickle", str(path), scratch)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"{path}: no message, exit code {done.returncode}"])[-1]
            raise DraftError(last)
        try:
            yield Path(scratch)
        except (DraftError, TensorError) as error:  # a user has no temporary folder, only the .bin
            raise DraftError(str(error).replace(str(Path(scratch) / WEIGHTS), str(path))) from error


class Published:
    """A published draft, understood: its config as ours, and where our tensors come from.

    Args:
      home: the draft's folder, with its ``config.json``; named in errors.
      folder: holds its tensors as safetensors.
      options: with the layout and the aux layers, where they are given and not to be found out.
      target: the model it belongs to.

    Raises:
      DraftError: see `import_draft`.
    """

    def __init__(self, home: Path, folder: Path, options: ImportConfig, target: TargetConfig):
        self.home, self.path = home, home / "config.json"
        try:
            self.raw, stored = read_json(self.path, MAX_CONFIG), open_tensors(folder)
        except TensorError as error:
            raise DraftError(str(error)) from error
        if not isinstance(self.raw, dict):
            raise DraftError(f"{self.path}: holds a {type(self.raw).__name__}, expected an object")
        self.target = target.name
        self.layout = self._layout(options, stored)
        self.names = {name: self.layout.ours(name) for name in stored}
        twice = [ours for ours, count in Counter(self.names.values()).items() if count > 1]
        if twice:
            raise DraftError(f"{home}: two tensors are {twice[0]} in layout {self.layout.name}")
        self.stored = {self.names[name]: place for name, place in stored.items()}
        self._check_prefix()
        self._check_layer(stored)
        fields = self._fields(options, target)
        self.config = self._config(fields)
        check_target(self.config, home, target.hf_config(), target.name)
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        if self.config.model_type == "llama" and width % heads:
            self.notes.append(
                f"{home}: hidden_size is {width}, no multiple of num_attention_heads, {heads}: transformers 5 reads no "
                "such Llama layer, and an engine that uses it does not start"
            )
        sizes = self.config.draft_vocab_size, self.config.vocab_size
        self.form: Form
        d2t, t2d = self._array("d2t", sizes[0]), self._array("t2d", sizes[1])
        self.vocab, self.form = read_vocabulary(d2t, t2d, *sizes, home)
        if self.config.whole_vocabulary and (moved := np.flatnonzero(self.vocab != np.arange(len(self.vocab)))).size:
            raise DraftError(
                f"{home}: tensor d2t maps draft token {moved[0]} to target token {self.vocab[moved[0]]}, expected "
                f"itself: the draft has all {self.config.vocab_size} tokens, and no engine reads another order of them"
            )
        self._tensors = vocabulary_tensors(self.vocab, self.config.vocab_size)
        if self.config.whole_vocabulary and "lm_head.weight" not in self._sources():
            # Nobody is to fetch a target for what is no EAGLE-3 draft: the first EAGLE's have no head either.
            assumed = FLOATS[self.config.torch_dtype], self.config.tensor_shapes()["lm_head.weight"]
            check_shapes(self.config, self._shapes() | {"lm_head.weight": assumed}, home)
            self.stored["lm_head.weight"] = _head_of(target, home)
            self.notes.append(f"{home}: has no lm_head.weight, so the target's is taken, as vLLM does")
        self.shapes = self._shapes()
        check_shapes(self.config, self.shapes, home)

    def _layout(self, options: ImportConfig, names: dict[str, Stored]) -> Layout:
        if options.layout is not None:
            return LAYOUTS[options.layout]
        for layout in LAYOUTS.values():
            if layout.recognises(self.raw, names):
                return layout
        known, found = ", ".join(LAYOUTS), shown(self.raw.get("architectures"))
        raise DraftError(
            f"{self.path}: architectures is {found}, which no layout has; where it is written as one of {known} is, "
            "say layout="
        )

    def _check_prefix(self) -> None:
        """Refuse tensors behind an unknown prefix by it: later checks would only name one as missing."""
        behind = next((name for name in self.stored if name.endswith(".fc.weight")), None)
        if behind is not None and "fc.weight" not in self.stored:
            raise DraftError(
                f"{self.home}: tensor {behind} stands behind a prefix that no layout has, expected fc.weight or "
                "model.fc.weight"
            )

    def _check_layer(self, names: Iterable[str]) -> None:
        """Refuse a layer of another kind by what it is: later checks would only name missing or unknown tensors."""
        for part, what in OTHER_LAYERS.items():
            for name in names:
                if part in name:
                    raise DraftError(
                        f"{self.home}: tensor {name} is {what}, expected a Llama layer with q_proj, k_proj, v_proj, "
                        "gate_proj, up_proj and down_proj"
                    )

    def _fields(self, options: ImportConfig, target: TargetConfig) -> dict[str, Any]:
        keys = Keys(self.raw, self.path)
        fields = self.layout.fields(keys)
        keys.finish()
        self.notes = keys.notes
        self.target_said = _other_than(target, fields.pop("target_named", None))
        if self.target_said is not None:
            keys.note(
                f"names target {shown(self.target_said)}, but it is imported for {target.name}: for another of the "
                "same sizes it drafts badly, and nothing else tells; expected the target it was made for"
            )
        model = target.hf_config()
        for name, (key, said) in fields.pop("of_target", {}).items():
            if model.get(name, said) != said:
                raise keys.error(
                    key,
                    said,
                    f"but target {target.name} has {name} {shown(model[name])}: the draft was made for another target",
                )
        layers = target.needed("num_hidden_layers")["num_hidden_layers"]
        ids, self.layers_from = fields["eagle_aux_hidden_state_layer_ids"], fields.pop("layers_from")
        if options.aux_layers is not None:
            ids, self.layers_from = options.aux_layers, "as you say"
        elif ids is None:
            ids, self.layers_from = [2, layers // 2, layers - 3], "every engine's default"
        elif self.layers_from.endswith(OUTPUTS) and max(ids) > layers:
            raise self._beyond(ids, layers, target)
        found = len(ids)
        stated = fields.pop("num_aux_hidden_states")
        if stated not in (None, found):
            raise DraftError(f"{self.path}: num_aux_hidden_states is {stated}, but there are {found} aux layers")
        counted = {"eagle_aux_hidden_state_layer_ids": ids, "num_aux_hidden_states": found}
        return fields | counted | {"target_num_hidden_layers": layers}

    def _beyond(self, ids: list[int], layers: int, target: TargetConfig) -> DraftError:
        """The error for aux layers that pass the target's last one when they are counted as their place counts them."""
        place, written = self.layers_from.removesuffix(OUTPUTS), [layer - 1 for layer in ids]
        return DraftError(
            f"{self.path}: {place} is {written}, expected ids from 0 to {layers - 1}, the last layer of target "
            f"{target.name}: there they are counted from the output of layer 0; say "
            f"aux_layers={json.dumps(written, separators=(',', ':'))} if these are counted as vLLM does"
        )

    def _config(self, fields: dict[str, Any]) -> DraftConfig:
        tied, own = fields.pop("tie_word_embeddings"), "embed_tokens.weight" in self.stored
        if fields.pop("own_embeddings", None) not in (None, own):
            there = "is there" if own else "is not"
            raise DraftError(f"{self.path}: own_embeddings is {not own}, but tensor embed_tokens.weight {there}")
        fields = self._told_by_tensors() | fields
        whole = fields["draft_vocab_size"] == fields["vocab_size"]
        self.head_is_embedding = tied and whole and "lm_head.weight" not in self.stored
        weights = Counter(place.dtype.name for place in self.stored.values() if place.dtype.name in FLOATS)
        architecture = PLAIN_ARCHITECTURES[fields["model_type"]]
        kept = {
            "architectures": (architecture,),
            "own_embeddings": own,
            "torch_dtype": weights.most_common(1)[0][0] if weights else "float32",
        }
        try:
            return DraftConfig.model_validate(fields | kept)
        except ValidationError as error:
            first = error.errors()[0]
            key = dotted(first)
            what = f"{key} is {shown(first['input'])}: " if key else ""
            raise DraftError(f"{self.path}: {what}{first['msg'].removeprefix('Value error, ')}") from error

    def _told_by_tensors(self) -> dict[str, Any]:
        """Fields that a layout leaves to the tensors because its config may have them from the target."""
        attention = "midlayer.self_attn."
        return {
            "model_type": "qwen3" if f"{attention}q_norm.weight" in self.stored else "llama",
            "attention_bias": f"{attention}q_proj.bias" in self.stored,
        }

    def _sources(self) -> dict[str, Stored]:
        sources = {name: place for name, place in self.stored.items() if name not in ("d2t", "t2d")}
        if self.head_is_embedding and "embed_tokens.weight" in sources:
            sources["lm_head.weight"] = sources["embed_tokens.weight"]
        return sources

    def _shapes(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Type and shape of each tensor that will be written."""
        sources = {name: (place.dtype, place.shape) for name, place in self._sources().items()}
        return sources | {name: (tensor.dtype, tensor.shape) for name, tensor in self._tensors.items()}

    def _array(self, name: str, size: int) -> np.ndarray | None:
        """The tensor of that name; of one that is not as long as it should be type and shape alone, whatever it holds:
        it may be as large as the disk."""
        if name not in self.stored:
            return None
        place = self.stored[name]
        return place.read() if place.shape == (size,) else np.broadcast_to(place.dtype.type(0), place.shape)

    def pieces(self, name: str) -> list[np.ndarray] | Stored:
        """Values of one of our tensors, see `specexit.drafts.tensors.write_tensors`."""
        return [self._tensors[name]] if name in self._tensors else self._sources()[name]

    def origin(self, written: Mapping[str, str]) -> Origin:
        """What ``import.json`` will say, given the hash of every tensor that was written."""
        copied = {ours: hashed for ours, hashed in written.items() if ours not in self._tensors}
        published = {name: copied.get(ours) or tensor_hash(self.stored[ours]) for name, ours in self.names.items()}
        types = {name: self.stored[name].dtype.name for name in ("d2t", "t2d") if name in self.stored}
        said = {"layout": self.layout.name, "config": self.raw, "names": self.names, "vocabulary": self.form}
        return Origin.model_validate(
            said
            | {"types": types, "weights_blake3": together(published)}
            | {"target": self.target, "target_said": self.target_said}
        )


def _head_of(target: TargetConfig, home: Path) -> Stored:
    """The target's LM head, which a draft of its whole vocabulary uses where it has none of its own.

    Raises:
      DraftError: the target's weights are not at hand, or cannot be read.
    """
    fields = target.hf_config()
    try:
        found = some_of(target.folder, (HEAD, EMBEDDING) if is_tied(fields, target.folder) else (HEAD,))
    except TensorError as error:
        raise DraftError(
            f"{home}: tensor lm_head.weight is missing, and the target's cannot be read: {error}"
        ) from error
    if not found:
        raise DraftError(
            f"{home}: tensor lm_head.weight is missing, expected it there or, that of target {target.name}, in "
            f"{target.folder}: such a draft is imported where the target's weights are"
        )
    return found.get(HEAD) or found[EMBEDDING]


def _other_than(target: TargetConfig, said: str | None) -> str | None:
    """The name of the target that a config states, if it is not this one's; None otherwise.

    The last part of a name counts; for a folder in the cache of the Hub's client, that of the model's name there.
    """
    named = (hub_name(Path(said or "")) or said or "").rstrip("/").rpartition("/")[2].casefold()
    names = (target.name, target.path, str(target.folder), hub_name(target.folder) or "")
    ours = {name.rstrip("/").rpartition("/")[2].casefold() for name in names}
    return said if named and named not in ours else None


def hub_name(folder: Path) -> str | None:
    """The name on the Hub of a model that lies in its client's cache; None of one that lies elsewhere.

    Example:
      >>> hub_name(Path("hub/models--Qwen--Qwen3-4B/snapshots/0123abc")), hub_name(Path("models/Qwen3-4B"))
      ('Qwen/Qwen3-4B', None)
    """
    names = [part.removeprefix("models--") for part in folder.parts if part.startswith("models--")]
    return names[-1].replace("--", "/", 1) if names else None
