"""The requests of one model runner: what each of them gets when it is admitted, and what is known of it to its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from jaxtyping import Bool, Int
from torch import Tensor

from specexit.method.splits import ALL_STRINGS
from torch_specexit.plugin.protocols import SamplingParams, StructuredOutputsConfig, VllmConfig
from torch_specexit.plugin.worker.asked import request_policy_or_default
from torch_specexit.plugin.worker.checking import Checker
from torch_specexit.plugin.worker.forbidden import closes_with_text, forbids
from torch_specexit.plugin.worker.interrupt import Owner, owner_of
from torch_specexit.plugin.worker.openings import opens_at_end, opens_thinking
from torch_specexit.plugin.worker.protocols import Draft, NewRequest, SchedulerOutput
from torch_specexit.plugin.worker.reading import Reader
from torch_specexit.plugin.worker.rule import STATE, THINKING, Admission
from torch_specexit.plugin.worker.slots import Slots

_PHASE = STATE.index("phase")


class Requests:
    """What the host knows of a runner's requests; what changes with their tokens is in `Slots`, on the device.

    Args:
      draft: the SpecExit draft model.
      config: vLLM's.
      slots: their rows.
      reader: works a row out from tokens.
      checker: follows the requests as well, in the checking mode.
      sharded: whether each rank samples for a part of the batch.
    """

    def __init__(
        self, draft: Draft, config: VllmConfig, slots: Slots, reader: Reader, checker: Checker | None, *, sharded: bool
    ):
        self.draft, self.ids = draft, draft.think_tokens
        self.slots, self.reader, self.checker = slots, reader, checker
        self.closing = (*draft.transition, *self.ids.end_marker)
        self._grammar_binds_thinking = _grammar_binds_thinking(config.structured_outputs_config)
        self._budget_has_text = closes_with_text(config, self.ids.end_marker)
        self._masked = bool(getattr(config.model_config, "return_sampling_mask", False))  # since 0.28
        self._nameless: bool = sharded or config.model_config.logprobs_mode.startswith("processed")
        self.unread: set[str] = set()
        """Requests whose prompts are still to be looked through, in the place where vLLM keeps them."""
        self.logprobs: set[str] = set()
        """Requests that want logprobs."""
        self.asking: set[str] = set()
        """Those of `logprobs` whose tokens may be forced."""
        self.owners: dict[str, Owner | None] = {}
        """Who may interrupt a request; those that nobody may, see `_may_not_exit`, are not in here."""

    def track(self, scheduled: SchedulerOutput) -> None:
        """Take in new requests, those that come back, and finished ones, before a step."""
        self.forget(scheduled.finished_req_ids)
        for new in scheduled.scheduled_new_reqs:
            known, size = self.slots.admissions.get(new.req_id), _prompt_size(new)
            if known is not None and known.prompt == size and new.prefill_token_ids is not None:
                self._come_back(new.req_id, new.prefill_token_ids)
            else:
                self._admit(new, size)
        for name, tokens in resumed(scheduled).items():
            if name in self.slots.admissions:
                self._come_back(name, tokens)

    def forget(self, requests: Collection[str]) -> None:
        """Drop all that is known of requests; unknown ones are passed over."""
        self.slots.remove(requests)
        self.asking.difference_update(requests)
        self.logprobs.difference_update(requests)
        self.unread.difference_update(requests)
        for name in requests:
            self.owners.pop(name, None)
        if self.checker is not None:
            self.checker.forget(requests)

    def _come_back(self, name: str, tokens: Sequence[int]) -> None:
        """Take in a request that comes back after a preemption, with all the tokens that it has kept."""
        admission = self.slots.admissions[name]
        outputs = tokens[admission.prompt :]
        if self.checker is not None:
            self.checker.compare(name, outputs)
        if admission.thinking is None:
            admission = admission._replace(thinking=self._opens(tokens[: admission.prompt]))
            self.slots.admissions[name] = admission
        self.slots.rebuild(name, *self.reader.rebuild(admission, outputs))

    def _admit(self, new: NewRequest, size: int) -> None:
        """Admit a new request, or one whose prompt has been continued: nothing of that is kept but its id."""
        self.forget([new.req_id])
        params, serving = new.sampling_params, self.draft.serving
        given = params.extra_args if params else None
        asked = request_policy_or_default(given, self.draft.block, serving, new.req_id)
        bound = self._may_not_exit(params)
        mode = "off" if bound else asked.mode_under(serving.mode)
        policy = None if mode == "off" else asked.policy
        prompt = new.prompt_token_ids or []
        opens = opens_at_end(prompt, self.ids.start, self.ids.end_marker)
        self.unread |= {new.req_id} if opens is None else set()
        self.slots.add(
            new.req_id,
            Admission(
                thinking=self._opens(prompt) if opens is None and self.checker is not None else opens,
                policy=policy,
                strings=ALL_STRINGS if asked.splits is None else self.ids.mask(asked.splits),
                shadow=mode == "shadow",
                prompt=size,
                margin=serving.thinking_margin,
            ),
        )
        if not bound:
            self.owners[new.req_id] = owner_of(params)
        if params is not None and params.num_logprobs is not None:
            self.logprobs.add(new.req_id)
            self.asking |= {new.req_id} if policy is not None else set()

    def _opens(self, prompt: Sequence[int]) -> bool:
        return opens_thinking(prompt, self.ids.start, self.ids.end_marker)

    def _may_not_exit(self, params: SamplingParams | None) -> bool:
        """Whether a request may have no exit: its grammar would refuse a forced token, and end it in an error; or its
        client forbids such a token; or an exit may cut into a text that vLLM writes to its end; or each token comes
        with those that it was drawn among, of which a forced one is none; or nobody could say the token's logprob, as
        vLLM hands on processed ones only of the tokens that it has drawn, and where each rank samples for a part of the
        batch no logits of all of it."""
        if params is None:
            return False
        nameless = params.num_logprobs is not None and self._nameless
        refused = params.structured_outputs is not None and self._grammar_binds_thinking
        closed = self._budget_has_text and getattr(params, "thinking_token_budget", None) is not None
        return self._masked or nameless or refused or closed or forbids(params, self.closing)

    def look_through(self, requests: Collection[str], opens: Callable[[str, int], Bool[Tensor, ""]]) -> None:
        """Look through prompts of `unread`, which vLLM has in place by now.

        Args:
          requests: some of `unread`.
          opens: takes a request and the length of its prompt, and says whether the prompt opens the thinking.
        """
        for name in requests:
            self.slots.open(name, opens(name, self.slots.admissions[name].prompt))
        self.unread.difference_update(requests)

    def end_thinking(self, request: str, caller: str | None, *, now: bool) -> bool:
        """See `torch_specexit.plugin.worker.exits.Exits.end_thinking`."""
        names = [name for name, owner in self.owners.items() if owner == Owner(caller, request)]
        self.slots.flush()
        thinking = [n for n in names if self.slots.tables.state[self.slots.row_of[n], _PHASE] == THINKING]
        for name in thinking:
            self.slots.interrupt(name, now=now)
        self.asking |= self.logprobs.intersection(thinking)
        return bool(thinking)

    def places_of_asking(self, requests: Sequence[str]) -> Int[Tensor, " asking"]:
        """Which of a step's requests are `asking`, by their place in it, on the device."""
        return self.slots.to_device([i for i, name in enumerate(requests) if name in self.asking]).long()


def resumed(scheduled: SchedulerOutput) -> dict[str, Sequence[int]]:
    """Requests of V1 that come back after a preemption, with all their tokens; V2's come as new ones."""
    cached = scheduled.scheduled_cached_reqs
    names, tokens = getattr(cached, "resumed_req_ids", ()), getattr(cached, "all_token_ids", {})
    return {name: tokens[name] for name in names if name in tokens}


def _prompt_size(new: NewRequest) -> int:
    if new.prompt_token_ids is not None:
        return len(new.prompt_token_ids)
    return 0 if new.prompt_embeds is None else new.prompt_embeds.shape[0]


def _grammar_binds_thinking(config: StructuredOutputsConfig) -> bool:
    """Whether vLLM's grammars bind from the first token on, thinking included: without a reasoning parser vLLM knows of
    no thinking, and with ``enable_in_reasoning`` they bind there, too."""
    return not config.reasoning_parser or config.enable_in_reasoning
