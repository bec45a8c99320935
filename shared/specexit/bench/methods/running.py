"""One problem in progress: what its method asks for, and what becomes of the tokens that arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from specexit.bench.methods.interface import Ask, Marks, Method, MethodError, Problem, Said
from specexit.errors import InputError

MOST_WITHOUT_A_TOKEN = 1000
"""Requests in a row that bring the response no token; a method that makes more is taken never to end."""


class Running:
    """A method answering a problem; the engine is the caller's.

    Args:
      method, problem, marks: who answers what.
      now: seconds on the caller's clock, when the problem came in.

    Raises:
      MethodError: the method asks for nothing, or see `finish`.
    """

    def __init__(self, method: Method, problem: Problem, marks: Marks, now: float):
        self.problem, self._marks = problem, marks
        self._whose = f"method {method.name}, problem {problem.id}"
        self._budgets = method.budgets
        self._asks = method.respond(problem, marks)
        self._came = now
        self._in_vain = 0
        """Requests since the response last got a token."""
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
        self.ask: Ask | None = self._next(None)
        if self.ask is None:
            raise MethodError(f"{self._whose}: respond asks for nothing, expected it to yield an Ask")
        if len(self.ask.prompt_ids) >= marks.max_model_len:
            raise MethodError(
                f"{self._whose}: respond begins behind {len(self.ask.prompt_ids)} tokens, expected fewer than "
                f"max_model_len, {marks.max_model_len}"
            )

    def hear(self, token_ids: Sequence[int], logprobs: Sequence[float], now: float) -> None:
        """Tokens of the present request, as they arrive."""
        assert self.ask is not None
        self._said += token_ids
        self._logprobs += logprobs
        if self.ask.kind == "probe":
            self.probe_tokens += len(token_ids)
            return
        self._in_vain = 0 if token_ids else self._in_vain
        self.token_ids += token_ids
        self._closed = self._closed or self._marks.end in token_ids
        if self.first_answer is None and self._closed and self.token_ids[-1] != self._marks.end:
            self.first_answer = now - self._came

    def finish(self, finish_reason: str, outcome: dict[str, Any] | None) -> Ask | None:
        """The present request is done; returns the next one that the engine has room for, or None where the problem is
        answered.

        Raises:
          MethodError: the method fails, asks for what is no request, or for ever.
        """
        while self.ask is not None:
            budget = self.ask.budget
            if budget is not None and self._marks.end in self.token_ids[budget:]:
                self.forced = True
            if self.ask.kind != "probe":
                self.finish_reason, self.outcome = finish_reason, outcome or self.outcome
            self.ask = self._next(Said(self._said, finish_reason == "stop", self._logprobs))
            if self.ask is None or len(self.ask.prompt_ids) < self._marks.max_model_len:
                break
            finish_reason, outcome = "length", None  # for vLLM it is an error, which would end the process
        return self.ask

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """A block in which the engine is given what `ask` asks for: what it does not take is the method's mistake.

        Raises:
          MethodError: it does not take it.
        """
        try:
            yield
        except (TypeError, ValueError) as error:
            raise MethodError(f"{self._whose}: the engine does not take what respond asks for: {error}") from error

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

    def _next(self, said: Said | None) -> Ask | None:
        """What the method asks for, given what it has heard; None where it is done."""
        try:
            ask = next(self._asks) if said is None else self._asks.send(said)
            self._check(ask)
        except StopIteration:
            return None
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise MethodError(f"{self._whose}: respond fails: {error!r}") from error
        self._said, self._logprobs = [], []
        self.asked += 1
        self._in_vain += 1
        if ask.kind == "answer" and not self._closed:
            self.token_ids.append(self._marks.end)
            self._closed = self.forced = True
        return ask

    def _check(self, ask: Any) -> None:
        if not isinstance(ask, Ask):
            raise MethodError(f"{self._whose}: respond yields {ask!r:.200}, expected an Ask")
        if ask.max_tokens < 1 or not ask.prompt_ids:
            raise MethodError(
                f"{self._whose}: respond asks for {ask.max_tokens} tokens behind {len(ask.prompt_ids)}, expected at "
                "least one behind at least one"
            )
        if ask.budget is not None and not self._budgets:
            raise MethodError(
                f"{self._whose}: respond asks for a budget of {ask.budget}, expected none, or budgets = True in its "
                "class, with which the engine is started for them"
            )
        if self._in_vain >= MOST_WITHOUT_A_TOKEN:
            raise MethodError(
                f"{self._whose}: respond has asked {self._in_vain} times without a token for the response, expected it "
                "to think on, answer or end"
            )
        if len(self.token_ids) > self._marks.max_model_len:
            raise MethodError(
                f"{self._whose}: respond asks for more behind {len(self.token_ids)} tokens of the response, but "
                f"max_model_len is {self._marks.max_model_len}: expected it to end"
            )
