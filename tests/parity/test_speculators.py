"""The PyTorch draft against an independent implementation of EAGLE-3: speculators 0.9.0, values and gradients."""

import numpy as np
import pytest
import torch

from torch_specexit.draft import Draft
from torch_specexit.speculators import load_in_speculators

STEPS, TIME = 4, 48

LOGIT_TOLERANCE = 5e-5
"""fp32 logits of unit variance were measured to differ by 4e-6 to 6e-6 (other summation orders); ten times that."""

GRADIENT_TOLERANCE = 1e-4
"""Relative to each tensor's largest gradient; measured 2e-6 to 3e-6."""


@pytest.fixture(scope="module")
def both(tmp_path_factory, write_random_draft):
    """(our draft, its logits per step, speculators' model, its logits per step) on the same random inputs."""
    folder = tmp_path_factory.mktemp("speculators")
    source = write_random_draft(folder / "draft", None)
    rng = np.random.default_rng(1)
    embedding = torch.from_numpy(rng.normal(size=(200, 64)).astype(np.float32))
    tokens = torch.from_numpy(rng.integers(0, 200, (1, TIME + 1)))
    aux = torch.from_numpy(rng.normal(size=(1, TIME + 1, 192)).astype(np.float32))

    ours = Draft.load(source, embedding).requires_grad_(True)
    our_logits = ours(tokens, aux, steps=STEPS).logits
    theirs = load_in_speculators(source, embedding, folder)
    their_logits: list[torch.Tensor] = []
    theirs.lm_head.register_forward_hook(lambda _module, _inputs, output: their_logits.append(output))
    theirs(aux[:, :-1], tokens[:, 1:], torch.zeros(1, TIME, dtype=torch.long), ttt_steps=STEPS)
    return ours, our_logits, theirs, their_logits


@pytest.mark.parametrize("step", range(STEPS))
def test_logits_of_every_ttt_step_agree(both, step):
    _, ours, _, theirs = both
    valid = TIME - step  # speculators pads the rows that have no next token
    assert ours[step].shape == (1, valid, 120)
    torch.testing.assert_close(ours[step], theirs[step][:, :valid], atol=LOGIT_TOLERANCE, rtol=1e-4)


def test_gradients_through_all_ttt_steps_agree(both):
    ours, our_logits, theirs, their_logits = both
    rng = np.random.default_rng(2)
    for step in range(STEPS):
        weight = torch.from_numpy(rng.normal(size=our_logits[step].shape).astype(np.float32))
        (our_logits[step] * weight).sum().backward(retain_graph=True)
        (their_logits[step][:, : TIME - step] * weight).sum().backward(retain_graph=True)
    expected = {name.replace("layers.0.", "midlayer."): p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, atol=GRADIENT_TOLERANCE, rtol=0)
        compared += 1
    assert compared == 13  # every weight of the draft
