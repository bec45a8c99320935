"""Any number of servers that speak OpenAI's protocol, each of which may die."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any

import httpx
from rich.console import Console

from specexit.data.rows import Trace
from specexit.method.splits import FastTokenizer
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.collecting.endpoint import BadAnswer, Endpoint, Fault, Refused
from torch_specexit.collecting.failed import FailedPrompts
from torch_specexit.collecting.tracer import Response, Tracer
from torch_specexit.collecting.work import Ask, CollectError, Decoding, NoAnswer

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before an endpoint that fails is tried again: from the first on, doubled with each failure, up to the
longest; drawn between half and all of that."""

LONGEST_ASKED_PAUSE = 120.0
"""Seconds, at most, that a server is left alone because it asks for that."""

FAILURES = (httpx.HTTPError, BadAnswer)
"""Failures of a server that has passed its check; another server may not have them."""


class EndpointEngine:
    """All endpoints as one engine: a request goes to the one with the fewest, and to another where one fails.

    An endpoint that fails is left alone for a while, then asked for a single token: requests go there again when it
    answers. A request that keeps failing everywhere, though such probes are answered, is itself at fault; an endpoint
    is at fault where others answer what failed there.

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

    @property
    def room(self) -> int:
        """Requests that the endpoints that are left take at once."""
        return self.config.requests * len(self.alive)

    async def check(self, target: TargetConfig, tokenizer: FastTokenizer) -> None:
        """Check every endpoint. One that is not ready is checked again after pauses, and left out if it never is.

        Raises:
          CollectError: one of them is not the target's, or none can be reached.
        """
        await _together(self._check(endpoint, target, tokenizer) for endpoint in self.all)
        self._expect_one()

    async def _check(self, endpoint: Endpoint, target: TargetConfig, tokenizer: FastTokenizer) -> None:
        try:
            await endpoint.check(self.config, target, tokenizer)
        except httpx.HTTPError as error:
            await self._ask_again(endpoint, lambda: endpoint.check(self.config, target, tokenizer), error)
            endpoint.failures = 0

    async def generate(self, ids: list[int], how: Decoding) -> Response:
        """The continuation of a prompt.

        Raises:
          NoAnswer: this request fails at every endpoint, though they answer probes.
          CollectError: no endpoint is left, or one is not the target's any more.
        """
        failed: Counter[Endpoint] = Counter()
        faults: dict[Endpoint, Fault] = {}
        while True:
            endpoint = await self._turn(failed, faults)
            rests = endpoint.rests
            try:
                response = await self._ask(endpoint, ids, how)
            except Refused as error:
                failed[endpoint], faults[endpoint] = self.config.retries, Fault(error)
            except FAILURES as error:
                faults[endpoint] = self._rest(endpoint, error, rests)
                if _is_busy(error):
                    self._blame(endpoint, faults[endpoint])
                    continue
                failed[endpoint] += 1
                if 1 < failed[endpoint] < self.config.retries:
                    await asyncio.sleep(_pause(failed[endpoint]))
            else:
                for other, fault in faults.items():
                    if other is not endpoint and endpoint in self.alive:
                        self._blame(other, fault)
                return response

    async def _turn(self, failed: Counter[Endpoint], faults: dict[Endpoint, Fault]) -> Endpoint:
        """The endpoint that takes a request next, as soon as it has room: one of those where it failed least."""
        await asyncio.sleep(0)  # queue behind those that wait, or a trace that goes on would always be first
        while True:
            self._expect_one()
            fewest = min(failed[one] for one in self.alive)
            if fewest < self.config.retries:
                ready = [one for one in self.alive if failed[one] == fewest and self._has_room(one)]
                if ready:
                    endpoint = min(ready, key=lambda one: one.going)
                    endpoint.going += 1
                    return endpoint
            elif not any(one.resting for one in self.alive):
                endpoint = next(one for one in reversed(faults) if one in self.alive)
                raise NoAnswer(_said(endpoint, faults[endpoint].error, failed[endpoint]))
            await self._changed.wait()

    def _has_room(self, endpoint: Endpoint) -> bool:
        return not endpoint.resting and endpoint.going < self.config.requests

    async def _ask(self, endpoint: Endpoint, ids: list[int], how: Decoding) -> Response:
        """Make a request of the endpoint that has room for it, and give the room back."""
        try:
            response = await endpoint.complete(ids, how)
        finally:
            endpoint.going -= 1
            self._wake()
        endpoint.failures = 0
        endpoint.own_faults.clear()
        return response

    def _wake(self) -> None:
        """Let all who wait for room look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _rest(self, endpoint: Endpoint, error: Exception, rests: int) -> Fault:
        """Send an endpoint no requests until it answers a probe; returns its fault.

        Requests that were under way together fail as one: ``rests`` is how often it had rested when this one began.
        """
        if endpoint.rests == rests or endpoint.fault is None:
            endpoint.resting, endpoint.fault = True, Fault(error)
            endpoint.rests += 1
            task = asyncio.create_task(self._return(endpoint, error))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)
        return endpoint.fault

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
        for tried in count(1):
            endpoint.failures += 1
            if tried >= self.config.retries:
                return self._give_up(endpoint, error)
            await asyncio.sleep(max(_pause(endpoint.failures), _asked_pause(error)))
            try:
                await ask()
            except FAILURES as another:
                error = another
            else:
                return

    def _blame(self, endpoint: Endpoint, fault: Fault) -> None:
        """Count a failure that was the endpoint's own, and give it up where it does nothing but fail."""
        endpoint.own_faults.add(fault)
        if len(endpoint.own_faults) >= self.config.retries:
            self._give_up(endpoint, fault.error)
            self._wake()

    def _give_up(self, endpoint: Endpoint, error: Exception) -> None:
        if endpoint not in self.alive:
            return
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
    """Seconds, within bounds, that a server asks to be left alone for (``Retry-After``, a number or a date); else 0."""
    if not isinstance(error, httpx.HTTPStatusError):
        return 0.0
    asked = error.response.headers.get("Retry-After", "")
    try:
        seconds = float(asked) if asked.isdecimal() else parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED_PAUSE)


def _reason(endpoint: Endpoint, error: Exception) -> str:
    if isinstance(error, CollectError):
        return str(error).removeprefix(f"{endpoint.name}: ")
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _said(endpoint: Endpoint, error: Exception, times: int) -> str:
    """Why nothing answers a request, in one line."""
    if isinstance(error, Refused):
        return str(error)
    return (
        f"{endpoint.name}: {_reason(endpoint, error)}; the same request has failed {times} times, though the endpoint "
        "answered in between"
    )


def _is_busy(error: Exception) -> bool:
    """Whether a failure is the server's, whatever it was asked."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429
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
      CollectError: no endpoint is left, one of them is not the target's, or they fail one prompt after the other.
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
    queue, at_work = iter(todo), 0

    def finish(number: int, trace: Trace) -> None:
        record(number, trace)
        report({"judged": 1})

    async def keep_asking(failed: FailedPrompts) -> None:
        """Trace one prompt after the other, until none is left or fewer are to be asked at once."""
        nonlocal at_work
        at_work += 1
        for number, ask in queue:
            try:
                trace = await tracer.trace(ask)
            except NoAnswer as error:
                failed.add(number, ask, error)
            except CollectError as error:
                raise CollectError(f"{error} (the request was for prompt {ask.prompt.id!r})") from error
            else:
                finish(number, trace)
                await finish_failed(failed)
            if at_work > engine.room:  # an endpoint was given up: one more would wait, and look at all the others again
                break
        at_work -= 1

    async def finish_failed(failed: FailedPrompts) -> None:
        for number, ask in failed.release():
            finish(number, await tracer.unanswered(ask))

    try:
        await engine.check(target, tracer.tokenizer)
        at_once = min(len(todo), engine.room)
        failed = FailedPrompts(at_once)
        await _together(keep_asking(failed) for _ in range(at_once))
        await finish_failed(failed)
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
