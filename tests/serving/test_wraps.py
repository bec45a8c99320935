"""What the wraps do around a method, on stand-ins for vLLM's classes. Under a second, no engine."""

import sys
from types import SimpleNamespace

import pytest
import torch

from torch_specexit.plugin.compat import wraps
from torch_specexit.plugin.worker.weights import Weights


class Draft:
    """Stands for the draft model; notes which passes it was told to record."""

    think_tokens, serving, vocab_size, signals, transition = SimpleNamespace(), None, 0, None, ()

    weights = Weights(())

    def signals_of_target(self, aux, rows): ...

    def remember_weights(self): ...

    def check_weights(self): ...

    def __init__(self, source):
        self.block = SimpleNamespace(source=source)
        self.first_pass = SimpleNamespace(alone=False)
        self.recorded = []

    def record(self, passes):
        self.recorded.append(passes)


@pytest.mark.parametrize(("source", "skipped"), [("draft", False), ("fc", True)])
def test_the_first_pass_is_finished_though_no_drafts_are_needed_where_signals_are(source, skipped):
    """vLLM 0.33 skips what comes behind the model where nobody will use the drafts."""
    speculator, calls = SimpleNamespace(model=Draft(source)), []
    wrapped = wraps.prefill(lambda self, *args, **kwargs: calls.append((args, kwargs)))
    wrapped(speculator, 4, 16, skip_sample=True)
    wrapped(speculator, 4, 16, mm_inputs=None)
    assert calls == [((4, 16), {"skip_sample": skipped}), ((4, 16), {"mm_inputs": None})]
    assert speculator.model.recorded == [sys.maxsize, 0] * 2


def test_a_first_pass_that_fails_leaves_nothing_switched_on():
    def fails(self):
        raise RuntimeError("out of memory")

    speculator = SimpleNamespace(model=Draft("draft"))
    with pytest.raises(RuntimeError, match="out of memory"):
        wraps.prefill(fails)(speculator)
    assert speculator.model.recorded == [sys.maxsize, 0]


def test_another_draft_model_is_left_alone():
    speculator, calls = SimpleNamespace(model=SimpleNamespace()), []
    wraps.prefill(lambda self, *args, **kwargs: calls.append(kwargs))(speculator, skip_sample=True)
    wraps.propose_v1(lambda self, n, **kwargs: calls.append(n))(speculator, 0)
    assert calls == [{"skip_sample": True}, 0]


def test_at_the_end_of_the_context_the_first_pass_runs_and_its_one_draft_is_dropped():
    """The probabilities of that one draft must go, too: vLLM would look for those of all of them."""

    def propose(self, n):
        self._last_draft_probs = torch.ones(2, n, 7)
        return torch.full((2, n), 5)

    proposer = SimpleNamespace(model=Draft("draft"), _last_draft_probs=None)
    proposer.model.first_pass.alone = True
    assert wraps.propose_v1(propose)(proposer, 3).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert proposer._last_draft_probs is None
    assert wraps.propose_v1(propose)(proposer, 3).tolist() == [[5, 5, 5], [5, 5, 5]]
    assert proposer._last_draft_probs.shape == (2, 3, 7)
    assert wraps.propose_v1(propose)(proposer, 0).shape == (2, 0)
    assert proposer.model.recorded == [1, 1, 1]


def test_an_outcome_that_cannot_be_reported_fails_no_request():
    scheduler, output = SimpleNamespace(requests={"a": object()}), SimpleNamespace(specexit={"a": [0.0]})
    outputs = {0: SimpleNamespace(outputs=[SimpleNamespace(request_id="a", finish_reason="stop")])}
    wrapped = wraps.update_from_output(lambda self, scheduled, output: outputs)
    assert wrapped(scheduler, SimpleNamespace(num_scheduled_tokens={"a": 1}), output) is outputs
