"""The draft directory: the only contract between training and serving.

``config.json`` and ``model.safetensors`` in EAGLE-3's own layout, so that vLLM and everything that reads EAGLE-3
drafts understands them, plus a ``specexit`` block in the config and a few extra rows in the weights:

* source ``draft``: ``signal_head.weight [signals, hidden]``, read from the draft layer's normed output;
* source ``fc``: ``fc.weight [hidden + signals, aux_hidden]``, the layout of the released reference code.

Without those rows it is a plain EAGLE-3 draft.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from pydantic import Field, ValidationError

from specexit.config import Config
from specexit.drafts import policy as policies
from specexit.drafts.policy import Certificate, Serving
from specexit.drafts.policy import Mode as Mode
from specexit.errors import InputError
from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from specexit.outputs import new_folder

FORMAT_VERSION = 1
ARCHITECTURE = "SpecExitLlamaForCausalLMEagle3"
"""Ends with "Eagle3", so vLLM's EAGLEConfig leaves it alone."""

PLAIN_ARCHITECTURE = "LlamaForCausalLMEagle3"

Source = Literal["draft", "fc"]

FLOATS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
"""What weights may be stored in; importing ml_dtypes is also what teaches numpy, and so safetensors, bfloat16."""


class DraftError(InputError):
    """A draft directory that cannot be used; the message names the file, the field and what was expected."""


class SpecExitBlock(Config):
    """The ``specexit`` block of ``config.json``."""

    format_version: int = FORMAT_VERSION
    signals: tuple[str, ...] = NAMES
    source: Source = "draft"
    target: str = Field(description="name of the target the draft was trained for")
    think_start: str = "<think>"
    think_end: str = "</think>"
    split_endings: tuple[str, ...] = ("\n\n",)
    split_connectors: tuple[str, ...] = ()
    exit_point: Literal["earliest", "stable"] = "earliest"
    policy: Policy = Policy(thresholds={"validity": 0.9})
    calibration: Certificate | None = None
    serving: Serving = Serving()


class DraftConfig(Config):
    """``config.json`` of a draft directory."""

    architectures: tuple[str, ...] = (ARCHITECTURE,)
    model_type: Literal["llama"] = "llama"
    hidden_size: int = Field(gt=0)
    target_hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    num_hidden_layers: Literal[1] = 1
    vocab_size: int = Field(gt=0)
    draft_vocab_size: int = Field(gt=0)
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 2048
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    torch_dtype: str = "float32"
    norm_before_residual: Literal[False] = False
    eagle_aux_hidden_state_layer_ids: tuple[int, ...] = Field(min_length=1)
    num_aux_hidden_states: int = Field(gt=0)
    target_num_hidden_layers: int = Field(gt=0)
    specexit: SpecExitBlock | None = None

    @property
    def target_name(self) -> str | None:
        """Name of the target it was trained for; None where a plain draft does not say."""
        return self.specexit.target if self.specexit else None

    @property
    def aux_size(self) -> int:
        """Width of the concatenated aux hidden states."""
        return self.target_hidden_size * len(self.eagle_aux_hidden_state_layer_ids)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of ``model.safetensors`` with its shape (PyTorch layout, [out, in])."""
        h, inter = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        source = self.specexit.source if self.specexit else None
        n_signals = len(self.specexit.signals) if self.specexit else 0
        shapes: dict[str, tuple[int, ...]] = {
            "fc.weight": (h + (n_signals if source == "fc" else 0), self.aux_size),
            "midlayer.input_layernorm.weight": (h,),
            "midlayer.hidden_norm.weight": (h,),
            "midlayer.self_attn.q_proj.weight": (q, 2 * h),
            "midlayer.self_attn.k_proj.weight": (kv, 2 * h),
            "midlayer.self_attn.v_proj.weight": (kv, 2 * h),
            "midlayer.self_attn.o_proj.weight": (h, q),
            "midlayer.post_attention_layernorm.weight": (h,),
            "midlayer.mlp.gate_proj.weight": (inter, h),
            "midlayer.mlp.up_proj.weight": (inter, h),
            "midlayer.mlp.down_proj.weight": (h, inter),
            "norm.weight": (h,),
            "lm_head.weight": (self.draft_vocab_size, h),
            "d2t": (self.draft_vocab_size,),
            "t2d": (self.vocab_size,),
        }
        if source == "draft":
            shapes["signal_head.weight"] = (n_signals, h)
        return shapes


def read_config(folder: Path) -> DraftConfig:
    """Read ``config.json``; fields that are not ours are ignored, as other tools add theirs.

    Raises:
      DraftError: not there, not JSON, or a field is missing or wrong.
      PolicyError: ``policy.json`` is there and cannot be used.
    """
    path = folder / "config.json"
    try:
        raw: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DraftError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise DraftError(f"{path}: holds a {type(raw).__name__}, expected an object")
    try:
        config = DraftConfig.model_validate({k: v for k, v in raw.items() if k in DraftConfig.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DraftError(f"{path}: field {key} is {first['input']!r}: {first['msg']}") from error
    block = config.specexit
    if block and block.format_version != FORMAT_VERSION:
        raise DraftError(f"{path}: specexit.format_version is {block.format_version}, expected {FORMAT_VERSION}")
    if block and block.signals != NAMES:
        raise DraftError(f"{path}: specexit.signals is {list(block.signals)}, expected {list(NAMES)}")
    if config.num_aux_hidden_states != len(config.eagle_aux_hidden_state_layer_ids):
        raise DraftError(
            f"{path}: num_aux_hidden_states is {config.num_aux_hidden_states}, but "
            f"eagle_aux_hidden_state_layer_ids names {len(config.eagle_aux_hidden_state_layer_ids)} layers"
        )
    if list(config.eagle_aux_hidden_state_layer_ids) != sorted(set(config.eagle_aux_hidden_state_layer_ids)):
        raise DraftError(
            f"{path}: eagle_aux_hidden_state_layer_ids is {list(config.eagle_aux_hidden_state_layer_ids)}, expected "
            "increasing ids: vLLM hands the layers on in their own order, each once"
        )
    return config if block is None else config.model_copy(update={"specexit": _with_policy(folder, block)})


def _with_policy(folder: Path, block: SpecExitBlock) -> SpecExitBlock:
    """The block with what ``policy.json`` says in place of what older versions wrote into ``config.json``."""
    if not (folder / policies.FILE).exists():
        return block
    stored = policies.read_policy(folder)
    point = stored.point()
    return block.model_copy(
        update={"policy": point.policy, "calibration": point.certificate, "serving": stored.serving}
    )


def read_draft(folder: Path) -> tuple[DraftConfig, dict[str, np.ndarray]]:
    """Read and check a whole draft directory; weights stay in the type they are stored in (see `FLOATS`).

    Raises:
      DraftError: see `read_config`; also for a truncated file, a missing or misshapen tensor, NaN or infinity in the
        weights, and a draft vocabulary that points outside of the target's.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config = read_config(folder)
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DraftError(f"{path}: cannot be read as safetensors (truncated?): {error}") from error
    check_tensors(config, tensors, path)
    return config, tensors


def check_tensors(config: DraftConfig, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Check names, shapes and values of a draft's tensors.

    Raises:
      DraftError: names the file, the tensor, what was found and what was expected.
    """
    for name, shape in config.tensor_shapes().items():
        if name not in tensors:
            raise DraftError(f"{path}: tensor {name} {list(shape)} is missing")
        if tensors[name].shape != shape:
            raise DraftError(f"{path}: tensor {name} has shape {list(tensors[name].shape)}, expected {list(shape)}")
        check_values(name, tensors[name], path)
    check_vocabulary(config, tensors["d2t"], path)


def check_values(name: str, tensor: np.ndarray, path: Path) -> None:
    """Check the type of a tensor, and that a weight is a number throughout.

    Raises:
      DraftError: names the file, the tensor, what was found and what was expected.
    """
    expected = {"d2t": ("int64",), "t2d": ("bool",)}.get(name, tuple(FLOATS))
    if tensor.dtype.name not in expected:
        raise DraftError(f"{path}: tensor {name} is {tensor.dtype.name}, expected {' or '.join(expected)}")
    if tensor.dtype in FLOATS.values() and not np.isfinite(tensor).all():
        raise DraftError(f"{path}: tensor {name} holds NaN or infinity, expected finite weights")


def check_vocabulary(config: DraftConfig, d2t: np.ndarray, path: Path) -> None:
    """Check that every draft token stands for a target token, and for itself where the draft knows all of them.

    Raises:
      DraftError: names the first one that does not.
    """
    if config.draft_vocab_size == config.vocab_size and d2t.any():
        moved = np.flatnonzero(d2t)[0]
        raise DraftError(
            f"{path}: d2t maps draft token {moved} to target token {moved + d2t[moved]}, expected itself: "
            f"draft_vocab_size and vocab_size are both {config.vocab_size}"
        )
    ids = d2t + np.arange(config.draft_vocab_size)
    bad = np.flatnonzero((ids < 0) | (ids >= config.vocab_size))
    if bad.size:
        raise DraftError(
            f"{path}: d2t maps draft token {bad[0]} to target token {ids[bad[0]]}, "
            f"expected an id below vocab_size {config.vocab_size}"
        )


def check_target(config: DraftConfig, folder: Path, target_config: Mapping[str, Any], target: str) -> None:
    """Check that a draft belongs to a target, given the target's ``config.json``.

    Raises:
      DraftError: hidden size, number of layers or vocabulary differ, or an aux layer is not one of the target's.
    """
    for ours, theirs in (
        ("target_hidden_size", "hidden_size"),
        ("target_num_hidden_layers", "num_hidden_layers"),
        ("vocab_size", "vocab_size"),
        ("hidden_size", "hidden_size"),  # the draft embeds its tokens as the target does
    ):
        if getattr(config, ours) != target_config[theirs]:
            raise DraftError(
                f"{folder / 'config.json'}: {ours} is {getattr(config, ours)}, but target {target} has "
                f"{theirs} {target_config[theirs]}: the draft was made for another target"
            )
    layers, last = config.eagle_aux_hidden_state_layer_ids, config.target_num_hidden_layers
    if not 0 <= layers[0] <= layers[-1] <= last:
        raise DraftError(
            f"{folder / 'config.json'}: eagle_aux_hidden_state_layer_ids is {list(layers)}, expected ids from 0 (the "
            f"embedding) to {last} (behind the last layer of target {target})"
        )


def write_draft(folder: Path, config: DraftConfig, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a draft directory, which appears whole or not at all.

    Raises:
      DraftError: the tensors do not fit the config.
      FileExistsError: the folder is there and not empty.
    """
    from safetensors.numpy import save_file

    check_tensors(config, tensors, folder / "model.safetensors")
    with new_folder(folder) as beside:
        named = {name: np.ascontiguousarray(tensors[name]) for name in config.tensor_shapes()}
        save_file(named, beside / "model.safetensors", metadata={"format": "pt"})
        _write_config(beside, config)


def plain_copy(source: Path, folder: Path) -> None:
    """Write the plain EAGLE-3 draft inside a SpecExit one: the same trunk, no signal rows.

    Raises:
      DraftError: ``source`` is unreadable.
      FileExistsError: ``folder`` is there and not empty.
    """
    config, tensors = read_draft(source)
    plain = config.model_copy(update={"architectures": (PLAIN_ARCHITECTURE,), "specexit": None})
    write_draft(folder, plain, tensors | {"fc.weight": tensors["fc.weight"][: config.hidden_size]})


def _write_config(folder: Path, config: DraftConfig) -> None:
    from specexit.config import write_text

    fields = config.model_dump(mode="json")
    if config.specexit is None:
        del fields["specexit"]
    write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
