"""Servers that speak OpenAI's protocol, as ``vllm serve`` does: any number of them, each of which may die.

Prompts go out and completions come back as token ids, so that what is recorded is what the model read and wrote.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from rich.console import Console

from specexit.data.rows import Trace
from specexit.errors import first_problem
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.collecting.tracer import Response, Tracer
from torch_specexit.collecting.work import Ask, CollectError, Decoding

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between failures of an endpoint; doubled from the one to the other, and drawn between half and all of it."""

PROBE = "What is 3 + 4?\n\nWait, let me check.\n\n\\boxed{7} — naïve 多\t  "
"""Text whose token ids tell tokenizers apart."""


class _Card(BaseModel):
    id: str
    root: str | None = None


class _Models(BaseModel):
    """What ``/v1/models`` answers, as far as it is read."""

    data: list[_Card]


class _Logprobs(BaseModel):
    token_logprobs: list[float | None] | None = None


class _Choice(BaseModel):
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    """What ``/v1/completions`` answers, as far as it is read."""

    model: str
    choices: list[_Choice]


Answer = TypeVar("Answer", bound=BaseModel)


class Endpoint:
    """One server.

    Args:
      url: its address, with or without ``/v1``.
      config: key, time-outs and how many requests it takes at once.
    """

    def __init__(self, url: str, config: CollectConfig):
        if not url.startswith(("http://", "https://")):
            raise CollectError(f"endpoint {url!r}: expected http://... or https://...")
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        timeout = httpx.Timeout(config.timeout, connect=min(20.0, config.timeout))
        limits = httpx.Limits(max_connections=config.requests + 2)
        self.client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)
        self.going = 0
        self.failures = 0
        self.model = ""

    async def call(self, path: str, kind: type[Answer], body: dict[str, Any] | None = None) -> Answer:
        """What it answers.

        Raises:
          CollectError: the server refuses the request, or answers as no vLLM server does, which no other try would
            change.
          httpx.HTTPError: it cannot be reached, is too busy or has failed.
        """
        url = f"{self.url}/v1/{path}"
        answer = await self.client.request("GET" if body is None else "POST", url, json=body)
        if answer.status_code in (400, 401, 403, 404, 422):
            raise CollectError(f"{url}: {answer.status_code}: {answer.text[:300]}")
        answer.raise_for_status()
        try:
            return kind.model_validate(answer.json())
        except ValidationError as error:
            raise CollectError(f"{url}: the answer is no vLLM server's: {first_problem(error)}") from error
        except ValueError as error:
            raise CollectError(f"{url}: the answer is not JSON: {answer.text[:100]!r}") from error

    async def check(self, config: CollectConfig, target: TargetConfig, tokenizer: Any) -> None:
        """Find the target among the server's models, and compare tokenizers.

        Raises:
          CollectError: it serves another model, or reads text as other tokens.
          httpx.HTTPError: see `call`.
        """
        models = (await self.call("models", _Models)).data
        wanted = {config.model} if config.model else {target.name, target.path, target.folder.name}
        for card in models:
            if {card.id, Path(card.id).name, Path(card.root or "").name} & wanted:
                self.model = card.id
                break
        else:
            served = ", ".join(card.id for card in models) or "no model"
            raise CollectError(
                f"{self.url}: serves {served}, expected {' or '.join(sorted(wanted))}; if that is the target under "
                "another name, say model=NAME"
            )
        body = {"model": self.model, "prompt": PROBE, "max_tokens": 1, "return_token_ids": True}
        theirs, _ = await self._choice(body | {"add_special_tokens": False})
        ours = tokenizer.encode(PROBE, add_special_tokens=False)
        if theirs.prompt_token_ids != ours:
            read = str(theirs.prompt_token_ids)
            raise CollectError(
                f"{self.url}: its tokenizer reads {PROBE[:14]!r}... as {read[:60]}, expected {str(ours)[:60]} "
                f"of {target.folder}"
            )

    async def complete(self, ids: list[int], how: Decoding) -> Response:
        """A continuation; errors as in `call`."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": how.max_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "stop": list(how.stop),
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        choice, written = await self._choice(body if how.seed is None else body | {"seed": how.seed})
        found = choice.logprobs.token_logprobs if choice.logprobs else None
        logprobs = [value for value in found or () if value is not None]
        if len(logprobs) != len(written):
            raise CollectError(
                f"{self.url}: {len(logprobs)} log-probabilities of {len(written)} tokens, expected one of each, "
                "without which no confidence is known"
            )
        if choice.finish_reason not in ("stop", "length"):  # cut off by a server that ends: nothing to keep
            raise httpx.RemoteProtocolError(f"a completion ended with finish_reason {choice.finish_reason!r}")
        return Response(written, logprobs, choice.finish_reason)

    async def _choice(self, body: dict[str, Any]) -> tuple[_Choice, list[int]]:
        """The completion, and its tokens."""
        found = await self.call("completions", _Completion, body)
        if found.model != self.model:
            raise CollectError(f"{self.url}: answered as model {found.model!r}, expected {self.model!r}")
        choice = next(iter(found.choices), _Choice())
        if choice.token_ids is None:
            raise CollectError(
                f"{self.url}: its completions carry no token_ids, expected a vLLM server of 0.10.2 or newer"
            )
        return choice, choice.token_ids


class EndpointEngine:
    """All endpoints as one engine: a request goes to the one with the fewest, and to another where one fails.

    Args:
      config: their addresses and limits.
    """

    def __init__(self, config: CollectConfig):
        self.config = config
        self.alive = [Endpoint(url, config) for url in config.endpoints]
        self.all = list(self.alive)
        self.console = Console(stderr=True)

    async def check(self, target: TargetConfig, tokenizer: Any) -> None:
        """Check every endpoint; one that cannot be reached is left out.

        Raises:
          CollectError: one of them is not the target's, or none can be reached.
        """
        for endpoint in list(self.alive):
            try:
                await endpoint.check(self.config, target, tokenizer)
            except httpx.HTTPError as error:
                self._give_up(endpoint, error)

    async def generate(self, ids: list[int], how: Decoding) -> Response:
        """The continuation of a prompt.

        Raises:
          CollectError: no endpoint is left, or one refuses.
        """
        while self.alive:
            endpoint = min(self.alive, key=lambda one: one.going)
            endpoint.going += 1
            before = endpoint.failures
            try:
                response = await endpoint.complete(ids, how)
            except httpx.HTTPError as error:
                # Requests that were under way together fail together: that is one failure, however many they are.
                endpoint.failures = max(endpoint.failures, before + 1)
                if endpoint in self.alive and endpoint.failures >= self.config.retries:
                    self._give_up(endpoint, error)
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(endpoint.failures, 10))
                await asyncio.sleep(pause * random.uniform(0.5, 1))
            else:
                endpoint.failures = 0
                return response
            finally:
                endpoint.going -= 1
        raise CollectError("no endpoint is left, what was finished is kept")

    def _give_up(self, endpoint: Endpoint, error: Exception) -> None:
        self.alive.remove(endpoint)
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        if not self.alive:
            raise CollectError(f"{endpoint.url}: {reason}; no endpoint is left, what was finished is kept")
        self.console.print(
            f"{endpoint.url}: given up ({reason}); its requests go to the other {len(self.alive)}", soft_wrap=True
        )

    async def close(self) -> None:
        """Close the connections."""
        for endpoint in self.all:
            await endpoint.client.aclose()


def run_endpoints(
    config: CollectConfig,
    target: TargetConfig,
    todo: Sequence[tuple[int, Ask]],
    record: Callable[[int, Trace], None],
    report: Callable[[dict], None],
) -> None:
    """Collect from servers, as many traces at a time as they take requests.

    Raises:
      CollectError: no endpoint is left, or one of them is not the target's.
    """
    asyncio.run(_run(config, target, todo, record, report))


async def _run(
    config: CollectConfig,
    target: TargetConfig,
    todo: Sequence[tuple[int, Ask]],
    record: Callable[[int, Trace], None],
    report: Callable[[dict], None],
) -> None:
    engine = EndpointEngine(config)
    tracer = Tracer(config, target, engine, lambda **counts: report(counts))
    queue = iter(todo)

    async def keep_asking() -> None:
        for number, ask in queue:
            record(number, await tracer.trace(ask))
            report({"judged": 1})

    try:
        await engine.check(target, tracer.tokenizer)
        askers = [
            asyncio.create_task(keep_asking()) for _ in range(min(len(todo), config.requests * len(engine.alive)))
        ]
        try:
            await asyncio.gather(*askers)
        finally:
            for asker in askers:
                asker.cancel()
            await asyncio.gather(*askers, return_exceptions=True)
    finally:
        await engine.close()
