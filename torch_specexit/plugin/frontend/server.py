"""The front end of one API server: what it decides about each request, what it remembers, and how it is operated."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from specexit.drafts.directory import Mode
from specexit.method.decision import Policy
from specexit.method.splits import ThinkTokens
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.arguments import ArgumentError, refusal
from torch_specexit.plugin.frontend.audit import CACHE_SALT, PRIORITY, Audit
from torch_specexit.plugin.frontend.callers import batched, caller, response_of
from torch_specexit.plugin.frontend.finding import Running, find, response_of_state
from torch_specexit.plugin.frontend.finished import Finished
from torch_specexit.plugin.frontend.grammars import binds_at_once
from torch_specexit.plugin.frontend.hold import Hold
from torch_specexit.plugin.frontend.inner import inner, is_read
from torch_specexit.plugin.frontend.operation import Admitted, Operation
from torch_specexit.plugin.frontend.own_end import BY_ITSELF, forced_by
from torch_specexit.plugin.frontend.protocols import (
    AsyncLLM,
    EngineCoreClient,
    EngineCoreRequest,
    OutputProcessor,
    RequestState,
)
from torch_specexit.plugin.frontend.reports import ADMITTED, choices_of
from torch_specexit.plugin.frontend.sampling import covered, is_sampled_as, not_neutral
from torch_specexit.plugin.frontend.traffic import TrafficWatch, splits_of
from torch_specexit.plugin.frontend.watch import PolicyWatch
from torch_specexit.plugin.protocols import SamplingParams
from torch_specexit.plugin.worker.interrupt import END_THINKING
from torch_specexit.plugin.worker.weights import WHY_LOST

logger = logging.getLogger("vllm.specexit")

MOST_INTERRUPTS = 16
"""Interrupts of one caller that may be under way. Each stops all engines between two steps, so they take turns."""


class TooManyError(Exception):
    """A caller has too many interrupts under way."""


class FrontEnd:
    """What an API server knows of its requests, and what it decides about them.

    Args:
      operation: its operating points.
      activity: whether exits are active.
      audit: compares answers, or None where none is audited.
      watch: of the policy file, or None where there is none to watch.
      end_tokens: see `torch_specexit.plugin.frontend.own_end.end_tokens`.
      api_servers: processes that share the engines, each with a front end of its own.
      tokens: of the draft, or None where there is no tokenizer.
    """

    def __init__(
        self,
        operation: Operation,
        activity: Activity,
        audit: Audit | None = None,
        watch: PolicyWatch | None = None,
        end_tokens: frozenset[int] = frozenset(),
        api_servers: int = 1,
        tokens: ThinkTokens | None = None,
    ):
        self.operation, self.activity, self.audit, self.watch = operation, activity, audit, watch
        self.end_tokens, self.api_servers, self.tokens = end_tokens, api_servers, tokens
        self.hold = Hold(operation, api_servers=api_servers)
        self.traffic = TrafficWatch(operation)
        self.taken_for_over: Callable[[EngineCoreRequest], bool] | None = None
        """See `torch_specexit.plugin.frontend.grammars.parser_of`."""
        self.changed: Callable[[], None] = lambda: None
        """Told whenever something else is served."""
        self.counted: Callable[[str, str], None] = lambda point, result: None
        """Told of each audit, by its point and its result."""
        self.uncertified_loras: set[str] = set()
        """Adapters with which requests may have exited: what is calibrated is the target without any."""
        self.other_sampling = 0
        """Requests that may have exited, and were sampled otherwise than the traces of the calibration."""
        self.outcomes: Counter[str] = Counter()
        self.shadow: Counter[str] = Counter()
        self._running, self._finished = Running(), Finished()
        self._interrupts: Counter[str | None] = Counter()
        self._turn = asyncio.Semaphore(1)

    def check(self, extra_args: Mapping[str, Any] | None, lora: str | None = None) -> None:
        """Check a request's arguments before it is admitted.

        Args:
          extra_args: of the request, its effort among them.
          lora: name of its adapter.

        Raises:
          ArgumentError: of the kind that an HTTP server answers with 400.
        """
        self._look_at_file()
        try:
            self.operation.resolve(extra_args, lora=lora, caller=caller.get())
        except ArgumentError as error:
            raise refusal()(str(error), error.parameter) from error

    def _look_at_file(self, *, at_once: bool = False) -> None:
        if self.operation.kept is not None:
            self.operation.kept.catch_up()
        if self.watch is not None and self.watch.changed(self.operation, at_once=at_once):
            self.changed()

    def admit(self, request: EngineCoreRequest, *, choice: int = 0) -> Admitted | None:
        """Decide about a request that is about to be admitted, and have its parameters tell the workers.

        Args:
          request: vLLM's `EngineCoreRequest`, whose parameters may be shared with others and are replaced.
          choice: its place among the choices for one prompt.

        Returns:
          What is decided; None for a request that writes nothing, such as one for an embedding.

        Raises:
          ArgumentError: see `check`.
        """
        params = request.sampling_params
        if params is None:
            return None
        self._look_at_file()
        lora = None if request.lora_request is None else request.lora_request.lora_name
        made = covered(self.operation.file.sampling)
        sampled, forced = made is None or is_sampled_as(params, made), forced_by(params)
        who = {"lora": lora, "caller": caller.get()}
        try:
            admitted = self.operation.resolve(
                params.extra_args, request.request_id, forced=bool(forced), sampled=sampled, choice=choice, **who
            )
        except ArgumentError as error:
            raise refusal()(str(error), error.parameter) from error
        bound = binds_at_once(request, self.taken_for_over)
        if bound:  # the grammar takes no end marker: vLLM would end the request in an error
            admitted = admitted._replace(mode="off", point=None, certified=False, audited=False)
        if inner.get() or is_read(params):
            admitted = admitted._replace(mode="off", point=None, certified=False, audited=False, counted=False)
        if lora is not None and admitted.mode != "off" and lora not in self.uncertified_loras:
            self.uncertified_loras.add(lora)
            logger.warning("specexit: requests with adapter %r exit uncertified: no certificate is of it", lora)
        if made is not None and (forced or not sampled) and admitted.mode != "off":
            self._note_sampling(params, made, forced)
        if request.external_req_id is not None:
            admitted = admitted._replace(response=response_of(request.external_req_id, batch=batched.get()))
        request.sampling_params = copy.copy(params)
        told = admitted._replace(response=None) if bound else admitted  # an interrupt writes one, too
        request.sampling_params.extra_args = told.extra_args(params.extra_args)
        return admitted

    def _note_sampling(self, params: SamplingParams, made: Mapping[str, float], forced: list[str]) -> None:
        if not self.other_sampling:
            said = {key: getattr(params, key) for key in made} | not_neutral(params)
            asked = ", ".join([str(said), *forced])
            logger.warning("specexit: requests with %s exit uncertified: calibrated was %s", asked, made)
        self.other_sampling += 1

    def keep(self, state: RequestState, request: EngineCoreRequest, admitted: Admitted) -> None:
        """Keep with a running request what is decided about it, and what an audit of it needs."""
        continued = hasattr(state, ADMITTED)  # by a further input of a request that takes several
        setattr(state, ADMITTED, admitted)
        setattr(state, CACHE_SALT, request.cache_salt)
        setattr(state, PRIORITY, request.priority)
        if not continued and admitted.choice == 0:
            self._finished.begins(admitted.caller, state.external_req_id, response_of_state(state))
        self._running.add(admitted.caller, response_of_state(state), state)
        if request.prompt_token_ids is not None and admitted.is_traffic and not continued:
            self.traffic.add_prompt(len(request.prompt_token_ids))

    def finish(self, state: RequestState, report: dict[str, Any]) -> None:
        """Count and remember a finished request, and audit it if it was chosen for that."""
        admitted: Admitted | None = getattr(state, ADMITTED, None)
        self.outcomes[report["outcome"]] += 1
        if "would_exit" in report:
            kept = report["would_exit"]
            self.shadow.update(exits=1, before=kept, behind=report["thinking_tokens"] - kept)
        whole = report["outcome"] == "natural_end" and getattr(state, BY_ITSELF, False)
        if whole and admitted is not None and admitted.mode == "shadow" and admitted.is_traffic:
            n, tokens = report["thinking_tokens"], self.tokens
            prompt, output = state.prompt_token_ids or (), state.detokenizer.output_token_ids
            self.traffic.add_thinking(n, None if tokens is None else splits_of(prompt, output, n, tokens))
        owner = None if admitted is None else admitted.caller
        self._finished.add(owner, state.external_req_id, response_of_state(state), choices_of(state))
        if self.operation.serving.exit_log:
            logger.info("%s", json.dumps({"specexit": {"request_id": state.external_req_id, **report}}))
        if self.audit is not None and admitted is not None:
            self.audit.consider(state, admitted, report)

    def doubt(self, reason: str) -> None:
        """Serve uncertified from now on, and say so once."""
        if self.operation.doubt(reason):
            logger.warning("specexit: exits are served uncertified: %s", reason)
            self.changed()

    def audited(self, point: str, result: str, policy: Policy) -> None:
        """Take in the result of an audit of a request that ran under a policy of a point.

        Audits wait, and requests run, while an operator may change the file; what ran under the point's old policy says
        nothing about the new one.
        """
        self._look_at_file()  # its words go before what is shown now
        known = any((p.name, p.policy) == (point, policy) for p in self.operation.file.points)
        if known and result in ("same", "changed", "no_exit"):
            self.hold.add(point, changed=result == "changed")

    def opens(self, route: str) -> bool:
        """Whether an operator has opened an HTTP route, as the file says now."""
        self._look_at_file()
        return route in self.operation.serving.routes

    def switch(self, *, mode: Mode | None = None, point: str | None = None, reload: bool = False) -> dict[str, Any]:
        """Do what an operator says. Whether it lifts what audits have imposed, `Operation.switch` says, and
        `Operation.load` for a file that is read again.

        Where several API server processes serve, mode and point are written into the policy file, which each watches.

        Args:
          mode: see `Operation.switch`.
          point: see `Operation.switch`.
          reload: read the policy file again first.

        Returns:
          ``api_servers``, the number of processes that are reached, and ``of`` how many; where there are several, in
          ``others`` how the word comes to the others, or why it does not.

        Raises:
          PolicyError, ConfigError: there is no such point, the policy file cannot be used, or the server's settings go
            over the mode; nothing has been changed then.
        """
        said = (mode, point) != (None, None)
        alone: str | None = "they read policy.json by themselves, where it has changed"
        if said and self.api_servers > 1:
            alone = self.watch.order(self.operation, mode, point) if self.watch else "no policy file is watched"
        read = (reload or alone is None) and self.watch is not None and self.watch.reload(self.operation, point)
        if said:
            self._look_at_file(at_once=True)  # its words are older, and must not go over this one later
            self.operation.switch(mode, point)
            mode_now, point_now = self.operation.mode, self.operation.served().name
            logger.warning("specexit: an operator has set mode %s, point %s", mode_now, point_now)
        if said or read:
            self.changed()
        if self.api_servers == 1:
            return {"api_servers": 1, "of": 1}
        others = alone or "they take policy.json over, each with its next request and within a second"
        return {"api_servers": 1 if alone else self.api_servers, "of": self.api_servers, "others": others}

    async def interrupt(self, engine: AsyncLLM, request: str, *, now: bool) -> bool:
        """End the thinking of a running request of the caller's, whichever API server process has it.

        Args:
          engine: vLLM's `AsyncLLM`; all workers of all its engines are asked, and those that run the request answer.
          request: the id of its response.
          now: at the next token, not at the next boundary.

        Returns:
          Whether there was one that thinks.

        Raises:
          TooManyError: `MOST_INTERRUPTS` of this caller are under way already.
        """
        who = caller.get()
        running = (getattr(state, ADMITTED, None) for state in engine.output_processor.request_states.values())
        if self.api_servers == 1 and not any(one and (one.caller, one.response) == (who, request) for one in running):
            return False  # no worker has what this process has not admitted, so none is asked
        if self._interrupts[who] >= MOST_INTERRUPTS:
            raise TooManyError(f"{MOST_INTERRUPTS} requests of this caller wait to end a thinking, expected fewer")
        self._interrupts[who] += 1
        try:
            async with self._turn:
                answers = await _ask_workers(engine.engine_core, END_THINKING, (request, who, now))
                return any(any(of_ranks) for of_ranks in answers)
        finally:
            self._interrupts[who] -= 1
            self._interrupts += Counter()  # without the callers who wait for nothing

    async def look_at_weights(self, engine: AsyncLLM) -> None:
        """Ask the workers whether the draft is whole again, where the last output said that it was not: a server that
        is not ready gets no requests, whose outputs would tell.

        Args:
          engine: vLLM's `AsyncLLM`.
        """
        if self.activity.awaiting:
            answers = await _ask_workers(engine.engine_core, WHY_LOST, ())
            if not any(any(of_ranks) for of_ranks in answers):
                self.activity.awaits(None)

    def find(self, processor: OutputProcessor, request: str) -> dict[str, Any] | None:
        """How a request of the caller stands, see `torch_specexit.plugin.frontend.finding.find`."""
        return find(processor, self._running, self._finished, request, caller.get())

    def problem(self) -> str | None:
        """Why this server must not be ready, where certified exits are required of it.

        The mode is no reason: shadow and off are the operator's word, or the hold's, and a kill switch for exits must
        not be one for the whole service. The file is looked at, as a server that is not ready gets no requests.
        """
        self._look_at_file()
        if not self.operation.serving.required:
            return None
        if self.activity.reason is not None:
            return self.activity.reason
        return "; ".join(self.operation.uncertified_because()) or None

    def summary(self) -> dict[str, Any]:
        """Settings as the next request finds them, state, and counts since the start of this API server process."""
        self._look_at_file()
        operation, block = self.operation, self.operation.block
        served, doubts = operation.served(), operation.uncertified_because()
        return {
            "mode": operation.mode,
            "requests_may": operation.serving.requests,
            "active": self.activity.reason is None,
            "reason": self.activity.reason,
            "think_start": block.think_start,
            "think_end": block.think_end,
            "point": served.name,
            "policy": served.policy.model_dump(mode="json"),
            "calibration": served.certificate.model_dump(mode="json") if served.certificate else None,
            "certified": not doubts,
            "uncertified_because": doubts,
            "uncertified_loras": sorted(self.uncertified_loras),
            "covers": {"sampling": covered(operation.file.sampling), "other_requests": self.other_sampling},
            "points": operation.points(),
            "efforts": dict(operation.serving.efforts),
            "requests": dict(self.outcomes),
            "shadow": {name: self.shadow[name] for name in ("exits", "before", "behind")},
            "audit": {"rate": operation.serving.audit_rate} | self.audit.summary() if self.audit else None,
            "hold": self.hold.summary(),
            "traffic": self.traffic.summary(),
        }


async def _ask_workers(client: EngineCoreClient, method: str, given: tuple[object, ...]) -> list[list[Any]]:
    """Call a method of all workers of all engines; return their answers, a list for each engine."""
    # Of several engines `AsyncLLM.collective_rpc` asks all, and returns the answers of the first alone.
    asked = (method, None, given, None)
    cores = client.core_engines
    return await asyncio.gather(*(client._call_utility_async("collective_rpc", *asked, engine=core) for core in cores))
