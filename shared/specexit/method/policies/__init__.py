"""Exit methods that need no engine: each is one file that says at which boundaries it would end recorded traces.

`specexit simulate` plays them all. Another one is a file of one's own with a ``METHOD``, given by ``methods=[FILE]``:
no file of the project has to change. ``method`` is what such a file imports. What no trace can tell is in
`NOT_REPLAYED`; the oracle is `Replay.oracle`, as it knows what no method may.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from specexit.method.policies import boundary, budget, certaindex, deer, paper, stability, trio, validity
from specexit.method.policies.checked import MethodError, check_method, play_checked
from specexit.method.policies.method import Method, Played, play_policies, play_trials

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (validity, trio, paper, budget, boundary, stability, deer, certaindex)
}

PROBE, FULL, ORACLE = "probe", "no exit", "the oracle"
"""What `simulate` plays beside the methods: validity by another source's scores, nothing, and hindsight."""

RESERVED = (PROBE, FULL, ORACLE, "oracle")
"""Names that results and tables use for these, so that no method of a file may have them."""

NOT_REPLAYED = {
    "no-thinking": "a trace records answers behind step boundaries alone, and none without any thinking",
    "budget-hard": "it cuts in mid-sentence, where no answer was tried, and a model may think on behind its marker; "
    "budget, which goes on to the next boundary, is replayed",
}
"""Methods that `bench` can measure and that cannot be replayed, with the reason."""


def load_methods(paths: Iterable[Path]) -> dict[str, Method]:
    """The project's methods, and those of further files.

    Raises:
      MethodError: a file cannot be imported, holds no ``METHOD``, see `check_method`, or one whose name is taken, see
        `RESERVED`.
    """
    found = dict(METHODS)
    for path in paths:
        spec = importlib.util.spec_from_file_location(f"specexit_policy_{path.stem}", path)
        if spec is None or spec.loader is None or not path.exists():
            raise MethodError(f"{path}: not there, or no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise MethodError(f"{path}: cannot be imported: {error!r}") from error
        method = check_method(getattr(module, "METHOD", None), path)
        if method.name in RESERVED:
            raise MethodError(
                f"{path}: name of METHOD is {method.name!r}, which is what `simulate` calls something else, expected "
                f"another than {', '.join(RESERVED)}"
            )
        if method.name in found:
            raise MethodError(f"{path}: there is a method {method.name!r} already")
        found[method.name] = method
    return found


__all__ = [
    "FULL",
    "METHODS",
    "NOT_REPLAYED",
    "ORACLE",
    "PROBE",
    "RESERVED",
    "Method",
    "MethodError",
    "Played",
    "load_methods",
    "play_checked",
    "play_policies",
    "play_trials",
]
