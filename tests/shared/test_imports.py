"""The house rules on imports, by reading every file, and what the core needs to be imported."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import specexit

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "specexit": ROOT / "shared" / "specexit",
    "jax_specexit": ROOT / "jax_specexit",
    "torch_specexit": ROOT / "torch_specexit",
}

JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "array_record", "tensorboardX"}
TORCH = {"torch", "vllm", "transformers", "speculators", "triton"}
FORBIDDEN = {
    "specexit": JAX | TORCH | {"jax_specexit", "torch_specexit"},
    "jax_specexit": TORCH | {"torch_specexit"},
    "torch_specexit": JAX | {"jax_specexit"},
}
"""The core is framework-neutral, and the two frameworks meet only in the draft directory."""

ALLOWED = {("specexit/data/packed.py", "array_record"), ("specexit/data/packing.py", "array_record")}
"""ArrayRecord is a file format with no framework behind it; imported where one is written, and where one is read."""


def imported(path):
    """Top-level names of everything a file imports, at whatever depth."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def python_files(folder):
    files = sorted(folder.rglob("*.py"))
    assert files, folder
    return files


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_keep_to_their_framework(package):
    folder = PACKAGES[package]
    broken = [
        f"{path.relative_to(folder.parent)} imports {name}"
        for path in python_files(folder)
        for name in sorted(set(imported(path)) & FORBIDDEN[package])
        if (str(path.relative_to(folder.parent)), name) not in ALLOWED
    ]
    assert not broken


def test_only_parity_tests_import_both_frameworks():
    both = [
        str(path.relative_to(ROOT))
        for path in python_files(ROOT / "tests")
        if {"jax_specexit", "torch_specexit"} <= set(imported(path)) and path.parent.name != "parity"
    ]
    assert not both


def test_a_room_says_what_each_of_its_files_is():
    """A newcomer reads the first lines of a package; half of the files of `data` and `drafts` were not in them."""
    lists = {"answers", "families", "layouts", "methods", "policies", "schemas"}  # a file for each of a kind
    unsaid = [
        str(path.relative_to(ROOT))
        for folder in PACKAGES.values()
        for room in folder.rglob("__init__.py")
        if room.parent.name not in lists
        for path in sorted(room.parent.glob("[!_]*.py"))
        if f"`{path.stem}`" not in (ast.get_docstring(ast.parse(room.read_text())) or "")
    ]
    assert not unsaid


def test_imports_are_absolute():
    """So that the rule above sees all of them."""
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in PACKAGES.values()
        for path in python_files(folder)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


PROGRAM = """
import sys

ALLOWED = set(sys.stdlib_module_names) | {allowed!r}

class Only:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        known = name.split(".")[0] in ALLOWED or name.startswith("_")
        return self.finder.find_spec(name, path, target) if known else None

sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
import {modules}
"""
"""Imports modules where nothing else is installed. Names with an underscore are parts of the above, in C."""

DEFINITIONS = (
    "specexit.method.signals, specexit.method.labels, specexit.method.decision, specexit.method.splits, "
    "specexit.data.answers, specexit.data.traces"
)


@pytest.mark.parametrize(
    ("modules", "beside"),
    [
        ("specexit", set()),
        # What defines the method: the three named by the design, the YAML reader and the shape annotations.
        (DEFINITIONS, {"numpy", "pyarrow", "pydantic", "yaml", "jaxtyping"}),
    ],
)
def test_the_core_imports_on_a_machine_that_has_little_else(modules, beside):
    # Packages that those bring with them.
    below = {"pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "wadler_lindig"}
    program = PROGRAM.format(allowed=beside | (below if beside else set()) | {"specexit"}, modules=modules)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def core_modules():
    names = [module.name for module in pkgutil.walk_packages(specexit.__path__, "specexit.")]
    return sorted(name for name in names if not name.endswith("__main__"))


@pytest.mark.parametrize("name", core_modules())
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [e for name in core_modules() for t in finder.find(importlib.import_module(name)) for e in t.examples]
    assert len(examples) > 10
