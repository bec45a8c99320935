"""One engine of ``specexit collect``: traces of a few chunks, and the trial answers behind their boundaries.

Run by `torch_specexit.collect` as a process of its own. The first line of its input holds the config and the numbers
of its chunks; then the input stays open, and its end means that the parent is gone. Its output is one JSON object per
line, counting what has been done since the last one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from specexit.data.answers import extract_answer, same_answer
from specexit.data.prompts import Prompt
from specexit.data.traces import Trace, tokenizer_sha256, write_traces
from specexit.method.labels import answer_confidence
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TargetConfig, load_target_config
from torch_specexit.chat import load_chat_tokenizer, prompt_ids
from torch_specexit.collect import chunk_path, chunks, load_prompts
from torch_specexit.engine import seed_everything, start_engine

if TYPE_CHECKING:
    from vllm import CompletionOutput, SamplingParams

Report = Callable[..., None]
"""Called with counts of what was just done: generated=, judged= (traces) and tokens=."""


@dataclass(frozen=True)
class _Response:
    """What the target wrote: tokens, their log-probabilities, and why it stopped (``stop`` or ``length``)."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: str

    @classmethod
    def of(cls, output: CompletionOutput) -> _Response:
        ids = list(output.token_ids)
        assert output.logprobs is not None
        # None, as the type allows, is for a prompt's first token.
        chosen = [at[token].logprob for at, token in zip(output.logprobs, ids, strict=True) if at is not None]
        return cls(ids, chosen, str(output.finish_reason))


class Collector:
    """A running engine that turns prompts into traces.

    Args:
      config: what to collect.
      target: the model.
      report: told about progress.
    """

    def __init__(self, config: CollectConfig, target: TargetConfig, report: Report):
        self.config, self.target, self.report = config, target, report
        self.llm = start_engine(target, config.engine, seed=config.seed)
        from vllm import SamplingParams  # not before the engine has set its environment
        from vllm.sampling_params import RequestOutputKind

        self.tokenizer = load_chat_tokenizer(target)
        self.think = target.think_tokens()
        # logprobs=0 is the drawn token's own. No per-request seed: vLLM's CPU sampler dies of it.
        common = {"logprobs": 0, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        self.trial = SamplingParams(temperature=0, max_tokens=config.trial_max_tokens, **common)
        self.sampling = SamplingParams(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            max_tokens=config.max_new_tokens,
            **common,
        )

    def collect(self, index: int, prompts: Sequence[Prompt]) -> list[Trace]:
        """Traces of one chunk.

        They depend on the chunk and the config alone, whatever the engine did before: it starts without a cached
        prefix and from a seed of its own.
        """
        self.llm.reset_prefix_cache()
        seed_everything(self.config.seed + 1_000_003 * (index + 1))
        encoded = [self._encode(prompt) for prompt in prompts]
        responses = self._generate(encoded, self.sampling, lambda _: self.report(generated=1))
        traces = [self._trace(*row) for row in zip(prompts, encoded, responses, strict=True)]
        return self._judge(traces, responses)

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = prompt_ids(self.tokenizer, self.target, prompt.text)
        if len(ids) >= self.target.max_model_len:
            raise ValueError(
                f"prompt {prompt.id!r} is {len(ids)} tokens long, "
                f"expected fewer than target {self.target.name}'s max_model_len {self.target.max_model_len}"
            )
        return ids

    def _generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, finished: Callable[[int], None]
    ) -> list[_Response]:
        """Responses in the order of the prompts; ``finished`` is called with the index of each as it is done."""
        from vllm import RequestOutput

        engine = self.llm.llm_engine
        for i, ids in enumerate(prompts):
            engine.add_request(str(i), {"prompt_token_ids": ids}, params)
        responses: dict[int, _Response] = {}
        while engine.has_unfinished_requests():
            tokens = 0
            for output in engine.step():
                assert isinstance(output, RequestOutput)
                i = int(output.request_id)
                responses[i] = _Response.of(output.outputs[0])
                tokens += len(responses[i].ids)
                finished(i)
            if tokens:
                self.report(tokens=tokens)
        return [responses[i] for i in range(len(prompts))]

    def _trace(self, prompt: Prompt, encoded: list[int], response: _Response) -> Trace:
        """A trace whose boundaries are not judged yet; none where it has no answer to compare with."""
        ids, end = response.ids, self.think.end
        n_think = ids.index(end) if end in ids else len(ids)
        answer = self._answer(ids[n_think + 1 :]) if response.finish_reason == "stop" else None
        correct = None if prompt.reference is None else same_answer(answer, prompt.reference)
        boundaries = [i + 1 for i, token in enumerate(ids[:n_think]) if token in self.think.split]
        return Trace(
            id=prompt.id,
            prompt=prompt.text,
            prompt_ids=encoded,
            think_ids=ids[:n_think],
            answer_ids=ids[n_think + 1 :],
            answer=answer,
            reference=prompt.reference,
            correct=correct,
            finish_reason=response.finish_reason,
            boundaries=boundaries if answer is not None else [],
            boundary_answers=[],
            boundary_agrees=[],
            boundary_confidence=[],
            target=self.target.name,
            sampling=json.dumps(self.config.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"})),
            seed=self.config.seed,
        )

    def _judge(self, traces: Sequence[Trace], responses: Sequence[_Response]) -> list[Trace]:
        """Run the trials of all traces and fill in their verdicts.

        A trace's prefixes follow one another, shortest first, so that each finds the one before it in the cache. At
        the natural end the answer is known: it is the trace's own.
        """
        trials = [(i, b) for i, t in enumerate(traces) for b in t.boundaries if b < len(t.think_ids)]
        prefixes = [traces[i].prompt_ids + traces[i].think_ids[:b] + [self.think.end] for i, b in trials]
        left = [0] * len(traces)
        for i, _ in trials:
            left[i] += 1
        self.report(judged=left.count(0))

        def finished(trial: int) -> None:
            i = trials[trial][0]
            left[i] -= 1
            self.report(judged=int(left[i] == 0))

        answers = dict(zip(trials, self._generate(prefixes, self.trial, finished), strict=True))
        for i, (trace, response) in enumerate(zip(traces, responses, strict=True)):
            n = len(trace.think_ids)
            answers[i, n] = _Response(trace.answer_ids, response.logprobs[n + 1 :], response.finish_reason)
        return [self._with_verdicts(t, [answers[i, b] for b in t.boundaries]) for i, t in enumerate(traces)]

    def _with_verdicts(self, trace: Trace, trials: Sequence[_Response]) -> Trace:
        answers = [self._answer(trial.ids) for trial in trials]
        return replace(
            trace,
            boundary_answers=answers,
            boundary_agrees=[same_answer(answer, trace.answer) for answer in answers],
            boundary_confidence=[answer_confidence(trial.logprobs) for trial in trials],
        )

    def _answer(self, ids: list[int]) -> str | None:
        return extract_answer(self.tokenizer.decode(ids))


def _end_with_parent() -> None:
    """Leave at once when the parent's end of the pipe closes, even if it was killed."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _channel() -> Report:
    """Take the process's output for reports alone; what vLLM prints goes where errors go."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(**counts: int) -> None:
        stream.write(json.dumps(counts) + "\n")

    return report


def main() -> None:
    """Do the chunks that the parent asks for."""
    report = _channel()
    task: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = CollectConfig.model_validate(task["config"])
    target = load_target_config(config.target)
    collector = Collector(config, target, report)
    parts = chunks(load_prompts(config), config.chunk)
    for index in task["chunks"]:
        traces = collector.collect(index, parts[index])
        write_traces(chunk_path(config.out, index), traces, tokenizer_sha256(target))


if __name__ == "__main__":
    main()
