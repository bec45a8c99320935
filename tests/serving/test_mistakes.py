"""The classic mistakes of a conversion, each made on purpose to a draft that really drafts: they are named."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from specexit.drafts.directory import read_draft, vocabulary_tensors
from tests.serving.make_draft import texts
from torch_specexit import mistakes as module
from torch_specexit.draft import as_torch
from torch_specexit.features import TargetFeatures
from torch_specexit.mistakes import Mistakes, layers_of

STEPS = 2
"""Draft steps that the draft was trained for."""


@pytest.fixture(scope="module")
def written(target):
    """Texts as the target writes them, and the row of the first token behind the prompt."""
    start = target.think_tokens().start
    return [(np.array(text), text.index(start) - 1) for text in texts(target, 704)[-4:]]


@pytest.fixture(scope="module")
def features(drafts, target):
    config, _ = read_draft(drafts / "plain")
    return TargetFeatures(target, layers_of(config))


@pytest.fixture(scope="module")
def sound(drafts):
    """Config and tensors of a draft without a mistake."""
    return read_draft(drafts / "plain")


def found(draft, target, features, written, misread=None):
    """What the search says of a draft, acceptance and mistakes."""
    config, tensors = draft
    weights = {name: as_torch(np.array(tensor)) for name, tensor in tensors.items() if name != "t2d"}
    search = Mistakes(config, weights, target.hf_config(), features.embedding, steps=STEPS, most=400)
    for tokens, first in written:
        states = features(torch.from_numpy(tokens)[None])[0].chunk(len(features.layers), dim=-1)
        states = dict(zip(features.layers, states, strict=True))
        search.read(tokens, first, states if misread is None else misread(states))
    result = search.result()
    return result["acceptance"]["length"], result["mistakes"]


def test_of_a_sound_draft_nothing_is_said(sound, target, features, written):
    length, mistakes = found(sound, target, features, written)
    assert mistakes == []
    assert length > 1.5


def test_what_is_wrong_far_from_the_beginning_alone_is_no_mistake(sound, target, features, written, monkeypatch):
    """As where a trace is longer than what a draft was trained on; its acceptance is still that of the whole trace."""

    def drifting(states):
        return {layer: torch.cat([state[:110], state[110:].roll(1, dims=0)]) for layer, state in states.items()}

    length, (said,) = found(sound, target, features, written, misread=drifting)
    assert said.startswith("positions look off by one")
    monkeypatch.setattr(module, "BEGINNING", 50)
    assert found(sound, target, features, written, misread=drifting) == (length, [])


def shifted_layers(config, tensors):
    layers = tuple(layer - 1 for layer in config.eagle_aux_hidden_state_layer_ids)
    return config.model_copy(update={"eagle_aux_hidden_state_layer_ids": layers}), tensors


def random_fc(config, tensors):
    fc = tensors["fc.weight"]
    noise = np.random.default_rng(0).normal(size=fc.shape).astype(np.float32)
    return config, tensors | {"fc.weight": noise * fc.std()}


def wide_fc(config, tensors):
    """As transformers initialises a layer, ten times as wide as rows that are trained on states of that size.

    The embedding drowns in what comes of it, so the draft guesses better with what its layer adds to normed, whatever
    states it reads. That norm was called missing.
    """
    config, wrong = random_fc(config, tensors)
    return config, wrong | {"fc.weight": 10 * wrong["fc.weight"]}


def own_embedding(config, tensors):
    table = np.random.default_rng(0).normal(size=(config.vocab_size, config.hidden_size)).astype(np.float32)
    return config.model_copy(update={"own_embeddings": True}), tensors | {"embed_tokens.weight": table}


def other_theta(config, tensors):
    return config.model_copy(update={"rope_theta": 1e7}), tensors


def normed_output(config, tensors):
    return config.model_copy(update={"norm_output": True}), tensors


def normed_residual(config, tensors):
    return config.model_copy(update={"norm_before_residual": True}), tensors


def folded_norm(config, tensors):
    """The same draft with a norm of other scales; then the scales are folded into the head, and stay."""
    scales = np.exp(np.random.default_rng(0).normal(0, 1.5, config.hidden_size)).astype(np.float32)
    folded = tensors["lm_head.weight"] * tensors["norm.weight"]
    return config, tensors | {"norm.weight": scales, "lm_head.weight": folded}


def attention(parts, change):
    """A mistake in what queries, keys or values are computed with."""

    def plant(config, tensors):
        names = [f"midlayer.self_attn.{part}_proj.weight" for part in parts]
        return config, tensors | {name: np.ascontiguousarray(change(config, tensors[name])) for name in names}

    return plant


def changed_over(_, weight):
    return np.concatenate(np.split(weight, 2, axis=1)[::-1], axis=1)


def interleaved(config, weight):
    """As the drafts of frameworks whose RoPE turns neighbours."""
    return weight.reshape(-1, 2, config.head_dim // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def interleaved_twice(config, weight):
    return weight.reshape(-1, config.head_dim // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def reversed_layers(config, tensors):
    blocks = np.split(tensors["fc.weight"], config.num_aux_hidden_states, axis=1)
    return config, tensors | {"fc.weight": np.concatenate(blocks[::-1], axis=1)}


def rolled_head(config, tensors):
    return config, tensors | {"lm_head.weight": np.roll(tensors["lm_head.weight"], 1, axis=0)}


def shuffled_head(config, tensors):
    return config, tensors | {"lm_head.weight": np.random.default_rng(0).permutation(tensors["lm_head.weight"])}


def sorted_head(config, tensors):
    """A head in the order of the target's tokens, where d2t has another."""
    tokens = tensors["d2t"] + np.arange(config.draft_vocab_size)
    return config, tensors | {"d2t": np.random.default_rng(0).permutation(tokens) - np.arange(len(tokens))}


def tiled(parts):
    """Query heads in the order of frameworks in which those of one key are as far apart as there are keys."""

    def plant(config, tensors):
        q, o = (f"midlayer.self_attn.{part}_proj.weight" for part in "qo")
        keys, dim = config.num_key_value_heads, config.head_dim
        rows = tensors[q].reshape(keys, -1, dim, tensors[q].shape[1]).swapaxes(0, 1).reshape(tensors[q].shape)
        columns = tensors[o].reshape(len(tensors[o]), keys, -1, dim).swapaxes(1, 2).reshape(tensors[o].shape)
        found = {"q": {q: rows}, "o": {o: columns}}
        return config, tensors | {name: weight for part in parts for name, weight in found[part].items()}

    return plant


def changed_over_names(config, tensors, one, other):
    first, second = (f"midlayer.{name}.weight" for name in (one, other))
    return config, tensors | {first: tensors[second], second: tensors[first]}


def changed_projections(config, tensors):
    """The same draft with units that cancel each other out: one as small as this hardly minds the mistake without."""
    gate, up, down = (tensors[f"midlayer.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
    wide = {"gate": np.concatenate([gate] * 3), "up": np.concatenate([up, up, -up])}
    wide |= {"down": np.concatenate([down, 10 * down, 10 * down], axis=1)}
    same = tensors | {f"midlayer.mlp.{part}_proj.weight": weight for part, weight in wide.items()}
    config = config.model_copy(update={"intermediate_size": 3 * config.intermediate_size})
    return changed_over_names(config, same, "mlp.gate_proj", "mlp.up_proj")


def changed_norms(config, tensors):
    """The same draft with other scales of the embedding, which the columns behind make up for."""
    scales = np.exp(np.random.default_rng(0).normal(0, 1.5, config.hidden_size)).astype(np.float32)
    both, norm = np.concatenate([scales, np.ones_like(scales)]), "midlayer.input_layernorm.weight"
    names = [f"midlayer.self_attn.{part}_proj.weight" for part in "qkv"]
    same = tensors | {norm: tensors[norm] * scales} | {name: tensors[name] / both for name in names}
    return changed_over_names(config, same, "input_layernorm", "hidden_norm")


def transposed_fusion(config, tensors):
    blocks = np.split(tensors["fc.weight"], config.num_aux_hidden_states, axis=1)
    return config, tensors | {"fc.weight": np.concatenate([block.T for block in blocks], axis=1)}


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (
            sorted_head,
            r"^lm_head\.weight looks to be in the order of the target's tokens: .* of d2t in ascending order$",
        ),
        (tiled("qo"), r"^query heads look to be in another order: .* of q's rows and o's columns .* one in 2, then"),
        (tiled("o"), r"^query heads look to be in another order: .* heads of o's columns rearranged: first one in 2"),
        (changed_projections, r"^mlp\.gate_proj and mlp\.up_proj look changed over: "),
        (changed_norms, r"^input_layernorm and hidden_norm look changed over: .* each under the other's name$"),
        (transposed_fusion, r"^fc\.weight looks transposed: .* each block of its columns transposed$"),
        (reversed_layers, r"^aux layers look reversed: .* with the blocks of fc\.weight's columns in reverse$"),
        (attention("qkv", changed_over), r"^embedding and hidden state look changed over: "),
        (
            attention("qk", interleaved),
            r"^RoPE looks interleaved: .* first every other row of a head, then the rest$",
        ),
        (attention("qk", interleaved_twice), r"^RoPE looks interleaved: .* the way back$"),
        (rolled_head, r"^d2t looks off by one: "),
        (shuffled_head, r"^hardly a token is accepted, with whatever is read: acceptance length is 1\.0\d; lm_head"),
        (shifted_layers, r"^aux layers look shifted by one: .* with eagle_aux_hidden_state_layer_ids \[1, 3, 4\]$"),
        (random_fc, r"^fc rows are random"),
        (
            wide_fc,
            r"^fc rows are random, or look so: .* position; with norm_before_residual true 1\.2\d and 1\.2\d$",
        ),
        (own_embedding, r"^embedding is not the target's: "),
        (other_theta, r"^RoPE theta differs: it is 1e\+07: .* with rope_theta 10000$"),
        (normed_output, r"^norm applied twice: what a draft step hands to the next: .* with norm_output false$"),
        (normed_residual, r"^norm applied twice: what the layer adds to: .* with norm_before_residual false$"),
        (folded_norm, r"^norm applied twice: lm_head.weight has norm.weight in it: .* with norm.weight all ones$"),
    ],
)
def test_a_mistake_is_named(plant, named, sound, target, features, written):
    _, (said,) = found(plant(*sound), target, features, written)
    assert re.search(named, said), said


def test_ids_in_the_place_of_offsets_are_noticed_where_they_can_be_offsets_too(sound, target, features, written):
    """Of a vocabulary of small ids; others point beyond the target's, and are refused before anything is computed."""
    config, tensors = sound
    ids = tensors["d2t"] + np.arange(config.draft_vocab_size)
    counts = np.bincount(np.concatenate([tokens for tokens, _ in written]), minlength=config.vocab_size)
    kept = np.sort(np.argsort(-counts[ids] * (ids < 500), kind="stable")[:100])
    small = config.model_copy(update={"draft_vocab_size": 100})
    right = tensors | {"lm_head.weight": tensors["lm_head.weight"][kept]} | vocabulary_tensors(ids[kept], 640)
    assert found((small, right), target, features, written)[1] == []
    _, (said,) = found((small, right | {"d2t": ids[kept]}), target, features, written)
    assert said.startswith("d2t holds ids: ")


def test_a_head_of_the_targets_first_tokens_is_noticed(sound, target, features, written):
    config, tensors = sound
    ids = tensors["d2t"] + np.arange(config.draft_vocab_size)
    rows = np.zeros((256, config.hidden_size), np.float32)
    rows[ids[ids < 256]] = tensors["lm_head.weight"][ids < 256]
    first = config.model_copy(update={"draft_vocab_size": 256})
    wrong = tensors | {"lm_head.weight": rows} | vocabulary_tensors(np.arange(384, 640), 640)
    _, (said,) = found((first, wrong), target, features, written)
    assert re.search(r"^lm_head\.weight looks to be of the target's first tokens: .* with d2t all zeros$", said)


@pytest.mark.parametrize(("by", "where"), [(1, "behind"), (-1, "before")])
def test_states_of_another_position_are_noticed(by, where, sound, target, features, written):
    """A constant offset of the positions themselves is none: RoPE sees differences alone."""

    def misread(states):
        return {layer: state.roll(by, dims=0) for layer, state in states.items()}

    _, (said,) = found(sound, target, features, written, misread)
    assert said.startswith("positions look off by one")
    assert said.endswith(f"with the states of the position {where}")
