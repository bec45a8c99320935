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
from specexit.drafts.fingerprints import quantization_of
from specexit.drafts.target_weights import check_all_plain
from specexit.schemas.target import TargetConfig


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
        `TargetConfig.long_behind`.
    """
    short = target.long_behind()
    if short is not None and target.max_model_len > short:
        raise ConfigError(
            f"{target.config_place}: rope_type is 'longrope' with original_max_position_embeddings {short}, but target "
            f"{target.name} says max_model_len={target.max_model_len}: vLLM then has the long factors in every text, "
            f"and transformers in those of more than {short} tokens alone; expected a max_model_len of at most {short}"
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
      ConfigError: the model's files lack some of its weights; or see `check_rotary`.
      TensorError: some are quantised, of which its config.json says nothing.
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
        if quantization_of(target.hf_config()) == "none":
            check_all_plain(target.folder)
        logging.disable_progress_bar()  # it is drawn without a terminal too
        logging.set_verbosity_error()  # an LM head of its own that is not read is reported as unexpected
        kind: Any = AutoModelForCausalLM if head else AutoModel
        whole, found = kind.from_pretrained(target.folder, dtype=dtype, local_files_only=True, output_loading_info=True)
        if found["missing_keys"]:
            raise ConfigError(f"{target.folder}: weights of {', '.join(sorted(found['missing_keys']))} are missing")
        whole.eval().to(device)
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
