"""What stands for vLLM's objects in tests is taken for them, and says what it was not given."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.serving.stand_ins import filled, members, stand_in
from torch_specexit.plugin import protocols as shared
from torch_specexit.plugin.compat.fit import Has
from torch_specexit.plugin.compat.sources import Imported
from torch_specexit.plugin.frontend import protocols as frontend
from torch_specexit.plugin.frontend.protocols import AsyncLLM, RequestState
from torch_specexit.plugin.protocols import ModelConfig, VllmConfig
from torch_specexit.plugin.worker import protocols as worker
from torch_specexit.plugin.worker.protocols import Runner, RunnerV1

USES: list[Callable[[Any], object]] = [
    bool,
    len,
    iter,
    str,
    hash,
    lambda missing: missing(),
    lambda missing: missing.detokenizer,
    lambda missing: getattr(missing, "anything", None),
    lambda missing: missing == 1,
    lambda missing: missing < 1,
    lambda missing: missing + 1,
    lambda missing: 1 + missing,
    lambda missing: 1 in missing,
    lambda missing: missing[0],
    lambda missing: f"{missing}",
]


@pytest.mark.parametrize("use", USES)
def test_what_was_not_given_fails_where_it_is_used_and_is_named(use):
    state = stand_in(RequestState, parent_req=None)
    with pytest.raises(AssertionError, match=r"RequestState\.request_index is used"):
        use(state.request_index)


def test_a_stand_in_is_taken_for_its_kind_and_for_no_other():
    config = stand_in(VllmConfig, speculative_config=None)
    assert isinstance(config, VllmConfig)
    assert not isinstance(config, ModelConfig)
    assert not isinstance(stand_in(Runner), RunnerV1)
    assert isinstance(copy.copy(config), VllmConfig)


def test_what_a_protocol_does_not_name_stays_absent_unless_given():
    assert not hasattr(stand_in(VllmConfig), "use_v2_model_runner")
    assert stand_in(VllmConfig, use_v2_model_runner=True).use_v2_model_runner


def test_members_are_those_of_bases_too_with_methods_and_properties():
    assert {"model", "tokenizer", "dtype", "try_get_generation_config"} <= set(members(ModelConfig))
    assert set(members(VllmConfig)) == {name for name in vars(VllmConfig) if name.endswith("_config")}


def test_a_class_of_a_tests_own_keeps_what_it_has():
    class Engine:
        def generate(self):
            return "a text"

    engine = filled(AsyncLLM, Engine())
    assert engine.generate() == "a text"
    with pytest.raises(AssertionError, match=r"AsyncLLM\.engine_core is used"):
        len(engine.engine_core.core_engines)


PROTOCOLS = [
    kind
    for module in (shared, frontend, worker)
    for kind in vars(module).values()
    if inspect.isclass(kind) and kind.__module__ == module.__name__ and "`vllm." in (kind.__doc__ or "")
]


@pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.__name__)
def test_the_installed_vllm_has_what_a_protocol_names(kind):
    """The first class that its docstring names is meant, and a stand-in is as good as the protocol alone."""
    (place, *_) = re.findall(r"`(vllm\.[\w.]+)`", kind.__doc__)
    assert Has(":".join(place.rsplit(".", 1)), tuple(members(kind))).misfit(Imported()) is None
