"""The methods of a benchmark take turns: slice by slice of the problems, on engines that are running."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from specexit.bench.journal import Journal
from specexit.bench.methods import Method, to_job
from specexit.bench.process import BenchError, BenchProcess
from specexit.bench.requests import Request, Run, ended_by, reason_of
from specexit.bench.results import BASELINE
from specexit.data.answers import extract_answer, same_answer
from specexit.data.traces import Trace
from specexit.method.splits import FastTokenizer, marker
from specexit.schemas.bench import BenchConfig
from specexit.schemas.target import TargetConfig

WARM_UP_TOKENS = 32
"""Written at each batch size before anything is measured."""


@dataclass(frozen=True)
class Entry:
    """A method that takes part."""

    name: str
    reference: str
    """As the config names it: its name, or the path of its file."""
    method: Method
    draft: Path | None
    """What its engine serves with."""
    hints: tuple[int | None, ...]
    """One for each problem."""
    trials: tuple[dict[str, Any], ...]
    """How an answer to each is tried: fields of `specexit.bench.methods.Trial`."""
    beyond: float | None = None
    """Accuracy that it loses on the calibration traces, where no setting of it is within the tolerance."""

    @property
    def says(self) -> str:
        """Its definition, and that it could not be tuned to the tolerance where that is so."""
        if self.beyond is None:
            return self.method.says
        return (
            f"{self.method.says}; none that was tried is within the tolerance there, so that the most cautious is "
            f"measured, which loses {100 * self.beyond:.1f} points on them"
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was tuned to."""
        return to_job(self.reference, self.method)["parameters"]


Turn = tuple[Entry, Sequence[int]]
"""Who is asked for which of the problems."""


def spread(traces: Sequence[Trace], n: int) -> list[int]:
    """Indices of ``n`` of the problems, rising: of each task its share, within it by a hash of their ids.

    Benchmarks may lie in a file one behind the other, so that the first problems are of one of them.
    """

    def place(i: int) -> tuple[str, str]:
        return traces[i].task or "", hashlib.sha256(traces[i].id.encode()).hexdigest()

    by_task = sorted(range(len(traces)), key=place)
    return sorted(by_task[len(traces) * i // n] for i in range(n))


def n_slices(rounds: int, n: int, batch: int) -> int:
    """Number of slices of ``n`` problems: ``rounds``, or fewer, as a slice smaller than the batch never fills it."""
    return max(1, min(rounds, n // batch))


def turns(entries: Sequence[Entry], problems: Sequence[int], rounds: int) -> Iterator[Turn]:
    """Slices of the problems, each given to all methods before the next; the first to go moves on by one a slice."""
    edges = [len(problems) * i // rounds for i in range(rounds + 1)]
    for i, (start, stop) in enumerate(pairwise(edges)):
        if start < stop:
            first = i % len(entries)
            for entry in [*entries[first:], *entries[:first]]:
                yield entry, problems[start:stop]


def warm_up(
    config: BenchConfig,
    entries: Sequence[Entry],
    engines: Mapping[Path | None, BenchProcess],
    traces: Sequence[Trace],
) -> None:
    """Ask for a few tokens at every batch size, as an engine's first steps at a new shape are slow."""
    for entry in entries:
        for batch in (1, *config.batches):
            part = range(min(batch, len(traces)))
            short = config.model_copy(update={"max_new_tokens": WARM_UP_TOKENS})
            engines[entry.draft].ask(job(short, entry, traces, part, batch, seed=config.seed))


def job(
    config: BenchConfig,
    entry: Entry,
    traces: Sequence[Trace],
    part: Sequence[int],
    batch: int,
    *,
    seed: int,
    arrivals: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What `torch_specexit.bench.worker` is asked."""
    assert config.sampling is not None, "`as_traced` has it"
    problems = [
        {
            "id": traces[i].id,
            "prompt_ids": traces[i].prompt_ids,
            "answer_kind": traces[i].answer_kind,
            "choices": traces[i].choices,
            "trial": entry.trials[i],
            "hint": entry.hints[i],
        }
        for i in part
    ]
    return to_job(entry.reference, entry.method) | {
        "problems": problems,
        "marks": {"max_new_tokens": config.max_new_tokens},
        "batch": batch,
        "sampling": config.sampling.model_dump(),
        "arrivals": list(arrivals) if arrivals is not None else None,
        "seed": seed,
    }


def seed_of(seed: int, part: Sequence[int], batch: int, sample: int, rate: float | None) -> int:
    """The seed of a turn, made of the config's: another for each slice, batch size, sample and rate, the same for all
    methods.

    If slices shared a seed, their first problems would share random numbers, and above batch 1 the intervals take
    slices for independent.
    """
    said = f"{seed}, {part[0]}, {batch}, {sample}, {rate}"
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big")


@dataclass
class Measurement:
    """A benchmark under way."""

    config: BenchConfig
    entries: Sequence[Entry]
    engines: Mapping[Path | None, BenchProcess]
    traces: Sequence[Trace]
    journal: Journal
    tokenizer: FastTokenizer
    end: int

    def ask(
        self, entry: Entry, part: Sequence[int], batch: int, *, sample: int = 0, rate: float | None = None
    ) -> tuple[dict[str, Any], list[Request]]:
        """Take a turn, unless the journal has it; returns the engine's reply and the requests read from it."""
        engine = self.engines[entry.draft]
        arrivals = None
        if rate is not None:
            # A Poisson process: the same for every method, another for each slice.
            gaps = np.random.default_rng([self.config.seed, part[0]]).exponential(1 / rate, len(part))
            arrivals = np.cumsum(gaps).tolist()
        seed = seed_of(self.config.seed, part, batch, sample, rate)
        asked = job(self.config, entry, self.traces, part, batch, seed=seed, arrivals=arrivals)
        key = f"{entry.name}, batch {batch}, problems {part[0]} to {part[-1]}, sample {sample}, rate {rate}"

        def answered() -> dict[str, Any]:
            # Before it is written down: what could not exit is asked again once the cause is mended.
            reply = engine.ask(asked)
            for i, raw in zip(part, reply["requests"], strict=True):
                if entry.method.reports:
                    check_served(entry.name, self.traces[i].id, raw)
            return reply

        reply = self.journal.reply(key, answered)
        requests = [
            read_request(entry, self.traces[i], raw, self.tokenizer, self.end, sample=sample)
            for i, raw in zip(part, reply["requests"], strict=True)
        ]
        return reply, requests


def measure(
    config: BenchConfig,
    target: TargetConfig,
    entries: Sequence[Entry],
    engines: Mapping[Path | None, BenchProcess],
    traces: Sequence[Trace],
    journal: Journal,
) -> dict[str, Run]:
    """Ask every engine for every problem, slice by slice: one at a time, in batches, then as they arrive.

    Raises:
      BenchError: too many of the baseline's responses run out of tokens, or see `check_served`.
    """
    tokenizer = target.tokenizer()
    under_way = Measurement(config, entries, engines, traces, journal, tokenizer, marker(tokenizer, target.think_end))
    runs = {entry.name: Run() for entry in entries}
    timed = spread(traces, min(config.n_latency, len(traces)))
    passes: list[tuple[int, Sequence[int], int]] = [(batch, timed, 1) for batch in (1, *config.batches[:-1])]
    passes.append((config.batches[-1], range(len(traces)), config.samples))
    total = len(entries) * (sum(len(of) * samples for _, of, samples in passes) + len(config.rates) * len(timed))
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("bench", total=total)
        for batch, problems, samples in passes:
            if len(problems) < batch:
                console.print(f"batch {batch}: there are {len(problems)} problems, so no more are asked at once")
            slices = n_slices(config.rounds, len(problems), batch)
            for sample in range(samples):
                for entry, part in turns(entries, problems, slices):
                    progress.update(bar, description=f"{entry.name} @ {batch}")
                    reply, requests = under_way.ask(entry, part, batch, sample=sample)
                    seconds = [request.seconds or 0.0 for request in requests] if batch == 1 else [reply["seconds"]]
                    counted = (reply["n_drafts"], reply["n_accepted"], reply.get("joules"))
                    runs[entry.name].add(batch, requests, seconds, *counted)
                    runs[entry.name].n_preempted += reply.get("n_preempted", 0)
                    if entry.name == BASELINE:
                        _check_finished(config, runs[BASELINE], batch, len(problems) * samples)
                    progress.advance(bar, len(part))
        for rate in config.rates:
            for entry, part in turns(entries, timed, config.rounds):
                progress.update(bar, description=f"{entry.name} @ {rate:g}/s")
                reply, requests = under_way.ask(entry, part, config.batches[-1], rate=rate)
                runs[entry.name].n_preempted += reply.get("n_preempted", 0)
                runs[entry.name].open_loop.setdefault(rate, []).append(requests)
                progress.advance(bar, len(part))
    return runs


def _check_finished(config: BenchConfig, run: Run, batch: int, n: int) -> None:
    cut = [request for request in run.requests[batch] if request.finish_reason == "length"]
    if len(cut) > config.max_unfinished * n:
        answering = sum(request.reason != "length" for request in cut)
        raise BenchError(
            f"max_new_tokens={config.max_new_tokens}: {len(cut)} responses of {BASELINE} ran out of tokens, of {n} at "
            f"batch {batch} ({answering} of them in the answer); expected at most {config.max_unfinished:.0%}, or "
            "accuracy says nothing: choose a larger max_new_tokens, which is another benchmark, or have `bench` go on "
            "with a larger max_unfinished, which takes them as they are"
        )


def check_served(method: str, trace: str, raw: Mapping[str, Any], *, shadow_is_fine: bool = False) -> None:
    """Check that the plug-in has judged a response. One that it could not exit would look like one that had nothing to
    cut, and like exits that cost nothing.

    Args:
      method: who was asked, a method that needs the plug-in.
      trace: the id of the prompt's trace.
      raw: the response as `torch_specexit.bench.worker` replies it.
      shadow_is_fine: whether exits need not be made.

    Raises:
      BenchError: the plug-in has given up, there was none, or exits were off, or in shadow mode where that is not fine.
    """
    outcome, inactive = raw["outcome"], raw.get("inactive")
    if inactive is not None:
        raise BenchError(f"method {method}: the specexit plug-in has given up by the response to {trace}: {inactive}")
    if outcome is None:
        raise BenchError(
            f"method {method}: vLLM reported no outcome for {trace}, expected one from the specexit plug-in; "
            "is it installed, and is VLLM_PLUGINS unset or does it name specexit?"
        )
    # Where thinking never began, the outcome is off as well.
    off = outcome["outcome"] == "off" and outcome["thinking_tokens"] > 0
    if off or ("would_exit" in outcome and not shadow_is_fine):
        fine = "'exit' or 'shadow'" if shadow_is_fine else "'exit'"
        raise BenchError(
            f"method {method}: exits were {'off' if off else 'in shadow mode'} in the response to {trace}, "
            f"expected serving.mode {fine} and nothing stricter in SPECEXIT_SERVING"
        )


def read_request(
    entry: Entry, trace: Trace, raw: dict[str, Any], tokenizer: FastTokenizer, end: int, *, sample: int = 0
) -> Request:
    """One reply of a worker, its answer extracted and judged."""
    ids, outcome = raw["token_ids"], raw["outcome"]
    thinking = ids.index(end) if end in ids else len(ids)
    written = (outcome or {}).get("transition_tokens", 0)
    answer = extract_answer(tokenizer.text(ids[thinking + 1 :]), trace.answer_kind, trace.choices)
    reason = reason_of(outcome, closed=end in ids, finish_reason=raw["finish_reason"], forced=raw["forced"])
    return Request(
        id=trace.id,
        token_ids=ids,
        thinking_tokens=thinking - written,
        reason=reason,
        answer=answer,
        correct=same_answer(answer, trace.reference, trace.answer_kind),
        signals=(outcome or {}).get("signals", {}),
        probe_tokens=raw["probe_tokens"],
        seconds=raw["seconds"],
        first_answer_seconds=raw["first_answer_seconds"],
        sample=sample,
        task=trace.task,
        answer_tokens=max(0, len(ids) - thinking - 1),
        finish_reason=raw["finish_reason"],
        ended_by=ended_by(outcome),
    )
