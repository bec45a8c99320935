"""The draft model in plain PyTorch: the reference that vLLM's and JAX's versions are compared with.

One Llama layer on two inputs (EAGLE-3, arXiv 2503.01840). Row ``t`` reads token ``x_{t+1}`` and the target's aux
hidden states ``f_t``:

    h_t = fc(f_t)                                            fused target state
    o_t = h_t + attention([norm(embed(x_{t+1})), norm(h_t)]) then the MLP, each added to the residual
    y_t = norm(o_t)                                          -> lm_head: logits of x_{t+2} over the draft vocabulary

The next draft step is the same layer with ``o_t`` in the place of ``h_t`` and the token after. The variants that
published drafts have, each a flag of the config, follow vLLM's ``llama_eagle3.py`` and ``qwen3_eagle3.py``. Written to
be read: no KV cache across calls, no kernels.

Shape legend: batch, time (tokens), rows (= time - 1), heads, dim (of one head), vocab (draft vocabulary).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from specexit.drafts.directory import DraftConfig, DraftError, read_draft
from specexit.drafts.rope import rotary_factor, rotary_frequencies

SCORES = 1 << 24
"""Attention scores of a later draft step that exist at once, 64 MiB of them in float32."""

Rows = Float[Tensor, "batch rows hidden"]
Heads = Float[Tensor, "batch heads rows dim"]


def as_torch(array: Shaped[np.ndarray, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The array's own memory as a tensor; numpy hands bfloat16 over as bits only."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        """Normalise the last axis."""
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()).to(x.dtype)


def rotary(
    x: Heads, positions: Int[Tensor, " rows"], frequency: Float[Tensor, " half_dim"], factor: float = 1.0
) -> Heads:
    """Rotary position embedding in Llama's half-split layout (Su et al. 2021), times ``factor``."""
    angle = positions[:, None].float() * frequency
    cos, sin = factor * angle.cos(), factor * angle.sin()
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention over the first pass's rows and, per row, over its own earlier draft steps.

    Draft step ``k`` of row ``t`` sees what a real drafting run would have in its cache: the first pass up to row
    ``t``, then the one key of each draft step before it, then itself. A window bounds both, see
    `specexit.drafts.window`.
    """

    def __init__(self, config: DraftConfig):
        super().__init__()
        self.heads, self.kv, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.window = config.sliding_window
        self.frequency = rotary_frequencies(self.dim, config.rope_theta, config.rope_scaling)
        self.factor = rotary_factor(config.rope_scaling)
        size, bias = 2 * config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(size, self.heads * self.dim, bias=bias)
        self.k_proj = nn.Linear(size, self.kv * self.dim, bias=bias)
        self.v_proj = nn.Linear(size, self.kv * self.dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=bias)
        self.q_norm, self.k_norm = (
            RMSNorm(self.dim, config.rms_norm_eps) if config.model_type == "qwen3" else nn.Identity() for _ in "qk"
        )

    def forward(
        self,
        x: Float[Tensor, "batch rows two_hidden"],
        cache: list[tuple[Float[Tensor, "batch heads _rows dim"], Float[Tensor, "batch heads _rows dim"]]],
        at: Int[Tensor, " rows"],
    ) -> Float[Tensor, "batch rows hidden"]:
        """One draft step; its keys and values are appended to ``cache``, whose length is the step's number.

        ``at`` says which rows of the first pass these are: all of them in the first pass, the same ones in each later
        step. No buffer of [rows, rows] is made.
        """
        batch, rows, _ = x.shape
        positions = at + len(cache)
        frequency = torch.from_numpy(self.frequency).to(x.device)
        q = rotary(self.q_norm(self._split(self.q_proj(x), self.heads)), positions, frequency, self.factor)
        k = rotary(self.k_norm(self._split(self.k_proj(x), self.kv)), positions, frequency, self.factor)
        shared = self.heads // self.kv
        k, v = (part.repeat_interleave(shared, dim=1) for part in (k, self._split(self.v_proj(x), self.kv)))
        cache.append((k, v))

        if len(cache) == 1 and self.window is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.dim**-0.5)
        else:
            size = max(1, SCORES // max(1, batch * self.heads * cache[0][0].shape[2]))
            blocks = torch.arange(rows, device=x.device).split(size)
            mixed = torch.cat([self._by_rows(q, cache, at, block) for block in blocks], dim=2)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, rows, -1))

    def _by_rows(
        self, q: Heads, cache: list[tuple[Tensor, Tensor]], at: Int[Tensor, " rows"], block: Int[Tensor, " block"]
    ) -> Float[Tensor, "batch heads block dim"]:
        """Attention of some rows over the first pass up to their own, and over their own later steps; in a window."""
        (first_k, first_v), n, q = cache[0], cache[0][0].shape[2], q[:, :, block]
        first, own = torch.arange(n, device=q.device), at[block, None]
        later = [(key[:, :, block], value[:, :, block]) for key, value in cache[1:]]
        seen: Bool[Tensor, "block first"] = first <= own
        if self.window is not None:
            seen &= first > own + len(later) - self.window
            later = later[-self.window :]
        scores = [(q @ first_k.transpose(-1, -2)).masked_fill(~seen, -torch.inf)]
        scores += [(q * key).sum(-1, keepdim=True) for key, _ in later]
        weights = F.softmax(torch.cat(scores, dim=-1).float() * self.dim**-0.5, dim=-1).to(q.dtype)
        mixed = weights[..., :n] @ first_v
        for j, (_, value) in enumerate(later):
            mixed = mixed + weights[..., n + j, None] * value
        return mixed

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.dim)).transpose(1, 2)


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden: int, intermediate: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Rows) -> Rows:
        """Apply to the last axis."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DraftLayer(nn.Module):
    """The decoder layer; its first norm is of the token, its second of the fused state."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps)
        self.hidden_norm = RMSNorm(size, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.mlp = MLP(size, config.intermediate_size)
        self.norm_before_residual = config.norm_before_residual

    def forward(
        self, embeds: Rows, h: Rows, cache: list[tuple[Tensor, Tensor]], at: Int[Tensor, " rows"] | None = None
    ) -> Rows:
        """``o_t``: the residual stream behind the layer, before the final norm; ``at`` as in `Attention`."""
        at = torch.arange(h.shape[1], device=h.device) if at is None else at
        normed = self.hidden_norm(h)
        h = normed if self.norm_before_residual else h
        h = h + self.self_attn(torch.cat([self.input_layernorm(embeds), normed], dim=-1), cache, at)
        return h + self.mlp(self.post_attention_layernorm(h))


@dataclass(frozen=True)
class DraftOutput:
    """What the draft says about a whole sequence."""

    logits: list[Float[Tensor, "batch _rows vocab"]]
    """One entry per draft step. Row ``t`` of step ``k`` predicts ``x_{t+2+k}``; the last ``k`` rows of the first pass
    have no next token to read and are left out."""
    raw_signals: Float[Tensor, "batch time signals"] | None
    """Raw values at the token they belong to; None for a plain EAGLE-3 draft. With source ``draft`` no row reads token
    0, whose values are NaN."""


class Draft(nn.Module):
    """The draft of a draft directory. Parameter names are those of its ``model.safetensors``.

    Args:
      config: the directory's config.
      embedding: the token embedding that the draft reads, as a rule the target's; frozen.
    """

    embedding: Tensor
    d2t: Tensor

    def __init__(self, config: DraftConfig, embedding: Float[Tensor, "target_vocab hidden"]):
        super().__init__()
        self.config = config
        self.source = config.specexit.source if config.specexit else None
        n_signals = len(config.specexit.signals) if config.specexit else 0
        extra = n_signals if self.source == "fc" else 0
        self.input_norm = RMSNorm(config.aux_size, config.rms_norm_eps) if config.norm_before_fc else None
        self.fc_norm = (
            nn.ModuleList(
                RMSNorm(config.target_hidden_size, config.rms_norm_eps) for _ in range(config.num_aux_hidden_states)
            )
            if config.fc_norm
            else None
        )
        self.fc = nn.Linear(config.aux_size, config.hidden_size + extra, bias=False)
        self.midlayer = DraftLayer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.signal_head = nn.Linear(config.hidden_size, n_signals, bias=False) if self.source == "draft" else None
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
        self.register_buffer("embedding", embedding.detach(), persistent=False)

    @classmethod
    def load(cls, folder: Path, embedding: Float[Tensor, "target_vocab hidden"]) -> Draft:
        """Load a draft directory, in the dtype of the target's embedding, which a draft without its own one reads.

        Raises:
          DraftError: the directory is unusable, or the embedding is not of the target it was made for.
        """
        config, tensors = read_draft(folder, needs_policy=False)
        if "embed_tokens.weight" in tensors:
            embedding = as_torch(tensors.pop("embed_tokens.weight")).to(embedding.dtype)
        expected = (config.vocab_size, config.hidden_size)
        if tuple(embedding.shape) != expected:
            raise DraftError(
                f"{folder / 'config.json'}: the draft reads an embedding {list(expected)} (vocab_size, hidden_size), "
                f"but the target's is {list(embedding.shape)}: the draft was made for another target"
            )
        return cls.of(config, {name: as_torch(value) for name, value in tensors.items() if name != "t2d"}, embedding)

    @classmethod
    def of(
        cls, config: DraftConfig, weights: dict[str, Tensor], embedding: Float[Tensor, "target_vocab hidden"]
    ) -> Draft:
        """A draft of these weights, in the dtype of the embedding that it reads; weights of that dtype are not copied.

        Without ``d2t`` a draft token is the target's token of that id.
        """
        whole = {"d2t": torch.zeros(config.draft_vocab_size, dtype=torch.long)}
        with torch.device("meta"):
            draft = cls(config, embedding)
        draft.load_state_dict(whole | weights, assign=True)
        draft.embedding = embedding.detach()
        return draft.to(embedding.dtype).requires_grad_(False).eval()

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        aux: Float[Tensor, "batch time aux_hidden"],
        *,
        steps: int = 1,
        at: Int[Tensor, " chosen"] | None = None,
    ) -> DraftOutput:
        """Run the first pass over whole sequences, and further draft steps fed with the true next tokens.

        Padding goes to the right: attention is causal, so it changes nothing before it.

        Args:
          tokens: ``x_0 ... x_{T-1}``.
          aux: the target's aux hidden states ``f_0 ... f_{T-1}``, concatenated in the order of the config's layers.
          steps: draft steps, the first pass included.
          at: rows whose logits are wanted, where a whole sequence of them would be too large; those that a step does
            not have are left out. Later steps are computed at these rows alone.
        """
        rows = tokens.shape[1] - 1
        chosen = torch.arange(rows, device=tokens.device) if at is None else at[at < rows]
        fused = self.fc(self._normed(aux))
        h = fused[:, :rows, : self.config.hidden_size]
        cache: list[tuple[Tensor, Tensor]] = []
        logits, first = [], None
        for step in range(steps):
            # Rows without a next token read a padding token; they are cut off below and no other row sees them.
            read = F.pad(tokens[:, 1 + step :], (0, step))
            if step:
                read = read[:, chosen]
            h = self.midlayer(F.embedding(read, self.embedding), h, cache, chosen if step else None)
            y = self.norm(h)
            h = y if self.config.norm_output else h
            if first is None:
                first, h, y = y, h[:, chosen], y[:, chosen]
            logits.append(self.lm_head(y[:, chosen < rows - step]))
        return DraftOutput(logits, self._signals(fused, first))

    def signals(
        self, tokens: Int[Tensor, "batch time"], aux: Float[Tensor, "batch time aux_hidden"]
    ) -> Float[Tensor, "batch time signals"] | None:
        """Raw signals as in `DraftOutput`, without the logits that nobody reads: [batch, time, vocab] is 2 GB for 16k
        tokens and 32,000 words."""
        fused = self.fc(self._normed(aux))
        if self.signal_head is None:
            return self._signals(fused, None)
        h = fused[:, : tokens.shape[1] - 1, : self.config.hidden_size]
        return self._signals(fused, self.norm(self.midlayer(F.embedding(tokens[:, 1:], self.embedding), h, [])))

    def _normed(self, aux: Float[Tensor, "batch time aux_hidden"]) -> Float[Tensor, "batch time aux_hidden"]:
        """What ``fc`` reads: the aux hidden states, normed in drafts that were trained so."""
        if self.input_norm is not None:
            return self.input_norm(aux)
        if self.fc_norm is None:
            return aux
        layers = aux.chunk(len(self.fc_norm), dim=-1)
        return torch.cat([norm(layer) for norm, layer in zip(self.fc_norm, layers, strict=True)], dim=-1)

    def _signals(self, fused: Tensor, first: Tensor | None) -> Tensor | None:
        if self.source == "fc":
            return fused[..., self.config.hidden_size :]
        if self.signal_head is None or first is None:
            return None
        return F.pad(self.signal_head(first), (0, 0, 1, 0), value=torch.nan)
