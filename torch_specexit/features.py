"""What a draft reads of its target, from transformers: the aux hidden states, and the token embedding.

Layer ids follow vLLM: id ``k`` is the residual stream after ``k`` decoder layers. transformers' own
``output_hidden_states`` is not used, because its last entry has been through the final norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from specexit.config import ConfigError
from specexit.drafts.files import parse_json
from specexit.drafts.fingerprints import QUANTISED_BY, quantization_of
from specexit.drafts.rope import check_attn_factor
from specexit.drafts.target_weights import check_all_plain, target_files
from specexit.drafts.tensors import INDEX
from specexit.errors import cut, printable, shown
from specexit.schemas.target import TargetConfig
from specexit.trainable import rope_of


def place(device: str | None, dtype: str | None, target: TargetConfig) -> tuple[str, str]:
    """Device and dtype of a computation: a GPU where there is one, float32 on a CPU and the target's on a GPU.

    Raises:
      ConfigError: a GPU is asked for where PyTorch finds none.
    """
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise ConfigError(
            f"device=cuda: torch {torch.__version__} finds no GPU, expected device=cpu or a machine with one"
        )
    device = device or ("cuda" if found else "cpu")
    return device, dtype or ("float32" if device == "cpu" else target.dtype)


def check_rotary(target: TargetConfig) -> None:
    """Refuse a target whose texts transformers rotates by another rule than vLLM.

    Raises:
      ConfigError: its RoPE is ``longrope``, and it is served beyond its original context; or see
        `TargetConfig.long_behind` and `check_attn_factor`.
    """
    short = target.long_behind()
    if short is not None and target.max_model_len > short:
        raise ConfigError(
            f"{target.config_place}: rope_type is 'longrope' with original_max_position_embeddings {short}, but target "
            f"{target.name} says max_model_len={target.max_model_len}: vLLM then has the long factors in every text, "
            f"and transformers in those of more than {short} tokens alone; expected a max_model_len of at most {short}"
        )
    try:
        check_attn_factor(rope_of(target.hf_config()))
    except ValueError as error:
        raise ConfigError(f"{target.config_place}: {error}") from error


def _check_read_as_served(target: TargetConfig) -> None:
    """Refuse weights that transformers reads otherwise than vLLM, without a word.

    Raises:
      ConfigError: it would read another file than those of the index, or could not read that.
      TensorError: it would read quantised weights as plain ones; or see `target_files`.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    first, served = target.folder / "model.safetensors", target_files(target.folder)
    if first.exists() and first not in served:
        raise ConfigError(
            f"{first}: {INDEX} does not name it, so vLLM serves other weights, but transformers reads this file first: "
            "move it elsewhere"
        )
    index = target.folder / INDEX
    if index.exists() and not first.exists():
        metadata = parse_json(index.read_bytes(), index).get("metadata")
        if not isinstance(metadata, dict):
            raise ConfigError(
                f"{index}: metadata is {shown(metadata)}, without which transformers reads no index, expected keys and "
                'values: add "metadata": {}'
            )
    fields = target.hf_config()
    method, read = quantization_of(fields), quantization_of(fields, QUANTISED_BY[:1])
    if not any(name.startswith(read) for name in KNOWN):  # of bitsandbytes it has two kinds
        check_all_plain(target.folder, None if method == "none" else method)


def _too_large(target: TargetConfig, model: nn.Module, dtype: torch.dtype) -> str:
    """Why a GPU cannot hold a model, and what to do."""
    size = sum(x.numel() * x.element_size() for x in model.parameters()) / 2**30
    found = torch.cuda.mem_get_info()[1] / 2**30
    return (
        f"{target.folder}: the weights take {size:.1f} GiB in {str(dtype).removeprefix('torch.')}, which do not fit "
        f"the GPU with {found:.1f} GiB in all: the target runs on one GPU here, expected a larger one, dtype=bfloat16 "
        "where it was float32, or device=cpu"
    )


class TargetFeatures:
    """A target model that gives aux hidden states.

    Args:
      target: the model.
      layers: layer ids to read, in the order in which they are concatenated.
      dtype: of weights and activations.
      device: where they are.
      head: whether `read` is wanted, for which the LM head is loaded too.

    Raises:
      ConfigError: the model's files lack some of its weights, or transformers cannot load them, or would read others
        than vLLM; or they do not fit the device; or see `check_rotary`.
      TensorError: some are quantised, and its config.json does not say how, or not in a way that transformers reads.
    """

    def __init__(
        self,
        target: TargetConfig,
        layers: tuple[int, ...],
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        head: bool = False,
    ):
        from transformers import AutoModel, AutoModelForCausalLM
        from transformers.utils import logging

        check_rotary(target)
        _check_read_as_served(target)
        logging.disable_progress_bar()  # it is drawn without a terminal too
        logging.set_verbosity_error()  # an LM head of its own that is not read is reported as unexpected
        kind: Any = AutoModelForCausalLM if head else AutoModel
        how = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
        try:  # what has another size is refused below: transformers' error has no name of it
            whole, found = kind.from_pretrained(target.folder, dtype=dtype, ignore_mismatched_sizes=True, **how)
        except Exception as error:  # whatever a config makes of transformers
            said = " ".join(f"{type(error).__name__}: {error}".split())
            if "trust_remote_code" in said:
                said = "its class is code that lies there, which is not run, expected a class of transformers' own"
            raise ConfigError(f"{target.folder}: transformers cannot load it: {printable(cut(said, 500))}") from error
        if found["missing_keys"]:
            raise ConfigError(f"{target.folder}: weights of {', '.join(sorted(found['missing_keys']))} are missing")
        if found["mismatched_keys"]:
            name, there, wanted = min(found["mismatched_keys"])
            raise ConfigError(
                f"{target.folder}: weights of {name} have shape {list(there)}, expected {list(wanted)} by config.json"
            )
        try:
            whole.eval().to(device)
        except torch.OutOfMemoryError as error:
            raise ConfigError(_too_large(target, whole, dtype)) from error
        self.model: Any = whole.base_model if head else whole
        self._head = whole.get_output_embeddings() if head else None
        self.layers = layers
        self._stream: dict[int, Tensor] = {}
        decoder = self.model.layers
        assert isinstance(decoder, nn.ModuleList)
        for k in set(layers):
            source = decoder[k - 1] if k else self.model.get_input_embeddings()
            source.register_forward_hook(self._keep(k))

    def _keep(self, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._stream[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    @property
    def embedding(self) -> Float[Tensor, "vocab hidden"]:
        """The token embedding."""
        return self.model.get_input_embeddings().weight.detach()

    @torch.inference_mode()
    def read(
        self, tokens: Int[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time vocab"], Float[Tensor, "batch time aux_hidden"]]:
        """The target's logits, and the aux hidden states of the same pass."""
        assert self._head is not None, "made without its head"
        normed = self.model(input_ids=tokens, use_cache=False).last_hidden_state
        return self._head(normed), torch.cat([self._stream[k] for k in self.layers], dim=-1)

    @torch.inference_mode()
    def __call__(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time aux_hidden"]:
        """Aux hidden states of sequences that start at position 0; padding goes to the right."""
        self.model(input_ids=tokens, use_cache=False)
        return torch.cat([self._stream[k] for k in self.layers], dim=-1)
