"""One prompt becomes one trace: its text, then trials at its boundaries, one after the other.

A trace has one request in flight at any time, so the prefixes of its boundaries never exist side by side; many traces
at once keep an engine busy.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from specexit.data.answers import agree, close_trial, extract_answer, is_stated, plainly_same
from specexit.data.boundaries import next_boundary, stating
from specexit.data.checks import MOST_CONFIDENCE
from specexit.data.prompts import Prompt
from specexit.data.rows import FAILED, FreeTrial, Trace, fill_untried, infer_agrees
from specexit.errors import InputError
from specexit.method.labels import answer_confidence
from specexit.method.splits import FastTokenizer, behind, text_behind
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig, TrialConfig
from torch_specexit.chat import load_chat_tokenizer, prompt_ids
from torch_specexit.collecting.work import Ask, Decoding, longest, sampling_of, trial_of

Report = Callable[..., None]
"""Called with counts of what was just done: generated= (traces written), tokens=."""


@dataclass(frozen=True)
class Response:
    """What the target wrote: tokens, their log-probabilities, and why it stopped (``stop``, ``length``, `FAILED`)."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: str

    def wrong_logprob(self) -> float | None:
        """The first value that is no log-probability, such as NaN; else None. Rounded ones may be just above 0."""
        return next((value for value in self.logprobs if not value <= math.log(MOST_CONFIDENCE)), None)


@runtime_checkable
class Engine(Protocol):
    """Anything that continues tokens."""

    async def generate(self, ids: list[int], how: Decoding) -> Response:
        """The continuation of a prompt."""
        ...


@dataclass(frozen=True)
class _Trial:
    """What was found at one boundary."""

    answer: str | None
    state: str
    confidence: float
    tokens: int


def encoded(chat: Any, tokenizer: FastTokenizer, target: TargetConfig, prompt: Prompt, length: int) -> list[int]:
    """Token ids of a prompt, its thinking opened.

    Args:
      chat, tokenizer: the target's.
      target: the model.
      prompt: what is asked.
      length: tokens that prompt and response may have, see `longest`.

    Raises:
      InputError: they leave no room for a single token, or the chat template refuses the prompt.
    """
    messages = prompt.messages or ({"role": "user", "content": prompt.text},)
    try:
        ids = prompt_ids(chat, tokenizer, target, messages)
    except InputError as error:
        raise InputError(f"prompt {prompt.id!r}: {error}") from error
    if len(ids) >= length:
        whose = f"target {target.name}'s" if length == target.max_model_len else "engine.extra's"
        raise InputError(
            f"prompt {prompt.id!r} is {len(ids)} tokens long, expected fewer than {whose} max_model_len {length}"
        )
    return ids


def check_lengths(config: CollectConfig, target: TargetConfig, asks: Sequence[Ask]) -> None:
    """Check every prompt's length before an engine starts, and not when its turn comes; and that they are not all one.

    Raises:
      InputError: one is too long, see `encoded`; or several ask different things in the same tokens, all of them, as of
        a chat template that does not write what the user says.
    """
    chat, tokenizer, length = load_chat_tokenizer(target), target.tokenizer(), longest(config, target)
    first, *others = (ask.prompt for ask in asks if ask.sample == 0)
    ids = encoded(chat, tokenizer, target, first, length)
    same = [encoded(chat, tokenizer, target, other, length) == ids for other in others]
    if all(same) and (unlike := [other for other in others if other.text.split() != first.text.split()]):
        raise InputError(
            f"prompts {first.id!r} and {unlike[0].id!r} are the same {len(ids)} tokens, and so are all others: the "
            f"chat template of target {target.name} does not write what the user says, expected one that does"
        )


class Tracer:
    """Turns asks into traces.

    Args:
      config: what to collect.
      target: the model.
      engine: what generates.
      report: told about progress.
    """

    def __init__(self, config: CollectConfig, target: TargetConfig, engine: Engine, report: Report):
        self.config, self.target, self.engine, self.report = config, target, engine, report
        self.chat, self.tokenizer = load_chat_tokenizer(target), target.tokenizer()
        self.think, self.length = target.think_tokens(), longest(config, target)
        self.sampling = sampling_of(config, target)

    async def trace(self, ask: Ask) -> Trace:
        """Ask a prompt, and try the boundaries of what is written; returns the complete row.

        Raises:
          InputError: the prompt is longer than the model allows.
        """
        ids = encoded(self.chat, self.tokenizer, self.target, ask.prompt, self.length)
        seed = ask.seed(self.config.seed)
        how = Decoding(**self.sampling.model_dump(), seed=seed if self.sampling.temperature else None)
        response = await self._generate(ids, how)
        self.report(generated=1)
        trace = await self._without_trials(ask, ids, seed, response)
        kind = trial_of(self.config, self.target, trace.answer_kind)
        if trace.answer is None:
            return replace(trace, trial=self._how(kind, []))
        own = response.logprobs[len(trace.think_ids) + 1 :]
        return await self._judge(ask, trace, kind, own)

    async def unanswered(self, ask: Ask) -> Trace:
        """The row of a prompt that no engine answers: nothing was written."""
        ids = encoded(self.chat, self.tokenizer, self.target, ask.prompt, self.length)
        nothing = Response([], [], FAILED)
        trace = await self._without_trials(ask, ids, ask.seed(self.config.seed), nothing)
        return replace(trace, trial=self._how(trial_of(self.config, self.target, trace.answer_kind), []))

    async def _generate(self, ids: list[int], how: Decoding) -> Response:
        """A response, no longer than there is room for; empty, with ``length``, where it has none."""
        room = self.length - len(ids)
        if room < 1:
            return Response([], [], "length")
        response = await self.engine.generate(ids, replace(how, max_tokens=min(how.max_tokens, room)))
        self.report(tokens=len(response.ids))
        return response

    async def _without_trials(self, ask: Ask, prompt: list[int], seed: int, response: Response) -> Trace:
        """A trace whose boundaries are not judged yet. It has none where there is no answer to compare trials with."""
        ids, end, asked, columns = response.ids, self.think.end, ask.prompt, ask.columns(self.target)
        n_think = ids.index(end) if end in ids else len(ids)
        kind = columns["answer_kind"]
        finished = response.finish_reason == "stop" and end in ids
        answer = extract_answer(self._text(ids[n_think + 1 :]), kind, asked.choices) if finished else None
        unknown = asked.reference is None or response.finish_reason == FAILED  # an outage is no wrong answer
        correct = None if unknown else await self._agree(ask, kind, answer, asked.reference)
        boundaries = [i + 1 for i, token in enumerate(ids[:n_think]) if token in self.think.split]
        return Trace(
            **columns,
            prompt_ids=prompt,
            think_ids=ids[:n_think],
            answer_ids=ids[n_think + 1 :],
            answer=answer,
            correct=correct,
            finish_reason=response.finish_reason,
            boundaries=boundaries if answer is not None else [],
            boundary_answers=[],
            boundary_agrees=[],
            boundary_confidence=[],
            target=self.target.name,
            sampling=json.dumps(self.sampling.model_dump()),
            seed=seed,
        )

    async def _judge(self, ask: Ask, trace: Trace, how: TrialConfig, own: list[float]) -> Trace:
        """Run the trials that are needed and fill in their verdicts.

        At the natural end the answer is known: it is the trace's own. A trial is made there only where a text is
        forced, and only for its confidence, which then is not that of the trace's own answer.
        """
        n, tried, free = len(trace.boundaries), {}, []
        if n and trace.boundaries[-1] == len(trace.think_ids):
            known = await self._trial(ask, trace, n - 1, how) if how.text else None
            confidence = answer_confidence(own) if known is None else known.confidence
            tried[n - 1] = _Trial(trace.answer, "agrees", confidence, 0 if known is None else known.tokens)
        stated = self.stated(trace)
        while (i := self._next(n, tried, stated)) is not None:
            tried[i] = await self._trial(ask, trace, i, how)
            if how.text and self._is_sampled(ask, i):
                free.append(await self._free_trial(ask, trace, i, tried[i]))
        found = [tried.get(i) for i in range(n)]
        states = [trial.state if trial else "untried" for trial in found]
        nearest: list[_Trial] = fill_untried(found)
        return replace(
            trace,
            boundary_answers=[trial.answer for trial in nearest],
            boundary_agrees=infer_agrees(states),
            boundary_confidence=[trial.confidence for trial in nearest],
            boundary_state=states,
            boundary_trial_tokens=[trial.tokens if trial else 0 for trial in found],
            trial=self._how(how, free),
        )

    def _next(self, n: int, tried: dict[int, _Trial], stated: list[int]) -> int | None:
        verdicts = {"agrees": True, "differs": False, "undecided": None}
        agrees = {i: verdicts[trial.state] for i, trial in tried.items()}
        return next_boundary(n, agrees, self.config.boundaries, self.config.stride, stated)

    def stated(self, trace: Trace) -> list[int]:
        """Boundaries behind steps that state the trace's answer."""
        steps = (self._text(trace.think_ids[start:end]) for start, end in pairwise([0, *trace.boundaries]))
        return stating(steps, trace.answer)

    async def _trial(self, ask: Ask, trace: Trace, i: int, how: TrialConfig) -> _Trial:
        """End the thinking at a boundary, force the text that makes the model state its answer, and read it."""
        forced = behind(self.tokenizer, self.target.think_end, how.text)
        thought = [*trace.prompt_ids, *trace.think_ids[: trace.boundaries[i]], self.think.end]
        response = await self._statement(thought, forced, how)
        text = how.text + close_trial(text_behind(self._text, forced, response.ids), how.stop, how.close, how.text)
        answer = extract_answer(text, trace.answer_kind, ask.prompt.choices)
        confidence, tokens = answer_confidence(response.logprobs), len(response.ids)
        nothing_stated = how.text and not answer
        if response.finish_reason != "stop" or nothing_stated:
            return _Trial(answer, "undecided", confidence, tokens)
        agrees = await self._agree(ask, trace.answer_kind, answer, trace.answer)
        return _Trial(answer, "agrees" if agrees else "differs", confidence, tokens)

    async def _statement(self, thought: list[int], forced: list[int], how: TrialConfig) -> Response:
        """What the model writes behind the forced text. Where a stop comes in the midst of an answer, it is asked to go
        on."""
        ids, logprobs = [], []
        while True:
            piece = await self._generate([*thought, *forced, *ids], Decoding(how.max_tokens - len(ids), stop=how.stop))
            last = text_behind(self._text, [*forced, *ids], piece.ids)
            ids, logprobs = ids + piece.ids, logprobs + piece.logprobs
            stated = is_stated(last, text_behind(self._text, forced, ids), how.stop, how.text)
            if piece.finish_reason != "stop" or stated:
                return Response(ids, logprobs, piece.finish_reason)
            if len(ids) >= how.max_tokens:
                return Response(ids, logprobs, "length")

    async def _free_trial(self, ask: Ask, trace: Trace, i: int, forced: _Trial) -> FreeTrial:
        """The same boundary with nothing forced: the whole answer, as a user would get it."""
        free = await self._trial(ask, trace, i, TrialConfig(max_tokens=self.sampling.max_tokens))
        decided = "undecided" not in (free.state, forced.state)
        return FreeTrial(i, free.answer, free.state == forced.state if decided else None, free.tokens)

    def _is_sampled(self, ask: Ask, i: int) -> bool:
        """Whether a boundary belongs to the sample of free trials: the same ones in every run."""
        text = f"free/{self.config.seed}/{ask.prompt.id}/{ask.sample}/{i}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) < self.config.free_share * 2**32

    async def _agree(self, ask: Ask, kind: str, a: str | None, b: str | None) -> bool:
        """`specexit.data.answers.agree`, in a thread where it takes time, so that the engine goes on."""
        plainly = plainly_same(a, b, kind)
        if plainly is not None:
            return plainly
        return await asyncio.to_thread(agree, a, b, kind, ask.prompt.reference)

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.text(ids)

    def _how(self, how: TrialConfig, free: list[FreeTrial]) -> str:
        found: dict[str, Any] = how.model_dump(mode="json") | {"boundaries": self.config.boundaries}
        if self.config.boundaries == "refine":
            found["stride"] = self.config.stride
        return json.dumps(found | {"free": [asdict(trial) for trial in free]})
