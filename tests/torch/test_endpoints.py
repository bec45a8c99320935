"""What a server may answer, and what becomes of it. No server is started: answers come from a function."""

import asyncio
import json

import httpx
import pytest

from specexit.schemas.collect import CollectConfig
from tests.torch.pretend import TARGET, TOKENIZER
from torch_specexit.collecting.endpoints import PROBE, Endpoint
from torch_specexit.collecting.tracer import Response
from torch_specexit.collecting.work import CollectError, Decoding

MODELS = {"data": [{"id": "tiny-reasoner"}]}
CHOICE = {"token_ids": [1, 2], "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.1, -0.2]}}
PROBED = {"model": "tiny-reasoner", "choices": [{"token_ids": [1], "prompt_token_ids": TOKENIZER.encode(PROBE)}]}


class Tokenizer:
    """The target's."""

    def encode(self, text, *, add_special_tokens):
        """Token ids."""
        assert not add_special_tokens
        return TOKENIZER.encode(text)


def ask(models=MODELS, probed=PROBED, **choice) -> Response:
    """Check a server and ask it for a completion."""
    answers = iter([models, probed, {"model": "tiny-reasoner", "choices": [CHOICE | choice]}])
    config = CollectConfig.model_validate({"target": "t", "out": "o", "split": "test"})

    def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=json.dumps(next(answers)))

    async def run() -> Response:
        endpoint = Endpoint("http://server", config)
        endpoint.client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
        await endpoint.check(config, TARGET, Tokenizer())
        return await endpoint.complete([1], Decoding(5))

    return asyncio.run(run())


def test_what_vllm_answers():
    assert ask() == Response([1, 2], [-0.1, -0.2], "stop")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"models": []}, "v1/models: the answer is no vLLM server's"),
        ({"models": {}}, "v1/models: the answer is no vLLM server's: data"),
        ({"models": {"data": None}}, "v1/models: the answer is no vLLM server's: data"),
        ({"models": {"data": ["tiny-reasoner"]}}, "v1/models: the answer is no vLLM server's"),
        ({"models": {"data": []}}, "serves no model, expected .*tiny-reasoner"),
        ({"probed": []}, "v1/completions: the answer is no vLLM server's"),
        ({"probed": {"error": {"message": "out of memory"}}}, "v1/completions: the answer is no vLLM server's: model"),
        ({"probed": {"model": "tiny-reasoner", "choices": []}}, "carry no token_ids, expected a vLLM server of 0.10.2"),
        ({"token_ids": "ab"}, "v1/completions: the answer is no vLLM server's: choices"),
        ({"logprobs": None}, "0 log-probabilities of 2 tokens, expected one of each"),
        ({"logprobs": {"token_logprobs": None}}, "0 log-probabilities of 2 tokens"),
        ({"logprobs": {"token_logprobs": [-0.1]}}, "1 log-probabilities of 2 tokens"),
    ],
)
def test_what_no_vllm_server_answers(answers, message):
    """One clear error each; without log-probabilities every confidence would be 0."""
    with pytest.raises(CollectError, match=message):
        ask(**answers)


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_completion_that_a_dying_server_cuts_off_is_asked_for_again(reason):
    """It counts as a failure of the server, and never as a trace that came to its length."""
    with pytest.raises(httpx.HTTPError, match=f"finish_reason {reason!r}"):
        ask(finish_reason=reason)
