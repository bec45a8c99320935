"""What the wraps do around a method, on stand-ins for vLLM's classes. Under a second, no engine."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.serving.ends import core_output, core_outputs
from tests.serving.stand_ins import stand_in
from torch_specexit.plugin.compat import harmless, wraps
from torch_specexit.plugin.protocols import Scheduler
from torch_specexit.plugin.worker.protocols import AttentionMetadata, ProposerV1, RunnerV1, SpeculatorV2
from torch_specexit.plugin.worker.weights import Weights


class Draft:
    """Stands for the draft model; notes which passes it was told to record."""

    think_tokens, serving, vocab_size, signals, transition = SimpleNamespace(), None, 0, None, ()

    weights = Weights(())

    def signals_of_target(self, aux, rows): ...

    def remember_weights(self): ...

    def fall_asleep(self): ...

    def awake(self): ...

    def __init__(self, source):
        self.block = SimpleNamespace(source=source)
        self.first_pass = SimpleNamespace(alone=False, behind=None)
        self.recorded = []

    def leave_signals(self, hidden_states): ...

    def record(self, passes, last_rows=None):
        self.recorded.append(passes if last_rows is None else (passes, last_rows.tolist()))


def speculator(**attributes):
    return stand_in(SpeculatorV2, model=Draft("draft"), last_token_indices=torch.tensor([3, 7, 11, 0]), **attributes)


def test_the_first_pass_of_v2_is_told_where_the_last_tokens_are():
    some, calls = speculator(), []
    wrapped = wraps.prefill(lambda self, *args, **kwargs: calls.append((args, kwargs)))
    wrapped(some, 3, 16, skip_sample=True)
    assert calls == [((3, 16), {"skip_sample": True})]
    assert some.model.recorded == [(sys.maxsize, [3, 7, 11]), 0]


def test_under_context_parallel_the_first_pass_of_v2_leaves_nothing_by_itself():
    some = speculator(pcp_manager=object())
    wraps.prefill(lambda self, num_reqs: None)(some, 3)
    assert some.model.recorded == [(0, [3, 7, 11]), 0]


def test_a_first_pass_that_fails_leaves_nothing_switched_on():
    def fails(self, num_reqs):
        raise RuntimeError("out of memory")

    some = speculator()
    with pytest.raises(RuntimeError, match="out of memory"):
        wraps.prefill(fails)(some, 1)
    assert some.model.recorded == [(sys.maxsize, [3]), 0]


def test_another_draft_model_is_left_alone():
    calls = []
    speculator, proposer = (stand_in(kind, model=SimpleNamespace()) for kind in (SpeculatorV2, ProposerV1))
    wraps.prefill(lambda self, *args, **kwargs: calls.append(kwargs))(speculator, 1, skip_sample=True)
    wraps.propose_v1(lambda self, n, **kwargs: calls.append(n))(proposer, 0)
    assert calls == [{"skip_sample": True}, 0]


class Proposer:
    """Stands for V1's; counts how often it waits for the other data-parallel ranks."""

    num_speculative_tokens, _last_draft_probs, waits, fails = 3, None, 0, False

    def __init__(self, *, alone):
        self.model = Draft("draft")
        self.model.first_pass.alone = alone

    def _determine_batch_execution_and_padding(self, num_tokens):
        self.waits += 1

    def propose(self, n, **rows):
        self.num_speculative_tokens = n
        self._determine_batch_execution_and_padding(6)
        if self.fails:
            raise RuntimeError("out of memory")
        if n > 1:
            self._determine_batch_execution_and_padding(2)
        self._last_draft_probs = torch.ones(2, n, 7)
        return torch.full((2, n), 5)


STARTS = stand_in(AttentionMetadata, query_start_loc=torch.tensor([0, 4, 6]))
propose = wraps.propose_v1(Proposer.propose)


@pytest.mark.parametrize("n", [3, 1])
@pytest.mark.parametrize("alone", [True, False])
def test_a_rank_at_the_end_of_its_context_waits_for_its_peers_as_often_as_they_do(n, alone):
    """It waited once while they waited twice, in that step and in dummy runs behind it: all of them hung."""
    proposer = Proposer(alone=alone)
    propose(proposer, n, token_indices_to_sample=None, common_attn_metadata=STARTS)
    assert (proposer.waits, proposer.num_speculative_tokens) == (min(n, 2), n)


def test_a_first_pass_alone_that_fails_changes_no_later_step():
    proposer = Proposer(alone=True)
    proposer.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        propose(proposer, 3, token_indices_to_sample=None, common_attn_metadata=STARTS)
    assert (proposer.num_speculative_tokens, proposer.model.first_pass.alone) == (3, False)


def test_at_the_end_of_the_context_the_first_pass_runs_and_its_one_draft_is_dropped():
    """The probabilities of that one draft must go, too: vLLM would look for those of all of them."""
    proposer = Proposer(alone=True)
    rows = {"token_indices_to_sample": None, "common_attn_metadata": STARTS}
    assert propose(proposer, 3, **rows).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert proposer._last_draft_probs is None
    rows["token_indices_to_sample"] = torch.tensor([2, 4])
    assert propose(proposer, 3, **rows).tolist() == [[5, 5, 5], [5, 5, 5]]
    kept: Any = proposer._last_draft_probs
    assert kept.shape == (2, 3, 7)
    assert propose(proposer, 0, **rows).shape == (2, 0)
    assert proposer.model.recorded == [(1, [3, 5]), (1, [2, 4]), (1, [2, 4])]


def test_behind_a_chunk_of_a_prompt_v1s_draft_reads_its_next_token():
    """It read the last token of the prompt, which was in all signals of that request from there on."""
    seen, proposer = [], stand_in(ProposerV1, model=Draft("draft"))
    wrapped = wraps.propose_v1(
        lambda self, n, **given: seen.append(given["next_token_ids"].tolist()) or torch.ones(3, n)
    )
    proposer.model.first_pass.behind = torch.tensor([1]), torch.tensor([6])
    kept = torch.tensor([4, 9, 5], dtype=torch.int32)
    for _ in range(2):  # what was of one step is not of the next
        wrapped(proposer, 3, next_token_ids=kept, token_indices_to_sample=None, common_attn_metadata=STARTS)
    assert seen == [[4, 6, 5], [4, 9, 5]]
    assert kept.tolist() == [4, 9, 5]


@pytest.mark.parametrize("max_seq_len", [62, 70], ids=["later passes would not fit", "longer than the draft may draft"])
def test_the_first_pass_runs_wherever_vllm_would_not_draft(max_seq_len):
    """Longer than ``speculative_config.max_model_len``, requests were judged by the signals of another step."""

    def fits(self, metadata):
        return metadata is not None and metadata.max_seq_len + 3 <= self.effective_drafter_max_model_len

    exits: Any = SimpleNamespace(draft=Draft("draft"))
    runner = stand_in(RunnerV1, _specexit=exits, effective_drafter_max_model_len=64)
    wrapped = wraps.input_fits_in_drafter(fits)
    assert wrapped(runner, SimpleNamespace(max_seq_len=61))
    assert not wrapped(runner, None)
    assert not exits.draft.first_pass.alone
    assert wrapped(runner, SimpleNamespace(max_seq_len=max_seq_len))
    assert exits.draft.first_pass.alone
    runner._specexit = None
    assert not wrapped(runner, SimpleNamespace(max_seq_len=max_seq_len))


def test_an_outcome_that_cannot_be_reported_fails_no_request_and_is_logged_once(monkeypatch, caplog):
    """The engine core logged a traceback at every step."""
    monkeypatch.setattr(harmless, "_complaints", set())
    scheduler, output = stand_in(Scheduler, requests={"a": object()}), SimpleNamespace(specexit={"a": [0.0]})
    outputs = {0: core_outputs([core_output("a", "stop")])}
    wrapped = wraps.update_from_output(lambda self, scheduled, output: outputs)
    for _ in range(3):
        assert wrapped(scheduler, SimpleNamespace(num_scheduled_tokens={"a": 1}), output) is outputs
    raised = [record.exc_info[0] for record in caplog.records]
    assert len(raised) == len(harmless._complaints) > 0


def test_a_failure_that_names_a_request_is_logged_once(monkeypatch, caplog):
    """It was logged with each request, and remembered of each."""
    monkeypatch.setattr(harmless, "_complaints", set())
    known: dict[str, int] = {}
    for name in ("a", "b", "c"):
        assert harmless.harmless(lambda name=name: known[name]) is None
    assert harmless.harmless(lambda: [][3]) is None
    assert [record.exc_info[0] for record in caplog.records] == [KeyError, IndexError]
    assert len(harmless._complaints) == 2
