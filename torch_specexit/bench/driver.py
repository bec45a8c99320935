"""Methods of the benchmark on a vLLM engine: a number of problems at once, or problems as they arrive.

The engine is stepped here, as ``LLM.generate`` steps it, so that a method can ask for more when its last request is
done, and every token has a time.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from specexit.bench.methods import Ask, Marks, Method, Problem
from specexit.bench.methods.running import Running
from torch_specexit.plugin.outcome import INACTIVE_KEY, KEY

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.outputs import CompletionOutput


def drive(
    llm: LLM,
    method: Method,
    problems: Sequence[Problem],
    marks: Marks,
    *,
    batch: int,
    sampling: dict[str, Any],
    arrivals: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Have a method answer problems on an engine.

    Args:
      llm: the engine.
      method: who answers.
      problems: what is asked.
      marks: of the target.
      batch: most problems in progress at once.
      sampling: vLLM's parameters of the response; trial answers are greedy.
      arrivals: seconds from the start at which each problem comes in, whatever is in progress; its time counts from
        then on. Without them the next one comes in as soon as one is done.

    Returns:
      ``seconds`` in all, and ``requests``, by problem: `Running.result`, with why the plug-in is ``inactive``, or None.
    """
    from vllm import RequestOutput

    engine, names = llm.llm_engine, itertools.count()
    waiting = deque(enumerate(problems))
    active: dict[str, tuple[int, Running]] = {}
    results: dict[int, dict[str, Any]] = {}
    start = time.perf_counter()

    def send(i: int, running: Running, ask: Ask) -> None:
        name = str(next(names))
        active[name] = (i, running)
        with running.refusals():
            engine.add_request(name, {"prompt_token_ids": ask.prompt_ids}, _parameters(ask, sampling, marks))

    while waiting or active:
        now = time.perf_counter() - start
        while waiting and len(active) < batch:
            i, problem = waiting[0]
            due = now if arrivals is None else arrivals[i]
            if due > now:
                break
            waiting.popleft()
            running = Running(method, problem, marks, due)
            assert running.ask is not None
            send(i, running, running.ask)
        if not active:
            assert arrivals is not None
            time.sleep(max(0.0, arrivals[waiting[0][0]] - (time.perf_counter() - start)))
            continue
        for output in engine.step():
            assert isinstance(output, RequestOutput)
            i, running = active[output.request_id]
            written, now = output.outputs[0], time.perf_counter() - start
            running.hear(*_new(written), now)
            if output.finished:
                del active[output.request_id]
                told = output.kv_transfer_params or {}
                following = running.finish(str(written.finish_reason), told.get(KEY))
                if following is None:
                    done = running.result(time.perf_counter() - start)
                    results[i] = done | {"inactive": told.get(INACTIVE_KEY)}
                else:
                    send(i, running, following)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "requests": [results[i] for i in range(len(problems))]}


def _new(written: CompletionOutput) -> tuple[list[int], list[float]]:
    """The tokens that an output has brought, and their logprobs where they were asked for."""
    ids = list(written.token_ids)
    return ids, [at[token].logprob for at, token in zip(written.logprobs or (), ids, strict=False) if at]


def _parameters(ask: Ask, sampling: dict[str, Any], marks: Marks) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    how: dict[str, Any] = {"temperature": 0.0} if ask.kind == "probe" else sampling
    return SamplingParams(
        **how,
        max_tokens=ask.max_tokens,
        stop_token_ids=list(ask.stop) or None,
        stop=list(ask.stop_text) or None,
        include_stop_str_in_output=True,
        logprobs=0 if ask.logprobs else None,
        thinking_token_budget=None if ask.budget is None else ask.budget + _opened(ask.prompt_ids, marks.start),
        extra_args=ask.extra_args or None,
        output_kind=RequestOutputKind.DELTA,
    )


def _opened(prompt_ids: Sequence[int], start: int) -> int:
    """Number of tokens behind the last ``<think>`` of a prompt, such as a template's newline: vLLM counts them as
    thinking."""
    return next((n for n, token in enumerate(reversed(prompt_ids)) if token == start), 0)
