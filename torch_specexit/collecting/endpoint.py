"""One server that speaks OpenAI's protocol, as ``vllm serve`` does.

Prompts go out and completions come back as token ids, so that what is recorded is what the model read and wrote.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from specexit.errors import first_problem, printable, shown
from specexit.method.splits import PROBE, FastTokenizer, first_difference
from specexit.schemas.collect import CollectConfig
from specexit.schemas.sampling import NEUTRAL
from specexit.schemas.target import TargetConfig
from specexit.schemas.url import without_passwords
from torch_specexit.chat import misread_by_transformers
from torch_specexit.collecting.tracer import Response
from torch_specexit.collecting.work import NO_EXITS, CollectError, Decoding

LONGEST_TRY = 60.0
"""Seconds that a request which only checks whether the server works may take, its wait in a busy queue included."""

SHORTEST_KEY = 8
"""Characters that a key has if it is a secret. ``EMPTY`` and the like are none, and may be parts of other words."""

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
"""Variables, in capitals or not, of which httpx takes its proxies."""


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


class BadAnswer(CollectError):
    """An answer that no vLLM server gives: at the start a wrong address or version, later on a server that fails."""


class Refused(CollectError):
    """A request that the server refuses as wrong, and would refuse at every other try."""


@dataclass(eq=False)
class Fault:
    """One failure of an endpoint, whether one request met it or all that were under way."""

    error: Exception


class Endpoint:
    """One server.

    Args:
      url: its address, with or without ``/v1``.
      config: key, time-outs and how many requests it takes at once.

    Raises:
      CollectError: no HTTP header can hold the key, or httpx cannot use a proxy that the environment names.
    """

    def __init__(self, url: str, config: CollectConfig):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.name = without_passwords(self.url)
        """The address as it is shown, without a password."""
        self.key = config.api_key or os.environ.get("OPENAI_API_KEY") or ""
        if not (self.key.isascii() and self.key.isprintable()):
            raise CollectError(
                f"{'api_key' if config.api_key else 'OPENAI_API_KEY'} has a line end or a character beyond ASCII, "
                "expected what an HTTP header can hold"
            )
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.timeout = httpx.Timeout(config.timeout, connect=min(20.0, config.timeout))
        self.try_timeout = httpx.Timeout(min(LONGEST_TRY, config.timeout), connect=min(20.0, config.timeout))
        limits = httpx.Limits(max_connections=config.requests + 2)
        try:
            self.client = httpx.AsyncClient(headers=headers, limits=limits)
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # which may repeat a password
            named = [name for name in os.environ if name.lower() in PROXIES]
            raise CollectError(
                f"{', '.join(named) or 'proxy settings'}: no proxy that httpx can use, expected an http:// or https:// "
                "address, one of SOCKS where `pip install 'httpx[socks]'` was run, or NO_PROXY=* to use none"
            ) from error
        self.model = ""
        self.vocabulary = 0
        self.going = 0
        self.failures = 0
        """Failures in a row."""
        self.rests = 0
        """How often it was left alone for a while after a failure."""
        self.fault: Fault | None = None
        """The failure for which it was last left alone."""
        self.own_faults: set[Fault] = set()
        """Its failures since it last answered, of those that no request is to blame for."""
        self.resting = False

    async def call(
        self, path: str, kind: type[Answer], timeout: httpx.Timeout, body: dict[str, Any] | None = None
    ) -> Answer:
        """Make a request, and read the answer.

        Args:
          path: behind ``/v1/``.
          kind: what the answer is read as.
          timeout: of the request; the whole answer has to come within its connect and read seconds together.
          body: JSON to post; without it the request is a GET.

        Raises:
          Refused: the server takes the request for a wrong one.
          BadAnswer: it answers as no vLLM server does.
          httpx.HTTPError: it cannot be reached, is too busy or has failed.
        """
        where = f"{self.name}/v1/{path}"
        method = "GET" if body is None else "POST"
        try:
            async with asyncio.timeout((timeout.connect or 0) + (timeout.read or 0)):  # httpx's are of single reads
                answer = await self.client.request(method, f"{self.url}/v1/{path}", json=body, timeout=timeout)
        except (TimeoutError, httpx.ReadTimeout) as error:  # of the second, httpx says nothing more
            longer = ", expected a longer timeout= where texts take that" if timeout is self.timeout else ""
            raise httpx.ReadTimeout(f"no whole answer within {timeout.read:g} seconds{longer}") from error
        if not answer.is_success:
            raise self._failure(where, answer)
        try:
            return kind.model_validate(answer.json())
        except ValidationError as error:
            said = self._without_key(first_problem(error))
            raise BadAnswer(f"{where}: the answer is no vLLM server's: {said}") from error
        except (ValueError, RecursionError) as error:
            said = shown(self._without_key(answer.text), 100)
            raise BadAnswer(f"{where}: the answer is not JSON: {said}") from error

    async def check(self, config: CollectConfig, target: TargetConfig, tokenizer: FastTokenizer) -> None:
        """Find the target among the server's models, and compare tokenizers.

        Raises:
          CollectError: it serves another model, reads text as other tokens, or keeps its exits on; or see `call`.
          httpx.HTTPError: see `call`.
        """
        self.vocabulary = target.hf_config().get("vocab_size") or len(tokenizer)
        models = (await self.call("models", _Models, self.try_timeout)).data
        wanted = {config.model} if config.model else {target.name, target.path, target.folder.name}
        for card in models:
            if {card.id, Path(card.id).name, Path(card.root or "").name} & wanted:
                self.model = card.id
                break
        else:
            served = ", ".join(card.id for card in models) or "no model"
            raise CollectError(
                f"{self.name}: serves {served}, expected {' or '.join(sorted(wanted))}; if that is the target under "
                "another name, say model=NAME"
            )
        try:
            theirs = await self.probe()
        except Refused as error:
            if "extra_args: specexit" not in str(error):
                raise
            raise CollectError(
                f"{self.name}: serves a SpecExit draft, and lets no request switch exits off, which would cut traces; "
                f"expected requests: off-only in its serving settings, or a server without the draft ({error})"
            ) from error
        ours = tokenizer.encode(PROBE)
        if theirs is None:
            raise BadAnswer(
                f"{self.name}: its completions carry no prompt_token_ids, expected a vLLM server of 0.10.2 or newer"
            )
        if theirs != ours:
            here = misread_by_transformers(target)
            why = "" if here is None else f"; so does transformers here: {here}, and for the server, too"
            raise CollectError(
                f"{self.name}: its tokenizer reads {shown(PROBE, 24)} as {first_difference(tokenizer, theirs, ours)} "
                f"of {target.folder}{why}"
            )

    async def probe(self) -> list[int] | None:
        """The token ids that the server reads `PROBE` as; raises as `call` does where it does not work."""
        body = {"model": self.model, "prompt": PROBE, "max_tokens": 1, "return_token_ids": True}
        choice, _ = await self._choice(body | {"add_special_tokens": False}, self.try_timeout)
        return choice.prompt_token_ids

    async def complete(self, ids: list[int], how: Decoding) -> Response:
        """Continue a prompt of token ids; raises as `call` does."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": how.max_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            **NEUTRAL,  # the server takes what is not said from the model's generation_config.json
            "stop": list(how.stop),
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "return_token_ids": True,
        }
        choice, written = await self._choice(body if how.seed is None else body | {"seed": how.seed}, self.timeout)
        if len(written) > how.max_tokens:
            raise BadAnswer(f"{self.name}: wrote {len(written)} tokens, expected max_tokens={how.max_tokens} at most")
        wrong = next((token for token in written if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise BadAnswer(f"{self.name}: wrote token {wrong}, expected one of the target's {self.vocabulary}")
        found = choice.logprobs.token_logprobs if choice.logprobs else None
        logprobs = [value for value in found or () if value is not None]
        if len(logprobs) != len(written):
            raise BadAnswer(
                f"{self.name}: {len(logprobs)} log-probabilities of {len(written)} tokens, expected one of each, "
                "without which no confidence is known"
            )
        if choice.finish_reason not in ("stop", "length"):  # cut off by a server that ends: nothing to keep
            raise httpx.RemoteProtocolError(f"a completion ended with finish_reason {choice.finish_reason!r}")
        if not written:  # even an empty text has the token that ends it
            raise BadAnswer(f"{self.name}: a completion has no tokens, expected at least one")
        response = Response(written, logprobs, choice.finish_reason)
        if (value := response.wrong_logprob()) is not None:
            raise BadAnswer(f"{self.name}: a token has the log-probability {value:g}, expected 0 at most")
        return response

    async def _choice(self, body: dict[str, Any], timeout: httpx.Timeout) -> tuple[_Choice, list[int]]:
        """Ask for a completion; returns the first choice and its token ids."""
        found = await self.call("completions", _Completion, timeout, body | {"vllm_xargs": NO_EXITS})
        if found.model != self.model:
            raise CollectError(f"{self.name}: answered as model {found.model!r}, expected {self.model!r}")
        choice = next(iter(found.choices), _Choice())
        if choice.token_ids is None:
            raise BadAnswer(
                f"{self.name}: its completions carry no token_ids, expected a vLLM server of 0.10.2 or newer"
            )
        return choice, choice.token_ids

    def _failure(self, where: str, answer: httpx.Response) -> Exception:
        """The error that a status other than success means, in one line."""
        text = printable(" ".join(self._without_key(answer.text).split()))[:300]
        if answer.status_code in (400, 422):
            return Refused(f"{where}: {answer.status_code}: {text}")
        if answer.status_code in (401, 403, 404):
            return BadAnswer(f"{where}: {answer.status_code}: {text}")
        if answer.has_redirect_location:
            there = printable(without_passwords(answer.headers["Location"]))
            return BadAnswer(f"{where}: {answer.status_code}: sends requests on to {there}, expected that address")
        said = f"{answer.status_code} {answer.reason_phrase} of {where}: {text}".rstrip(": ")
        if answer.status_code == 504:  # of a gateway: answers come whole, so nothing passes it until the last token
            said += "; expected a gateway that waits as long as timeout=, or the servers' own addresses"
        return httpx.HTTPStatusError(said, request=answer.request, response=answer)

    def _without_key(self, text: str) -> str:
        """What a server says, without the key that it was sent and may repeat."""
        return text.replace(self.key, "...") if len(self.key) >= SHORTEST_KEY else text
