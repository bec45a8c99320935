"""What is compared, one file a method: what it asks of an engine, and when it ends the thinking.

`interface` is all that a method needs to know. The ones here go by the names in `NAMES`; a method of your own is a
Python file with one `Method` in it, named in ``methods`` by its path, and appears in table and report like the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from specexit.bench.methods.checked import check_kind
from specexit.bench.methods.checked import check_parameters as check_parameters
from specexit.bench.methods.interface import Ask as Ask
from specexit.bench.methods.interface import Asks as Asks
from specexit.bench.methods.interface import Chain as Chain
from specexit.bench.methods.interface import Known as Known
from specexit.bench.methods.interface import Marks as Marks
from specexit.bench.methods.interface import Method as Method
from specexit.bench.methods.interface import MethodError as MethodError
from specexit.bench.methods.interface import Problem as Problem
from specexit.bench.methods.interface import Said as Said
from specexit.bench.methods.interface import Trial as Trial
from specexit.bench.methods.interface import Tuning as Tuning
from specexit.method.policies import METHODS, RESERVED

NAMES = (
    "none",
    "eagle3",
    "specexit",
    "specexit-fc",
    "paper",
    "exits-alone",
    "budget",
    "budget-hard",
    "no-thinking",
    "kth-boundary",
    "stability",
    "deer",
    "certaindex",
    "oracle",
)
"""Every method of this folder, in the order of tables."""


def find_method(reference: str) -> type[Method]:
    """A method by its name, or the one in a Python file.

    Raises:
      MethodError: there is none, the file cannot be imported or defines none or several, not what `Method` asks for,
        or one with the name of another, or of a curve of `simulate`.
    """
    if reference.endswith(".py"):
        module = _from_file(Path(os.path.expanduser(reference)))
    elif reference in NAMES:
        module = importlib.import_module(f"specexit.bench.methods.{reference.replace('-', '_')}")
    else:
        raise MethodError(f"method {reference!r} does not exist, expected a .py file or one of {', '.join(NAMES)}")
    found = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Method) and kind.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise MethodError(f"method {reference!r}: the file defines {len(found)} methods, expected one")
    kind = check_kind(reference, found[0])
    if reference.endswith(".py") and kind.name in (*NAMES, *METHODS, *RESERVED):
        what = "a method" if kind.name in NAMES else "a curve of `simulate` that a report would draw as this method's"
        raise MethodError(
            f"method {reference!r}: class {kind.__name__}: name is {kind.name!r}, which is {what} already, expected "
            "another"
        )
    return kind


def to_job(reference: str, method: Method) -> dict[str, Any]:
    """A method as JSON, for the process that runs it."""
    return {"method": reference, "parameters": asdict(method)}  # pyright: ignore[reportArgumentType]


def from_job(job: dict[str, Any]) -> Method:
    """The method of `to_job`."""
    return find_method(job["method"])(**job["parameters"])


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"specexit_bench_method_{path.stem}", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise MethodError(f"method {str(path)!r}: file does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise MethodError(f"method {str(path)!r}: cannot be imported: {error!r}") from error
    return module
