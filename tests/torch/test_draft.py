"""The PyTorch draft: which token a row's signals belong to, what may influence them, and what loading refuses."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specexit.drafts.directory import FLOATS, DraftError, plain_copy, read_config, read_draft, write_draft
from specexit.drafts.policy import OperatingPoint, PolicyFile, Serving, write_policy
from specexit.errors import InputError
from specexit.method.decision import Policy
from specexit.method.splits import ThinkTokens
from specexit.schemas.target import load_target_config, save_target
from specexit.tiny import EMBEDDED
from torch_specexit import SpecExitDraft
from torch_specexit import draft as module
from torch_specexit.draft import Draft

TIME = 12


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(3)
    embedding = torch.from_numpy(rng.normal(size=(200, 64)).astype(np.float32))
    tokens = torch.from_numpy(rng.integers(0, 200, (2, TIME)))
    aux = torch.from_numpy(rng.normal(size=(2, TIME, 192)).astype(np.float32))
    return embedding, tokens, aux


@pytest.fixture(scope="module", params=["draft", "fc"])
def draft(request, tmp_path_factory, write_random_draft, inputs):
    folder = write_random_draft(tmp_path_factory.mktemp("draft") / "draft", request.param)
    return Draft.load(folder, inputs[0])


def changed(draft, before, after):
    """Tokens of the first sequence whose signals differ between two inputs."""
    a, b = (draft(*given).raw_signals[0] for given in (before, after))
    return [t for t in range(TIME) if not torch.equal(a[t].nan_to_num(), b[t].nan_to_num())]


def test_a_tokens_signals_are_those_of_the_row_that_has_seen_it(draft, inputs):
    _, tokens, aux = inputs
    other = tokens.clone()
    other[0, 5] = (other[0, 5] + 1) % 200
    # source draft: the row that reads x_5 gives x_5's signals. source fc reads the target's states alone.
    assert changed(draft, (tokens, aux), (other, aux)) == ([] if draft.source == "fc" else list(range(5, TIME)))

    moved = aux.clone()
    moved[0, 5] += 1
    # source draft: f_5 is read together with x_6. source fc: f_5 is x_5's own state, and a probe sees nothing else.
    assert changed(draft, (tokens, aux), (tokens, moved)) == ([5] if draft.source == "fc" else list(range(6, TIME)))


def test_only_source_draft_has_no_signals_for_the_first_token(draft, inputs):
    _, tokens, aux = inputs
    raw = draft(tokens, aux).raw_signals
    assert raw.shape == (2, TIME, 4)
    assert torch.isnan(raw[:, 0]).all().item() == (draft.source == "draft")
    assert torch.isfinite(raw[:, 1:]).all()


def test_a_window_is_of_a_token_and_those_before_it(inputs, tmp_path, write_random_draft):
    """Of 4: a row reads its own state and three before it."""
    embedding, tokens, aux = inputs
    draft = Draft.load(write_random_draft(tmp_path / "draft", "draft", sliding_window=4), embedding)
    moved = aux.clone()
    moved[0, 5] += 1
    # Row t gives the signals of token t + 1.
    assert changed(draft, (tokens, aux), (tokens, moved)) == [6, 7, 8, 9]


def test_padding_on_the_right_changes_nothing_before_it(draft, inputs):
    _, tokens, aux = inputs
    longer = torch.cat([tokens, torch.full((2, 4), 7)], dim=1)
    wider = torch.cat([aux, torch.ones(2, 4, 192)], dim=1)
    ours, padded = draft(tokens, aux, steps=3), draft(longer, wider, steps=3)
    for step in range(3):
        # The same sums in another blocking; values are of order 1.
        torch.testing.assert_close(padded.logits[step][:, : TIME - 1 - step], ours.logits[step], atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.raw_signals[:, 1:TIME], ours.raw_signals[:, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 5, 2, 1])
def test_a_draft_step_equals_drafting_with_a_cache_from_that_row(draft, inputs, window, monkeypatch):
    """Step 2 of row t, computed the way a decoder would: prefix rows, then one new position per draft step.

    A window moves with the position, and of 2 has nothing of the prefix left there.
    """
    _, tokens, aux = inputs
    monkeypatch.setattr(draft.midlayer.self_attn, "window", window)
    expected = draft(tokens[:1], aux[:1], steps=3).logits[2][0]
    size = draft.config.hidden_size
    for t in (0, 4, TIME - 4):
        h = draft.fc(aux[:1, : t + 1])[..., :size]
        read = list(range(1, t + 2))
        for position in (t + 1, t + 2):
            # Each step appends the last output as the next row's state; earlier rows keep their own.
            o = draft.midlayer(draft.embedding[tokens[:1, read]], h, [])
            h = torch.cat([h, o[:, -1:]], dim=1)
            read.append(position + 1)
        o = draft.midlayer(draft.embedding[tokens[:1, read]], h, [])
        logits = draft.lm_head(draft.norm(o))[0, -1]
        # Other summation order; logits are of order 1.
        torch.testing.assert_close(logits, expected[t], atol=2e-5, rtol=0)


@pytest.mark.parametrize("scores", [1, 3 * TIME * 4, module.SCORES])
def test_chosen_rows_are_those_of_the_whole(draft, inputs, monkeypatch, scores):
    _, tokens, aux = inputs
    whole = draft(tokens, aux, steps=3)
    monkeypatch.setattr(module, "SCORES", scores)
    at = torch.tensor([0, 3, 4, TIME - 4, TIME - 3, TIME - 2, TIME - 1])
    for chosen, rows in ((None, torch.arange(TIME)), (at, at)):
        some = draft(tokens, aux, steps=3, at=chosen)
        for step in range(3):
            # The same sums in another blocking; logits are of order 1.
            expected = whole.logits[step][:, rows[rows < TIME - 1 - step]]
            torch.testing.assert_close(some.logits[step], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(some.raw_signals, whole.raw_signals, atol=1e-5, rtol=0, equal_nan=True)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return found


@pytest.mark.parametrize("at", [None, torch.arange(0, 4000, 20)])
def test_no_step_makes_a_buffer_of_rows_by_rows(draft, inputs, monkeypatch, at):
    monkeypatch.setattr(module, "SCORES", 1 << 20)
    time, embedding = 4096, inputs[0]
    tokens = torch.arange(time)[None] % len(embedding)
    with Largest() as seen, torch.inference_mode():
        draft(tokens, torch.ones(1, time, 192), steps=3, at=at)
    assert time * 192 <= seen.elements <= 2 << 20


def test_the_plain_copy_drafts_the_same_and_has_no_signals(draft, inputs, tmp_path_factory, write_random_draft):
    embedding, tokens, aux = inputs
    folder = tmp_path_factory.mktemp("plain")
    write_random_draft(folder / "source", draft.source)
    plain_copy(folder / "source", folder / "plain")
    plain = Draft.load(folder / "plain", embedding)
    assert plain(tokens, aux).raw_signals is None
    # With source fc the projection has four rows fewer, so its sums may be blocked differently.
    torch.testing.assert_close(plain(tokens, aux).logits, draft(tokens, aux).logits, atol=1e-5, rtol=0)


def test_every_tensor_of_the_file_is_used(draft, tmp_path, write_random_draft):
    _, tensors = read_draft(write_random_draft(tmp_path / "draft", draft.source))
    assert set(draft.state_dict()) == set(tensors) - {"t2d"}  # t2d is the inverse of d2t


def test_an_embedding_of_another_target_is_refused(tmp_path, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", "draft")
    with pytest.raises(DraftError, match=r"config\.json.*\[200, 64\].*\[640, 192\].*another target"):
        Draft.load(folder, torch.zeros(640, 192))


def test_weights_in_bfloat16_are_loaded_bit_for_bit(tmp_path, write_random_draft, inputs):
    config, tensors = read_draft(write_random_draft(tmp_path / "draft", "draft"))
    half = {name: t.astype(FLOATS["bfloat16"]) if t.dtype == np.float32 else t for name, t in tensors.items()}
    write_draft(tmp_path / "half", config.model_copy(update={"torch_dtype": "bfloat16"}), half)
    state = Draft.load(tmp_path / "half", inputs[0].bfloat16()).state_dict()
    for name in half.keys() - {"t2d", "d2t"}:
        assert state[name].dtype == torch.bfloat16
        np.testing.assert_array_equal(state[name].float().numpy(), half[name].astype(np.float32))


TINY = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640, "draft_vocab_size": 128}
TINY |= {"eagle_aux_hidden_state_layer_ids": (1, 2, 4), "target_num_hidden_layers": 4}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, {585}),  # of config.json and of the tokenizer
        ({"eos_token_id": [585, 31]}, {585, 31}),
        ({"eos_token_id": 31}, {585, 31}),
        ({}, {585}),
    ],
)
def test_a_text_stops_where_vllm_stops_it(said, expected, tmp_path, write_random_draft):
    """At the tokenizer's end and at each of `generation_config.json`, as Qwen3's names two."""
    shutil.copytree(EMBEDDED["embedded"], tmp_path / "model")
    if said is not None:
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(said))
    target = load_target_config("tiny-reasoner").model_copy(update={"path": str(tmp_path / "model")})
    save_target(tmp_path, target)
    folder = write_random_draft(tmp_path / "draft", None, **TINY)
    model = SpecExitDraft.from_pretrained(folder, target=str(tmp_path / "target.yaml"))
    assert model.stops == expected
    text = model.generate([3, 4, 5], max_new_tokens=12, draft_tokens=0).ids
    model.stops = {text[5]}
    assert model.generate([3, 4, 5], max_new_tokens=12).ids == text[: text.index(text[5]) + 1]


def test_markers_and_split_tokens_are_the_draft_s_own_as_they_are_served(tmp_path, write_random_draft):
    """A target's YAML may be edited behind a draft's back."""
    folder = write_random_draft(tmp_path / "draft", "draft", **TINY)
    fields = json.loads((folder / "config.json").read_text())
    fields["specexit"] |= {"split_endings": ["1"], "think_end": " = 1"}
    (folder / "config.json").write_text(json.dumps(fields))
    model, target = SpecExitDraft.from_pretrained(folder), load_target_config("tiny-reasoner")
    block = read_config(folder).specexit
    assert model.ids == block.think_tokens(target.tokenizer())
    assert model.ids.split != target.think_tokens().split
    end = target.tokenizer().encode(" = 1", add_special_tokens=False)
    assert len(end) > 1
    assert model.closing == end
    model.policy = None
    text = model.generate([3, 4, 5], max_new_tokens=12, draft_tokens=0).ids
    first = next(i for i in range(12) if text[i : i + 2] == text[5:7])
    model.ids = ThinkTokens(5, text[6], frozenset(), marker=(text[5], text[6]))
    assert model.generate([3, 4, 5], max_new_tokens=12, draft_tokens=0).thinking_tokens == first
    # The last token of a marker of several ends no thinking alone: there is an exit behind it.
    model.policy = Policy(thresholds={"validity": 0.0})
    start = target.think_tokens().start
    text = model.generate([3, 4, start], max_new_tokens=12, draft_tokens=0).ids
    split = next(token for token in text[2:] if token not in text[:2])
    model.ids = ThinkTokens(start, text[0], frozenset({split}), marker=(text[1] + 1, text[0]))
    found = model.generate([3, 4, start], max_new_tokens=12, draft_tokens=0)
    assert (found.exited, found.thinking_tokens) == (True, text.index(split) + 1)


@pytest.mark.parametrize("mode", ["exit", "shadow"])
def test_a_thinking_is_ended_where_a_server_would_end_it(mode, tmp_path, write_random_draft):
    """In mode exit alone, and only where there is room for the end marker."""
    folder, prompt = write_random_draft(tmp_path / "draft", "draft", **TINY), [3, 4, 5]
    point = OperatingPoint(name="default", policy=Policy(thresholds={"validity": 0.0}))
    write_policy(folder, PolicyFile(points=(point,), serving=Serving(mode=mode)))
    model = SpecExitDraft.from_pretrained(folder)
    model.ids = ThinkTokens(5, -1, frozenset())  # no token is a boundary
    text = model.generate(prompt, max_new_tokens=12, draft_tokens=0).ids
    place = text.index(text[5])
    end, other = [token for token in range(640) if token not in (*prompt, *text)][:2]
    model.ids, model.closing = ThinkTokens(5, end, frozenset({text[5]})), [end]
    found = model.generate(prompt, max_new_tokens=place + 1, draft_tokens=0)
    assert (found.ids, found.exited, found.thinking_tokens) == (text[: place + 1], False, place + 1)
    found = model.generate(prompt, max_new_tokens=place + 2, draft_tokens=0)
    behind = end if mode == "exit" else text[place + 1]
    assert (found.ids, found.exited) == ([*text[: place + 1], behind], mode == "exit")
    if mode == "exit":  # a server says "length" of a thinking whose end marker is cut off
        model.closing = [other, end]
        found = model.generate(prompt, max_new_tokens=place + 2, draft_tokens=0)
        assert found.ids == [*text[: place + 1], other]
        assert (found.exited, found.thinking_tokens) == (False, place + 1)


def test_thinking_begins_where_the_prompt_or_the_target_opens_it(tmp_path, write_random_draft):
    model = SpecExitDraft.from_pretrained(write_random_draft(tmp_path / "draft", "draft", **TINY))
    model.policy, prompt = None, [3, 4, 5]
    model.ids = ThinkTokens(3, 5, frozenset())  # closed again, as with `enable_thinking: false`
    found = model.generate(prompt, max_new_tokens=12, draft_tokens=0)
    text = found.ids
    assert not {*prompt} & {*text}
    assert found.thinking_tokens == 0
    begin = text.index(text[2]) + 1
    place = text.index(text[begin + 1], begin)
    end = next(token for token in range(640) if token not in (*prompt, *text))
    model.ids, model.closing = ThinkTokens(text[2], end, frozenset({text[begin + 1]})), [end]
    found = model.generate(prompt, max_new_tokens=12, draft_tokens=0)
    assert (found.ids, found.thinking_tokens) == (text, len(text) - begin)
    model.policy = Policy(thresholds={"validity": 0.0})
    found = model.generate(prompt, max_new_tokens=12, draft_tokens=0)
    assert found.ids[: place + 2] == [*text[: place + 1], end]
    assert (found.exited, found.thinking_tokens) == (True, place + 1 - begin)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty"),
        ([3, 640], "prompt holds 640, expected token ids below 640"),
        ([3, -1], "prompt holds -1"),
    ],
)
def test_a_prompt_that_is_no_token_ids_is_refused(prompt, message, tmp_path, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", None, **TINY)
    with pytest.raises(InputError, match=message):
        SpecExitDraft.from_pretrained(folder, target="tiny-reasoner").generate(prompt)


def test_a_text_ends_where_the_target_has_no_room_left(tmp_path, write_random_draft):
    """As vLLM ends it with the outcome `length`; it went on to ``max_new_tokens``."""
    model, prompt = SpecExitDraft.from_pretrained(write_random_draft(tmp_path / "draft", "draft", **TINY)), [3, 4, 5]
    model.policy = None
    text = model.generate(prompt, max_new_tokens=12, draft_tokens=0).ids
    place = text.index(text[5])
    model.target = model.target.model_copy(update={"max_model_len": len(prompt) + place + 1})
    for draft_tokens in (0, 3):
        assert model.generate(prompt, max_new_tokens=12, draft_tokens=draft_tokens).ids == text[: place + 1]
    assert model.generate(prompt, max_new_tokens=2).ids == text[:2]
    # No end of the thinking is written where there is none either.
    model.ids, model.policy = ThinkTokens(5, -1, frozenset({text[5]})), Policy(thresholds={"validity": 0.0})
    found = model.generate(prompt, max_new_tokens=12)
    assert (found.ids, found.exited, found.thinking_tokens) == (text[: place + 1], False, place + 1)
    full = [3] * (len(prompt) + place + 1)
    said = rf"^prompt is {len(full)} tokens long, expected fewer than the target's max_model_len, {len(full)}$"
    with pytest.raises(InputError, match=said):
        model.generate(full)
    assert len(model.generate(full[1:]).ids) == 1


def test_a_text_ends_where_the_draft_has_no_positions_left(tmp_path, write_random_draft):
    """As `specexit serve` starts the server; it went on to the target's ``max_model_len``."""
    folder, prompt = write_random_draft(tmp_path / "draft", "draft", **TINY, max_position_embeddings=8), [3, 4, 5]
    model = SpecExitDraft.from_pretrained(folder)
    model.policy = None
    assert len(model.generate(prompt, max_new_tokens=12).ids) == 5
    said = r"^prompt is 8 tokens long, expected fewer than the draft's max_position_embeddings, 8$"
    with pytest.raises(InputError, match=said):
        model.generate([3] * 8)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"max_new_tokens": -3}, "max_new_tokens is -3, expected a whole number, 0 or more"),  # it thought -3 tokens
        ({"draft_tokens": -1}, "draft_tokens is -1"),
    ],
    ids=["negative", "drafts"],
)
def test_a_number_of_tokens_that_is_none_is_refused(numbers, message, tmp_path, write_random_draft):
    folder = write_random_draft(tmp_path / "draft", None, **TINY)
    with pytest.raises(InputError, match=message):
        SpecExitDraft.from_pretrained(folder, target="tiny-reasoner").generate([3], **numbers)


ALONE = """
import json, sys

class Not:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vllm", "jax", "flax", "jax_specexit"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Not())
from torch_specexit import SpecExitDraft
found = SpecExitDraft.from_pretrained(sys.argv[1]).generate(json.loads(sys.argv[2]), max_new_tokens=24)
print(json.dumps([found.ids, found.accepted, found.exited, "vllm" in sys.modules]))
"""


def test_generate_needs_neither_vllm_nor_jax(tmp_path, write_random_draft):
    """On a machine that has torch and transformers alone it writes what it writes here: the target's greedy text."""
    shape = {"hidden_size": 192, "target_hidden_size": 192, "vocab_size": 640}
    folder = write_random_draft(tmp_path / "draft", "draft", eagle_aux_hidden_state_layer_ids=(1, 3, 4), **shape)
    prompt = [*range(20, 40), load_target_config("tiny-reasoner").think_tokens().start]
    command = [sys.executable, "-c", ALONE, str(folder), json.dumps(prompt)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids, accepted, exited, loaded = json.loads(done.stdout)
    here = SpecExitDraft.from_pretrained(folder).generate(prompt, max_new_tokens=24)
    assert not loaded
    assert 0 < len(ids) <= 24
    assert (ids, accepted, exited) == (here.ids, here.accepted, here.exited)
