"""A LoRA adapter on the target, which vLLM allows beside an EAGLE-3 draft: exits work on the adapted states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from specexit.schemas.target import TargetConfig
from tests.serving.conftest import serve

pytestmark = pytest.mark.vllm

RANK = 4
NOW = {"extra_args": {"specexit_validity": 0.0}, "max_tokens": 120}


@pytest.fixture(scope="module")
def adapter(target: TargetConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the attention, in the layout that peft writes, strong enough to change what is written."""
    folder, config = tmp_path_factory.mktemp("adapter"), target.hf_config()
    rng, width = np.random.default_rng(0), config["hidden_size"]
    sizes = {"q_proj": config["num_attention_heads"], "v_proj": config["num_key_value_heads"]}
    tensors: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, heads in sizes.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("A", (RANK, width)), ("B", (heads * config["head_dim"], RANK))):
                values = rng.normal(0, 0.5 * shape[1] ** -0.5, shape)
                tensors[f"{place}.lora_{part}.weight"] = values.astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(sizes), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_exits_go_on_as_the_adapted_model_does(shared, drafts, prompts, adapter, target):
    end = target.think_tokens().end
    # Without the list, vLLM 0.32 wraps the embedding too, shares it with the draft, and dies of it on a CPU.
    extra = {"enable_lora": True, "max_lora_rank": 8, "lora_target_modules": ["q_proj", "v_proj"]}

    def ask(name: str, engine: dict[str, Any], batches: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        job = {"engine": engine | {"extra": extra}, "batches": batches}
        return [batch["requests"] for batch in serve(shared / f"lora-{name}", job)["batches"]]

    asked = {"requests": [{"ids": ids, "params": NOW} for ids in prompts[:6]]}
    kept, behind = [], []
    for source in ("draft", "fc"):
        adapted, base = ask(source, {"draft": str(drafts / source), "k": 3}, [asked | {"lora": str(adapter)}, asked])
        assert [r["ids"] for r in adapted] != [r["ids"] for r in base]
        exits = [(p, r) for p, r in zip(prompts, adapted, strict=False) if r["outcome"]["outcome"] == "exit"]
        assert len(exits) >= 4
        kept += [p + r["ids"][: r["ids"].index(end) + 1] for p, r in exits]
        behind += [r["ids"][r["ids"].index(end) + 1 :] for _, r in exits]
    plain = {"requests": [{"ids": k, "params": {"max_tokens": len(b)}} for k, b in zip(kept, behind, strict=True)]}
    (written,) = ask("plain", {}, [plain | {"lora": str(adapter)}])
    assert [r["ids"] for r in written] == behind
