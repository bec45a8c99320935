"""Does an exit change the answer? Some requests think on to their end, and the answer that an exit would have given is
generated afterwards, by the server itself.

Which requests is decided by a hash of their id, when they are admitted; the worker does not cut them. Only requests
that run under the server's own policy are looked at: those with arguments of their own say nothing about it, and must
not be able to. The client gets the answer of the whole thinking, and never waits for the other.

What counts is what counts in a calibration (`specexit.data.rows.can_judge`): thinking and answer that have come to
their end by themselves, with an answer, and somewhere to exit. The rest is counted by what it lacks.

A LoRA adapter makes another target than the one that was calibrated: audits with one are counted by adapter, and
nothing is concluded from them.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import weakref
from array import array
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specexit.data.answers import apart, extract_answer, listed_options, plainly_same
from specexit.method.decision import Policy
from specexit.method.splits import ThinkTokens
from specexit.method.statistics import LEVEL, binomial_interval
from specexit.processes import python
from torch_specexit.plugin.frontend.inner import inner
from torch_specexit.plugin.frontend.operation import Admitted
from torch_specexit.plugin.frontend.own_end import BY_ITSELF
from torch_specexit.plugin.frontend.protocols import AsyncLLM, RequestState
from torch_specexit.plugin.outcome import HANDED_OVER
from torch_specexit.plugin.protocols import LoRARequest
from torch_specexit.plugin.worker.openings import begin_of

logger = logging.getLogger("vllm.specexit")

PREFIX = "specexit-audit-"
"""Prefix of the ids of the requests that audits make, for whoever reads vLLM's log."""

MOST_WAITING = 256
"""Audits that may wait for their turn; further ones are skipped, so that a busy server does not fall behind."""

MOST_BYTES = 64 << 20
"""Bytes that waiting audits may hold: each keeps a whole prompt and a whole output, at four bytes a token, and id
and cache salt, which clients choose."""

MOST_READ = 4096
"""Tokens at the end of a prompt in which the options of a question are looked for."""

NOTHING_SHOWN = ("no_answer", "no_boundary", "unfinished", "failed", "skipped")
"""Results that say nothing about the risk."""

CACHE_SALT, PRIORITY = "specexit_cache_salt", "specexit_priority"
"""Attributes of a `RequestState`, which the front end keeps there when it admits a request."""

MOST_HERE = 4096
"""Characters of the longest answer that is read in this process, while requests wait; a process of its own reads longer
ones. Clients may have any text written, and each character may cost microseconds."""

SECONDS_APART = 30
"""For a process of its own to read an answer."""

SECONDS_COMPARING = SECONDS_APART + apart.START_LIMIT + apart.TIME_LIMIT + apart.END_LIMIT
"""For one that compares two: it ends within these limits by itself, with a verdict, unless the machine is to blame."""

LOWEST_PRIORITY = 1 << 30
"""Where the scheduler knows priorities, audits come behind all clients, and among themselves as their requests did."""


BUSY = {"QueueOverflowError", "MaxQueuedTokensError"}
"""Errors by which vLLM, where it knows a limit for waiting requests, refuses one for the time being."""

SECONDS_BUSY, MOST_SECONDS_BUSY = 1.0, 60.0
"""Until such a request is made again: twice as long each time, as vLLM counts each try among what it has rejected."""


class CutOffError(Exception):
    """The request that an audit makes was aborted, or is refused as the server is ending, or its engine has ended or
    is gone."""


class NotLoadedError(Exception):
    """An engine does not have the adapter of an audit loaded; if its files are gone, too, loading it would end the
    engine."""


@dataclass(frozen=True)
class Case:
    """A request that has come to its end by itself.

    Args:
      request: its id in the engine.
      prompt_ids: of its prompt.
      output_ids: of all its output.
      kept: output tokens before the ``</think>`` of the exit that was not made; None where there would have been none.
      max_tokens: what the client allowed, or None.
      lora: what it ran with.
      cache_salt: what separates its prefix in the cache from those of others, or None.
      priority: of the request.
    """

    request: str
    prompt_ids: array[int]
    output_ids: array[int]
    kept: int | None
    max_tokens: int | None
    lora: LoRARequest | None = None
    cache_salt: str | None = None
    priority: int = 0

    @classmethod
    def of(cls, state: RequestState, would_exit: int | None, tokens: ThinkTokens) -> Case:
        """From vLLM's `RequestState` of a finished request."""
        prompt, output = array("i", state.prompt_token_ids or ()), array("i", state.detokenizer.output_token_ids)
        begin = begin_of(prompt, output, tokens.start, tokens.end_marker)
        return cls(
            request=state.request_id,
            prompt_ids=prompt,
            output_ids=output,
            kept=None if would_exit is None else begin + would_exit,
            max_tokens=state.max_tokens_param,
            lora=state.lora_request,
            cache_salt=getattr(state, CACHE_SALT, None),
            priority=getattr(state, PRIORITY, 0),
        )

    @property
    def size(self) -> int:
        """Bytes of its tokens, and characters of what its client has chosen."""
        chosen = len(self.request) + len(self.cache_salt or "")
        return (len(self.prompt_ids) + len(self.output_ids)) * self.prompt_ids.itemsize + chosen


Generate = Callable[[Sequence[int], int, Case], Awaitable[str]]
"""Decodes greedily, exits off: takes a prompt, the most tokens and the case, returns text."""


class Audit:
    """The audits of one server, one at a time.

    Args:
      generate: see `Generate`.
      decode: token ids to text, without special tokens, as ``generate`` has it.
      tokens: of ``<think>`` and ``</think>``, and those at which a step of the thinking ends.
      max_model_len: of the engine.
      settled: called for each audit without an adapter, with its operating point, its result (see `judge`; or
        ``unfinished``, ``skipped``, ``failed``), and the policy that it ran under: the point may have another by then.
      kinds: returns the kinds of answers that the calibration had, which another policy file may change; empty where
        they may not be compared.
      transition: what is written before ``</think>`` at an exit.
    """

    def __init__(
        self,
        generate: Generate,
        decode: Callable[[list[int]], str],
        tokens: ThinkTokens,
        max_model_len: int,
        settled: Callable[[str, str, Policy], None] = lambda point, result, policy: None,
        kinds: Callable[[], Sequence[str]] = lambda: ("math",),
        transition: Sequence[int] = (),
    ):
        self.generate, self.decode, self.settled, self.kinds = generate, decode, settled, kinds
        self.tokens = tokens
        self.transition = transition
        self.max_model_len = max_model_len
        self.results: Counter[str] = Counter()
        self.loras: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Results with adapters, by name."""
        self._turn = asyncio.Semaphore(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0

    def consider(self, state: RequestState, admitted: Admitted, report: dict[str, Any]) -> None:
        """Audit a finished request in the background, if it was chosen for that when it was admitted."""
        if not admitted.audited or admitted.point is None or state.prompt_token_ids is None:
            return
        if report["outcome"] in ("off", HANDED_OVER):
            return
        if report["outcome"] != "natural_end" or not getattr(state, BY_ITSELF, False):
            self._settle(admitted, "unfinished")
            return
        case = Case.of(state, report.get("would_exit"), self.tokens)
        if len(self._tasks) >= MOST_WAITING or self._bytes + case.size > MOST_BYTES:
            self._settle(admitted, "skipped")
            return
        self._bytes += case.size
        task = asyncio.get_running_loop().create_task(self._run(case, admitted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, case: Case, admitted: Admitted) -> None:
        try:
            async with self._turn:
                self._settle(admitted, await self.judge(case))
        except CutOffError:
            self._settle(admitted, "unfinished")
        except NotLoadedError:
            self._settle(admitted, "skipped")
        except Exception:
            logger.exception("the audit of request %s failed", case.request)
            self._settle(admitted, "failed")
        finally:
            self._bytes -= case.size

    def _settle(self, admitted: Admitted, result: str) -> None:
        if admitted.lora is not None:
            self.loras[admitted.lora][result] += 1
            return
        assert admitted.point is not None
        self.results[result] += 1
        self.settled(admitted.point, result, admitted.policy)

    async def judge(self, case: Case) -> str:
        """Compare the answer behind the exit that was not made with that of the whole thinking.

        Returns:
          ``same`` or ``changed``; ``no_exit`` where no exit would have been made; ``no_boundary`` where there was
          nowhere to exit; ``no_answer`` where the whole thinking leads to no answer, or to a program, as only tests
          tell two programs apart.

        Raises:
          CutOffError, NotLoadedError, TimeoutError, RuntimeError: see `generator_of` and `stated_apart`.
        """
        output, end, options, kinds = case.output_ids.tolist(), self.tokens.end_marker, None, self.kinds()
        if "choice" in kinds:  # which a request does not say, but its prompt
            options = listed_options(self.decode(case.prompt_ids[-MOST_READ:].tolist()))
        answer = behind(output[case.kept or 0 :], end)
        kind, full = await _stated(self.decode(answer), kinds, options)
        # Two programs agree where both pass tests, which no request brings.
        if kind is None or full is None or kind == "code":
            return "no_answer"
        if case.kept is None:
            thought = output[: -len(answer) - len(end)]
            begin = begin_of(case.prompt_ids, thought, self.tokens.start, end)
            return "no_boundary" if self.tokens.split.isdisjoint(thought[begin:]) else "no_exit"
        closing = [*self.transition, *end]
        prompt = [*case.prompt_ids, *output[: case.kept], *closing]
        room = self.max_model_len - len(prompt)
        if case.max_tokens is not None:
            room = min(room, case.max_tokens - case.kept - len(closing))
        early = None
        if room > 0:
            early = await stated_apart(await self.generate(prompt, room, case), kind, options)
        return "same" if await same_answer_apart(full, early, kind) else "changed"

    def summary(self) -> dict[str, Any]:
        """Counts, and two shares of changed answers: among exits, ``changed_share`` with its 95 % interval
        (Clopper-Pearson), and among requests, ``risk``, which a certificate bounds. ``loras`` has the same by adapter;
        audits with an adapter are counted there alone."""
        loras = {name: shares(results) for name, results in self.loras.items()}
        return shares(self.results) | {"waiting": len(self._tasks), "loras": loras}


def shares(results: Counter[str]) -> dict[str, Any]:
    """Counts and shares of the audits with one adapter, or with none; see `Audit.summary`.

    Example:
      >>> shares(Counter(same=3, changed=1, no_exit=4))["risk"]
      0.125
    """
    changed = results["changed"]
    audited = changed + results["same"]
    requests = audited + results["no_exit"]
    return {
        "audited": audited,
        "changed": changed,
        "changed_share": changed / audited if audited else None,
        "interval": list(binomial_interval(changed, audited)),
        "level": LEVEL,
        "requests": requests,
        "risk": changed / requests if requests else None,
        **{name: results[name] for name in NOTHING_SHOWN},
    }


def behind(tokens: list[int], marker: Sequence[int]) -> list[int]:
    """What comes behind the first end marker; nothing where there is none.

    Example:
      >>> behind([5, 6, 1, 2, 7], [1, 2]), behind([5], [1, 2])
      ([7], [])
    """
    size = len(marker)
    ends = (at + size for at in range(len(tokens) - size + 1) if tokens[at : at + size] == list(marker))
    end = next(ends, None)
    return [] if end is None else tokens[end:]


async def _stated(text: str, kinds: Sequence[str], options: Sequence[str] | None) -> tuple[str | None, str | None]:
    """The kind of an answer, which no request says, and the answer, by the first kind that finds one; else two None.
    Multiple choice comes first where the prompt lists options, and last where it does not."""
    for kind in sorted(kinds, key=lambda kind: (kind == "choice") == (options is None)):
        if (answer := await stated_apart(text, kind, options)) is not None:
            return kind, answer
    return None, None


async def stated_apart(text: str, kind: str = "math", options: Sequence[str] | None = None) -> str | None:
    """`specexit.data.answers.extract_answer`, in a process of its own where the text is long.

    Raises:
      TimeoutError: it took too long.
      RuntimeError: it failed.
    """
    if len(text) <= MOST_HERE:
        return extract_answer(text, kind, options)
    return await _ask_apart({"text": text, "kind": kind, "options": options}, SECONDS_APART)


async def same_answer_apart(a: str | None, b: str | None, kind: str = "math") -> bool:
    """`specexit.data.answers.same_answer`, in a process of its own where it takes a parser: that may take seconds.

    Where comparing takes too much time or memory they differ, as in a calibration.

    Raises:
      TimeoutError, RuntimeError: the process did not start, or failed.
    """
    plainly = plainly_same(a, b, kind)
    return bool(await _ask_apart([a, b, kind], SECONDS_COMPARING)) if plainly is None else plainly


async def _ask_apart(question: object, seconds: float) -> Any:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*python("specexit.data.answers"), stdin=pipe, stdout=pipe)
    try:
        out, _ = await asyncio.wait_for(process.communicate(json.dumps(question).encode()), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"python -m specexit.data.answers ended with code {process.returncode}")
    return json.loads(out)


def generator_of(engine: AsyncLLM) -> Generate:
    """What an `Audit` generates with: vLLM's `AsyncLLM`, at the lowest priority where its scheduler knows any."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    ranked = engine.vllm_config.scheduler_config.policy == "priority"
    engine = weakref.proxy(engine)  # the engine is to go when its owner lets go of it

    async def generate(prompt: Sequence[int], max_tokens: int, case: Case) -> str:
        """Greedy text of the target behind a prompt, exits off, once the engine takes it; or one of the two errors."""
        seconds = SECONDS_BUSY
        while True:
            try:
                return await ask(prompt, max_tokens, case)
            except Exception as error:
                if _cut_off(error):
                    raise CutOffError from error
                if type(error).__name__ not in BUSY:
                    raise
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, MOST_SECONDS_BUSY)

    async def ask(prompt: Sequence[int], max_tokens: int, case: Case) -> str:
        """Ask once, as `generate`; vLLM's own error where it takes no more requests, or ends."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        priority = LOWEST_PRIORITY + case.priority if ranked else 0
        tokens = TokensPrompt(prompt_token_ids=list(prompt))
        if case.cache_salt is not None:
            tokens["cache_salt"] = case.cache_salt
        inner.set(True)  # for the task that runs this audit
        lora = await _adapter(engine, case.lora)
        answer = None
        async for output in engine.generate(
            tokens, params, f"{PREFIX}{case.request}", lora_request=lora, priority=priority
        ):
            answer = output.outputs[0]
        if answer is None or answer.finish_reason == "abort":
            raise CutOffError
        return answer.text

    return generate


_IN_PLACE = "load_inplace"
"""Attribute of a `LoRARequest`, of some versions of vLLM."""


async def _adapter(engine: AsyncLLM, lora: LoRARequest | None) -> LoRARequest | None:
    """What an audit may ask for in place of its request's adapter, or a `NotLoadedError`."""
    if lora is None:
        return None
    client = engine.engine_core  # of several engines `AsyncLLM.list_loras` returns what the first one has
    asked = (client._call_utility_async("list_loras", engine=core) for core in client.core_engines)
    if not all(lora.lora_int_id in loaded for loaded in await asyncio.gather(*asked)):
        raise NotLoadedError
    lora = copy.copy(lora)
    if getattr(lora, _IN_PLACE, False):  # its weights of then would come into the requests of clients
        setattr(lora, _IN_PLACE, False)
    return lora


def _cut_off(error: Exception) -> bool:
    """Whether an error says that the engine ends, has ended or is gone."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    if isinstance(error, EngineGenerateError):
        return "after shutdown" in str(error.__cause__)  # of the threads that read prompts, and end first
    if isinstance(error, EngineDeadError | ReferenceError):  # the latter where its owner has let go of it
        return True
    return "Server shutting down" in str(error)  # to what is asked besides requests
