"""One problem in progress: what its method asks for, and what becomes of the tokens that arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specexit.bench.methods.interface import Ask, Marks, Method, MethodError, Problem, Said


class Running:
    """A method answering a problem; the engine is the caller's.

    Args:
      method, problem, marks: who answers what.
      now: seconds on the caller's clock, when the problem came in.

    Raises:
      MethodError: the method asks for nothing.
    """

    def __init__(self, method: Method, problem: Problem, marks: Marks, now: float):
        self.problem, self._marks = problem, marks
        self._asks = method.respond(problem, marks)
        self._came = now
        self._said: list[int] = []
        self._logprobs: list[float] = []
        self._closed = False
        """Whether ``</think>`` is among ``token_ids``, which are not searched for it at every output."""
        self.token_ids: list[int] = []
        """The response: thinking, ``</think>`` and answer."""
        self.probe_tokens = 0
        self.asked = 0
        self.forced = False
        """Whether the method or the engine's budget, and not the model, wrote ``</think>``."""
        self.first_answer: float | None = None
        """Seconds until the first token behind ``</think>``."""
        self.outcome: dict[str, Any] | None = None
        self.finish_reason = "stop"
        first = next(self._asks, None)
        if first is None:
            raise MethodError(f"method {method.name} asked for nothing for problem {problem.id}")
        self.ask: Ask | None = self._begin(first)

    def hear(self, token_ids: Sequence[int], logprobs: Sequence[float], now: float) -> None:
        """Tokens of the present request, as they arrive."""
        assert self.ask is not None
        self._said += token_ids
        self._logprobs += logprobs
        if self.ask.kind == "probe":
            self.probe_tokens += len(token_ids)
            return
        self.token_ids += token_ids
        self._closed = self._closed or self._marks.end in token_ids
        if self.first_answer is None and self._closed and self.token_ids[-1] != self._marks.end:
            self.first_answer = now - self._came

    def finish(self, finish_reason: str, outcome: dict[str, Any] | None) -> Ask | None:
        """The present request is done; returns the next one that the engine has room for, or None where the problem is
        answered."""
        assert self.ask is not None
        budget = self.ask.budget
        if budget is not None and self._marks.end in self.token_ids[budget:]:
            self.forced = True
        if self.ask.kind != "probe":
            self.finish_reason, self.outcome = finish_reason, outcome or self.outcome
        try:
            following = self._asks.send(Said(self._said, finish_reason == "stop", self._logprobs))
        except StopIteration:
            self.ask = None
            return None
        self.ask = self._begin(following)
        if len(following.prompt_ids) >= self._marks.max_model_len:
            return self.finish("length", None)  # for vLLM it is an error, which would end the process
        return self.ask

    def result(self, now: float) -> dict[str, Any]:
        """What was measured, as JSON."""
        return {
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "outcome": self.outcome,
            "forced": self.forced,
            "probe_tokens": self.probe_tokens,
            "asked": self.asked,
            "seconds": now - self._came,
            "first_answer_seconds": self.first_answer,
        }

    def _begin(self, ask: Ask) -> Ask:
        self._said, self._logprobs = [], []
        self.asked += 1
        if ask.kind == "answer" and not self._closed:
            self.token_ids.append(self._marks.end)
            self._closed = self.forced = True
        return ask
