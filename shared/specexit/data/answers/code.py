"""Programs: the last fenced block of Python in a response, run against tests in a sandbox."""

from __future__ import annotations

import ast
import builtins
import json
import re
import symtable
import threading
import warnings
from codeop import compile_command
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from specexit.data.answers.base import AnswerKind
from specexit.data.answers.sandbox import require_sandbox, run

_FENCE = re.compile(r"^([ \t]*)(`{3,}(?![^\n]*`)|~{3,})[^\S\n]*([\w+#.-]*)[^\n]*$", re.M)
"""Behind backticks a line has no others (CommonMark): one that has begins with code in the midst of words."""
_DEEPER = 3
"""Spaces that a closing fence may be indented by beyond its opening one (CommonMark); one in a docstring has more."""
_PYTHON = ("python", "python3", "py", "py3")
_DEFINES = re.compile(
    r"^(?:async\s+)?def\s+(?!test|main\b)|^class\s+(?!Test|\w+\(.*TestCase)|^\w+\s*=\s*lambda\b", re.M
)
"""A definition that is neither a test nor ``main``."""
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What Python's parser says of text that is no program."""
_TYPES = (object, type, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, enumerate, zip)
_TESTS_OWN = {"print", "len", "isinstance", "repr", "open", "super", "__name__", "__file__"} | {
    name
    for name, value in vars(builtins).items()
    if value in _TYPES or (isinstance(value, type) and issubclass(value, BaseException))
}
"""What tests use for themselves. A program may define others of Python's names, such as sum, and through globals or
eval tests may come to any of its names."""
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_COMPREHENSIONS = ("listcomp", "setcomp", "dictcomp", "genexpr")
"""Names of their symbol tables."""
_silence = threading.RLock()


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without Python's warnings of ``1if x``: nobody here could mend it, and where a warning is an error (``-W error``)
    it would change a verdict. One thread at a time, as the filters of warnings are the whole process's."""
    with _silence, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Checks:
    """The reference of a programming task."""

    test: str
    """Python that runs behind the program and fails with an exception; it may define ``check(candidate)``.

    ``__name__`` is ``__main__`` while it runs, but not while the program does."""
    entry_point: str | None = None
    """Name in the program that ``check`` is called with."""
    prompt: str = ""
    """Python that runs before the program: imports, and what the task has defined."""

    def dumps(self) -> str:
        """As a prompt's reference."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, reference: str) -> Checks | None:
        """From a prompt's reference; None where it is no JSON object with a ``test`` that is not empty."""
        fields = _json_object(reference)
        if fields is None or not set(fields) <= {"test", "entry_point", "prompt"} or not fields.get("test"):
            return None
        given = {name: value for name, value in fields.items() if value is not None}
        return cls(**given) if all(isinstance(value, str) for value in given.values()) else None

    def around(self, program: str) -> str:
        """The whole source to run."""
        call = f"check({self.entry_point})" if self.entry_point else ""
        parts = (self.prompt, program, '__name__ = "__main__"', self.test, call)
        whole = "\n\n".join(part for part in parts if part) + "\n"
        return _futures_first(whole) if "__future__" in whole else whole

    @_unwarned()
    def flaw(self) -> str | None:
        """Why every program, or none, would pass; None where nothing is known that speaks against them."""
        try:
            own, _ = _names(self.test)
            asks = bool(self.entry_point) or _uses_a_program(self.test)
        except _UNREADABLE as error:
            return f"has a test that is no Python: {error}"
        try:
            compile_command(self.prompt, symbol="exec")  # it may be a beginning, such as a function's head
        except _UNREADABLE as error:
            return f"has a prompt that is no Python, but runs before the program: {error}"
        if self.entry_point:
            if not self.entry_point.strip() or _tree(f"({self.entry_point})") is None:
                return f"has entry_point {self.entry_point!r}, expected the name of what the program defines"
            if "check" not in own and not re.search(r"\bcheck\b", self.prompt):
                return (
                    f"has entry_point {self.entry_point!r}, which check is called with, but its test defines no check: "
                    "leave entry_point out, or write the test as def check(candidate)"
                )
            if _checks_nothing(self.test):
                return (
                    f"has entry_point {self.entry_point!r}, which check is called with, but that call does nothing: "
                    "expected def check(candidate), not async, with statements such as assert candidate(2) == 4"
                )
        elif not asks:
            return (
                "has a test that comes to its end whatever the program is, as nothing of it is used when the test "
                "runs: expected statements such as assert f(2) == 4, calls of the functions that hold them, or "
                "def check(candidate) and the name to call it with as entry_point"
            )
        return None


class Code(AnswerKind):
    """Python programs.

    A reference is tests (`Checks.dumps`): a program is the same as tests that it passes. Two programs are the same if
    their syntax trees are, and `agree` if they are the same or both pass the tests.

    Raises:
      AnswerError: programs cannot be run in a sandbox on this platform.
    """

    name = "code"

    def __init__(self):
        require_sandbox()

    def extract(self, text: str, choices: Sequence[str] | None = None) -> str | None:
        """The content of the last fenced block of Python; None where there is none or the last block never closes.

        A block tagged as Python comes before an untagged one, and that before any other, such as a command. Of several
        the last that defines something counts, as an example of a call may stand behind it.

        Example:
          >>> CODE_FENCE = "```"
          >>> Code().extract(f"Thus{CODE_FENCE}no{CODE_FENCE}\\n{CODE_FENCE}python\\nx = 1\\n{CODE_FENCE}\\nDone.")
          'x = 1'
        """
        del choices
        blocks = _blocks(text)
        best = min((_rank(tag) for tag, _ in blocks), default=0)
        programs = [source for tag, source in reversed(blocks) if _rank(tag) == best]
        return next(filter(_DEFINES.search, programs), programs[0] if programs else None)

    def why_no_reference(self, reference: str, choices: Sequence[str] | None = None) -> str | None:
        """A reference has to be tests that some programs pass and others do not, or a program.

        JSON without tests is none, though Python reads it as a dict, and neither is ``42`` or a word.
        """
        if tests := Checks.loads(reference):
            return tests.flaw()
        if _json_object(reference) is not None or not _does_something(reference):
            why = "is neither tests (JSON with test, entry_point, prompt) nor a Python program"
            return super().why_no_reference(reference, choices) or why
        return None

    def plainly_same(self, a: str, b: str) -> bool | None:
        """True for one program or the same tests, False for other tests; anything else is for the sandbox to say."""
        tests_a, tests_b = Checks.loads(a), Checks.loads(b)
        if tests_a and tests_b:
            return tests_a == tests_b
        if tests_a or tests_b:
            return None
        tree = _tree(a)
        return True if tree is not None and tree == _tree(b) else None

    def compare(self, a: str, b: str) -> bool:
        """Whether the one passes the tests that the other is; two programs that differ have no tests to pass."""
        tests_a, tests_b = Checks.loads(a), Checks.loads(b)
        if tests_a:
            return passes(b, tests_a)
        return tests_b is not None and passes(a, tests_b)

    def _bounded(self, a: str, b: str) -> bool:
        return self.compare(a, b)  # the sandbox is a process with limits of its own

    def agree(self, a: str | None, b: str | None, reference: str | None = None) -> bool:
        """Whether both are one program, or both pass the tests of the reference."""
        if self.same(a, b):
            return True
        tests = None if reference is None else Checks.loads(reference)
        return a is not None and b is not None and tests is not None and passes(a, tests) and passes(b, tests)


def _blocks(text: str) -> list[tuple[str, str]]:
    """Tag and content of each fenced block that has some; none at all where the last never closes."""
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        indent, marks, tag = fence.groups()
        if opened is None:
            opened = fence
        elif marks.startswith(opened[2]) and not tag and len(indent) <= len(opened[1]) + _DEEPER:
            content = re.sub(rf"^[ \t]{{0,{len(opened[1])}}}", "", text[opened.end() + 1 : fence.start()], flags=re.M)
            blocks.append((opened[3].casefold(), content.strip("\n").rstrip()))
            opened = None
    return [] if opened else [block for block in blocks if block[1]]


def _rank(tag: str) -> int:
    return 0 if tag in _PYTHON else 1 if not tag else 2


@lru_cache(maxsize=1 << 14)
def passes(program: str, tests: Checks) -> bool:
    """Whether a program passes tests, in the sandbox."""
    return run(tests.around(program))


@_unwarned()
def _futures_first(source: str) -> str:
    """A source with its ``from __future__`` imports at the top, the only place where Python takes them.

    Example:
      >>> print(_futures_first("import math\\n\\nfrom __future__ import annotations\\nx = 1\\n"))
      from __future__ import annotations
      import math
      x = 1
    """
    try:
        tree = ast.parse(source)
        body = sorted(tree.body, key=lambda node: getattr(node, "module", None) != "__future__")
        return ast.unparse(ast.Module(body, tree.type_ignores))
    except _UNREADABLE:
        return source  # which then fails in the sandbox


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


@_unwarned()
def _tree(source: str) -> str | None:
    try:
        return ast.dump(ast.parse(source))
    except _UNREADABLE:
        return None


@_unwarned()
def _does_something(source: str) -> bool:
    """Whether a source is Python with a statement, or at least a call."""
    try:
        body = ast.parse(source).body
    except _UNREADABLE:
        return False
    return any(not isinstance(node, ast.Expr) or any(isinstance(n, ast.Call) for n in ast.walk(node)) for node in body)


@lru_cache(maxsize=1 << 14)  # a test may have megabytes, and `collect` checks the prompts that it has read once more
def _names(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names that a source defines, and those that it looks up when it runs.

    Of functions and classes only those run whose name is looked up; of a class all methods do.

    Raises:
      SyntaxError, ValueError, RecursionError, MemoryError: it is no Python.

    Example:
      >>> own, used = _names("def test():\\n    assert f(1) == 2\\n")
      >>> sorted(own), sorted(used)
      (['test'], [])
      >>> sorted(_names("def test():\\n    assert f(1) == 2\\n\\ntest()\\n")[1])
      ['f', 'test']
    """
    top = symtable.symtable(source, "test", "exec")
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    for table in top.get_children():
        if table.get_type() == "class":
            used |= _of_body(table)
    return frozenset(own), _looked_up(top, used)


def _of_body(table: symtable.SymbolTable) -> set[str]:
    """Names that the body of a class looks up where it stands, be it in a comprehension or in another class."""
    names = _globals(table)
    for inner in table.get_children():
        if inner.get_type() == "class" or inner.get_name().strip("<>") in _COMPREHENSIONS:
            names |= _of_body(inner)
    return names


def _looked_up(top: symtable.SymbolTable, names: Set[str]) -> frozenset[str]:
    """Names, and those that are looked up by the functions and classes of a source that are called so, or nothing."""
    own = set(top.get_identifiers())
    used, idle = set(names), top.get_children()
    while running := [table for table in idle if table.get_name() in used or table.get_name() not in own]:
        idle = [table for table in idle if table not in running]
        for table in running:  # grows, by what is defined in there
            used |= _globals(table)
            running += table.get_children()
    return frozenset(used)


def _globals(table: symtable.SymbolTable) -> set[str]:
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}


def _uses_a_program(source: str) -> bool:
    """Whether a source looks up, when it runs, what itself and Python do not define."""
    own, used = _names(source)
    if used - own - _TESTS_OWN:
        return True
    # Both are rare: a test that only a list holds, and a program whose name the test gives another value.
    tree, top = ast.parse(source), symtable.symtable(source, "test", "exec")
    return bool((_looked_up(top, used | _registered(tree, top)) - own | _read_first(tree)) - _TESTS_OWN)


@lru_cache(maxsize=1 << 14)
def _checks_nothing(source: str) -> bool:
    """Whether each ``check`` that a source defines looks up nothing but Python's own, or one has to be awaited."""
    tables = symtable.symtable(source, "test", "exec").get_children()
    checks = [table for table in tables if (table.get_type(), table.get_name()) == ("function", "check")]
    idle = not any(
        table.get_children()
        or {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()} - _TESTS_OWN
        for table in checks
    )
    named = [node for node in ast.parse(source).body if isinstance(node, _Definition) and node.name == "check"]
    awaited = named and isinstance(named[-1], ast.AsyncFunctionDef) and not named[-1].decorator_list
    return bool(checks) and (idle or bool(awaited))


def _registered(tree: ast.Module, top: symtable.SymbolTable) -> set[str]:
    """Functions and classes that a decorator or a base class of the same source calls, or puts where the source then
    looks, and classes whose base is asked for its subclasses.

    What is imported, such as pytest's decorators and a ``TestCase``, may put them where nothing does.
    """
    nodes = _at_once(tree)
    definitions = [node for node in nodes if isinstance(node, _Definition)]
    made = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() and not symbol.is_imported()}
    sought = _looked_up(top, _read(nodes)) & made
    variables = sought - {node.name for node in definitions}
    every = list(ast.walk(tree))
    everywhere = [node for node in every if isinstance(node, _Definition)]
    asked = {ast.unparse(n.value) for n in every if isinstance(n, ast.Attribute) and n.attr == "__subclasses__"}
    found: set[str] = set()
    for node in definitions:
        bases = node.bases if isinstance(node, ast.ClassDef) else []
        if any(ast.unparse(base) in asked & sought for base in bases):
            found.add(node.name)
        for holder in (*node.decorator_list, *bases):
            owner = re.split(r"\W", ast.unparse(holder))[0]
            places = variables | {"self", "cls"} if owner in sought else variables
            takers = _takers(everywhere, holder)
            unclear = not takers and holder in node.decorator_list and owner in sought  # as ``@tests.append``
            if unclear or any(_takes(taker, places) for taker in takers):
                found.add(node.name)
    return found


def _takers(definitions: Sequence[_Definition], holder: ast.expr) -> list[ast.FunctionDef | ast.Lambda]:
    """The functions of a source that a decorator or a base class hands a definition to; none where it is unclear."""
    name = ast.unparse(holder.func if isinstance(holder, ast.Call) else holder).rpartition(".")[2]
    named = [node for node in definitions if node.name == name]
    if len(named) != 1:
        return []
    inner = [part for statement in named[0].body for part in _at_once(statement)]
    if isinstance(named[0], ast.ClassDef):
        return [part for part in inner if isinstance(part, ast.FunctionDef) and part.name == "__init_subclass__"]
    if isinstance(holder, ast.Call):  # what it returns is called with the definition
        return [part for part in inner if isinstance(part, ast.FunctionDef | ast.Lambda)]
    return [node for node in named if isinstance(node, ast.FunctionDef)]


def _takes(taker: ast.FunctionDef | ast.Lambda, places: Set[str]) -> bool:
    """Whether a function calls what it is given, or hands or assigns it, or a wrapper of it, to one of some places.

    What stands in a function within it, such as a wrapper, may never run.
    """
    body = taker.body if isinstance(taker, ast.FunctionDef) else [taker.body]
    nodes = [node for part in body for node in _at_once(part)]
    given = {argument.arg for argument in [one for one in taker.args.args if one.arg != "self"][:1]}
    wrappers = {node.name for node in nodes if isinstance(node, _Definition) and given & _read(ast.walk(node))}
    for node in nodes:
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in given:
                return True
            values, targets = node.args, [node.func]
        elif isinstance(node, ast.Assign):
            values, targets = [node.value], node.targets
        else:
            continue
        parts = [part for value in values for part in _at_once(value)]
        asked = [part.value for part in parts if isinstance(part, ast.Attribute)]  # such as for its name
        handed = {part.id for part in parts if isinstance(part, ast.Name) and part not in asked}
        named = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        if places & named and handed & (given | wrappers):
            return True
    return False


def _read_first(tree: ast.Module) -> set[str]:
    """Names that a source reads before it gives them a value, as in ``f = cache(f)``: something else has to do so."""
    found, given = set[str](), set[str]()
    for statement in tree.body:
        nodes = _at_once(statement)
        # In any other statement the name may get its value in front of where it is read.
        before = _at_once(statement.value) if isinstance(statement, ast.Assign) else nodes
        found |= _read(before) - _given(before) - given
        given |= _given(nodes)
    return found


def _at_once(node: ast.AST) -> list[ast.AST]:
    """A node and those below it, but for what functions, classes and lambdas consist of."""
    found, left = list[ast.AST](), [node]
    while left:
        found.append(node := left.pop())
        if not isinstance(node, _Definition | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return found


def _read(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _given(nodes: Sequence[ast.AST]) -> set[str]:
    """Names that get a value, as a variable or a function, by an import, an exception or a pattern."""
    variables = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    others = [getattr(node, field, None) for node in nodes for field in ("name", "asname", "rest")]
    return variables | {name.partition(".")[0] for name in others if isinstance(name, str)}
