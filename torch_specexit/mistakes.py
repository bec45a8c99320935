"""The classic mistakes of a converted draft: each is undone on the same traces, and acceptance says whether it was one.

Two frameworks that read the same directory share its mistakes, so their agreement says nothing about these. The text
does: a draft whose aux layers are off by one guesses badly, and well again with the layers that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specexit.drafts.acceptance import acceptance, accepted, clearly_more
from specexit.drafts.config import DraftConfig
from specexit.drafts.rope import RopeScaling, scaling_of
from specexit.trainable import rope_of, theta_of
from torch_specexit.draft import Draft

THETAS = (10_000.0, 100_000.0, 500_000.0, 1_000_000.0, 5_000_000.0, 10_000_000.0)
"""Bases that published targets and drafts have."""

WORTH = 0.03
"""Tokens per step that a repair has to gain, and more than chance explains."""
READS = 0.05
"""Tokens per step that a draft has to gain by reading the target's states, over those of other positions."""
BEGINNING = 1024
"""Tokens of a trace on which repairs are tried. A mistake shows there; beyond the length that a draft was trained on,
another RoPE may do better than its own without a mistake."""

OUTPUT = "midlayer.self_attn.o_proj.weight"

States = Mapping[int, Float[Tensor, "time hidden"]]
"""Layer -> the target's residual stream behind it."""
Change = Callable[[States, tuple[int, ...]], Float[Tensor, "time aux_hidden"]]


def as_they_are(states: States, layers: tuple[int, ...]) -> Float[Tensor, "time aux_hidden"]:
    """What a draft reads: the states of its layers side by side."""
    return torch.cat([states[layer] for layer in layers], dim=-1)


@dataclass(frozen=True)
class Repair:
    """A draft as it would be without one mistake."""

    mistake: str
    remedy: str
    config: DraftConfig
    layers: tuple[int, ...]
    weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = lambda _: {}
    """Makes the weights that replace the directory's when they are needed, so that no two repairs' are held at once."""
    embedding: Tensor | None = None
    aux: Change = as_they_are


def layers_of(config: DraftConfig) -> tuple[int, ...]:
    """Every layer that some repair reads, in order."""
    around = {layer + by for layer in config.eagle_aux_hidden_state_layer_ids for by in (-1, 0, 1)}
    return tuple(sorted(layer for layer in around if 0 <= layer <= config.target_num_hidden_layers))


def repairs(
    config: DraftConfig,
    weights: Mapping[str, Tensor],
    target: Mapping[str, Any],
    embedding: Float[Tensor, "vocab hidden"],
) -> Iterator[Repair]:
    """Every repair that can be tried on a draft.

    Args:
      config, weights: of the draft directory.
      target: the target's ``config.json``.
      embedding: the target's.
    """
    layers = config.eagle_aux_hidden_state_layer_ids
    for by in (-1, 1):
        moved = tuple(layer + by for layer in layers)
        if moved[0] >= 0 and moved[-1] <= config.target_num_hidden_layers:
            remedy = f"eagle_aux_hidden_state_layer_ids {list(moved)}"
            yield Repair("aux layers look shifted by one", remedy, config, moved)
        remedy = f"the states of the position {'before' if by < 0 else 'behind'}"
        yield Repair("positions look off by one", remedy, config, layers, aux=_shifted(by))
    reverse = "the blocks of fc.weight's columns in reverse"
    yield Repair("aux layers look reversed", reverse, config, layers[::-1])
    yield from _vocabulary(config, weights)
    yield from _attention(config)
    yield from _heads(config)
    yield from _changed_over(config)
    yield from _transposed(config)
    if config.own_embeddings and embedding.shape[1] == config.hidden_size:
        own = config.model_copy(update={"own_embeddings": False})
        remedy = "no embed_tokens.weight: vLLM then takes the target's"
        yield Repair("embedding is not the target's", remedy, own, layers, embedding=embedding)
    yield from _rope(config, target)
    yield from _norms(config, weights)


def _shifted(by: int) -> Change:
    def change(states: States, layers: tuple[int, ...]) -> Float[Tensor, "time aux_hidden"]:
        return as_they_are(states, layers).roll(-by, dims=0)

    return change


def _vocabulary(config: DraftConfig, weights: Mapping[str, Tensor]) -> Iterator[Repair]:
    if config.whole_vocabulary:
        return
    ids, layers = weights["d2t"], config.eagle_aux_hidden_state_layer_ids
    order = torch.arange(len(ids), device=ids.device)
    tokens = ids + order
    in_range = bool(((ids >= 0) & (ids < config.vocab_size)).all())
    if in_range and len(ids.unique()) == len(ids):
        remedy = "d2t minus 0, 1, 2, ..."
        yield Repair("d2t holds ids", remedy, config, layers, weights=lambda _: {"d2t": ids - order})
    for by in (-1, 1):
        moved = {"d2t": tokens.roll(by) - order}
        remedy = f"the tokens of d2t moved by {by}"
        yield Repair("d2t looks off by one", remedy, config, layers, weights=lambda _, moved=moved: moved)
    if bool((tokens.diff() < 0).any()):
        ascending = {"d2t": tokens.sort().values - order}
        mistake = "lm_head.weight looks to be in the order of the target's tokens"
        yield Repair(mistake, "the tokens of d2t in ascending order", config, layers, weights=lambda _: ascending)
    mistake = "lm_head.weight looks to be of the target's first tokens"
    yield Repair(mistake, "d2t all zeros", config, layers, weights=lambda _: {"d2t": torch.zeros_like(ids)})


def _attention(config: DraftConfig) -> Iterator[Repair]:
    layers, half = config.eagle_aux_hidden_state_layer_ids, config.head_dim // 2

    def swapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = [f"midlayer.self_attn.{part}_proj.weight" for part in "qkv"]
        return {name: torch.cat(weights[name].chunk(2, dim=1)[::-1], dim=1) for name in names}

    remedy = "the two halves of the columns of q, k and v changed over"
    yield Repair("embedding and hidden state look changed over", remedy, config, layers, weights=swapped)

    def rearranged(weights: Mapping[str, Tensor], sides: tuple[int, int]) -> dict[str, Tensor]:
        names = [f"midlayer.self_attn.{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias")]
        rows = {name: weights[name] for name in names if name in weights}
        return {name: x.unflatten(0, (-1, *sides)).transpose(1, 2).reshape(x.shape) for name, x in rows.items()}

    for sides, remedy in (((half, 2), "first every other row of a head, then the rest"), ((2, half), "the way back")):
        weights = partial(rearranged, sides=sides)
        yield Repair("RoPE looks interleaved", f"rows of q and k rearranged: {remedy}", config, layers, weights=weights)


def _heads(config: DraftConfig) -> Iterator[Repair]:
    """Query heads that share a key and value: side by side, or as far apart as there are keys, as frameworks differ."""
    layers, dim, kv = config.eagle_aux_hidden_state_layer_ids, config.head_dim, config.num_key_value_heads
    group = config.num_attention_heads // kv

    def rearranged(weights: Mapping[str, Tensor], sides: tuple[int, int], parts: str) -> dict[str, Tensor]:
        names = [f"midlayer.self_attn.{part}" for part in ("q_proj.weight", "q_proj.bias") if part[0] in parts]
        rows = {name: weights[name] for name in names if name in weights}
        found = {name: x.unflatten(0, (*sides, dim)).transpose(0, 1).reshape(x.shape) for name, x in rows.items()}
        columns = weights[OUTPUT].unflatten(1, (*sides, dim)).transpose(1, 2).reshape(weights[OUTPUT].shape)
        return found | {OUTPUT: columns}

    # One head or one key has one order; with as many keys as a group has heads, the way back is the same.
    for sides in sorted({(group, kv), (kv, group)}) if min(group, kv) > 1 else ():
        for parts, what in (("qo", "q's rows and o's columns"), ("o", "o's columns")):
            remedy = f"heads of {what} rearranged: first one in {sides[1]}, then the rest"
            weights = partial(rearranged, sides=sides, parts=parts)
            yield Repair("query heads look to be in another order", remedy, config, layers, weights=weights)


def _changed_over(config: DraftConfig) -> Iterator[Repair]:
    """Two tensors of the same shape under each other's names. Those of ``q_norm`` and ``k_norm`` are not tried: RoPE
    aside, a score depends on their product alone, which stays the same."""
    layers = config.eagle_aux_hidden_state_layer_ids
    for one, other in (("mlp.gate_proj", "mlp.up_proj"), ("input_layernorm", "hidden_norm")):
        names = (f"midlayer.{one}.weight", f"midlayer.{other}.weight")

        def changed(weights: Mapping[str, Tensor], names: tuple[str, str] = names) -> dict[str, Tensor]:
            return dict(zip(names, (weights[name] for name in names[::-1]), strict=True))

        mistake = f"{one} and {other} look changed over"
        yield Repair(mistake, "each under the other's name", config, layers, weights=changed)


def _transposed(config: DraftConfig) -> Iterator[Repair]:
    """Square matrices, and blocks of ``fc``; any other is refused by its shape."""
    layers, shapes = config.eagle_aux_hidden_state_layer_ids, config.tensor_shapes()
    sides = {name: shape[0] for name, shape in shapes.items() if "midlayer" in name and shape == (shape[0], shape[0])}
    if config.target_hidden_size == config.hidden_size:
        sides["fc.weight"] = config.hidden_size

    def turned(weights: Mapping[str, Tensor], name: str, side: int) -> dict[str, Tensor]:
        blocks = [block.T for block in weights[name][:side].split(side, dim=1)]
        return {name: torch.cat([torch.cat(blocks, dim=1), weights[name][side:]])}  # signal rows of fc stay

    for name, side in sides.items():
        what = "each block of its columns" if name == "fc.weight" else "it"
        weights = partial(turned, name=name, side=side)
        yield Repair(f"{name} looks transposed", f"{what} transposed", config, layers, weights=weights)


def _rope(config: DraftConfig, target: Mapping[str, Any]) -> Iterator[Repair]:
    layers = config.eagle_aux_hidden_state_layer_ids
    named: dict[str, Any] = {}
    theta = config.rope_theta
    with suppress(ValueError):  # the target may say it in another form than fields
        named, theta = rope_of(target), theta_of(target) or theta
    for other in sorted({float(theta), *THETAS} - {config.rope_theta}):
        changed = config.model_copy(update={"rope_theta": other})
        yield Repair(f"RoPE theta differs: it is {config.rope_theta:g}", f"rope_theta {other:g}", changed, layers)
    # Without a scaling also at the draft's own theta: one may have been added for longer texts after it was trained.
    tried: list[tuple[RopeScaling | None, float]] = [(None, float(theta)), (None, config.rope_theta)]
    with suppress(ValueError):  # the target's may be of a kind that is not implemented
        tried.insert(0, (scaling_of(named), float(theta)))
    for other, base in dict.fromkeys(tried):
        if other != config.rope_scaling:
            changed = config.model_copy(update={"rope_scaling": other, "rope_theta": base})
            remedy = "no rope_scaling" if other is None else "the target's rope_scaling"
            yield Repair("RoPE scaling differs", f"{remedy}, rope_theta {base:g}", changed, layers)


def _norms(config: DraftConfig, weights: Mapping[str, Tensor]) -> Iterator[Repair]:
    layers = config.eagle_aux_hidden_state_layer_ids
    twice = {
        "norm_output": "what a draft step hands to the next",
        "norm_before_residual": "what the layer adds to",
        "norm_before_fc": "what fc reads",
        "fc_norm": "what fc reads",
    }
    for flag, what in twice.items():
        stated = getattr(config, flag)
        if not stated and flag in ("norm_before_fc", "fc_norm"):
            continue  # such a norm has weights of its own, which cannot be guessed
        mistake = f"norm applied twice: {what}" if stated else f"a norm is missing: {what}"
        changed = config.model_copy(update={flag: not stated})
        yield Repair(mistake, f"{flag} {str(not stated).lower()}", changed, layers)
    ones = torch.ones_like(weights["norm.weight"])
    mistake = "norm applied twice: lm_head.weight has norm.weight in it"
    yield Repair(mistake, "norm.weight all ones", config, layers, weights=lambda _: {"norm.weight": ones})


class Mistakes:
    """Tries repairs on traces, one trace at a time.

    Args:
      config, weights, target, embedding: see `repairs`.
      steps: draft steps.
      most: rows of a trace that are read.
    """

    def __init__(
        self,
        config: DraftConfig,
        weights: dict[str, Tensor],
        target: Mapping[str, Any],
        embedding: Tensor,
        *,
        steps: int,
        most: int,
    ):
        self.config, self.weights, self.steps, self.most = config, weights, steps, most
        own = weights.get("embed_tokens.weight", embedding).to(embedding)
        layers = config.eagle_aux_hidden_state_layer_ids
        self.as_it_is = Repair("", "", config, layers, embedding=own)
        self.repairs = list(repairs(config, weights, target, embedding))
        self._embedding = own
        self._whole: list[np.ndarray] = []
        self._found: dict[int, list[np.ndarray]] = {}
        self._blind: dict[int, list[np.ndarray]] = {}

    def read(self, tokens: Int[np.ndarray, " time"], first: int, states: States) -> None:
        """Take a trace in.

        Args:
          tokens: of the whole trace.
          first: row of its first generated token: row ``t`` drafts token ``t + 2``.
          states: the target's.
        """
        rows = self._rows(first, len(tokens))
        if not len(rows):
            return
        self._whole.append(self._accepted(self.as_it_is, tokens, rows, states))
        if len(tokens) > first + BEGINNING:
            tokens = tokens[: first + BEGINNING]
            rows, states = self._rows(first, len(tokens)), {k: state[: len(tokens)] for k, state in states.items()}
        for i, repair in enumerate((self.as_it_is, *self.repairs)):
            found = self._accepted(repair, tokens, rows, states)
            self._found.setdefault(i, []).append(found)
            # Most repairs make a draft worse, and none of these is named, whatever it reads: one pass is enough of it.
            better = i == 0 or found.sum() > self._found[0][-1].sum()
            elsewhere = replace(repair, aux=_elsewhere)
            blind = self._accepted(elsewhere, tokens, rows, states) if better else found
            self._blind.setdefault(i, []).append(blind)

    def _rows(self, first: int, time: int) -> Int[np.ndarray, " rows"]:
        """Rows of so many tokens that are read, at most `most`, spread evenly."""
        rows = np.arange(first, time - 1 - self.steps)
        places = np.linspace(0, len(rows) - 1, min(len(rows), self.most))
        return rows[np.unique(np.rint(places).astype(int))]

    @torch.inference_mode()
    def _accepted(
        self, repair: Repair, tokens: Int[np.ndarray, " time"], rows: Int[np.ndarray, " rows"], states: States
    ) -> Bool[np.ndarray, "rows steps"]:
        embedding = self._embedding if repair.embedding is None else repair.embedding
        weights = {name: value for name, value in self.weights.items() if name != "embed_tokens.weight"}
        draft = Draft.of(repair.config, _fitting(weights | repair.weights(self.weights), repair.config), embedding)
        ids, at = (torch.from_numpy(part).to(embedding.device) for part in (tokens[None], rows))
        output = draft(ids, repair.aux(states, repair.layers)[None], steps=self.steps, at=at)
        guesses = torch.stack([logits[0].argmax(-1) for logits in output.logits], dim=1)
        drafts = (guesses + draft.d2t[guesses]).cpu().numpy()
        return accepted(drafts, np.stack([tokens[rows + 2 + k] for k in range(self.steps)], axis=1))

    def result(self) -> dict[str, Any]:
        """What was found on all traces.

        Returns:
          ``acceptance`` of the directory as it is: rows, length, by_position, or None where no row was read;
          ``mistakes``: at most one, in words, and as a rule none.
        """
        if not self._found:
            return {"acceptance": None, "mistakes": []}
        as_it_is, *others = (np.concatenate(self._found[i]) for i in range(len(self._found)))
        blind, *others_blind = (np.concatenate(self._blind[i]) for i in range(len(self._blind)))
        now = acceptance(as_it_is).length
        best = int(np.argmax([acceptance(other).length for other in others]))
        repair = self.repairs[best]
        length, unread = acceptance(others[best]).length, acceptance(others_blind[best]).length
        better = clearly_more(others[best], as_it_is, by=WORTH)
        reads = all(clearly_more(others[best], one, by=READS) for one in (blind, others_blind[best]))
        mistakes = []
        if better and reads:
            mistakes.append(f"{repair.mistake}: acceptance length is {now:.2f}, and {length:.2f} with {repair.remedy}")
        elif now < 1 + READS and not better:  # so short that no states can have been worth READS
            mistakes.append(
                f"hardly a token is accepted, with whatever is read: acceptance length is {now:.2f}; "
                "lm_head.weight, d2t or the embedding may be another draft's, or the weights are random"
            )
        elif not clearly_more(as_it_is, blind, by=READS):
            so = f"; with {repair.remedy} {length:.2f} and {unread:.2f}" if better else ""
            mistakes.append(
                f"fc rows are random, or look so: acceptance length is {now:.2f}, and {acceptance(blind).length:.2f} "
                f"with the target's states of another position{so}"
            )
        return {"acceptance": acceptance(np.concatenate(self._whole))._asdict(), "mistakes": mistakes}


def _elsewhere(states: States, layers: tuple[int, ...]) -> Float[Tensor, "time aux_hidden"]:
    """States of the same trace that belong to other positions."""
    whole = as_they_are(states, layers)
    return whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).to(whole.device)]


def _fitting(weights: Mapping[str, Tensor], config: DraftConfig) -> dict[str, Tensor]:
    """The weights that a draft of that config has; a repair may do without a norm."""
    names = config.tensor_shapes().keys() - {"t2d", "embed_tokens.weight"}
    return {name: weights[name] for name in weights if name in names}
