"""`vllm serve FOLDER`, one argument: an export in speculators' format names its target, and its exits are still there.

The draft has a Qwen3 layer, so this is also where that class of the plug-in serves.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from filelock import FileLock

from specexit.drafts.directory import read_config, read_draft, write_draft
from specexit.drafts.export import export
from specexit.method.decision import exit_position
from specexit.method.signals import activate
from specexit.schemas.export import ExportConfig
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures
from torch_specexit.plugin.compat.checks import as_in_directory

N = 8


@pytest.fixture(scope="module")
def exported(shared, drafts):
    """A draft with a Qwen3 layer, and its export."""
    folder = shared / "one-argument"
    with FileLock(shared / "one-argument.lock"):
        if not folder.exists():
            config, tensors = read_draft(drafts / "draft")
            norms = np.random.default_rng(0).normal(1, 0.1, (2, config.head_dim)).astype(np.float32)
            names = (f"midlayer.self_attn.{part}_norm.weight" for part in "qk")
            qwen = config.model_copy(update={"model_type": "qwen3"})
            write_draft(folder / "draft", qwen, tensors | dict(zip(names, norms, strict=True)))
            settings = {"format": "speculators", "target": "tiny-reasoner", "speculative_tokens": 3}
            export(ExportConfig(draft=folder / "draft", out=folder / "export", **settings))
    return folder


@pytest.mark.vllm
def test_one_argument_serves_the_target_with_its_exits(exported, engines, prompts, target):
    extra = {"model": str(exported / "export")}  # what `vllm serve` is given; there is no --speculative-config
    (batch,) = engines.serve("one-argument-engine", [engines.batch(n=N)], extra=extra)
    features = TargetFeatures(target, target.aux_layers)
    draft = Draft.load(exported / "draft", features.embedding)
    block, ids = read_config(exported / "draft").specexit, target.think_tokens()
    assert block is not None
    exits = 0
    for prompt, plain, request in zip(prompts, engines.none()[0]["requests"], batch["requests"], strict=False):
        text = plain["ids"]
        thinking = text[: text.index(ids.end)] if ids.end in text else text
        tokens = torch.tensor([prompt + thinking])
        raw = draft(tokens, features(tokens).clone()).raw_signals
        position = exit_position(thinking, activate(raw[0].numpy())[len(prompt) :], block.policy, ids)
        assert (request["outcome"]["outcome"] == "exit") == (position is not None)
        if position is not None:
            exits += 1
            assert request["ids"][: position + 2] == [*thinking[: position + 1], ids.end]
    assert exits >= 2
    assert batch["metrics"]["num_drafts"] > 0
    assert batch["metrics"]["num_accepted_tokens"] > 0.2 * batch["metrics"]["num_drafts"]


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_an_export_s_tensors_are_read_as_the_directory_s(source, drafts, tmp_path):
    """Whatever the order in which a loader hands them over."""
    settings = {"format": "speculators", "target": "tiny-reasoner", "max_file_gib": 1e-4}
    export(ExportConfig(draft=drafts / source, out=tmp_path / "out", **settings))
    from safetensors.torch import load_file

    config, tensors = read_draft(drafts / source)
    theirs = [item for file in sorted((tmp_path / "out").glob("*.safetensors")) for item in load_file(file).items()]
    for order in (theirs, theirs[::-1]):
        found = dict(as_in_directory(order, config))
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(found[name].numpy(), tensor)
