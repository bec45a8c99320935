"""``results.json``: what `bench` measured, as a typed contract, and the table that a person reads.

Units: accuracies, cuts and fractions are shares (0..1), token counts are means per problem, seconds are sums over the
``n_seconds`` responses of that batch size. A triple is a value with its paired bootstrap 95 % interval.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from specexit.config import Config, write_text
from specexit.errors import InputError, dotted, shown
from specexit.schemas.sampling import drawn, is_greedy

if TYPE_CHECKING:
    from rich.table import Table

Triple = tuple[float, float, float]
"""Value, lower and upper end of the 95 % interval."""

NO_INTERVAL = "no interval"

ALL_ALIKE = "all alike"
"""In place of an interval over problems of which each says the same, as where all answers are right."""


def is_interval(triple: Triple) -> bool:
    """Whether there is an interval. For a single slice or problem, or for problems that are all alike, a bootstrap has
    both ends at the value: that looks certain, and only means that there is no interval."""
    return triple[1] < triple[2]


LOSS_MARGIN = 0.01
"""Of accuracy: a loss that is proven to be below it is called none."""

BASELINE = "eagle3"
"""What every method is compared with: plain EAGLE-3 with the same trunk, served by the same engine."""

DEFINITIONS = {
    "accuracy": "share of responses whose answer behind </think> equals the reference; no answer is wrong; with k "
    "samples of a problem it is avg@k",
    "accuracy_interval": "accuracy with its own 95 % interval, by problem; accuracy_delta, paired, is known better",
    "thinking_tokens": "mean tokens before </think>, without those of a transition text, which the server has written; "
    "all of them where thinking was never closed",
    "total_tokens": "mean generated tokens: thinking, </think> and answer",
    "answer_tokens": "mean tokens behind </think>, end of turn included; none where thinking was never closed",
    "throughput": "tokens of the responses (total_tokens) a second, both summed over the responses of a batch size. "
    "Tokens of trial answers are not among them, though their time is; a method that writes less is not slower for it",
    "seconds": "wall clock around generate, prompts already tokenised; at batch 1 one request at a time, at a larger "
    "batch size a whole slice of the problems at once, that many of them running together until fewer are left; no "
    "slice has fewer, where there are as many problems",
    "acceptance_length": "accepted draft tokens + 1 bonus token, pooled over steps (not a mean of per-request means)",
    "exits": "how thinking ended: exit (the policy, by its signals or its maximum; the loop guard; or a method that "
    "decides by itself), natural_end (the model itself), length (out of tokens)",
    "accuracy_delta": "accuracy minus that of eagle3 on the same problems",
    "thinking_cut": "1 - thinking tokens / those of eagle3, both summed over the same problems",
    "total_cut": "the same of all generated tokens",
    "speedup": "seconds of eagle3 / seconds of the method, both summed over the same problems; of the engine processes "
    "of this run: another start of the same program may be a few percent faster or slower, which no interval knows",
    "tasks": "the same on the problems of one task, those of none together (no task); speedup there is of single "
    "responses' seconds, from when each problem came in, and not of a slice's, which no task has to itself; 2,000 "
    "resamples",
    "interval": "paired percentile bootstrap, 10,000 resamples of problems, all samples of a problem together; of "
    "slices of the problems, all samples of a slice together, for seconds above batch 1 and for an open loop, where a "
    "slice is the smallest unit with a time of its own (few of them: read such an interval as rough; of one slice "
    "there is none, and both ends are the value). Nor is there one where all problems are alike: a bootstrap knows "
    "nothing of what it has not seen, and is too narrow where few answers are wrong",
    "probe_tokens": "mean tokens of trial answers that a method decodes besides the response, in the same engine and "
    "the same time",
    "joules": "energy of the machine's processors and memory (RAPL) and of the GPUs in use (NVML) while the method had "
    "its turns, per response, whatever else ran included; of the GPUs alone where the machine has no RAPL; "
    "nothing where the machine does not tell, or a counter cannot be read",
    "preempted": "how often a request lost its KV cache to others and was computed again, at all batch sizes and "
    "rates; that is in the seconds: where it is not 0, they are of an engine.kv_cache_gib that is too small",
    "says": "definition of a method",
    "parameters": "what a method was tuned to on calibration traces: the boldest that loses at most tolerance there; "
    "where none does, the most cautious, and the method's definition says what that loses",
    "latency": "seconds of single responses, from when the problem came in: mean, median, 95th percentile; "
    "first_answer: mean seconds to the first token behind </think>",
    "open_loop": "the same where problems come in at random, so many a second on average, whatever is in progress; "
    "each slice of the problems begins with nothing in progress, and comes in at the same moments for all methods. "
    "Against eagle3: seconds of its responses / those of the method, both summed over the same problems",
    "p_loss": "P-value of the hypothesis that accuracy is a point or more below eagle3's (by problem; score test, "
    "exact where none gains and each loses all or nothing): small is proof of a loss below a point; overlapping "
    "intervals are not",
    "specexit_faster": "P-value of specexit answering sooner than the method, by batch size, of single responses' "
    "seconds, Holm-corrected over all methods and batch sizes: at batch 1 a sign-flip test, paired by problem; above "
    "it a paired t test of the slices (of the logarithms of their mean seconds), as the responses of a slice wait for "
    "each other; none of a single slice. Of these processes, as speedup: where methods that share none differ by a few "
    "percent, a small P-value does not say that the method is what is faster",
    "oracle": "ends each trace at the earliest step boundary whose trial answer is that of the full trace, known only "
    "in hindsight; pooled thinking tokens of the same problems' recorded traces, which may be sampled otherwise",
    "for_good": "the oracle's cut where it ends a trace only at a boundary from which on all trial answers are that of "
    "the full trace: what it cuts more is luck, an answer that comes up early, goes again, and comes back",
    "fraction_reached": "thinking_cut / that of the oracle; above 1 where exits come before the answer stands, "
    "at a loss of accuracy; none where the oracle cuts nothing",
    "one_point": "traces that were not tried throughout (boundaries=stable or bisect), so that nothing is known in "
    "front of their first trial: with any of them the oracle cuts at least what is said, and a method reaches at most "
    "that share of it",
    "eagle3": "plain EAGLE-3: the draft of specexit without its signal rows",
    "budget": "a fixed thinking budget: exit at the first step boundary at or after N thinking tokens. Snapping to a "
    "boundary favours this baseline: a hard cut would end in mid-sentence",
    "lossless": "problems whose token ids differ between two runs that should give the same ids",
}


class Exits(Config):
    """How thinking ended, in problems."""

    exit: int = 0
    natural_end: int = 0
    length: int = 0


class Latency(Config):
    """Seconds of single responses."""

    mean: float
    p50: float
    p95: float
    first_answer: float | None = Field(description="mean to the first token behind </think>; None where there was none")
    n: int


class TaskResult(Config):
    """What one method did on the problems of one task."""

    n: int
    accuracy: float
    thinking_tokens: float
    exits: Exits
    speedup: dict[str, Triple] = Field(
        default={}, description="batch size -> seconds of eagle3's responses / the method's; none for eagle3 itself"
    )


class MethodResult(Config):
    """What one method did on all problems."""

    accuracy: float
    accuracy_interval: Triple | None = Field(default=None, description="None in files of before")
    thinking_tokens: float
    total_tokens: float
    answer_tokens: float | None = Field(default=None, description="None in files of before")
    seconds: dict[str, float] = Field(description="batch size -> seconds for n_seconds responses")
    throughput: dict[str, float] = Field(default={}, description="batch size -> tokens a second")
    acceptance_length: float | None = Field(description="None without speculation")
    exits: Exits
    probe_tokens: float = 0.0
    joules: dict[str, float] = Field(default={}, description="batch size -> joules per response; none if not told")
    latency: dict[str, Latency] = Field(default={}, description="by batch size")
    open_loop: dict[str, Latency] = Field(default={}, description="by arrivals per second")
    preempted: int | None = Field(default=None, description="None in files of before")
    says: str | None = Field(default=None, description="definition of the method")
    parameters: dict[str, float | str | None] = Field(default={}, description="what the method was tuned to")


class Comparison(Config):
    """One method against the baseline, on the same problems."""

    accuracy_delta: Triple
    thinking_cut: Triple
    total_cut: Triple
    speedup: dict[str, Triple]
    open_loop: dict[str, Triple] = Field(default={}, description="arrivals per second -> speed-up of responses")
    p_loss: float | None = Field(default=None, description="of losing a point of accuracy or more")


class Oracle(Config):
    """What knowing the exit points in hindsight would give."""

    thinking_cut: float
    for_good: float | None = Field(default=None, description="its cut where the answer has to stand from there on")
    fraction_reached: dict[str, float | None] = Field(description="None where it cuts nothing")
    sampling: dict[str, Any] = Field(default={}, description="of the recorded traces whose exit points it knows")
    one_point: int = Field(default=0, description="of these traces, those that were not tried throughout")

    @property
    def at_least(self) -> str:
        """What comes before its cut in a sentence."""
        return "at least " if self.one_point else ""

    @property
    def at_most(self) -> str:
        """What comes before shares of it in a sentence."""
        return "at most " if self.one_point else ""


class Identity(Config):
    """A count of outputs that should have been the same."""

    n: int
    mismatches: int


class Results(Config):
    """The whole file."""

    model_config = ConfigDict(populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    n: int
    n_seconds: dict[str, int]
    target: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    seed: int
    num_speculative_tokens: int
    budget: int | None = Field(default=None, description="thinking tokens of the fixed budget")
    tolerance: float | None = Field(default=None, description="accuracy that methods may lose where they are tuned")
    methods: dict[str, MethodResult]
    against_eagle3: dict[str, Comparison]
    oracle: Oracle
    lossless: dict[str, Identity]
    samples: int = Field(default=1, description="responses to each problem at the largest batch size; 1 at others")
    sampling: dict[str, float] = Field(default={"temperature": 0.0}, description="of the responses")
    tasks: dict[str, dict[str, TaskResult]] = Field(default={}, description="task -> method, where there are several")
    specexit_faster: dict[str, dict[str, float]] = Field(default={}, description="batch size -> method -> P-value")
    shape: dict[str, Any] | None = Field(default=None, description="of a stand-in: the sizes that it has")
    inputs: dict[str, str] = Field(default={}, description="hashes of what was read, by the config's keys")
    definitions: dict[str, str] = DEFINITIONS

    @property
    def greedy(self) -> bool:
        """Whether one token alone may be drawn each time."""
        return is_greedy(self.sampling)

    @property
    def oracle_name(self) -> str:
        """What tables call the oracle: where its traces were sampled differently from the responses, the name says so.
        Files of older versions do not say how the traces were sampled."""
        ours, known = drawn(self.sampling), drawn(self.oracle.sampling)
        if ours is None or known is None or ours == known:
            return "oracle"
        if known[0] == 0:
            return "greedy oracle"
        return "sampled oracle" if ours[0] == 0 else "differently sampled oracle"


class ResultsError(InputError):
    """A results file that cannot be used; the message names the file, the field and what was expected."""


def write_results(path: Path, results: Results) -> None:
    """Write ``results.json``, whole or not at all."""
    write_text(path, json.dumps(results.model_dump(mode="json", by_alias=True), indent=1) + "\n")


def read_results(path: Path) -> Results:
    """Read and check ``results.json``.

    Raises:
      ResultsError: not there, not JSON, of another schema version, or a field or a number is missing or wrong.
    """
    try:
        raw = json.loads(path.read_text(), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read as JSON: {error}") from error
    try:
        found = Results.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = dotted(first)
        missing = first["type"] == "missing"  # pydantic then gives the whole of what lacks it
        wrong = "is missing" if missing else f"is {shown(first['input'])}: {first['msg']}"
        raise ResultsError(f"{path}: field {key!r} {wrong}") from error
    for key, there, expected in _tables(found):
        if missing := [name for name in expected if name not in there]:
            raise ResultsError(f"{path}: field {key!r} lacks {missing[0]!r}, expected the whole of what bench writes")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, expected numbers alone")


def _tables(found: Results) -> Iterator[tuple[str, Collection[str], Collection[str]]]:
    """Fields with the names that they have, and those that whoever reads them looks for."""
    methods, against, batches = found.methods, found.against_eagle3, found.n_seconds
    yield "methods", methods, [BASELINE]
    yield "against_eagle3", against, methods.keys() & {"specexit"}
    yield "oracle.fraction_reached", found.oracle.fraction_reached, against
    for name, method in methods.items():
        yield f"methods.{name}.seconds", method.seconds, batches
    for name, versus in against.items():
        yield f"against_eagle3.{name}.speedup", versus.speedup, batches
    for task, part in found.tasks.items():
        yield f"tasks.{task}", part, [BASELINE]


def result_tables(results: Results) -> list[Table]:
    """What was measured, the comparison with EAGLE-3, the times, and those of the open loop where there is one; each at
    most 80 columns wide with up to three batch sizes or rates."""
    tables = [_measured(results), _compared(results), _times(results)]
    return [*tables, _arrivals(results)] if any(method.open_loop for method in results.methods.values()) else tables


def computed_again(results: Results) -> str | None:
    """What is to be said of requests for which the KV cache was too small; None where there were none."""
    counts = {name: method.preempted for name, method in results.methods.items() if method.preempted}
    if not counts:
        return None
    times = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    return (
        f"Requests were computed again for want of KV cache ({times} times), and that is in the seconds: expected a "
        "larger engine.kv_cache_gib."
    )


def _plain(name: str) -> str:
    """A name that is shown as it is: brackets in it are no markup."""
    from rich.markup import escape

    return escape(name)


def _times(results: Results) -> Table:
    table = _table(f"seconds, below them tokens a second, and the speed-up over {BASELINE}")
    table.caption = computed_again(results)
    table.caption_style = "yellow"
    table.caption_justify = "left"
    for batch, n in results.n_seconds.items():
        table.add_column(f"s of\n{n}\n@ {batch}", justify="right")
    for batch in results.n_seconds:
        table.add_column(f"speed-up\n@ {batch}", justify="right")
    for name, method in results.methods.items():
        versus = results.against_eagle3.get(name)
        seconds = (_seconds(method, batch) for batch in results.n_seconds)
        speedups = (_speedup(versus.speedup[batch]) for batch in results.n_seconds) if versus else ()
        table.add_row(_plain(name), *seconds, *speedups)
    return table


def _seconds(method: MethodResult, batch: str) -> str:
    rate = f"\n[dim]{method.throughput[batch]:.0f}/s[/dim]" if batch in method.throughput else ""
    return f"{method.seconds[batch]:.1f}{rate}"


def _arrivals(results: Results) -> Table:
    rates = list(results.methods[BASELINE].open_loop)
    table = _table("open loop (mean, p95)")
    for rate in rates:
        table.add_column(f"s\n@ {rate}/s", justify="right")
    for rate in rates:
        table.add_column(f"speed-up\n@ {rate}/s", justify="right")
    for name, method in results.methods.items():
        versus = results.against_eagle3.get(name)
        found = (method.open_loop[rate] for rate in rates)
        seconds = (f"{one.mean:.2f}\n[dim]{one.p95:.2f}[/dim]" for one in found)
        speedups = (_speedup(versus.open_loop[rate]) for rate in rates) if versus and versus.open_loop else ()
        table.add_row(_plain(name), *seconds, *speedups)
    return table


def _measured(results: Results) -> Table:
    table = _table(f"{_plain(results.target)}: {results.n} problems")
    probes = any(method.probe_tokens for method in results.methods.values())
    headings = [
        "accuracy,\n%" if any(method.accuracy_interval for method in results.methods.values()) else "accuracy",
        "thinking\ntokens",
        "answer\ntokens",
        "total\ntokens",
        *(["probe\ntokens"] if probes else []),
    ]
    for heading in [*headings, "accept.\nlength", "exit/own\n/length"]:
        table.add_column(heading, justify="right")
    for name, method in results.methods.items():
        exits = method.exits
        table.add_row(
            _plain(name),
            _accuracy(method),
            f"{method.thinking_tokens:.1f}",
            "-" if method.answer_tokens is None else f"{method.answer_tokens:.1f}",
            f"{method.total_tokens:.1f}",
            *([f"{method.probe_tokens:.1f}"] if probes else []),
            "-" if method.acceptance_length is None else f"{method.acceptance_length:.2f}",
            f"{exits.exit}/{exits.natural_end}/{exits.length}",
        )
    return table


def _compared(results: Results) -> Table:
    cut = f"{results.oracle.at_least}{_percent(results.oracle.thinking_cut)}"
    oracle = f"the {results.oracle_name} cuts {cut} of thinking"
    if results.oracle.for_good is not None:
        oracle += f", {_percent(results.oracle.for_good)} where the answer has to stand for good"
    title = f"against {BASELINE} (95 % intervals); {oracle}"
    table = _table(title)
    of_oracle = "at most,\nof oracle" if results.oracle.one_point else "of\noracle"
    for heading in ("thinking\ncut, %", of_oracle, "accuracy,\npoints", "total\ncut, %"):
        table.add_column(heading, justify="right")
    for name, versus in results.against_eagle3.items():
        table.add_row(
            _plain(name),
            _interval(versus.thinking_cut, 100.0, 1),
            _percent(results.oracle.fraction_reached[name]),
            _interval(versus.accuracy_delta, 100.0, 1),
            _interval(versus.total_cut, 100.0, 1),
        )
    return table


def _table(title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("method", no_wrap=True)
    return table


def _accuracy(method: MethodResult) -> str:
    return _percent(method.accuracy) if not method.accuracy_interval else _interval(method.accuracy_interval, 100.0, 1)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _speedup(triple: Triple) -> str:
    return _interval(triple, 1.0, 2) if is_interval(triple) else f"{triple[0]:.2f}\n[dim]{NO_INTERVAL}[/dim]"


def _interval(triple: Triple, scale: float, digits: int) -> str:
    """The value, and its interval in a line of its own."""
    value, low, high = (f"{scale * x:.{digits}f}" for x in triple)
    return f"{value}\n[dim]{f'{low}..{high}' if is_interval(triple) else ALL_ALIKE}[/dim]"
