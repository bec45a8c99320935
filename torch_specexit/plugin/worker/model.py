"""The draft model: vLLM's own EAGLE-3 draft, which also reads the signals.

Drafting stays bit for bit what it is without signals: the extra rows of a draft directory are split off while loading,
and are applied only to the few hidden states whose signals are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from vllm.config import VllmConfig

from specexit.drafts.directory import read_config
from specexit.method.signals import NAMES
from specexit.method.splits import load_tokenizer, written
from torch_specexit.plugin.compat.checks import (
    as_in_directory,
    check_draft,
    checked,
    draft_cache,
    draft_folder,
    folder_of,
)
from torch_specexit.plugin.compat.hooks import install_worker_hooks
from torch_specexit.plugin.protocols import runs_v2
from torch_specexit.plugin.settings import check_ends_nothing, check_transition, serving_over
from torch_specexit.plugin.worker.weights import Weights

_ROWS = 1024
"""Rows of hidden states that are gathered at a time: of the target's, 48 MiB at a width of 8,192 in bfloat16."""


@dataclass(slots=True)
class FirstPass:
    """What runner and draft tell each other of a step's first pass; a module's own attributes would be slow to set."""

    to_record: int = 0
    """How many of the next passes leave their signals."""
    requests: int = 0
    """Requests of the step."""
    alone: bool = False
    """Set by a V1 hook where the engine would skip drafting, though the signals are needed."""
    behind: tuple[Tensor, Tensor] | None = None
    """V1: which requests of the step have more prompt to come, and the token that comes next of each."""


class SignalHead(nn.Module):
    """The signal rows, in a module of their own: vLLM replaces the weights of a running model module by module, and
    keeps only what has gone through a parameter's ``weight_loader``."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(NAMES), width, dtype=torch.float32), requires_grad=False)

    def load(self, rows: Float[Tensor, "signals width"]) -> None:
        """Replace the rows."""
        getattr(self.weight, "weight_loader", _copy)(self.weight, rows)


def _copy(weight: Tensor, rows: Tensor) -> None:
    weight.data.copy_(rows)


if TYPE_CHECKING:
    from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM as Eagle3
else:
    Eagle3 = nn.Module


class WithSignals(Eagle3):
    """A draft directory's model, to be mixed into vLLM's class of that model type, which comes behind it.

    Raises:
      DraftError: the draft is not there, see `draft_folder`, or cannot serve this target, see `check_draft`.
      ConfigError: ``--additional-config`` holds settings that cannot be used, see `serving_over`,
        `check_transition` and `check_ends_nothing`; or exits are required, and this vLLM does not fit.
      SplitError: the target's tokenizer has no such think markers or no split token; see `resolve`.
    """

    signals: Float[Tensor, "batch last signals"]
    """Raw signals of the last tokens of each request of a step, the very last one first, for as many tokens as a step
    may have (source ``draft``)."""
    last_rows: Int[Tensor, "batch 1"]
    """Where the last accepted tokens of a step are in the draft's first pass."""
    back: Int[Tensor, " last"]
    """0, 1, 2, ..."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        assert vllm_config.speculative_config is not None
        draft, target = vllm_config.speculative_config.draft_model_config, vllm_config.model_config
        folder = draft_folder(draft.model, draft.revision, draft_cache(vllm_config))
        config = read_config(folder)
        block = check_draft(config, folder, target, getattr(vllm_config.cache_config, "sliding_window", None))
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.folder, self.draft_config, self.block = folder, config, block
        self.vocab_size = config.vocab_size
        self.serving = serving_over(block.serving, vllm_config.additional_config)
        check_transition(self.serving, block)
        tokenizer = load_tokenizer(folder_of(target.tokenizer, target.tokenizer_revision, "tokenizer.json"))
        self.transition = written(tokenizer, self.serving.transition)
        """Tokens that are written before the end marker where thinking is ended."""
        check_ends_nothing(self.serving, self.transition, target)
        self.think_tokens = block.think_tokens(tokenizer)
        width = config.hidden_size if block.source == "draft" else config.aux_size
        self.signal_head = SignalHead(width)
        batch, last = (
            vllm_config.scheduler_config.max_num_seqs,
            1 + vllm_config.speculative_config.num_speculative_tokens,
        )
        self.register_buffer("signals", torch.zeros(batch, last, len(NAMES), dtype=torch.float32), persistent=False)
        self.register_buffer("last_rows", torch.zeros(batch, 1, dtype=torch.int64), persistent=False)
        self.register_buffer("back", torch.arange(last), persistent=False)
        self.first_pass = FirstPass()
        self.weights = Weights(config.tensor_shapes())
        self.kept: dict[str, Tensor] = {}
        """Buffers during a sleep."""
        self.apart: dict[str, Tensor] = {}
        """See `as_in_directory`."""
        install_worker_hooks(v2=runs_v2(vllm_config), required=self.serving.required)

    @property
    def signal_weight(self) -> Float[Tensor, "signals width"]:
        """The signal rows; the block's source says whether they read the draft's hidden states or the target's."""
        return self.signal_head.weight

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load a draft directory's tensors, the signal rows apart: all of them at first, later some at a time.

        Raises:
          DraftError: the file cannot be used; see `checked`.
        """
        named = as_in_directory(weights, self.draft_config, self.apart)
        passed = checked(named, self.draft_config, self.folder, whole=not self.weights.loaded)
        names: list[str] = []
        super().load_weights(self._without_signals(self._noted(passed, names)))
        for name in names:
            self.weights.arrived(name)

    def _noted(self, weights: Iterable[tuple[str, Tensor]], names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Pass tensors on, and note their names: the first that counts begins an update."""
        for name, tensor in weights:
            if name in self.weights.names:
                self.weights.begin()
            names.append(name)
            yield name, tensor

    def _without_signals(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        hidden = self.draft_config.hidden_size
        for name, tensor in weights:
            if name == "d2t" and self.draft_config.whole_vocabulary:
                continue  # of an older directory: all zeros, and since 0.30 vLLM has no place for it
            if name == "signal_head.weight":
                self.signal_head.load(tensor)
            elif name == "fc.weight" and self.block.source == "fc":
                self.signal_head.load(tensor[hidden:])
                yield name, tensor[:hidden].contiguous()
            else:
                yield name, tensor

    def record(self, passes: int, last_rows: Int[Tensor, " batch"] | None = None) -> None:
        """Have the next ``passes`` passes leave their signals (source ``draft``).

        Args:
          passes: 0 for none.
          last_rows: row of the last accepted token of each request; the tokens before it have the rows before it.
        """
        if self.block.source != "draft":
            return
        self.first_pass.to_record = passes
        if last_rows is not None:
            self.first_pass.requests = len(last_rows)
            self.last_rows[: len(last_rows), 0].copy_(last_rows)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """A draft pass, as in EAGLE-3; the first one of a step leaves its signals."""
        output = super().forward(*args, **kwargs)
        if self.first_pass.to_record > 0:
            self.first_pass.to_record -= 1
            self.leave_signals(output[0])
        return output

    def leave_signals(self, hidden_states: Float[Tensor, "rows hidden"]) -> None:
        """Read the signals off the first pass of a step.

        It writes to fixed buffers only, so that it can become part of a CUDA graph.
        """
        n = self.first_pass.requests
        rows = (self.last_rows[:n] - self.back).clamp_(min=0).flatten()
        signals = self.signals[:n].view(-1, len(NAMES))
        for part, some in zip(signals.split(_ROWS), rows.split(_ROWS), strict=True):
            part.copy_(hidden_states[some].float() @ self.signal_weight.t())

    def remember_weights(self) -> None:
        """Remember the weights as they are, to find out whether a sleep leaves them so."""
        self.weights.remember(self.named_parameters())

    def fall_asleep(self) -> None:
        """Remember the weights, and keep the buffers, which vLLM before 0.28 loses of a draft in a deep sleep."""
        self.remember_weights()
        self.kept = {name: buffer.cpu().clone() for name, buffer in self.named_buffers()}

    def awake(self) -> None:
        """Put the buffers back, and check whether the sleep has left the weights as they were; nothing exits where it
        has not."""
        for name, buffer in self.named_buffers():
            if name in self.kept:
                buffer.data.copy_(self.kept[name])
        self.kept = {}
        self.weights.check(self.named_parameters())

    def signals_of_target(
        self, aux: Sequence[Float[Tensor, "time hidden"]], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows signals"]:
        """Raw signals at some rows of the target's aux hidden states (source ``fc``).

        There is one product for each layer and for some of the rows at a time, so that what is gathered stays small.
        Before a dummy run there are neither layers nor rows.
        """
        signals = self.signal_weight.new_zeros(len(rows), len(NAMES))
        if not len(rows):
            return signals
        weights = self.signal_weight.split([layer.shape[1] for layer in aux], dim=1)
        for layer, weight in zip(aux, weights, strict=True):
            for part, some in zip(signals.split(_ROWS), rows.split(_ROWS), strict=True):
                part.addmm_(layer[some].float(), weight.t())
        return signals
