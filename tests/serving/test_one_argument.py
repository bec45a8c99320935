"""`vllm serve FOLDER`, one argument: an export in speculators' format names its target, and its exits are still there.

The draft has a Qwen3 layer, so this is also where that class of the plug-in serves.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from filelock import FileLock

from specexit.drafts.directory import read_draft, write_draft
from specexit.drafts.export import export
from specexit.schemas.export import ExportConfig
from tests.shared.published import write_target
from torch_specexit import SpecExitDraft
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
            settings = {"format": "speculators", "target": "tiny-reasoner", "num_speculative_tokens": 3}
            export(ExportConfig(draft=folder / "draft", out=folder / "export", **settings))
    return folder


@pytest.mark.vllm
def test_one_argument_serves_the_target_with_its_exits(exported, engines, prompts):
    extra = {"model": str(exported / "export")}  # what `vllm serve` is given; there is no --speculative-config
    (batch,) = engines.serve("one-argument-engine", [engines.batch(n=N)], extra=extra)
    exits = [i for i, request in enumerate(batch["requests"]) if request["outcome"]["outcome"] == "exit"]
    others = [i for i in range(N) if i not in exits]
    assert exits
    assert batch["metrics"]["num_accepted_tokens"] > 0.5 * batch["metrics"]["num_drafts"]
    reference = SpecExitDraft.from_pretrained(exported / "draft")
    for i in (*exits[:1], *others[:1]):
        found, served = reference.generate(prompts[i], max_new_tokens=300), batch["requests"][i]
        assert found.ids == served["ids"]
        assert found.exited == (i in exits)
        assert found.thinking_tokens == served["outcome"]["thinking_tokens"]


@pytest.mark.parametrize("source", ["draft", "fc"])
def test_an_export_s_tensors_are_read_as_the_directory_s(source, drafts, tmp_path):
    """Whatever the order in which a loader hands them over."""
    settings = {"format": "speculators", "target": "tiny-reasoner", "max_file_gib": 1e-4}
    export(ExportConfig(draft=drafts / source, out=tmp_path / "out", **settings))
    from safetensors.torch import load_file

    config, tensors = read_draft(drafts / source)
    theirs = [item for file in sorted((tmp_path / "out").glob("*.safetensors")) for item in load_file(file).items()]
    for order in (theirs, theirs[::-1]):
        found = dict(as_in_directory(order, config, {}))
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(found[name].numpy(), tensor)


@pytest.mark.vllm
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("layers", [(1, 3), (2, 4, 6, 8)])
def test_stock_vllm_is_told_how_many_aux_layers_there_are(layers, model_type, tmp_path, write_random_draft):
    """It makes ``fc`` of that number, read in ``transformer_layer_config`` alone, and of 3 where it finds none."""
    from types import SimpleNamespace

    from vllm.transformers_utils.configs.speculators.base import SpeculatorsConfig
    from vllm.v1.worker.gpu.spec_decode.eagle.eagle3_utils import get_eagle3_aux_layers_from_config

    shape = {"eagle_aux_hidden_state_layer_ids": layers, "num_aux_hidden_states": len(layers), "model_type": model_type}
    draft = write_random_draft(tmp_path / "draft", None, target_num_hidden_layers=12, **shape)
    target = write_target(tmp_path / "of")
    export(ExportConfig(draft=draft, out=tmp_path / "out", format="speculators", target=target))
    found = SpeculatorsConfig.from_pretrained(tmp_path / "out")
    assert getattr(found, "num_aux_hidden_states", 3) == len(layers)
    engine = SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=found))
    assert get_eagle3_aux_layers_from_config(engine) == layers


@pytest.mark.vllm
def test_stock_vllm_takes_the_layers_of_an_eagle3_export_as_it_counts_them(tmp_path, write_random_draft):
    """Where SGLang sees all of them, they stand there twice, as each counts."""
    from types import SimpleNamespace

    from vllm.v1.worker.gpu.spec_decode.eagle.eagle3_utils import get_eagle3_aux_layers_from_config

    shape = {"eagle_aux_hidden_state_layer_ids": (2, 6, 9), "target_num_hidden_layers": 12}
    draft = write_random_draft(tmp_path / "draft", None, **shape)
    export(ExportConfig(draft=draft, out=tmp_path / "out", format="eagle3", target=write_target(tmp_path / "of")))
    found = SimpleNamespace(**json.loads((tmp_path / "out" / "config.json").read_text()))
    assert found.eagle_config["eagle_aux_hidden_state_layer_ids"] == [1, 5, 8]
    engine = SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=found))
    assert get_eagle3_aux_layers_from_config(engine) == (2, 6, 9)
