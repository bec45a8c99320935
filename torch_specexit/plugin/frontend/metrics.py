"""Exits on vLLM's own ``/metrics``, in its registry, with its labels, and so in ``LLM.get_metrics()``, too.

vLLM hands what it counts from the output processor to its `PrometheusStatLogger` on an `IterationStats`; reports of
finished requests ride along as one more attribute. Names begin with ``vllm:``, because vLLM clears and reads by that.
"""

from __future__ import annotations

from typing import Any

from specexit.method.signals import SIGNALS
from torch_specexit.plugin.outcome import KEY

OUTCOMES = ("exit", "natural_end", "length", "off")
AUDITS = ("same", "changed", "no_answer", "failed", "skipped")
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Buckets of a probability or a share."""


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

    def __init__(self, logger: Any):
        self.engines = logger.per_engine_labelvalues
        self.model_name = logger.vllm_config.model_config.served_model_name
        self.before = self.behind = 0
        """Thinking tokens before and behind all would-be exits that were seen so far."""
        tokens = token_buckets(logger.vllm_config.model_config.max_model_len)
        self._declare(logger, ["model_name", "engine"], tokens)
        self._begin_at_zero()

    def _declare(self, logger: Any, labels: list[str], tokens: list[int]) -> None:
        def counter(name: str, documentation: str, labelnames: list[str]) -> Any:
            return logger._counter_cls(f"vllm:specexit_{name}", documentation, labelnames=labelnames)

        def histogram(name: str, documentation: str, labelnames: list[str], buckets: Any) -> Any:
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
            "Audited exits by whether the answer of an exit is that of the whole thinking.",
            ["model_name", "result"],
        )

    def _begin_at_zero(self) -> None:
        """A rate over a counter that appears with its first event misses that event."""
        for result in AUDITS:
            self.audits.labels(self.model_name, result)
        for labels in self.engines.values():
            for outcome in OUTCOMES:
                self.requests.labels(*labels, outcome)
                self.thinking.labels(*labels, outcome)
            for metric in (*self.signals.values(), self.shadow_exits):
                metric.labels(*labels)
            for basis in ("remaining", "shadow"):
                self.saved.labels(*labels, basis)
            for part in ("before", "behind"):
                self.shadow_tokens.labels(*labels, part)

    def finished(self, engine: int, report: dict[str, Any]) -> None:
        """Count a finished request.

        Args:
          engine: index of its engine.
          report: see `torch_specexit.plugin.outcome.Record.describe`.
        """
        labels, tokens = self.engines[engine], report["thinking_tokens"]
        self.requests.labels(*labels, report["outcome"]).inc()
        self.thinking.labels(*labels, report["outcome"]).observe(tokens)
        if report["outcome"] == "exit":
            for name, value in report["signals"].items():
                self.signals[name].labels(*labels).observe(value)
            self.saved.labels(*labels, "remaining").inc(report["signals"].get("remaining", 0.0))
            self.saved.labels(*labels, "shadow").inc(tokens * self.behind / max(self.before, 1))
        if "would_exit" in report:
            before, behind = report["would_exit"], tokens - report["would_exit"]
            self.before, self.behind = self.before + before, self.behind + behind
            self.shadow_exits.labels(*labels).inc()
            self.shadow_tokens.labels(*labels, "before").inc(before)
            self.shadow_tokens.labels(*labels, "behind").inc(behind)

    def audited(self, result: str) -> None:
        """Count an audit by its result, one of `AUDITS`."""
        self.audits.labels(self.model_name, result).inc()


def record(logger: Any, stats: Any, engine: int) -> None:
    """Count what rides on an `IterationStats`."""
    for report in getattr(stats, KEY, ()):
        getattr(logger, KEY).finished(engine, report)
