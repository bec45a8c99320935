"""One verdict for all ranks: who decides, and what happens where one of them fails. No engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, get_ident
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specexit.config import ConfigError
from specexit.drafts.directory import Serving, SpecExitBlock
from specexit.method.decision import Policy
from specexit.method.signals import NAMES
from tests.serving.simulation import CPU, END, IDS, given_step
from tests.serving.stand_ins import stand_in
from tests.serving.worker import Draft, Group, alone, boundary_and_more, new, ready, runner, scheduled, text_of  # noqa: F401, a fixture for all
from torch_specexit.plugin import outcome
from torch_specexit.plugin.frontend.arguments import RESOLVED
from torch_specexit.plugin.worker import exits as module
from torch_specexit.plugin.worker import ranks
from torch_specexit.plugin.worker.exits import Exits
from torch_specexit.plugin.worker.protocols import ContextParallel
from torch_specexit.plugin.worker.rule import RECORD
from torch_specexit.plugin.worker.runner_v2 import keep_restored

pytestmark = pytest.mark.vllm


class Pair:
    """Two ranks, one after the other: what the first has sent is added to what the second sends."""

    def __init__(self, monkeypatch):
        self.sent: list[torch.Tensor] = []
        self.sums: dict[int, torch.Tensor] = {}
        monkeypatch.setattr(ranks.torch.distributed, "all_reduce", lambda message, group: self.sent.append(message))

    def agree(self, both: list[ranks.Ranks], signals: Any, rows: int) -> list[Any]:
        results = [rank.agree(own, rows, whole=True) for rank, own in zip(both, signals, strict=True)]
        first, second = self.sent[-2:]
        total = first + second
        first.copy_(total)
        second.copy_(total)
        return results


def test_all_ranks_judge_by_what_the_first_has_read(monkeypatch):
    pair = Pair(monkeypatch)
    both = [ranks.Ranks(Group(2, rank), 4, CPU) for rank in range(2)]
    own = [torch.full((3, len(NAMES)), 0.25), torch.full((3, len(NAMES)), 0.25 + 1e-6)]
    (first, off), (second, also_off) = pair.agree(both, own, 3)
    assert torch.equal(first, own[0])
    assert torch.equal(second, own[0])
    assert (off.item(), also_off.item()) == (0, 0)


@pytest.mark.parametrize("failed", [0, 1])
def test_where_one_rank_fails_none_decides_any_more(monkeypatch, failed):
    pair = Pair(monkeypatch)
    both = [ranks.Ranks(Group(2, rank), 4, CPU) for rank in range(2)]
    own: list[torch.Tensor | None] = [torch.ones(2, len(NAMES)) for _ in range(2)]
    own[failed] = None
    results = pair.agree(both, own, 2)
    assert [off.item() for _, off in results] == [1, 1]


class Member(Group):
    """One of several ranks in threads of their own."""

    def __init__(self, together: Together, world_size: int, rank: int):
        super().__init__(world_size, rank)
        self.together = together

    def broadcast_object(self, obj: Any | None = None, src: int = 0) -> Any:
        if self.rank_in_group == src:
            self.together.handed_round = obj
        self.together.barrier.wait()
        found = self.together.handed_round
        self.together.barrier.wait()
        return found


class Together:
    """Ranks in threads of their own: a collective waits for all of them, and not for ever."""

    def __init__(self, monkeypatch, size: int = 2, **others: Any):
        """Args: others: what the draft of the last rank has otherwise."""
        self.barrier = Barrier(size, timeout=300)
        self.messages: dict[int, torch.Tensor] = {}
        self.handed_round: Any = None
        monkeypatch.setattr(ranks.torch.distributed, "all_reduce", self._add_up)
        numbers = iter(range(size))
        monkeypatch.setattr(module, "_ranks_of_model", lambda: Member(self, size, next(numbers)))
        drafts: list[Any] = [Draft() for _ in range(size)]
        vars(drafts[-1]).update(others)
        self.exits = [Exits(draft, runner()) for draft in drafts]
        self.all(lambda exits: exits.prepare(given_step(["x"], [[5]]).none()))

    def _add_up(self, message: torch.Tensor, group: Any) -> None:
        self.messages[get_ident()] = message.clone()
        self.barrier.wait()
        message.copy_(torch.stack(list(self.messages.values())).sum(dim=0))
        if self.barrier.wait() == 0:
            self.messages.clear()
        self.barrier.wait()

    def all(self, action: Any) -> list[Any]:
        with ThreadPoolExecutor(len(self.exits)) as pool:
            return list(pool.map(action, self.exits))

    def texts(self, *steps: Any) -> list[list[list[int]]]:
        """Of each rank, behind steps of its own copy."""
        return self.all(lambda exits: text_of(exits, *(step._replace(tokens=step.tokens.clone()) for step in steps)))

    def told(self) -> list[dict[str, Any]]:
        """What the outputs of the last step say."""
        outputs = [SimpleNamespace() for _ in self.exits]
        for exits, output in zip(self.exits, outputs, strict=True):
            exits.close(output)
        return [vars(output) for output in outputs]


@pytest.mark.parametrize("checking", ["0", "1"])
@pytest.mark.parametrize("behind", [0, 1])
def test_where_one_rank_has_not_got_its_weights_all_leave_the_step_alone(monkeypatch, behind, checking):
    """Its peers used to wait for it in a collective, alone: an update that fails on one rank was a hang."""
    monkeypatch.setenv("SPECEXIT_CHECK", checking)
    both = Together(monkeypatch)
    both.all(lambda exits: exits.track(scheduled(new("a"))))
    assert both.texts(given_step(["a"], [[2]])) == [[[2]]] * 2
    weights = both.exits[behind].draft.weights
    weights.lose("the update has failed")
    assert both.texts(given_step(["a"], [[5]], at=[1])) == [[[5]]] * 2
    told = both.told()
    assert [rank[outcome.KEY] for rank in told] == [
        {"a": [0.0] * len(RECORD)}
    ] * 2  # were it to end here, exits were off
    reasons = [rank[outcome.AWAITING_KEY] for rank in told]
    assert reasons[behind] == "the update has failed"
    assert reasons[1 - behind] == "the draft's weights are not whole on another rank"
    assert [exits.failure for exits in both.exits] == [None, None]
    for name in ("a", "b"):
        weights.arrived(name)
    assert both.texts(given_step(["a"], [[2]], at=[2]), given_step(["a"], [[5]], at=[3])) == [[[2], [5]]] * 2
    both.all(lambda exits: exits.track(scheduled(new("b"))))
    assert both.texts(given_step(["b"], [[2]]), given_step(["b"], [[5]], at=[1])) == [[[2], [END]]] * 2
    assert all(outcome.AWAITING_KEY not in told for told in both.told())


@pytest.mark.parametrize(
    "others",
    [
        {"transition": (5, 6)},
        {"think_tokens": replace(IDS, split=frozenset({2}), by_string={"two": frozenset({2})})},
        {"serving": Serving(thinking_margin=3)},
        {"serving": Serving(loop_period=2)},
        {"block": SpecExitBlock(source="fc", target="t", policy=Policy(thresholds={}))},
    ],
    ids=("transition", "split tokens", "margin", "loops", "source"),
)
def test_ranks_that_would_end_thinking_otherwise_than_the_first_leave_plain_eagle3(others, monkeypatch):
    """As where the environment of one machine has other settings: at the first exit the ranks fed different tokens.
    With a draft of another source they sent each other messages of different lengths, for which a collective waits."""
    both = Together(monkeypatch, **others)
    first, last = (exits.failure for exits in both.exits)
    assert first == "could not be made ready on another rank, whose log says why"
    assert str(last).startswith("serving settings or draft are not those of the first rank")
    both.all(lambda exits: exits.track(scheduled(new("a"))))
    assert both.texts(*boundary_and_more()) == [[[2], [5]]] * 2


@pytest.mark.parametrize("resolved", [False, True], ids=["no front end", "a front end"])
@pytest.mark.parametrize(
    ("others", "given", "expected"),
    [
        ({"block": SpecExitBlock(source="draft", target="t", policy=Policy(thresholds={"validity": 1.0}))}, {}, END),
        ({"serving": Serving(mode="off", required=True)}, {}, END),
        ({"serving": Serving(requests="none")}, {"specexit_patience": 2}, 5),
    ],
    ids=("policy", "mode", "requests"),
)
def test_ranks_that_read_the_policy_file_before_and_after_a_change_exit_alike(
    others, given, expected, resolved, monkeypatch
):
    """A kill switch, or a calibration, that fell into the start of a server ended its exits until a restart."""
    decided = {"policy": Policy(thresholds={}).model_dump(), "mode": "exit", "splits": None}
    both = Together(monkeypatch, **others)
    assert [exits.failure for exits in both.exits] == [None, None]
    both.all(lambda exits: exits.track(scheduled(new("a", extra_args={RESOLVED: decided} if resolved else given))))
    assert both.texts(*boundary_and_more()) == [[[2], [END if resolved else expected]]] * 2


def test_ranks_need_not_have_the_same_of_what_is_for_the_front_end(monkeypatch):
    serving = Serving(audit_rate=0.5, share=0.5, hold=False, exit_log=True)
    both = Together(monkeypatch, serving=serving, block=Draft().block.model_copy(update={"serving": serving}))
    assert [exits.failure for exits in both.exits] == [None, None]


def test_ranks_of_other_settings_keep_a_server_from_starting_that_must_have_exits(monkeypatch):
    with pytest.raises(ConfigError, match=r"required is true, but exits would not be served: .* the first rank"):
        Together(monkeypatch, serving=Serving(required=True, thinking_margin=3))


def test_a_failure_on_another_rank_is_seen_with_the_next_report():
    exits, output = ready(), SimpleNamespace()
    exits.track(scheduled(new("a")))
    exits.ranks._message.fill_(1.0)
    assert text_of(exits, given_step(["a"], [[5, 2, 5]])) == [[5, 2, 5]]
    exits.close(output)
    assert vars(output) == {outcome.INACTIVE_KEY: "has failed on another rank"}


def test_under_context_parallel_the_signals_are_read_off_the_whole_batch():
    exits, whole = ready(), [torch.ones(4, 2)]
    manager = stand_in(
        ContextParallel,
        restore_for_sampling=lambda hidden, aux: (hidden, whole, None),
        restore_draft_prefill=lambda last, hidden: (whole[0], hidden),
    )
    keep_restored(exits, manager)
    manager.restore_for_sampling(torch.zeros(2, 2), [torch.zeros(2, 2)])
    manager.restore_draft_prefill(torch.zeros(2, 2), torch.zeros(2, 2))
    draft: Any = exits.draft
    kept = manager.restore_for_sampling
    keep_restored(exits, manager)  # at the next step
    assert manager.restore_for_sampling is kept
    assert exits.aux is whole
    assert draft.left is whole[0]


def test_the_installed_vllm_starts_no_eagle3_draft_under_context_parallel():
    """As the developer's page says; what is done there is tested on stand-ins alone."""
    from vllm.v1.worker.gpu.pcp_manager import PCPManager

    draft = SimpleNamespace(method="eagle3", use_dspark=lambda: False, use_multi_module_mtp=lambda: False)
    config: Any = SimpleNamespace(
        parallel_config=SimpleNamespace(prefill_context_parallel_size=2),
        model_config=SimpleNamespace(use_mla=True, is_encoder_decoder=False),
        lora_config=None,
        speculative_config=draft,
    )
    with pytest.raises(NotImplementedError, match="speculative"):
        PCPManager.validate_config(config, False)


def test_a_vllm_that_hands_no_hidden_states_on_under_context_parallel_is_served_without_exits():
    exits = ready()
    keep_restored(exits, SimpleNamespace(restore_for_sampling=lambda hidden: hidden))
    assert "prefill context parallel" in str(exits.failure)
