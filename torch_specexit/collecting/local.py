"""vLLM in this process, asked by many traces at once: requests join and leave the batch as they come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.collecting.tracer import Response
from torch_specexit.collecting.work import NO_EXITS, CollectError, Decoding, sampling_of
from torch_specexit.engine import start_engine

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams


class LocalEngine:
    """A vLLM engine in this process, which `run` steps.

    Args:
      config: its settings.
      target: the model.

    Raises:
      InputError: vLLM finds no device that it is built for.
    """

    def __init__(self, config: CollectConfig, target: TargetConfig):
        seeded = sampling_of(config, target).temperature > 0
        self.engine = start_engine(target, config.engine, seed=config.seed, seeded=seeded).llm_engine
        self.waiting: dict[str, asyncio.Future[Response]] = {}
        self.work = asyncio.Event()
        self.count = 0

    async def generate(self, ids: list[int], how: Decoding) -> Response:
        """The continuation of a prompt."""
        self.count += 1
        request = str(self.count)
        future = asyncio.get_running_loop().create_future()
        self.waiting[request] = future
        self.engine.add_request(request, {"prompt_token_ids": ids}, _params(how))
        self.work.set()
        return await future

    async def run(self) -> None:
        """Step the engine whenever there is work; never returns.

        Raises:
          CollectError: a log-probability is none.
        """
        while True:
            if not self.waiting:
                self.work.clear()
                await self.work.wait()
            for output in self.engine.step():
                self.waiting.pop(output.request_id).set_result(_response(output))  # type: ignore[arg-type]
            await asyncio.sleep(0)  # the traces take their responses and ask on


def _params(how: Decoding) -> SamplingParams:
    from vllm import SamplingParams  # not before the engine has set its environment
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=how.temperature,
        top_p=how.top_p,
        top_k=how.top_k,
        seed=how.seed,
        max_tokens=how.max_tokens,
        stop=list(how.stop),
        include_stop_str_in_output=True,
        logprobs=0,  # the drawn token's own
        extra_args=dict(NO_EXITS),
        detokenize=bool(how.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _response(output: RequestOutput) -> Response:
    completion = output.outputs[0]
    ids = list(completion.token_ids)
    assert completion.logprobs is not None
    # None, as the type allows, is for a prompt's first token.
    chosen = [at[token].logprob for at, token in zip(completion.logprobs, ids, strict=True) if at is not None]
    response = Response(ids, chosen, str(completion.finish_reason))
    if (value := response.wrong_logprob()) is not None:
        raise CollectError(
            f"vLLM gives a token the log-probability {value:g}, expected 0 at most; does the model overflow in the "
            "target's dtype?"
        )
    return response
