"""Whether a version of vLLM fits: what a hook relies on, as data that is checked before anything is wrapped.

What does not fit is named in one line of the log, and the engine serves plain EAGLE-3. Methods are wrapped on their
classes, once a process.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_specexit.plugin.compat.sources import Imported, Release

Method = Callable[..., Any]

_MARK = "specexit"


@dataclass(frozen=True)
class Takes:
    """A method has these first parameters after ``self``; others may follow."""

    place: str
    parameters: tuple[str, ...]

    def misfit(self, release: Release) -> str | None:
        """What differs, or None."""
        found = release.parameters(self.place)
        if found is None:
            return f"{self.place} does not exist"
        first = found[: len(self.parameters)]
        return None if first == self.parameters else f"{self.place} takes {first}, expected {self.parameters}"


@dataclass(frozen=True)
class Has:
    """A class has these methods, properties, fields, or attributes assigned to ``self``."""

    owner: str
    attributes: tuple[str, ...]

    def misfit(self, release: Release) -> str | None:
        """What is missing, or None."""
        found = release.names(self.owner, self.attributes)
        if found is None:
            return f"{self.owner} does not exist"
        missing = [name for name in self.attributes if not found[name]]
        return f"{self.owner} has no {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Uses:
    """A method's body uses these names, each for the first time in this order: what runs before and after the hook."""

    place: str
    steps: tuple[str, ...]

    def misfit(self, release: Release) -> str | None:
        """What is missing or in another order, or None."""
        found = release.order(self.place, self.steps)
        if found is None:
            return f"{self.place} does not exist"
        missing = [name for name in self.steps if found[name] is None]
        if missing:
            return f"{self.place} does not use {', '.join(missing)}"
        order = sorted(self.steps, key=lambda name: found[name] or 0)
        return None if order == list(self.steps) else f"{self.place} uses {order}, expected {list(self.steps)}"


@dataclass(frozen=True)
class Either:
    """What versions of vLLM have, or what later ones have in its place."""

    facts: tuple[Takes | Has | Uses, ...]
    later: tuple[Takes | Has | Uses, ...]

    def misfit(self, release: Release) -> str | None:
        """What is missing of both, or None."""
        missing = [
            "; ".join(misfit for fact in facts if (misfit := fact.misfit(release)))
            for facts in (self.facts, self.later)
        ]
        return ", nor: ".join(missing) if all(missing) else None


Fact = Takes | Has | Uses | Either

V1_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
"""Class of vLLM's first model runner, which went with 0.34."""


@dataclass(frozen=True)
class Hook:
    """One wrapped method."""

    module: str
    owner: str
    """Its class; empty for a function of the module."""
    method: str
    parameters: tuple[str, ...]
    """Its first parameters after ``self``; others may follow."""
    wrap: Callable[[Method], Method] | None
    """None where the method is replaced on single objects, while they are in use: nothing is installed then."""
    why: str
    relies_on: str
    since: str
    """First vLLM version in which all of this was found to be as described; none before 0.24 was looked at."""
    facts: tuple[Fact, ...] = ()
    """What can be checked of `relies_on`, besides the method and its parameters."""
    upstream: str = ""
    """What vLLM has said about it: an issue or a pull request."""
    until: str = ""
    """When the hook can go."""
    only_with: str | None = None
    """A class without which a version of vLLM has no need of the hook, see `V1_RUNNER`."""
    without: str | None = None
    """The one feature that is lost where the hook does not fit. None: exits are, and plain EAGLE-3 is served."""

    @property
    def place(self) -> str:
        """The wrapped method, as `torch_specexit.plugin.compat.sources` writes it."""
        return f"{self.module}:{self.owner}.{self.method}"

    def __str__(self) -> str:
        return self.place

    def misfit(self, release: Release) -> str | None:
        """What a release of vLLM does not have as expected, or None."""
        facts = (Takes(self.place, self.parameters), *self.facts)
        return "; ".join(misfit for fact in facts if (misfit := fact.misfit(release))) or None

    def concerns(self, release: Release) -> bool:
        """Whether a release of vLLM has a need of the hook."""
        return self.only_with is None or release.names(self.only_with, ()) is not None

    def install(self) -> None:
        """Wrap the method on its class; nothing happens the second time."""
        if self.wrap is None:
            return
        owner = importlib.import_module(self.module)
        owner = getattr(owner, self.owner) if self.owner else owner
        if not is_hooked(owner, self.method):
            original = getattr(owner, self.method)
            wrapped = functools.wraps(original)(self.wrap(original))
            vars(wrapped)[_MARK] = True
            setattr(owner, self.method, wrapped)


def is_hooked(owner: object, method: str) -> bool:
    """Whether a class or module has one of our wraps for this method or function."""
    return hasattr(getattr(owner, method, None), _MARK)


def misfits(hooks: Sequence[Hook], *, every: bool = False) -> str | None:
    """What keeps exits from being served at all, in the installed vLLM; None where nothing does.

    Args:
      hooks: the hooks to check.
      every: whether hooks that cost only one feature count, too.
    """
    release = Imported()
    found = [misfit for hook in hooks if (every or hook.without is None) and (misfit := hook.misfit(release))]
    return "; ".join(found) or None


def install(hooks: Sequence[Hook]) -> str | None:
    """Install hooks: none where exits are lost for want of one, else all that fit.

    Returns:
      What the installed vLLM does not have as expected, and what that costs, in one line; None where all fits.
    """
    try:
        release = Imported()
        misfits = [(hook, hook.misfit(release)) for hook in hooks if hook.concerns(release)]
    except Exception as error:  # of any kind: an engine that cannot be checked has to start, too
        return f"specexit cannot check this vLLM, plain EAGLE-3 is served: {error!r}"
    fatal = [misfit for hook, misfit in misfits if misfit and hook.without is None]
    if fatal:
        return f"specexit does not fit vLLM {release.version}, plain EAGLE-3 is served: {'; '.join(fatal)}"
    for hook, misfit in misfits:
        if misfit is None:
            hook.install()
    lost = [f"{hook.without} ({misfit})" for hook, misfit in misfits if misfit]
    return f"specexit does not fit all of vLLM {release.version}: {'; '.join(lost)}" if lost else None
