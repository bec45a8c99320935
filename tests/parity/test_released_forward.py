"""A draft of source fc, exported for the released code: that code's forward, restated, gives what both of ours give."""

import json

import jax.numpy as jnp
import numpy as np
import torch
from safetensors.numpy import load_file

from jax_specexit.probe import load_draft
from specexit.drafts.export import export
from specexit.method.signals import activate
from specexit.schemas.export import ExportConfig
from tests.parity.layout_forward import published_logits, released
from tests.parity.test_layouts import STEPS, assert_both_compute, inputs
from tests.shared.published import write_target
from torch_specexit.draft import Draft

TOLERANCE = 1e-4
"""Of float32 signals against float64, as shares: raw ones of unit variance differ by some 1e-6, of which exp makes a
share; the same that `verify` allows."""


def test_both_drafts_compute_what_the_released_forward_gives(tmp_path, write_random_draft):
    shape = {"eagle_aux_hidden_state_layer_ids": (2, 6, 9), "target_num_hidden_layers": 12}
    folder, target = write_random_draft(tmp_path / "draft", "fc", **shape), write_target(tmp_path / "of")
    export(ExportConfig(draft=folder, out=tmp_path / "out", format="angelslim", target=target))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = {k: v.astype(np.float64) for k, v in load_file(tmp_path / "out" / "model.safetensors").items()}
    embedding, tokens, aux = inputs(3)
    trunk, signals = released(tensors, aux[0])
    logits = published_logits(config, trunk, embedding.astype(np.float64), tokens[0], aux[0], STEPS)
    assert_both_compute(logits, folder, embedding, tokens, aux)
    ours = Draft.load(folder, torch.from_numpy(embedding))
    in_torch = ours(torch.from_numpy(tokens), torch.from_numpy(aux), steps=STEPS).raw_signals
    in_jax = load_draft(folder)[0].signals(jnp.asarray(aux), None)
    assert in_torch is not None
    for raw in (in_torch.numpy(), np.asarray(in_jax)):
        np.testing.assert_allclose(activate(raw[0])[:, :3], signals, rtol=TOLERANCE)
    assert signals.std(axis=0).min() > 0.1, "they do not say the same of every position"
