"""Weights of the draft that arrive in pieces, are replaced, or do not survive a sleep. No engine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from specexit.drafts.directory import DraftError, read_config
from specexit.drafts.layouts import LAYOUTS
from specexit.method.signals import NAMES
from tests.serving.simulation import END, given_step
from tests.serving.worker import alone, new, ready, scheduled, text_of, worker_with  # noqa: F401, a fixture for all
from torch_specexit.plugin import outcome
from torch_specexit.plugin.compat import wraps
from torch_specexit.plugin.worker.model import SignalHead, WithSignals
from torch_specexit.plugin.worker.weights import NEVER_SENT, Weights, fingerprint, why_lost

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("checking", ["0", "1"])
def test_nothing_exits_while_the_drafts_weights_arrive_one_by_one(monkeypatch, checking):
    """A trainer sends one tensor at a time. A request that was running meanwhile is left alone to its end."""
    monkeypatch.setenv("SPECEXIT_CHECK", checking)
    exits = ready()
    exits.track(scheduled(new("a")))
    text_of(exits, given_step(["a"], [[2]]))
    exits.draft.weights.begin()
    exits.draft.weights.arrived("a")
    assert text_of(exits, given_step(["a"], [[5]], at=[1])) == [[5]]
    exits.close(output := SimpleNamespace())
    assert vars(output)[outcome.AWAITING_KEY] == "an update of the draft's weights has begun"
    assert exits.status()["active"] is False
    ended = outcome.Record.from_row(vars(output)[outcome.KEY]["a"]).describe(2, cut_off=False)
    assert ended == {"outcome": "off", "thinking_tokens": 0, "signals": {}}
    exits.draft.weights.begin()
    exits.draft.weights.arrived("b")
    assert text_of(exits, given_step(["a"], [[2]], at=[2]), given_step(["a"], [[5]], at=[3])) == [[2], [5]]
    exits.track(scheduled(new("b")))
    assert text_of(exits, given_step(["b"], [[2]]), given_step(["b"], [[5]], at=[1])) == [[2], [END]]
    exits.close(output := SimpleNamespace())
    assert outcome.AWAITING_KEY not in vars(output)
    assert exits.status()["active"] is True


class Stock(nn.Module):
    """Stands for vLLM's draft model: takes what it is given."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            vars(self).setdefault("taken", {})[name] = tensor.clone()
            if name == "d2t" and hasattr(self, "draft_id_to_target_id"):
                vocabulary = self.draft_id_to_target_id
                getattr(vocabulary, "weight_loader", torch.Tensor.copy_)(vocabulary, tensor)


class Model(WithSignals, Stock):
    """Our draft model as far as it loads."""

    def __init__(self, folder: Path):
        nn.Module.__init__(self)
        config = read_config(folder)
        assert config.specexit is not None
        self.folder, self.draft_config, self.block = folder, config, config.specexit
        width = config.hidden_size if self.block.source == "draft" else config.aux_size
        self.signal_head = SignalHead(width)
        self.weights, self.apart = Weights(config.tensor_shapes()), {}


def as_exported(tensors: dict[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """Under the names of an export for speculators, the signal rows of source ``fc`` apart."""
    hidden, named = model.draft_config.hidden_size, dict(tensors)
    if model.block.source == "fc":
        named |= {"fc.weight": tensors["fc.weight"][:hidden], "signal_head.weight": tensors["fc.weight"][hidden:]}
    return {LAYOUTS["speculators"].theirs(name): tensor for name, tensor in named.items()}


@pytest.mark.parametrize("source", ["draft", "fc"])
@pytest.mark.parametrize("names", ["own", "speculators"])
@pytest.mark.parametrize("backwards", [False, True])
def test_an_update_of_one_tensor_a_call_makes_the_draft_whole_whatever_its_names(
    write_random_draft, tmp_path, source, names, backwards
):
    """Of a draft with source ``fc``, both halves of one tensor were dropped if they came in calls of their own; where
    the vocabulary came last, it began an update that never ended. Exits stayed off."""
    model = Model(write_random_draft(tmp_path / "draft", source))
    tensors = load_file(tmp_path / "draft" / "model.safetensors")
    model.load_weights(iter(tensors.items()))
    assert model.weights.whole
    trained = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    sent = as_exported(trained, model) if names == "speculators" else dict(trained)
    order = list(sent)[::-1] if backwards else list(sent)
    whole = []
    for name in order:
        memory = sent[name].clone()
        model.load_weights([(name, memory)])
        whole.append(model.weights.whole)
        memory.zero_()  # used again for the next
    last = max(i for i, name in enumerate(order) if name not in NEVER_SENT)
    first = whole.index(False)
    assert first <= 2  # in front are the vocabulary, and a half that waits for the other
    assert whole[first:] == [i >= last for i in range(first, len(order))]
    assert not model.apart
    hidden = model.draft_config.hidden_size
    own = trained["signal_head.weight"] if source == "draft" else trained["fc.weight"][hidden:]
    assert torch.equal(model.signal_weight, own.float())
    expected = {name: tensor for name, tensor in trained.items() if name != "signal_head.weight"}
    expected["fc.weight"] = expected["fc.weight"][:hidden]
    taken = vars(model)["taken"]
    assert taken.keys() == expected.keys()
    assert all(torch.equal(taken[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("source", ["draft", "fc"])
@pytest.mark.parametrize("reduced", [True, False])
def test_an_update_over_vllms_own_route_replaces_the_signal_rows_in_their_place(
    write_random_draft, tmp_path, source, reduced
):
    """It puts the tensors of each module on the meta device until all of them have gone through a ``weight_loader``.
    Beside the vocabulary, the signal rows became whatever was in memory; without it, they stayed the old ones."""
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
        record_metadata_for_reloading,
    )

    model = Model(write_random_draft(tmp_path / "draft", source))
    tensors = load_file(tmp_path / "draft" / "model.safetensors")
    model.register_buffer("signals", torch.ones(2, 3, len(NAMES)), persistent=False)
    if reduced:  # as vLLM's class has it
        model.draft_id_to_target_id = nn.Parameter(torch.zeros_like(tensors["d2t"]), requires_grad=False)
    record_metadata_for_reloading(model)
    model.load_weights(iter(tensors.items()))
    rows, signals = model.signal_weight, model.signals
    trained = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    initialize_layerwise_reload(model)
    for item in trained.items():
        model.load_weights([item])
    finalize_layerwise_reload(model, None)
    assert model.weights.whole
    own = trained["signal_head.weight"] if source == "draft" else trained["fc.weight"][model.draft_config.hidden_size :]
    assert torch.equal(model.signal_weight, own.float())
    assert model.signal_weight is rows  # which CUDA graphs read
    assert model.signals is signals
    assert signals.eq(1).all()
    if reduced:
        assert torch.equal(model.draft_id_to_target_id, tensors["d2t"])


def test_a_start_with_a_part_of_the_draft_is_refused(write_random_draft, tmp_path):
    """Later a part may come; see above."""
    model = Model(write_random_draft(tmp_path / "draft", "fc"))
    tensors = load_file(tmp_path / "draft" / "model.safetensors")
    halves = as_exported(tensors, model)
    del halves["signal_head.weight"]
    with pytest.raises(DraftError, match=r"tensor fc\.weight .* is missing"):
        model.load_weights(iter(halves.items()))
    assert not model.weights.whole


UPDATES = {
    "the same": lambda weight: weight,
    "trained": lambda weight: weight + 1,
    "rows have changed places": lambda weight: weight.flip(0),
    "columns have changed places": lambda weight: weight.flip(1),
}


@pytest.mark.parametrize("how", UPDATES)
@pytest.mark.parametrize("early", [True, False])
def test_whether_an_update_has_brought_another_draft_is_told_with_every_report(how, early):
    """What was loaded at the start is what a certificate may be of; it used to be shown for the weights behind it."""
    exits = ready()
    exits.track(scheduled(new("a")))
    if not early:
        text_of(exits, given_step(["a"], [[2]]))
    exits.draft.weights.begin()
    weight = vars(exits.draft)["head"].weight
    weight.data = UPDATES[how](weight.data)
    for name in ("a", "b"):
        exits.draft.weights.arrived(name)
    for at in (0, 1):
        text_of(exits, given_step(["a"], [[2]], at=[at]))
        exits.close(output := SimpleNamespace())
        assert vars(output).get(outcome.REPLACED_KEY, False) == (how != "the same")


def test_a_draft_is_not_replaced_by_what_comes_behind_its_last_tensor(caplog):
    """A start used to end with the word that the weights were whole again, where the vocabulary came last."""
    weights = Weights(["a", "d2t"])
    for name in ("a", "d2t"):
        weights.arrived(name)
    assert (weights.whole, weights.replaced, caplog.records) == (True, False, [])


def test_a_draft_that_a_cpu_has_packed_is_not_taken_for_the_same_behind_an_update():
    """vLLM leaves an empty parameter behind where it packs one, so nothing is seen of it."""
    layer, weights = nn.Linear(2, 2), Weights(["a"])
    layer.weight = nn.Parameter(torch.empty(0))
    weights.arrived("a")
    weights.remember(layer.named_parameters())
    assert not weights.replaced
    weights.begin()
    weights.arrived("a")
    weights.remember(layer.named_parameters())
    assert weights.replaced


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_a_sleep_that_leaves_the_drafts_weights_behind_ends_exits_until_they_are_back(survives, early):
    """Before the first step, V1 took what the sleep had left for the draft's weights."""
    exits = ready()
    exits.track(scheduled(new("a")))
    if not early:
        text_of(exits, given_step(["a"], [[2]]))
    worker = worker_with(exits)

    def wakes(self: Any, tags: Any) -> None:
        if not survives:
            vars(exits.draft)["head"].weight.data.fill_(float("nan"))

    wraps.wake_up(wakes)(worker)
    assert exits.draft.weights.whole == survives
    assert (why_lost(worker) is None) == survives
    if early:
        text_of(exits, given_step(["a"], [[2]]))
    assert text_of(exits, given_step(["a"], [[5]], at=[1])) == [[END if survives else 5]]


@pytest.mark.parametrize("survives", [True, False])
def test_so_does_a_sleep_right_behind_an_update(survives):
    """Without a step between the two, what the sleep had left was taken for the updated weights, and judged by."""
    exits = ready()
    head = vars(exits.draft)["head"]
    exits.draft.weights.begin()
    head.weight.data.add_(1.0)
    for name in ("a", "b"):
        exits.draft.weights.arrived(name)
    worker = worker_with(exits)

    def sleeps(self: Any, level: int) -> None:
        if not survives:
            head.weight.data.fill_(float("nan"))

    wraps.sleep(sleeps)(worker, 2)
    wraps.wake_up(lambda self, tags: None)(worker)
    exits.track(scheduled(new("a")))
    text = text_of(exits, given_step(["a"], [[2]]), given_step(["a"], [[5]], at=[1]))
    assert text == [[2], [END if survives else 5]]
    assert (why_lost(worker) is None, exits.draft.weights.replaced) == (survives, True)
    worker.model_runner._specexit = None
    assert wraps.sleep(sleeps)(worker, 1) is None


def test_a_deep_sleep_leaves_the_buffers_as_they_were():
    """Of a draft vLLM keeps none before 0.28: signals were read at garbage rows, and exits were certified."""
    draft = WithSignals.__new__(WithSignals)
    torch.nn.Module.__init__(draft)
    draft.register_buffer("back", torch.arange(4), persistent=False)
    draft.weights, draft.kept = Weights(["a"]), {}
    worker = worker_with(SimpleNamespace(draft=draft))
    wraps.sleep(lambda self, level: draft.back.fill_(7))(worker, 2)
    wraps.wake_up(lambda self, tags: None)(worker, ["kv_cache"])
    assert draft.back.tolist() == [7] * 4
    wraps.wake_up(lambda self, tags: None)(worker, ["weights"])
    assert draft.back.tolist() == [0, 1, 2, 3]


def test_a_fingerprint_is_taken_in_blocks_and_is_that_of_the_whole(monkeypatch):
    """Torch sums bytes up in a copy of them as integers: eight times a parameter, in the memory of the KV cache."""
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(shape, generator=generator) for shape in [(1024, 512), (3, 5, 7), (257,), (1, 2000)]]
    own.append(own[0][:, :9].t())
    whole = fingerprint(own)
    monkeypatch.setattr("torch_specexit.plugin.worker.weights.BLOCK", 1 << 12)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        assert torch.equal(fingerprint(own), whole)
    recorded: Any = profiled.profiler
    taken = [event.nbytes() for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    assert 8 << 12 <= max(taken) <= 8 << 13
    table = own[0].view(torch.uint8).long()
    rows, columns = (torch.arange(1, n + 1) for n in table.shape)
    assert whole[:2].tolist() == [(table.sum(0) * columns).sum().item(), (table.sum(1) * rows).sum().item()]
