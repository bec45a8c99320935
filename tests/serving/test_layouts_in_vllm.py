"""A draft of every published layout, imported and served by vLLM: it drafts what JAX and PyTorch draft.

By hand, `make layouts`: nine drafts at the tiny reasoner's size, each under the names and the config of its project
and trained for some twenty seconds so that vLLM accepts drafts at all, and an engine for each; half an hour.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from specexit.data.traces import write_traces
from specexit.drafts.published import import_draft
from specexit.drafts.tensors import FLOATS
from specexit.drafts.verify import verify
from specexit.schemas.published import ImportConfig
from specexit.schemas.verify import VerifyConfig
from tests.serving.make_draft import texts, train
from tests.shared.published import CONFIGS, DTYPES, MODEL_OPTIMIZER, SPECULATORS_0_9, tensors_of, write_published
from torch_specexit.draft import Draft
from torch_specexit.features import TargetFeatures

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif("SPECEXIT_LAYOUTS" not in os.environ, reason="by hand: make layouts"),
]

HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
HEAD_DIM = {"torchspec": 64}
LAYERS = {
    "specforge": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 3], "use_aux_hidden_state": True}},
    "model-optimizer": {
        "eagle_config": MODEL_OPTIMIZER["eagle_config"] | {"eagle_aux_hidden_state_layer_ids": [0, 2, 3]}
    },
    "deepspec": {"num_target_layers": 4, "target_layer_ids": [0, 2, 3]},
    "nemo": {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4},
    "speculators": {
        "eagle_aux_hidden_state_layer_ids": [1, 3, 4],
        "speculators_config": {"algorithm": "eagle3", "verifier": {"architectures": ["Qwen3ForCausalLM"]}},
    },
}
"""The tiny reasoner's layers, counted as each project counts; the others do not say theirs, and are told."""


INSTANCES = CONFIGS | {
    "model-optimizer": MODEL_OPTIMIZER,
    "speculators 0.9.0": CONFIGS["speculators"] | SPECULATORS_0_9,
}
"""The last one with a sliding window, of 16 tokens."""


def sized(instance: str, target: dict[str, Any]) -> dict[str, Any]:
    """A published config at a target's size; head size, RoPE, norms and biases stay the layout's own."""
    layout = instance.split()[0]
    sizes = {name: target[name] for name in ("hidden_size", "intermediate_size", "vocab_size")} | HEADS
    sizes["target_hidden_size"] = target["hidden_size"]

    def fitted(fields: dict[str, Any]) -> dict[str, Any]:
        found = fields | {name: size for name, size in sizes.items() if fields.get(name) is not None}
        if "head_dim" in fields:
            found["head_dim"] = HEAD_DIM.get(layout, 32)  # the smallest that vLLM has on a CPU
        if fields.get("draft_vocab_size") is not None:
            found["draft_vocab_size"] = target["vocab_size"] if layout == "torchspec" else 512
        if "transformer_layer_config" in fields:
            found["transformer_layer_config"] = fitted(fields["transformer_layer_config"])
        return found

    return fitted(INSTANCES[instance]) | LAYERS.get(layout, {})


@pytest.fixture(scope="module")
def written(target):
    """Texts of the target, by which drafts are trained; those of the traces come behind them."""
    return texts(target, 704)


@pytest.fixture(scope="module")
def traces(target, written, make_trace, tmp_path_factory):
    ids, found = target.think_tokens(), []
    for i, text in enumerate(written[-4:]):
        start, end = text.index(ids.start) + 2, text.index(ids.end)
        parts = {"prompt_ids": text[:start], "think_ids": text[start:end], "answer_ids": text[end + 1 :]}
        found.append(make_trace(id=f"t{i}", **parts))
    path = tmp_path_factory.mktemp("traces") / "traces.parquet"
    write_traces(path, found)
    return path


@pytest.mark.parametrize("instance", INSTANCES)
def test_vllm_drafts_as_the_import_does(instance, target, written, traces, tmp_path):
    torch.manual_seed(0)
    layout = instance.split()[0]
    config, dtype = sized(instance, target.hf_config()), FLOATS[DTYPES.get(layout, "bfloat16")]
    features = TargetFeatures(target, target.aux_layers)
    tensors = tensors_of(layout, config=config)
    for name in tensors:
        if name.endswith("embed_tokens.weight"):  # their trainers start from the target's, and keep it
            tensors[name] = features.embedding.numpy().astype(dtype)
    options = {"target": "tiny-reasoner", "layout": "specforge" if layout == "model-optimizer" else layout}
    if layout not in LAYERS or layout == "nemo":
        options["aux_layers"] = target.aux_layers

    source = write_published(tmp_path / "random", layout, config, tensors)
    names = import_draft(ImportConfig(draft=source, out=tmp_path / "untrained", **options)).names
    draft = Draft.load(tmp_path / "untrained", features.embedding).requires_grad_(True)
    to_draft = torch.full((config_value(config, "vocab_size"),), -1)
    to_draft[draft.d2t + torch.arange(len(draft.d2t))] = torch.arange(len(draft.d2t))
    train(draft, features, written[:700], to_draft)
    learnt = draft.state_dict()
    for name, ours in names.items():
        if ours in learnt and ours != "d2t":
            tensors[name] = learnt[ours].numpy().astype(dtype)

    source = write_published(tmp_path / "published", layout, config, tensors)
    import_draft(ImportConfig(draft=source, out=tmp_path / "draft", **options))
    verify(VerifyConfig(draft=tmp_path / "draft", traces=traces, vllm=True))
    found = json.loads((tmp_path / "draft" / "verify.json").read_text())
    assert found["passed"]
    served = found["vllm"]
    lengths = {side: acceptance["length"] for side, acceptance in served["acceptance"].items()}
    drafts = served["greedy_drafts"]
    print(f"{instance}: {drafts['same']} of {drafts['compared']} drafts the same, acceptance length {lengths}")
    assert drafts["same"] == drafts["compared"] > 100
    assert served["acceptance"]["vllm"] == served["acceptance"]["torch"]
    assert lengths["vllm"] > 1.2


def config_value(config: dict[str, Any], name: str) -> Any:
    return (config | config.get("transformer_layer_config", {}))[name]
