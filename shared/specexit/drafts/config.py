"""What a draft is: ``config.json`` of a draft directory, and what follows from it for the tensors beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_serializer,
    model_validator,
)

from specexit.config import Config
from specexit.drafts import policy as policies
from specexit.drafts.files import read_object
from specexit.drafts.policy import Certificate, Serving
from specexit.drafts.rope import (
    RopeScaling,
    by_older_names,
    rotary_factor,
    rotary_frequencies,
    scaling_fields,
    scaling_of,
)
from specexit.drafts.window import MOST, window_of
from specexit.errors import InputError, dotted, shown
from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from specexit.method.splits import ThinkTokens, Tokenizer, resolve

FORMAT_VERSION = 1
MAX_CONFIG = 1_000_000
"""Bytes of a ``config.json``."""
ARCHITECTURE = "SpecExitLlamaForCausalLMEagle3"
ARCHITECTURES = {"llama": ARCHITECTURE, "qwen3": "SpecExitQwen3ForCausalLMEagle3"}
"""Model type -> our plug-in's class; the names end with "Eagle3", so vLLM's EAGLEConfig leaves them alone."""

PLAIN_ARCHITECTURE = "LlamaForCausalLMEagle3"
PLAIN_ARCHITECTURES = {"llama": PLAIN_ARCHITECTURE, "qwen3": "Eagle3Qwen3ForCausalLM"}
"""Model type -> vLLM's class of a draft without signals."""

Source = Literal["draft", "fc"]


class DraftError(InputError):
    """A draft directory that cannot be used; the message names the file, the field and what was expected."""


class SpecExitBlock(Config):
    """The ``specexit`` block of ``config.json``."""

    format_version: StrictInt = FORMAT_VERSION
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

    @property
    def smoothings(self) -> tuple[str, ...]:
        """The smoothings that a policy may have on a server, which keeps no average of signals of source ``draft``."""
        return ("none",) if self.source == "draft" else ("none", "ewma")

    def think_tokens(self, tokenizer: Tokenizer) -> ThinkTokens:
        """The tokens of its markers and its split set; the end marker may be several.

        Raises:
          SplitError: see `specexit.method.splits.resolve`.
        """
        return resolve(
            tokenizer, self.think_start, self.think_end, self.split_endings, self.split_connectors, several=True
        )


def _scaling(value: Any) -> Any:
    return scaling_of(value) if isinstance(value, dict) else value


Rope = Annotated[RopeScaling | None, BeforeValidator(_scaling), PlainSerializer(scaling_fields)]


class DraftConfig(Config):
    """``config.json`` of a draft directory. Names and meanings are those of vLLM's EAGLE-3 drafts.

    Numbers are taken as numbers alone, and flags as flags: exports hand the file on as it is, and an engine reads no
    text in their place, or reads ``"false"`` as true.
    """

    architectures: tuple[str, ...] = (ARCHITECTURE,)
    model_type: Literal["llama", "qwen3"] = Field(default="llama", description="qwen3: queries and keys are normed")
    hidden_size: StrictInt = Field(gt=0)
    target_hidden_size: StrictInt = Field(gt=0)
    intermediate_size: StrictInt = Field(gt=0)
    num_attention_heads: StrictInt = Field(gt=0)
    num_key_value_heads: StrictInt = Field(gt=0)
    head_dim: StrictInt = Field(gt=0, multiple_of=2, le=2**16)
    num_hidden_layers: StrictInt = Field(default=1, ge=1, le=1)
    vocab_size: StrictInt = Field(gt=0)
    draft_vocab_size: StrictInt = Field(gt=0)
    rms_norm_eps: StrictFloat = Field(default=1e-6, gt=0, allow_inf_nan=False)
    rope_theta: StrictFloat = Field(default=10_000.0, gt=0, allow_inf_nan=False)
    rope_scaling: Rope = None
    max_position_embeddings: StrictInt = Field(default=2048, gt=0, lt=2**31)
    sliding_window: StrictInt | None = Field(default=None, gt=0, le=MOST, description="see `specexit.drafts.window`")
    hidden_act: Literal["silu"] = "silu"
    attention_bias: StrictBool = Field(default=False, description="of the four attention projections")
    tie_word_embeddings: Literal[False] = False
    own_embeddings: StrictBool = Field(
        default=False, description="the draft embeds tokens itself, not as its target does"
    )
    torch_dtype: str = "float32"
    norm_before_residual: StrictBool = Field(default=False, description="the layer adds to the normed fused state")
    norm_before_fc: StrictBool = Field(default=False, description="one norm over all aux hidden states together")
    fc_norm: StrictBool = Field(default=False, description="a norm of its own for every aux hidden state")
    norm_output: StrictBool = Field(default=False, description="the next draft step reads the normed output")
    eagle_aux_hidden_state_layer_ids: tuple[StrictInt, ...] = Field(min_length=1)
    num_aux_hidden_states: StrictInt = Field(gt=0)
    target_num_hidden_layers: StrictInt = Field(gt=0)
    specexit: SpecExitBlock | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DraftConfig:
        heads, kv, layers = self.num_attention_heads, self.num_key_value_heads, self.eagle_aux_hidden_state_layer_ids
        if heads % kv:
            raise ValueError(f"num_attention_heads is {heads}, expected a multiple of num_key_value_heads, {kv}")
        if self.draft_vocab_size > self.vocab_size:
            raise ValueError(
                f"draft_vocab_size is {self.draft_vocab_size}, expected at most vocab_size, {self.vocab_size}"
            )
        if self.num_aux_hidden_states != len(layers):
            raise ValueError(
                f"num_aux_hidden_states is {self.num_aux_hidden_states}, but eagle_aux_hidden_state_layer_ids names "
                f"{len(layers)} layers"
            )
        if list(layers) != sorted(set(layers)):
            raise ValueError(
                f"eagle_aux_hidden_state_layer_ids is {list(layers)}, expected increasing ids: vLLM hands the layers "
                "on in their own order, each once"
            )
        if self.fc_norm and self.norm_before_fc:
            raise ValueError("norm_before_fc and fc_norm are both true, expected at most one of them")
        if self.attention_bias and self.model_type == "qwen3":
            raise ValueError("attention_bias is true, which vLLM does not serve with model_type 'qwen3'")
        if self.specexit and self.specexit.source == "fc" and (self.fc_norm or self.norm_before_fc):
            raise ValueError("specexit.source is 'fc', whose signals read unnormed aux hidden states, but fc is normed")
        if self.rope_theta == 1 and self.rope_scaling is not None and self.rope_scaling.kind == "yarn":
            raise ValueError(
                "rope_theta is 1, expected another one with rope_scaling 'yarn', which divides by its logarithm"
            )
        most = self.most_positions
        if most is not None and self.max_position_embeddings > most:
            raise ValueError(
                f"max_position_embeddings is {self.max_position_embeddings}, expected at most {most}: factor times "
                "original_max_position_embeddings of its rope_scaling 'yarn', beyond which vLLM has no angles"
            )
        return self

    @model_validator(mode="after")
    def _of_float32(self) -> DraftConfig:
        """Refuse numbers that become 0 or infinity in float32, in which a draft computes: its logits would be NaN."""
        with np.errstate(all="ignore"):
            if not 0 < np.float32(self.rms_norm_eps) < np.inf:
                raise ValueError(f"rms_norm_eps is {self.rms_norm_eps!r}, expected a number above 0 in float32")
            angles = rotary_frequencies(self.head_dim, self.rope_theta, self.rope_scaling)
            last = angles * np.float32(self.max_position_embeddings)
            if not np.isfinite([*last, np.float32(rotary_factor(self.rope_scaling))]).all():
                scaling = scaling_fields(self.rope_scaling)
                raise ValueError(
                    f"rope_theta is {self.rope_theta!r} and rope_scaling {shown(scaling)}, expected finite angles and "
                    f"factor in float32 up to max_position_embeddings, {self.max_position_embeddings}"
                )
        return self

    @model_serializer(mode="wrap")
    def _as_before_windows(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leave out a window that is None: directories without the field keep the bytes and hashes that they have."""
        fields = dump(self)
        if self.sliding_window is None:
            fields.pop("sliding_window", None)
        return fields

    @property
    def target_name(self) -> str | None:
        """Name of the target it was trained for; None where a plain draft does not say."""
        return self.specexit.target if self.specexit else None

    @property
    def most_positions(self) -> int | None:
        """The largest ``max_position_embeddings`` that its RoPE allows; None where it allows any."""
        return None if self.rope_scaling is None else self.rope_scaling.positions

    @property
    def aux_size(self) -> int:
        """Width of the concatenated aux hidden states."""
        return self.target_hidden_size * len(self.eagle_aux_hidden_state_layer_ids)

    @property
    def whole_vocabulary(self) -> bool:
        """Whether draft tokens are the target's, id by id; vLLM then has no place for ``d2t``, and none is written."""
        return self.draft_vocab_size == self.vocab_size

    @property
    def aux_norm_shapes(self) -> dict[str, tuple[int, ...]]:
        """The norms in front of ``fc``: none, one over all aux hidden states, or one for each."""
        if self.norm_before_fc:
            return {"input_norm.weight": (self.aux_size,)}
        layers = range(self.num_aux_hidden_states) if self.fc_norm else ()
        return {f"fc_norm.{i}.weight": (self.target_hidden_size,) for i in layers}

    @property
    def vocabulary_shapes(self) -> dict[str, tuple[int, ...]]:
        """The two tensors that say which of the target's tokens the draft has."""
        return {"d2t": (self.draft_vocab_size,), "t2d": (self.vocab_size,)}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of ``model.safetensors`` with its shape (PyTorch layout, [out, in])."""
        h, inter, layer = self.hidden_size, self.intermediate_size, "midlayer."
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        source = self.specexit.source if self.specexit else None
        n_signals = len(self.specexit.signals) if self.specexit else 0
        attention = {"q_proj": (q, 2 * h), "k_proj": (kv, 2 * h), "v_proj": (kv, 2 * h), "o_proj": (h, q)}
        shapes: dict[str, tuple[int, ...]] = {
            **self.aux_norm_shapes,
            "fc.weight": (h + (n_signals if source == "fc" else 0), self.aux_size),
            **{f"{layer}{norm}.weight": (h,) for norm in ("input_layernorm", "hidden_norm")},
            **{f"{layer}self_attn.{name}.weight": shape for name, shape in attention.items()},
            **{f"{layer}self_attn.{name}.bias": shape[:1] for name, shape in attention.items() if self.attention_bias},
            **{f"{layer}self_attn.{norm}.weight": (self.head_dim,) for norm in self._head_norms},
            f"{layer}post_attention_layernorm.weight": (h,),
            f"{layer}mlp.gate_proj.weight": (inter, h),
            f"{layer}mlp.up_proj.weight": (inter, h),
            f"{layer}mlp.down_proj.weight": (h, inter),
            "norm.weight": (h,),
            "lm_head.weight": (self.draft_vocab_size, h),
        }
        if not self.whole_vocabulary:
            shapes |= self.vocabulary_shapes
        if source == "draft":
            shapes["signal_head.weight"] = (n_signals, h)
        if self.own_embeddings:
            shapes["embed_tokens.weight"] = (self.vocab_size, h)
        return shapes

    @property
    def _head_norms(self) -> tuple[str, ...]:
        return ("q_norm", "k_norm") if self.model_type == "qwen3" else ()


_FIELDS = DraftConfig.model_fields.keys() - {"sliding_window"}
"""Keys of a ``config.json`` that are read one by one; a window is stated by several keys together."""


def read_config(folder: Path, *, needs_policy: bool = True) -> DraftConfig:
    """Read ``config.json``; fields that are not ours are ignored, as other tools add theirs.

    Args:
      folder: the draft directory.
      needs_policy: False where only the weights are used; a directory that has lost its policy is read then, too.

    Raises:
      DraftError: not there, not JSON, or a field is missing or wrong.
      PolicyError: ``policy.json`` cannot be used; or it is needed and missing, and ``config.json`` holds no policy of
        an older version.
    """
    path = folder / "config.json"
    raw = _read_raw(path)
    try:
        config = DraftConfig.model_validate({k: v for k, v in raw.items() if k in _FIELDS})
    except ValidationError as error:
        found = error.errors()
        first = next((one for one in found if one["type"] == "missing"), found[0])  # which tells a foreign config
        key = dotted(first)
        if not key:
            raise DraftError(f"{path}: {first['msg'].removeprefix('Value error, ')}") from error
        if first["type"] == "missing":
            raise DraftError(
                f"{path}: field {key} is missing, expected a draft directory of `specexit`; `specexit import` makes "
                "one of a published draft"
            ) from error
        raise DraftError(f"{path}: field {key} is {shown(first['input'])}: {first['msg']}") from error
    try:
        config = config.model_copy(update={"sliding_window": window_of(raw)})
    except ValueError as error:
        raise DraftError(f"{path}: {error}") from error
    block = config.specexit
    if block and block.format_version != FORMAT_VERSION:
        raise DraftError(f"{path}: specexit.format_version is {block.format_version}, expected {FORMAT_VERSION}")
    if block and block.signals != NAMES:
        raise DraftError(f"{path}: specexit.signals is {shown(list(block.signals))}, expected {list(NAMES)}")
    if block is None:
        return config
    return config.model_copy(update={"specexit": _with_policy(folder, block, needed=needs_policy)})


def _read_raw(path: Path) -> dict[str, Any]:
    if not path.exists() and not path.is_symlink():
        raise _absent(path)
    raw = read_object(path, MAX_CONFIG, DraftError)
    try:
        return by_older_names(raw)
    except ValueError as error:
        raise DraftError(f"{path}: {error}") from error


def _absent(path: Path) -> DraftError:
    """The error for a folder without a ``config.json``, which says what the folder is."""
    folder, expected = path.parent, "expected a draft directory of `specexit`"
    if not folder.is_dir():
        return DraftError(
            f"{folder}: no such folder, {expected}; of a name on the Hub, `hf download NAME --local-dir FOLDER` makes "
            "one"
        )
    if (folder / "checkpoints").is_dir():
        return DraftError(f"{folder}: holds a training run, {expected}: `specexit convert run={folder} out=DRAFT`")
    return DraftError(f"{path}: does not exist, {expected}")


def _with_policy(folder: Path, block: SpecExitBlock, *, needed: bool) -> SpecExitBlock:
    """The block with what ``policy.json`` says in place of what older versions wrote into ``config.json``."""
    if ("policy" in block.model_fields_set or not needed) and not (folder / policies.FILE).exists():
        return block
    stored = policies.read_policy(folder)
    point = stored.point()
    return block.model_copy(
        update={"policy": point.policy, "calibration": point.certificate, "serving": stored.serving}
    )


def check_target(config: DraftConfig, folder: Path, target_config: Mapping[str, Any], target: str) -> None:
    """Check that a draft belongs to a target, given the target's ``config.json``.

    Raises:
      DraftError: hidden size, number of layers or vocabulary differ or are not said, or an aux layer is not one of the
        target's.
    """
    missing = [name for name in ("hidden_size", "num_hidden_layers", "vocab_size") if target_config.get(name) is None]
    if missing:
        raise DraftError(f"target {target}: its config.json has no value for {', '.join(missing)}")
    for ours, theirs in (
        ("target_hidden_size", "hidden_size"),
        ("target_num_hidden_layers", "num_hidden_layers"),
        ("vocab_size", "vocab_size"),
        *(() if config.own_embeddings else (("hidden_size", "hidden_size"),)),  # else it embeds as the target does
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
