"""What vLLM's Python sources say about its classes and methods, read without importing them.

A place is written ``module:Class.method`` or ``module:.function``, a class ``module:Class``. Two readers answer the
same three questions: `Sources` reads an unpacked release, `Imported` the installed one (classes and signatures as they
are in this process, with whatever has been patched). Tests keep answers in small files, so that other versions can be
checked without a download.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from specexit.errors import InputError

_WHEEL = re.compile(r"vllm(?:_cpu)?-(.+)\.dist-info")


class SourceError(InputError):
    """Sources that cannot be read."""


@runtime_checkable
class Release(Protocol):
    """A version of vLLM that can be asked about its shape. Each answer is None where there is no such place."""

    version: str

    def parameters(self, place: str) -> tuple[str, ...] | None:
        """Names of a method's parameters, after ``self``."""
        ...

    def names(self, owner: str, asked: Sequence[str]) -> dict[str, bool] | None:
        """Which of these names a class has: methods, properties, fields, and what is assigned to ``self``."""
        ...

    def order(self, place: str, asked: Sequence[str]) -> dict[str, int | None] | None:
        """Where a method first uses these identifiers, counted in identifiers; None for one that it does not use."""
        ...


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _behind_self(place: str) -> int:
    """Index of the first parameter that a caller passes: 1 for a method, after ``self``, and 0 for a function."""
    return 0 if ":." in place else 1


def split_place(place: str) -> tuple[str, str]:
    """``module:Class.method`` to ``module:Class`` and ``method``."""
    owner, _, method = place.rpartition(".")
    return owner, method


class Sources:
    """An unpacked release.

    Args:
      folder: the one that holds ``vllm/``.
      version: of the release; by default that of its ``dist-info``, or else the folder's name.

    Raises:
      SourceError: there is no ``vllm/__init__.py`` in it.
    """

    def __init__(self, folder: Path, version: str | None = None):
        if not (folder / "vllm" / "__init__.py").is_file():
            raise SourceError(f"{folder}: holds no vllm/__init__.py, expected the folder of an unpacked vLLM wheel")
        self.folder = folder
        wheels = [found[1] for path in folder.glob("vllm*.dist-info") if (found := _WHEEL.match(path.name))]
        self.version = version or next(iter(wheels), folder.name)
        self._trees: dict[str, ast.Module | None] = {}

    def _module(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            self._trees[module] = self._parse(module)
        return self._trees[module]

    def _parse(self, module: str) -> ast.Module | None:
        path = self.folder.joinpath(*module.split("."))
        if path.relative_to(self.folder).parts[0] != "vllm":
            return None
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(), str(file))
        return None

    def _classes(self, owner: str) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class and its ancestors with their modules, nearest first; those from outside of vLLM are left out."""
        module, _, name = owner.partition(":")
        node = self._bound(module, name)
        if isinstance(node, str):
            yield from self._classes(node)
        elif node is not None:
            yield module, node
            for base in node.bases:
                base = base.value if isinstance(base, ast.Subscript) else base
                if isinstance(base, ast.Name):
                    yield from self._classes(f"{module}:{base.id}")

    def _bound(self, module: str, name: str) -> ast.ClassDef | str | None:
        """What a module binds a name to: a class, or the place where it is imported from; None for neither."""
        tree = self._module(module)
        for node in reversed(list(_statements(tree.body))) if tree else ():
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return f"{self._origin(module, node)}:{alias.name}"
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and name in _targets(node):
                return f"{module}:{node.value.id}"
        return None

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        """Absolute name of the module that a statement imports from."""
        is_package = (self.folder.joinpath(*module.split(".")) / "__init__.py").is_file()
        package = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
        return ".".join([*package, *([node.module] if node.module else [])])

    def _method(self, place: str) -> Function | None:
        owner, name = split_place(place)
        module = self._module(owner.removesuffix(":")) if owner.endswith(":") else None
        for node in [module] if module else [node for _, node in self._classes(owner)]:
            for method in node.body:
                if isinstance(method, Function) and method.name == name:
                    return method
        found = self._bound(owner.removesuffix(":"), name) if module else None
        return self._method(found.replace(":", ":.")) if isinstance(found, str) else None

    def parameters(self, place: str) -> tuple[str, ...] | None:
        """See `Release`."""
        method = self._method(place)
        if method is None:
            return None
        arguments = method.args
        named = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
        return tuple(argument.arg for argument in named if argument is not None)[_behind_self(place) :]

    def names(self, owner: str, asked: Sequence[str]) -> dict[str, bool] | None:
        """See `Release`."""
        nodes = [node for _, node in self._classes(owner)]
        found = {name for node in nodes for name in _names(node)}
        return {name: name in found for name in asked} if nodes else None

    def order(self, place: str, asked: Sequence[str]) -> dict[str, int | None] | None:
        """See `Release`."""
        method = self._method(place)
        if method is None:
            return None
        used = _identifiers(method)
        return {name: used.index(name) if name in used else None for name in asked}


class Imported(Sources):
    """The installed vLLM. Its classes are imported, so that this sees what others have patched, too."""

    def __init__(self) -> None:
        import vllm

        assert vllm.__file__ is not None
        super().__init__(Path(vllm.__file__).parents[1], vllm.__version__)

    def _classes(self, owner: str) -> Iterator[tuple[str, ast.ClassDef]]:
        for ancestor in getattr(_import(owner), "__mro__", ()):
            node = self._bound(ancestor.__module__, ancestor.__name__)
            if isinstance(node, ast.ClassDef):
                yield ancestor.__module__, node

    def parameters(self, place: str) -> tuple[str, ...] | None:
        """See `Release`."""
        owner, name = split_place(place)
        method = getattr(_import(owner), name, None)
        return tuple(inspect.signature(method).parameters)[_behind_self(place) :] if callable(method) else None


def _import(owner: str) -> Any:
    module, _, name = owner.partition(":")
    try:
        found = importlib.import_module(module)
        return getattr(found, name, None) if name else found
    except ImportError:
        return None


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that may run when a module is imported, those under a condition included; ``TYPE_CHECKING`` is off."""
    for node in body:
        if isinstance(node, ast.If):
            checking = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            yield from _statements([*([] if checking else node.body), *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _statements([*node.body, *(s for handler in node.handlers for s in handler.body)])
        else:
            yield node


def _names(owner: ast.ClassDef) -> Iterator[str]:
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from _targets(node)
    for node in ast.walk(owner):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def _targets(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _identifiers(method: Function) -> list[str]:
    """Names and attributes that a method's body uses, in the order of the text; functions within it are left out."""
    found: list[tuple[int, int, str]] = []
    rest: list[ast.AST] = list(method.body)
    while rest:
        node = rest.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            found.append((node.end_lineno or 0, node.end_col_offset or 0, name))
        rest.extend(ast.iter_child_nodes(node))
    return [name for *_, name in sorted(found)]
