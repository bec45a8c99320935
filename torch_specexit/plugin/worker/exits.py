"""The exits of one model runner, V1 or V2: who its requests are, the step in progress, and whether all is well.

Everything here works on device tensors; the host learns nothing of a step before vLLM itself does, so asynchronous
scheduling stays asynchronous. What belongs to one of the runners is in `runner_v1` and `runner_v2`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specexit.config import ConfigError
from specexit.drafts.policy import Serving
from specexit.method.signals import NAMES
from torch_specexit.plugin import outcome
from torch_specexit.plugin.worker.checking import Checker, is_checking
from torch_specexit.plugin.worker.copies import Copies, News, attach, failed_elsewhere, incomplete, news_of
from torch_specexit.plugin.worker.logprobs import Closing, name_forced_tokens, read_closing
from torch_specexit.plugin.worker.loops import LoopSearch
from torch_specexit.plugin.worker.protocols import Draft, Empty, Runner, SamplerOutput, SchedulerOutput
from torch_specexit.plugin.worker.ranks import Group, Ranks
from torch_specexit.plugin.worker.reading import Reader
from torch_specexit.plugin.worker.requests import Requests, resumed
from torch_specexit.plugin.worker.rule import RECORD, STEPS_BACK, Markers, Rule, Sampled
from torch_specexit.plugin.worker.slots import Slots
from torch_specexit.plugin.worker.twin import Twin

logger = logging.getLogger("vllm.specexit")

T = TypeVar("T")

EXITS = "_specexit"
"""Attribute of a runner: its `Exits`, None where it has no SpecExit draft."""

AuxHiddenStates = Sequence[Float[Tensor, "time hidden"]]


def draft_of(drafter: object) -> Draft | None:
    """The SpecExit draft model behind a V1 proposer or V2 speculator, or None where it drafts with another model."""
    model: Any = getattr(drafter, "model", None)
    model = model.unwrap() if hasattr(type(model), "unwrap") else model  # a module is slow to say what it lacks
    return model if hasattr(model, "think_tokens") else None


def exits_of(runner: Runner, empty: Empty | None = None) -> Exits | None:
    """The exits of a runner; None where it has no SpecExit draft, or they have not been made ready yet.

    Args:
      runner: V1's or V2's.
      empty: gives a step without requests, as the runner makes its steps. The first call with it makes exits ready; all
        ranks of a model make that call at the same time.

    Raises:
      ConfigError: exits cannot be made ready, and the server is required to serve them.
    """
    if not hasattr(runner, EXITS):
        if empty is None:
            return None
        draft = draft_of(getattr(runner, "drafter", None) or getattr(runner, "speculator", None))
        exits = None if draft is None else Exits(draft, runner)
        setattr(runner, EXITS, exits)
        if exits is not None:
            exits.prepare(empty(runner))
    return getattr(runner, EXITS)


def runs_triton(device: torch.device) -> bool:
    """Whether the Triton kernel can run here: on a GPU, or on a CPU where Triton's interpreter is switched on."""
    return device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")


class Exits:
    """The requests of one runner, and the step in progress.

    Where something fails, `failure` says what, and this model goes on as plain EAGLE-3 on all of its ranks: no request
    fails because of an exit.

    Args:
      draft: the SpecExit draft model.
      runner: its runner.
    """

    def __init__(self, draft: Draft, runner: Runner):
        config = runner.vllm_config
        self.draft, self.source, self.ids = draft, draft.block.source, draft.think_tokens
        self.failure: str | None = None
        self.awaiting: str | None = None
        """Why the draft was not whole in the last step, here or on another rank; None where it was."""
        assert config.speculative_config is not None
        scheduled = config.scheduler_config.max_num_seqs
        self.last = 1 + config.speculative_config.num_speculative_tokens
        """The most tokens that a step may have of one request."""
        self.ranks = Ranks(_ranks_of_model(), scheduled * self.last, runner.device)
        self._as_logits: bool = config.model_config.logprobs_mode == "raw_logits"
        loops = _loops(draft.serving, self.last)
        self.slots = Slots(runner.device, ring=loops.ring if loops else 0)
        self.markers = Markers.of(self.ids, draft.vocab_size, runner.device, transition=draft.transition, loops=loops)
        self.checker = Checker(self.slots, self.markers) if is_checking() else None
        sharded = getattr(runner, "batch_sharder", None) is not None  # of V2, since 0.32
        self.requests = Requests(draft, config, self.slots, Reader(self.markers), self.checker, sharded=sharded)
        self.copies = Copies()
        self.rule: Rule | None = None
        """None before exits are ready, and where they could not be made ready on some rank."""
        self.empty: Sampled | None = None
        self.aux: AuxHiddenStates | None = None
        """The target's aux hidden states in the step in progress."""
        self.news: Callable[[], News] | None = None
        """Reads what there is to tell of the step in progress."""
        self._judged_next = 1
        """How many requests' signals the next step reads: those of the last step, at least one."""

    def prepare(self, empty: Sampled) -> None:
        """Make the rule ready, compiled and all. Where that fails on one rank of a model, all go on without exits.

        Args:
          empty: a step without requests, as this runner makes its steps.

        Raises:
          ConfigError: exits have failed, or the draft is not loaded, and the server is required to serve them.
        """
        self.empty = empty
        if not self.draft.weights.loaded:
            self.draft.weights.start_without()
        if self.ranks.several:
            self._go_by_first()
        if self.source == "draft" and _breakable_graphs():
            self.fail(
                "VLLM_USE_BREAKABLE_CUDAGRAPH is on, expected off: its graphs of the draft's passes leave no signals"
            )
        signals = self._attempt("could not be made ready", self._make_rule)
        if signals is not None or self.ranks.several:
            _, failed = self.ranks.agree(signals, self.last, whole=True)
            if failed.item() > 0:
                self.rule = None
                if self.failure is None:
                    self.fail("could not be made ready on another rank, whose log says why")
        reason = self.failure or self.draft.weights.lost
        if reason is not None and self.draft.serving.required:
            raise ConfigError(f"specexit.required is true, but exits would not be served: {reason}")

    def _go_by_first(self) -> None:
        """Take over what the first rank has read of policies and settings: requests that no front end has decided about
        get that, and ``policy.json`` may have changed between the reads of two ranks. Fail where something differs that
        this rank has built upon: it would end a thinking elsewhere, or with another text."""
        built = (self.source, self.draft.serving.ends, self.requests.closing, self.ids.start, self.ids.masks())
        first, block, serving = self.ranks.of_first((built, self.draft.block, self.draft.serving))
        if built == first:
            self.draft.block, self.draft.serving = block, serving
        else:
            self.fail("serving settings or draft are not those of the first rank, expected the same on every machine")

    @torch.inference_mode()
    def _make_rule(self) -> Float[Tensor, "last signals"]:
        assert self.empty is not None
        self.draft.remember_weights()  # a sleep may come before the first step
        smooth = self.draft.block.policy.smoothing == "ewma"
        version = _fused() if runs_triton(self.slots.device) else Twin
        self.rule = version(self.slots, self.markers, self.source, smooth=smooth)
        signals = self.draft.signals[0]
        self.rule.step(self.empty, self._by_request(signals), torch.zeros(1, device=signals.device))
        return signals

    def fail(self, reason: str) -> None:
        """Go on without exits."""
        self.failure, self.news = reason, None
        logger.error("specexit is inactive; requests go on without exits: %s", reason)

    def _attempt(self, failing: str, action: Callable[[], T]) -> T | None:
        """Run an action of ours; None where it fails, or exits have failed before. It may not wait for other ranks."""
        if self.failure is not None:
            return None
        try:
            return action()
        except Exception as error:
            if self.checker is not None:
                raise
            logger.exception("specexit %s", failing)
            self.fail(f"{failing}: {error!r}")
            return None

    def track(self, scheduled: SchedulerOutput) -> None:
        """Take in new requests, those that come back, and finished ones, before a step."""
        if self.failure is not None:
            self.requests.forget(list(self.slots.row_of))
        if scheduled.finished_req_ids or scheduled.scheduled_new_reqs or resumed(scheduled):
            self._attempt("could not take in requests", lambda: self.requests.track(scheduled))

    def look_through(self, requests: Sequence[str], opens: Callable[[str, int], Bool[Tensor, ""]]) -> None:
        """Look through the prompts of a step's new requests that hold no marker near their end, where vLLM keeps them.

        Args:
          requests: of the step.
          opens: takes a request and the length of its prompt, and says whether the prompt opens the thinking.
        """
        if here := self.requests.unread.intersection(requests):
            self._attempt("could not look through a prompt", lambda: self.requests.look_through(here, opens))

    @torch.inference_mode()
    def settle(self) -> None:
        """Judge by the signals that the draft has left, before a dummy run overwrites them."""
        if self.empty is not None:
            self.step(self.empty)
            self.news = None

    @torch.inference_mode()
    def step(self, sampled: Sampled) -> bool:
        """Apply the rule to a step's result, in place, before anyone has seen it.

        Returns:
          Whether it was applied; `Rule.forced` then says which requests got a forced token.
        """
        self.news = None
        if self.rule is None:  # on all ranks: their messages need not have the same length
            return False
        rows = len(sampled.logits_rows) if self.source == "fc" else self._judged_next * self.last
        signals = self._attempt("could not read the signals", lambda: self._signals(sampled.logits_rows, rows))
        if self.failure is not None and not self.ranks.several:
            return False
        agreed, failed = self.ranks.agree(signals, rows, whole=self.draft.weights.whole)
        self._judged_next = max(len(sampled.requests), 1)
        if self.failure is not None:
            return False
        if self.ranks.several:
            self._rewrite(sampled, agreed, failed)  # unguarded: a rank that failed here alone would write another text
        else:
            self._attempt("could not judge a step", lambda: self._rewrite(sampled, agreed, failed))
        return self.failure is None

    def _signals(self, logits_rows: Int[Tensor, " rows"], rows: int) -> Float[Tensor, "judged signals"]:
        self.draft.remember_weights()
        if self.source == "draft":
            return self.draft.signals.flatten(0, 1)[:rows]
        assert self.aux is not None or rows == 0, "the target's hidden states are missing"
        return self.draft.signals_of_target(self.aux or (), logits_rows)

    def _by_request(self, signals: Float[Tensor, "rows signals"]) -> Float[Tensor, "requests *last signals"]:
        """Signals in the shape that `Rule.step` takes."""
        return signals.view(-1, self.last, len(NAMES)) if self.source == "draft" else signals

    def _rewrite(self, sampled: Sampled, signals: Float[Tensor, "rows signals"], failed: Float[Tensor, " 1"]) -> None:
        assert self.rule is not None
        if self.checker is not None:
            assert self.empty is not None
            self.checker.compare_kinds(self.empty, sampled)
            if 0 < failed.item() < 1:
                self.checker.lose(sampled.requests)
            self.checker.before(sampled)
        self.copies.wait()
        self.rule.step(sampled, self._by_request(signals), failed)
        if self.checker is not None:
            self.checker.after(sampled)
        requests = list(sampled.requests)
        lost = self.draft.weights.lost or "the draft's weights are not whole on another rank"
        # It starts before drafting, so that its reader does not wait for the draft.
        read = self.copies.start(self.rule.report[: len(requests)])

        def news() -> News:
            report = read()
            if self.failure is None and failed_elsewhere(report):
                self.fail("has failed on another rank")
            self.awaiting = lost if incomplete(report) else None
            if self.failure is not None:
                return {}
            if self.awaiting is not None:  # a request that ends in such a step is told that exits were off
                return dict.fromkeys(requests, [0.0] * len(RECORD))
            return news_of(requests, report)

        self.news = news

    def name_forced(
        self,
        output: SamplerOutput,
        sampled: Sampled,
        logits: Float[Tensor, "rows vocab"] | Closing | None,
        *,
        by_request: bool,
    ) -> None:
        """Correct the logprobs of forced tokens, where a request asks for logprobs.

        Args:
          output: of the step.
          sampled: the step, as the rule has rewritten it.
          logits: raw, of the rows that were sampled from, or what `read_closing` has read of them. Where it is None,
            nothing is corrected.
          by_request: whether the entries of each request are padded to the step's width; else they follow each other.
        """
        if output.logprobs_tensors is None or self.requests.asking.isdisjoint(sampled.requests) or logits is None:
            return
        self._attempt("could not name a forced token", lambda: self._name(output, sampled, logits, by_request))

    def _name(
        self, output: SamplerOutput, sampled: Sampled, logits: Float[Tensor, "rows vocab"] | Closing, by_request: bool
    ) -> None:
        assert self.rule is not None
        assert output.logprobs_tensors is not None
        asking = self.requests.places_of_asking(sampled.requests)
        last = (sampled.n[asking].long() - 1).clamp(min=0)
        first = torch.cat([sampled.ends.new_zeros(1), sampled.ends])[asking].long()
        tokens = sampled.tokens[asking, last]
        rows = first + last
        entries = asking * sampled.tokens.shape[1] + last if by_request else rows
        named = (output.logprobs_tensors, entries, self.rule.forced[asking], tokens)
        if isinstance(logits, Closing):
            logits.name_forced_tokens(*named)
        else:
            name_forced_tokens(*named, logits, rows, as_logits=self._as_logits)

    def read_closing(self, requests: Sequence[str], logits: Float[Tensor, "requests vocab"] | None) -> Closing | None:
        """What raw logits say of the closing tokens, for `name_forced`; None where no request asks for logprobs."""
        if logits is None or self.requests.asking.isdisjoint(requests):
            return None
        return self._attempt("could not read logprobs", lambda: self._read_closing(logits, requests))

    def _read_closing(self, logits: Float[Tensor, "requests vocab"], requests: Sequence[str]) -> Closing:
        rows = self.requests.places_of_asking(requests)
        return read_closing(logits, rows, self.markers.closing, as_logits=self._as_logits)

    def close(self, output: object) -> None:
        """Close a step after drafting: attach to the runner's output what there is to tell of it."""
        news, self.news, self.aux = self.news, None, None
        if output is not None and (news is not None or self.failure is not None):
            attach(output, lambda: self._tell(news))

    def _tell(self, news: Callable[[], News] | None) -> Mapping[str, Any]:
        """Attributes of the runner's output."""
        told = self._attempt("could not report a step", news) if news is not None else None
        if self.failure is not None:
            return {outcome.INACTIVE_KEY: self.failure}
        awaiting = {} if self.awaiting is None else {outcome.AWAITING_KEY: self.awaiting}
        return {outcome.KEY: told} | awaiting | ({outcome.REPLACED_KEY: True} if self.draft.weights.replaced else {})

    @torch.inference_mode()
    def end_thinking(self, request: str, caller: str | None, *, now: bool) -> bool:
        """Have the thinking of a client's request end, at the next boundary or now.

        Args:
          request: the exact id of the response.
          caller: who asks.
          now: whether it ends at the next token, wherever that is.

        Returns:
          Whether there is such a request of this caller, and it is thinking.
        """
        return self.failure is None and self.requests.end_thinking(request, caller, now=now)

    def status(self) -> Mapping[str, Any]:
        """Whether exits are active on this rank, and why not; and how many requests it remembers."""
        reason = self.failure or self.draft.weights.lost
        return {"active": reason is None, "reason": reason, "requests": len(self.slots)}


def _loops(serving: Serving, width: int) -> LoopSearch | None:
    guard = serving.loop_guard
    return None if guard is None else LoopSearch.of(guard, STEPS_BACK * width)


def _breakable_graphs() -> bool:
    """Whether vLLM captures whole draft passes, and would replay the first one as one that leaves no signals."""
    from vllm import envs

    return bool(getattr(envs, "VLLM_USE_BREAKABLE_CUDAGRAPH", False))


def _ranks_of_model() -> Group:
    from vllm.distributed.parallel_state import get_tp_group

    return get_tp_group()


def _fused() -> Callable[..., Rule]:
    from torch_specexit.plugin.worker.fused import Fused  # CPU builds of torch may come without Triton

    return Fused
