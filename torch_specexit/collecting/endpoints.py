"""Any number of servers that speak OpenAI's protocol, each of which may die."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import httpx
from rich.console import Console

from specexit.data.rows import Trace
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.collecting.endpoint import BadAnswer, Endpoint
from torch_specexit.collecting.tracer import Response, Tracer
from torch_specexit.collecting.work import Ask, CollectError, Decoding

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between failures of an endpoint; doubled from the one to the other, and drawn between half and all of it."""

LONGEST_ASKED_PAUSE = 120.0
"""Seconds, at most, that a server is left alone because it asks for that."""

FAILURES = (httpx.HTTPError, BadAnswer)
"""What a server may do once it has passed the check, and another would not."""


class EndpointEngine:
    """All endpoints as one engine: a request goes to the one with the fewest, and to another where one fails.

    An endpoint that fails is left alone for a while, then asked for a single token: requests go there again when it
    answers. A request that fails again where such a probe is answered is at fault itself.

    Args:
      config: their addresses and limits.
    """

    def __init__(self, config: CollectConfig):
        self.config = config
        self.all = [Endpoint(url, config) for url in config.endpoints or ()]
        self.alive = list(self.all)
        self.console = Console(stderr=True)
        self._changed = asyncio.Event()
        self._returning: set[asyncio.Task[None]] = set()
        self._last_words = ""

    async def check(self, target: TargetConfig, tokenizer: Any) -> None:
        """Check every endpoint, again after pauses where one is not ready; one that never is is left out.

        Raises:
          CollectError: one of them is not the target's, or none can be reached.
        """
        await _together(self._check(endpoint, target, tokenizer) for endpoint in self.all)
        self._expect_one()

    async def _check(self, endpoint: Endpoint, target: TargetConfig, tokenizer: Any) -> None:
        try:
            await endpoint.check(self.config, target, tokenizer)
        except httpx.HTTPError as error:
            await self._ask_again(endpoint, lambda: endpoint.check(self.config, target, tokenizer), error)
            endpoint.failures = 0

    async def generate(self, ids: list[int], how: Decoding) -> Response:
        """The continuation of a prompt.

        Raises:
          CollectError: no endpoint is left, one refuses, or this request fails again and again where others do not.
        """
        failed: Counter[Endpoint] = Counter()
        again = 0
        while True:
            endpoint = await self._turn(failed)
            rests = endpoint.rests
            try:
                return await self._ask(endpoint, ids, how)
            except FAILURES as error:
                first = endpoint not in failed
                failed[endpoint] += 1
                if endpoint.rests != rests:
                    continue  # it failed together with others that were under way, which is one failure
                if first or _is_unavailable(error):
                    self._rest(endpoint, error)
                    continue
                again += 1
                if again >= self.config.retries:
                    raise CollectError(
                        f"{endpoint.name}: {_reason(endpoint, error)}; the same request has failed {failed.total()} "
                        "times, though the endpoint answered in between; what was finished is kept"
                    ) from error
                await asyncio.sleep(_pause(again))

    async def _turn(self, failed: Counter[Endpoint]) -> Endpoint:
        """The endpoint that takes a request next, as soon as one has room."""
        while True:
            self._expect_one()
            ready = [one for one in self.alive if not one.resting and one.going < self.config.requests]
            if ready:
                endpoint = min(ready, key=lambda one: (failed[one], one.going))
                endpoint.going += 1
                return endpoint
            await self._changed.wait()

    async def _ask(self, endpoint: Endpoint, ids: list[int], how: Decoding) -> Response:
        """Have a turn, and leave room for the next."""
        try:
            response = await endpoint.complete(ids, how)
        finally:
            endpoint.going -= 1
            self._wake()
        endpoint.failures = 0
        return response

    def _wake(self) -> None:
        """Let all who wait for room look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _rest(self, endpoint: Endpoint, error: Exception) -> None:
        """Send it no requests until it answers a probe."""
        endpoint.resting = True
        endpoint.rests += 1
        task = asyncio.create_task(self._return(endpoint, error))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _return(self, endpoint: Endpoint, error: Exception) -> None:
        try:
            await self._ask_again(endpoint, endpoint.probe, error)
        except CollectError as refused:
            self._give_up(endpoint, refused)
        finally:
            endpoint.resting = False
            self._wake()

    async def _ask_again(
        self, endpoint: Endpoint, ask: Callable[[], Coroutine[Any, Any, object]], error: Exception
    ) -> None:
        """Ask after pauses that grow, until there is an answer or the endpoint is given up."""
        while True:
            endpoint.failures += 1
            if endpoint.failures >= self.config.retries:
                return self._give_up(endpoint, error)
            await asyncio.sleep(max(_pause(endpoint.failures), _asked_pause(error)))
            try:
                await ask()
            except FAILURES as another:
                error = another
            else:
                return

    def _give_up(self, endpoint: Endpoint, error: Exception) -> None:
        self.alive.remove(endpoint)
        reason = _reason(endpoint, error)
        self._last_words = f"{endpoint.name}: {reason}"
        if self.alive:
            self.console.print(
                f"{endpoint.name}: given up ({reason}); its requests go to the other {len(self.alive)}",
                soft_wrap=True,
                markup=False,
            )

    def _expect_one(self) -> None:
        if not self.alive:
            raise CollectError(f"{self._last_words}; no endpoint is left, what was finished is kept")

    async def close(self) -> None:
        """Close the connections."""
        for task in self._returning:
            task.cancel()
        for endpoint in self.all:
            await endpoint.client.aclose()


def _pause(failures: int) -> float:
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures, 10)) * random.uniform(0.5, 1)


def _asked_pause(error: Exception) -> float:
    """Seconds that the server itself asks to be left alone for, if it says so as a number, within bounds."""
    if not isinstance(error, httpx.HTTPStatusError):
        return 0.0
    asked = error.response.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_ASKED_PAUSE) if asked.isdecimal() else 0.0


def _reason(endpoint: Endpoint, error: Exception) -> str:
    if isinstance(error, CollectError):
        return str(error).removeprefix(f"{endpoint.name}: ")
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _is_unavailable(error: Exception) -> bool:
    """Whether a failure is the server's, whatever it was asked."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (429, 502, 503, 504)
    return isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))


def run_endpoints(
    config: CollectConfig,
    target: TargetConfig,
    todo: Sequence[tuple[int, Ask]],
    record: Callable[[int, Trace], None],
    report: Callable[[dict], None],
) -> None:
    """Collect from servers, as many traces at a time as they take requests.

    Raises:
      CollectError: no endpoint is left, one of them is not the target's, or one prompt fails again and again.
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
            try:
                trace = await tracer.trace(ask)
            except CollectError as error:
                raise CollectError(f"{error} (the request was for prompt {ask.prompt.id!r})") from error
            record(number, trace)
            report({"judged": 1})

    try:
        await engine.check(target, tracer.tokenizer)
        await _together(keep_asking() for _ in range(min(len(todo), config.requests * len(engine.alive))))
    finally:
        await engine.close()


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do everything at once; the first failure ends all of it."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
