"""What the front end does with reports: it keeps the latest with each request, puts it into every output from then on,
and draws conclusions when the request has finished.

Some of vLLM's outputs never reach the client, and some swallow others on their way; so what an output says is not what
has just happened but how the request stands. With n > 1 that is ``{"choices": [...]}``, None where nothing is known.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from specexit.drafts.directory import DraftConfig, Serving, SpecExitBlock
from specexit.method.splits import marker
from torch_specexit.plugin.frontend.audit import PREFIX, Audit, generator_of
from torch_specexit.plugin.frontend.metrics import ExitMetrics
from torch_specexit.plugin.outcome import KEY, NOW
from torch_specexit.plugin.settings import draft_config, serving_of

logger = logging.getLogger("vllm.specexit")

MOST_FINISHED = 1024
"""Finished requests that can still be asked for."""

RUNNING = ("thinking", "answering")


def attach(processor: Any, outputs: Iterable[Any]) -> list[Any]:
    """Put into each output how its request stands, before vLLM processes it.

    Args:
      processor: vLLM's `OutputProcessor`.
      outputs: `EngineCoreOutput` of one step.

    Returns:
      States of the requests of which anything is known.
    """
    known = []
    for output in outputs:
        state = processor.request_states.get(output.request_id)
        if state is None:
            continue
        report = (output.kv_transfer_params or {}).get(KEY)
        if report is not None:
            setattr(state, KEY, report)
        if getattr(state, KEY, None) is not None:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: _standing(state)}
            known.append(state)
    return known


def _standing(state: Any) -> dict[str, Any]:
    return getattr(state, KEY) if state.parent_req is None else {"choices": choices_of(state)}


def choices_of(state: Any) -> list[dict[str, Any] | None]:
    """Reports of all choices of a request, given vLLM's `RequestState` of one of them."""
    if state.parent_req is None:
        return [getattr(state, KEY, None)]
    choices = getattr(state.parent_req, KEY, None) or [None] * state.parent_req.n
    choices[state.request_index] = getattr(state, KEY, None)
    setattr(state.parent_req, KEY, choices)
    return list(choices)


def settle(processor: Any, states: Sequence[Any], stats: Any) -> None:
    """Draw conclusions behind vLLM's processing of a step.

    Args:
      processor: vLLM's `OutputProcessor`.
      states: what `attach` has returned.
      stats: the `IterationStats` of the step, or None where nothing is counted.
    """
    front: FrontEnd | None = getattr(processor, KEY, None)
    for state in states:
        report = getattr(state, KEY)
        now = report.pop(NOW, None)
        if state.request_id in processor.request_states:
            # The report is the very object that is on its way to the client, who is served after this.
            report["outcome"] = now or report["outcome"]
            continue
        if report["outcome"] in RUNNING:  # exits have failed in flight, and nobody knows how it ended
            report["outcome"] = "off"
        if state.external_req_id.startswith(PREFIX):
            continue
        if stats is not None:
            setattr(stats, KEY, [*getattr(stats, KEY, ()), report])
        if front is not None:
            front.finish(state, report)


class FrontEnd:
    """What an API server knows of its requests.

    Args:
      block: of the draft.
      serving: settings of the server.
      audit: compares answers, or None where none is audited.
    """

    def __init__(self, block: SpecExitBlock, serving: Serving, audit: Audit | None):
        self.block, self.serving, self.audit = block, serving, audit
        self.outcomes: Counter[str] = Counter()
        self.shadow: Counter[str] = Counter()
        self._finished: OrderedDict[str, list[dict[str, Any] | None]] = OrderedDict()

    def finish(self, state: Any, report: dict[str, Any]) -> None:
        """Remember a finished request, and audit it if it is one to be audited."""
        self.outcomes[report["outcome"]] += 1
        if "would_exit" in report:
            kept = report["would_exit"]
            self.shadow.update(exits=1, before=kept, behind=report["thinking_tokens"] - kept)
        self._finished[state.external_req_id] = choices_of(state)
        self._finished.move_to_end(state.external_req_id)
        if len(self._finished) > MOST_FINISHED:
            self._finished.popitem(last=False)
        if self.audit is not None:
            self.audit.consider(state, report)

    def find(self, processor: Any, request: str) -> dict[str, Any] | None:
        """How a request stands, by the id that the client knows; None for one that is unknown.

        The completions and responses servers number the parts of a request behind that id; these come in their order.
        """
        running = processor.external_req_ids
        part = re.compile(re.escape(request) + r"[-_](\d+)")
        found = {name: part.fullmatch(name) for name in (*running, *self._finished)}
        names = sorted((int(match.group(1)), name) for name, match in found.items() if match)
        parts = [request] if request in found else [name for _, name in names]
        choices = []
        for name in parts:
            states = [processor.request_states[i] for i in running.get(name, ())]
            choices += choices_of(states[0]) if states else self._finished[name]
        finished = not any(name in running for name in parts)
        return {"request_id": request, "finished": finished, "choices": choices} if parts else None

    def summary(self) -> dict[str, Any]:
        """Settings, and counts since the start of this API server process."""
        calibration = self.block.calibration
        return {
            "mode": self.serving.mode,
            "think_start": self.block.think_start,
            "think_end": self.block.think_end,
            "policy": self.block.policy.model_dump(mode="json"),
            "calibration": calibration.model_dump(mode="json") if calibration else None,
            "requests": dict(self.outcomes),
            "shadow": {name: self.shadow[name] for name in ("exits", "before", "behind")},
            "audit": self.audit.summary() if self.audit else None,
        }


def settings_of(vllm_config: Any) -> tuple[DraftConfig, Serving] | None:
    """The draft and the settings of a server; None where it has no SpecExit draft.

    Raises:
      DraftError: the draft directory cannot be used.
      ConfigError: ``--additional-config`` holds something that is not known or out of range.
    """
    config = draft_config(vllm_config)
    if config is None or config.specexit is None:
        return None
    return config, serving_of(config.specexit, vllm_config.additional_config)


def open_front_end(engine: Any, config: DraftConfig, serving: Serving) -> FrontEnd:
    """The front end of vLLM's `AsyncLLM`, which gets it as an attribute of its output processor."""
    block = config.specexit
    assert block is not None
    audit, metrics = None, _metrics_of(engine)
    tokenizer = engine.output_processor.tokenizer
    if serving.audit_rate > 0 and (tokenizer is None or engine.model_config.is_multimodal_model):
        logger.warning("specexit: audits are off, they need a tokenizer and prompts that are nothing but text")
    elif serving.audit_rate > 0:
        audit = Audit(
            serving.audit_rate,
            generator_of(engine),
            tokenizer.decode,
            (marker(tokenizer, block.think_start), marker(tokenizer, block.think_end)),
            engine.model_config.max_model_len,
            metrics.audited if metrics else lambda result: None,
        )
    front = FrontEnd(block, serving, audit)
    setattr(engine.output_processor, KEY, front)
    return front


def _metrics_of(engine: Any) -> ExitMetrics | None:
    loggers = engine.logger_manager.stat_loggers if engine.logger_manager else ()
    return next((getattr(logger, KEY) for logger in loggers if hasattr(logger, KEY)), None)
