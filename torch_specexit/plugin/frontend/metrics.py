"""Exits on vLLM's own ``/metrics``, in its registry, with its labels, and so in ``LLM.get_metrics()``, too.

vLLM hands what it counts from the output processor to its `PrometheusStatLogger` on an `IterationStats`; reports of
finished requests ride along as one more attribute. Names begin with ``vllm:``, because vLLM clears and reads by that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from specexit.method.decision import ENDED
from specexit.method.signals import SIGNALS
from torch_specexit.plugin.frontend.audit import NOTHING_SHOWN
from torch_specexit.plugin.frontend.drafting import Drafting
from torch_specexit.plugin.frontend.operation import epsilon_of, risk_of
from torch_specexit.plugin.frontend.protocols import SpecDecodingStats, StatLogger
from torch_specexit.plugin.outcome import HANDED_OVER, KEY

if TYPE_CHECKING:
    from specexit.drafts.policy import OperatingPoint, PolicyFile
    from torch_specexit.plugin.frontend.server import FrontEnd

OUTCOMES = (*ENDED, "natural_end", "length", HANDED_OVER, "off")
AUDITS = ("same", "changed", "no_exit", *NOTHING_SHOWN)
MOVES = ("stricter", "shadow", "back")
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Buckets of a probability or a share."""

_WATCHING: WeakValueDictionary[int, ExitMetrics] = WeakValueDictionary()
"""The metrics of each server's front end by the identity of its vLLM config, which they keep: where vLLM adds engines
to a running server, it makes a new logger of the same config, and unregisters what the old one had."""


def token_buckets(largest: int) -> list[int]:
    """1, 2, 5, 10, ... as far as the context goes, as vLLM's own token histograms have them.

    Example:
      >>> token_buckets(30)
      [1, 2, 5, 10, 20]
    """
    rising = (step * 10**power for power in range(len(str(largest))) for step in (1, 2, 5))
    return [bucket for bucket in rising if bucket <= largest]


class ExitMetrics:
    """The counters and histograms of one server.

    Args:
      logger: vLLM's `PrometheusStatLogger`, which knows the metric classes (Prometheus or Ray), labels and engines.
    """

    def __init__(self, logger: StatLogger):
        self.engines = logger.per_engine_labelvalues
        self.vllm_config = logger.vllm_config
        self.model_name = self.vllm_config.model_config.served_model_name
        earlier = _WATCHING.get(id(self.vllm_config))
        self.front: FrontEnd | None = None
        self.drafting = earlier.drafting if earlier else Drafting()
        self.seen: dict[str | None, Counter[str]] = earlier.seen if earlier else defaultdict(Counter)
        """Thinking tokens before and behind all would-be exits that were seen so far, by operating point, as one says
        nothing of another. None: policies of requests' own, and outside of a server."""
        self._points: tuple[OperatingPoint, ...] = earlier._points if earlier else ()
        """The operating points that these were seen at."""
        self._begun: PolicyFile | None = None
        """The policies whose points have series."""
        tokens = token_buckets(self.vllm_config.model_config.max_model_len)
        self._declare(logger, ["model_name", "engine"], tokens)
        self._declare_state(logger)
        self._begin_at_zero()
        if earlier is not None and earlier.front is not None:
            self.watch(earlier.front)

    def _declare(self, logger: StatLogger, labels: list[str], tokens: list[int]) -> None:
        def counter(name: str, documentation: str, labelnames: list[str]) -> Any:
            return logger._counter_cls(f"vllm:specexit_{name}", documentation, labelnames=labelnames)

        def histogram(name: str, documentation: str, labelnames: list[str], buckets: Sequence[float]) -> Any:
            return logger._histogram_cls(f"vllm:specexit_{name}", documentation, labelnames=labelnames, buckets=buckets)

        self.requests = counter("requests", "Finished requests by how their thinking ended.", [*labels, "outcome"])
        self.thinking = histogram(
            "thinking_tokens", "Thinking tokens kept by a finished request.", [*labels, "outcome"], tokens
        )
        self.saved = counter(
            "estimated_tokens_saved",
            "Thinking tokens that exits have saved, estimated on two bases that must not be added up: the remaining "
            "signal at the exit (a lower bound), and what was seen behind the would-be exits of shadow requests.",
            [*labels, "basis"],
        )
        self.signals = {
            signal.name: histogram(
                f"exit_{signal.name}",
                f"Signal {signal.name} at an exit ({signal.unit}).",
                labels,
                SHARES if signal.exits_above else tokens,
            )
            for signal in SIGNALS
        }
        self.shadow_exits = counter("shadow_exits", "Exits that were decided and not made.", labels)
        self.shadow_tokens = counter(
            "shadow_thinking_tokens", "Thinking tokens before and behind exits that were not made.", [*labels, "part"]
        )
        self.audits = counter(
            "audits",
            "Audited exits by operating point, and by whether the answer of an exit is that of the whole thinking.",
            ["model_name", "point", "result"],
        )

    def _declare_state(self, logger: StatLogger) -> None:
        # Where API server processes differ, an operator has to know the worse value: of the one that still makes
        # exits, or bolder ones than the others; or of the one that makes none, or none that are certified.
        def gauge(name: str, documentation: str, *labels: str, mode: str = "min") -> Any:
            return logger._gauge_cls(
                f"vllm:specexit_{name}", documentation, labelnames=["model_name", *labels], multiprocess_mode=mode
            )

        self.activity = gauge("active", "1 while exits are active; 0 with the reason where they are not.", "reason")
        self.certified = gauge("certified", "1 where a certificate holds for the point that serves, without adapters.")
        self.epsilon = gauge(
            "epsilon", "Risk that the point that serves is certified for; 1 without a certificate.", mode="max"
        )
        self.epsilon_changed = gauge(
            "epsilon_changed",
            "Share of requests that a point's certificate lets change their answer; 1 where it says nothing of that.",
            "point",
        )
        self.acceptance = gauge(
            "acceptance_length",
            "Tokens per step, the target's own included, over the last 2,000; 0 before.",
            mode="mostrecent",
        )
        self.not_drafting = gauge(
            "acceptance_near_one", "1 while acceptance stays near 1: the draft guesses nothing.", mode="max"
        )
        self.exits = gauge("exits_made", "1 in mode exit, 0 in modes shadow and off.", mode="max")
        self.traffic = gauge(
            "traffic_distance", "How far requests are from the calibration's prompts, 0 to 1.", "feature", mode="max"
        )
        self.traffic_moved = gauge("traffic_moved", "1 where that is more than chance explains.", "feature", mode="max")
        self.moves = logger._counter_cls(
            "vllm:specexit_hold_moves",
            "Moves after audits: to a stricter point, to shadow mode, back from it.",
            labelnames=["model_name", "move"],
        )
        self.points = logger._counter_cls(
            "vllm:specexit_point_requests",
            "Finished requests by operating point (own: a policy of the request's) and outcome.",
            labelnames=["model_name", "engine", "point", "outcome"],
        )
        self.uncertified = logger._counter_cls(
            "vllm:specexit_uncertified_requests",
            "Finished requests with exits, made or not, that no certificate covers: what is served, or how it is "
            "sampled or ended, is not what was calibrated, or the request has a policy of its own or an adapter.",
            labelnames=["model_name", "engine"],
        )
        self._show_drafting()
        self.active(True, "ok")

    def active(self, active: bool, kind: str) -> None:
        """Say whether exits are active. The kind of reason has a series of its own: 0 while it keeps exits inactive, 1
        when it is gone."""
        for reason in ("ok", kind):
            self.activity.labels(self.model_name, reason).set(float(active))

    def watch(self, front: FrontEnd) -> None:
        """Follow what is served by a front end, which tells these metrics and no others from now on."""
        self.front, _WATCHING[id(self.vllm_config)] = front, self
        front.hold.moved, front.changed, front.counted = self.moved, self.serving, self.audited
        front.activity.tell = self.active
        reason = front.activity.reason
        self.active(reason is None, "ok" if reason is None else reason.partition(":")[0])
        self.serving()

    def moved(self, move: str) -> None:
        """Count a move of the hold, and say what is served after it."""
        self.moves.labels(self.model_name, move).inc()
        self.serving()

    def serving(self) -> None:
        """Say what is served now."""
        if self.front is None:
            return
        operation = self.front.operation
        if operation.file is not self._begun:
            self._begin_points(operation.file)
        served = operation.served()
        self.certified.labels(self.model_name).set(float(not operation.uncertified_because()))
        self.epsilon.labels(self.model_name).set(min(epsilon_of(served), 1.0))
        self.exits.labels(self.model_name).set(float(operation.mode == "exit"))
        traffic = self.front.traffic
        for feature, distance in traffic.distance.items():
            self.traffic.labels(self.model_name, feature).set(distance)
            self.traffic_moved.labels(self.model_name, feature).set(float(traffic.moved[feature]))

    def _begin_at_zero(self) -> None:
        """Create the series: a rate over a counter that appears with its first event misses that event."""
        for move in MOVES:
            self.moves.labels(self.model_name, move)
        for labels in self.engines.values():
            for outcome in OUTCOMES:
                self.requests.labels(*labels, outcome)
                self.thinking.labels(*labels, outcome)
            for metric in (*self.signals.values(), self.shadow_exits, self.uncertified):
                metric.labels(*labels)
            for basis in ("remaining", "shadow"):
                self.saved.labels(*labels, basis)
            for part in ("before", "behind"):
                self.shadow_tokens.labels(*labels, part)

    def _begin_points(self, file: PolicyFile) -> None:
        """Create those of the audits, by point, and say what they are held against: each point's own certificate."""
        self._begun = file
        for point in file.points:
            judged = risk_of(point) == "answer_changed"
            self.epsilon_changed.labels(self.model_name, point.name).set(epsilon_of(point) if judged else 1.0)
            for result in AUDITS:
                self.audits.labels(self.model_name, point.name, result)

    def finished(self, engine: int, report: dict[str, Any]) -> None:
        """Count a finished request.

        Args:
          engine: index of its engine.
          report: see `torch_specexit.plugin.outcome.Record.describe`.
        """
        labels, tokens = self.engines[engine], report["thinking_tokens"]
        seen = self._seen_at(report.get("point"))
        self.requests.labels(*labels, report["outcome"]).inc()
        self.thinking.labels(*labels, report["outcome"]).observe(tokens)
        if "point" in report:
            self.points.labels(*labels, report["point"] or "own", report["outcome"]).inc()
        if report.get("certified") is False:
            self.uncertified.labels(*labels).inc()
        self.serving()
        if report["outcome"] == "exit":
            for name, value in report["signals"].items():
                self.signals[name].labels(*labels).observe(value)
            self.saved.labels(*labels, "remaining").inc(report["signals"].get("remaining", 0.0))
            self.saved.labels(*labels, "shadow").inc(tokens * seen["behind"] / max(seen["before"], 1))
        if "would_exit" in report:
            before, behind = report["would_exit"], tokens - report["would_exit"]
            seen.update(before=before, behind=behind)
            self.shadow_exits.labels(*labels).inc()
            self.shadow_tokens.labels(*labels, "before").inc(before)
            self.shadow_tokens.labels(*labels, "behind").inc(behind)

    def _seen_at(self, point: str | None) -> Counter[str]:
        """What was `seen` at a point. Other points begin anew, whatever they are called."""
        points = () if self.front is None else self.front.operation.file.points
        if points != self._points:
            self.seen.clear()
        self._points = points
        return self.seen[point]

    def drafted(self, steps: int, accepted: int) -> None:
        """Count drafts that an engine step has verified, see `Drafting`."""
        if self.drafting.add(steps, accepted):
            self._show_drafting()

    def _show_drafting(self) -> None:
        self.acceptance.labels(self.model_name).set(self.drafting.length or 0.0)
        self.not_drafting.labels(self.model_name).set(float(self.drafting.low))

    def audited(self, point: str, result: str) -> None:
        """Count an audit by the operating point that its request ran under, and its result, one of `AUDITS`."""
        self.audits.labels(self.model_name, point, result).inc()


def record(logger: StatLogger, scheduled: object, stats: object, engine: int) -> None:
    """Count what rides on an `IterationStats`, and the drafts that a `SchedulerStats` counts."""
    ours: ExitMetrics | None = getattr(logger, KEY, None)
    if ours is None:
        return
    for report in getattr(stats, KEY, ()):
        ours.finished(engine, report)
    drafts: SpecDecodingStats | None = getattr(scheduled, "spec_decoding_stats", None)
    if drafts is not None:
        ours.drafted(drafts.num_drafts, drafts.num_accepted_tokens)
