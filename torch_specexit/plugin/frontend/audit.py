"""Does an exit change the answer? Some requests think on to their end, and the answer that an exit would have given is
generated afterwards, by the server itself.

Which requests is decided by a hash of their id, so that the worker, which must not cut them, and the front end, which
compares, agree without a word. The client gets the answer of the whole thinking, and never waits for the other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specexit.data.answers import extract_answer, plainly_same
from specexit.drafts.directory import Mode
from specexit.method.statistics import binomial_interval
from torch_specexit.plugin.worker.slots import opens_thinking

logger = logging.getLogger("vllm.specexit")

PREFIX = "specexit-audit-"
"""Of the ids of the requests that audits make: no client's id begins like this, an API server puts its own before."""

MOST_WAITING = 256
"""Audits that may wait for their turn; behind that one is skipped, so that a busy server does not fall behind."""

COMPARISON_SECONDS = 30
LOWEST_PRIORITY = 1 << 30


def is_audited(request: str, rate: float) -> bool:
    """Whether a request, by its id in the engine, is one of the share ``rate`` that is audited.

    Example:
      >>> is_audited("chatcmpl-1", 0.0), is_audited("chatcmpl-1", 1.0)
      (False, True)
    """
    return int.from_bytes(hashlib.sha256(request.encode()).digest()[:8], "big") < rate * 2**64


def thinks_on(request: str, mode: Mode, rate: float) -> bool:
    """Whether a request of this mode thinks on behind an exit: audited ones do, and all in shadow mode."""
    return mode == "shadow" or is_audited(request, rate)


@dataclass(frozen=True)
class Case:
    """A finished request that would have exited.

    Args:
      request: its id in the engine.
      prompt_ids: of its prompt.
      output_ids: of all its output.
      kept: output tokens before the ``</think>`` of the exit that was not made.
      max_tokens: what the client allowed, or None.
      lora: what it ran with.
    """

    request: str
    prompt_ids: list[int]
    output_ids: list[int]
    kept: int
    max_tokens: int | None
    lora: Any

    @classmethod
    def of(cls, state: Any, would_exit: int, markers: tuple[int, int]) -> Case:
        """From vLLM's `RequestState` of a finished request."""
        prompt, output = list(state.prompt_token_ids), list(state.detokenizer.output_token_ids)
        begin = 0 if opens_thinking(prompt, *markers) else output.index(markers[0]) + 1
        return cls(state.request_id, prompt, output, begin + would_exit, state.max_tokens_param, state.lora_request)


class Audit:
    """The audits of one server, one at a time.

    Args:
      rate: share of the requests.
      generate: ``(prompt_ids, max_tokens, request_id, lora) -> text``, greedily.
      decode: token ids to text.
      markers: ids of ``<think>`` and ``</think>``.
      max_model_len: of the engine.
      count: told each result.
    """

    def __init__(
        self,
        rate: float,
        generate: Callable[..., Any],
        decode: Callable[[list[int]], str],
        markers: tuple[int, int],
        max_model_len: int,
        count: Callable[[str], None] = lambda result: None,
    ):
        self.rate, self.generate, self.decode, self.count = rate, generate, decode, count
        self.markers = markers
        self.max_model_len = max_model_len
        self.results: Counter[str] = Counter()
        self._turn = asyncio.Semaphore(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def consider(self, state: Any, report: dict[str, Any]) -> None:
        """Audit a finished request, in the background, if it would have exited and its id says so."""
        asked_in_tokens = state.prompt_token_ids is not None
        if "would_exit" not in report or not asked_in_tokens or not is_audited(state.request_id, self.rate):
            return
        if len(self._tasks) >= MOST_WAITING:
            self._settle("skipped")
            return
        case = Case.of(state, report["would_exit"], self.markers)
        task = asyncio.get_running_loop().create_task(self._run(case))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, case: Case) -> None:
        try:
            async with self._turn:
                self._settle(await self.judge(case))
        except Exception:
            logger.exception("the audit of request %s failed", case.request)
            self._settle("failed")

    def _settle(self, result: str) -> None:
        self.results[result] += 1
        self.count(result)

    async def judge(self, case: Case) -> str:
        """``same`` or ``changed``; ``no_answer`` where the whole thinking leads to no answer that could change."""
        end = self.markers[1]
        thought_on = case.output_ids[case.kept :]
        answer = thought_on[thought_on.index(end) + 1 :] if end in thought_on else []
        full = extract_answer(self.decode(answer))
        if full is None:
            return "no_answer"
        prompt = [*case.prompt_ids, *case.output_ids[: case.kept], end]
        room = self.max_model_len - len(prompt)
        if case.max_tokens is not None:
            room = min(room, case.max_tokens - case.kept - 1)
        early = None
        if room > 0:
            early = extract_answer(await self.generate(prompt, room, f"{PREFIX}{case.request}", case.lora))
        return "same" if await same_answer_apart(full, early) else "changed"

    def summary(self) -> dict[str, Any]:
        """Counts, and the share of changed answers with its 95 % interval (Clopper-Pearson)."""
        changed = self.results["changed"]
        audited = changed + self.results["same"]
        return {
            "rate": self.rate,
            "audited": audited,
            "changed": changed,
            "changed_share": changed / audited if audited else None,
            "interval": list(binomial_interval(changed, audited)),
            "level": 0.95,
            **{name: self.results[name] for name in ("no_answer", "failed", "skipped")},
            "waiting": len(self._tasks),
        }


async def same_answer_apart(a: str | None, b: str | None) -> bool:
    """`specexit.data.answers.same_answer`, in a process of its own where it takes a parser: that may take seconds.

    Raises:
      TimeoutError: it took too long.
      RuntimeError: it failed.
    """
    plainly = plainly_same(a, b)
    if plainly is not None:
        return plainly
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "specexit.data.answers", stdin=pipe, stdout=pipe
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(json.dumps([a, b]).encode()), COMPARISON_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"python -m specexit.data.answers ended with code {process.returncode}")
    return bool(json.loads(out))


def generator_of(engine: Any) -> Callable[..., Any]:
    """What an `Audit` generates with: vLLM's `AsyncLLM`, at the lowest priority where its scheduler knows any."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    ranked = engine.vllm_config.scheduler_config.policy == "priority"
    engine = weakref.proxy(engine)  # the engine is to go when its owner lets go of it

    async def generate(prompt: Sequence[int], max_tokens: int, request: str, lora: Any) -> str:
        """The target's greedy text behind a prompt; exits off."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            extra_args={"specexit": False},
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        priority = LOWEST_PRIORITY if ranked else 0
        text = ""
        async for output in engine.generate(
            TokensPrompt(prompt_token_ids=list(prompt)), params, request, lora_request=lora, priority=priority
        ):
            text = output.outputs[0].text
        return text

    return generate
