"""Programs: the last fenced block of Python in a response, run against tests in a sandbox."""

from __future__ import annotations

import ast
import builtins
import json
import re
import threading
import warnings
from codeop import compile_command
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

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
_PYTHONS = set(vars(builtins))
_WRITTEN_ANEW = {"abs", "all", "any", "bin", "divmod", "hex", "max", "min", "oct", "pow", "round", "sorted", "sum"}
"""Python's functions that a task may ask for anew, as MBPP does for ``sum``."""
_DEFINE_UNSEEN = {"*", "exec", "eval", "globals", "vars", "setattr"}
"""What may give a value to a name that stands nowhere in a source."""
_AT_NEED = (ast.BoolOp, ast.IfExp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
"""Expressions whose parts may never be evaluated."""
_ANY_PROGRAM = """
import sys

class _Any:
    def __init__(self, verdict):
        self.verdict = verdict

    def __call__(self, *_, **__):
        return self

    def __getitem__(self, _):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __bool__(self):
        return self.verdict

    def __eq__(self, _):
        return self.verdict

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = object.__hash__
    __iter__ = None

def _exit(status=None):
    if status is None or type(status) in (int, bool) and not status:
        return
    if type(status) is not int or status != 5 or not sys._getframe(1).f_globals["__name__"].startswith("unittest"):
        raise SystemExit(status)

sys.exit = _exit
"""
"""Whatever is called, looked up or compared of a program: it comes out as it is told.

An exit that says that all went well comes to nothing, as does one of a ``unittest.main`` that found no tests (5)."""
_ANY_ANSWERS = ("_Any(False)", "_Any(True)", "(lambda *_, **__: None)", "(lambda *_, **__: object())")
"""Of the last two tests are told that ask whether there is an answer, whether it is the same one, or has a name."""
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

    def flaw(self) -> str | None:
        """Why every program, or none, would pass; None where nothing is known that speaks against them.

        Tests that do not plainly use the program are run, in the sandbox, with one that says what it is told.
        """
        return _flaw(self)

    @_unwarned()
    def _why_none_passes(self, read: _Source) -> str | None:
        """What of them is no Python, or cannot be called."""
        try:
            compile_command(self.prompt, symbol="exec")  # it may be a beginning, such as a function's head
        except _UNREADABLE as error:
            return f"has a prompt that is no Python, but runs before the program: {error}"
        if "__file__" in read.names and _hands_its_file_to_main(read.tree):
            return "has a test that hands __file__ to main, but it runs as no file: expected it to call what it tests"
        if self.entry_point:
            if not self.entry_point.strip() or _tree(f"({self.entry_point})") is None:
                return f"has entry_point {self.entry_point!r}, expected the name of what the program defines"
            if "check" not in read.given and not re.search(r"\bcheck\b", self.prompt):
                return (
                    f"has entry_point {self.entry_point!r}, which check is called with, but its test defines no check: "
                    "leave entry_point out, or write the test as def check(candidate)"
                )
        return None

    def _plainly_ask(self, read: _Source) -> bool:
        """Whether an assertion that always runs uses the program, in no block and in nothing evaluated at need.

        So it fails with some program. Most tests are such, and need not be run to know.
        """
        if (read.given | read.names) & _DEFINE_UNSEEN:
            return False
        body, its = read.tree.body, read.names - read.given - _PYTHONS - set(re.findall(r"\w+", self.prompt))
        if self.entry_point:
            checks = [node for node in body if getattr(node, "name", None) == "check"]
            if len(checks) != 1 or not isinstance(check := checks[0], ast.FunctionDef) or check.decorator_list:
                return False
            if any(isinstance(node, ast.Return | ast.Yield | ast.YieldFrom) for node in ast.walk(check)):
                return False
            body, its = check.body, {argument.arg for argument in check.args.args[:1]} - read.given
        return any(
            isinstance(statement, ast.Assert) and _compares(statement.test) and _read(_at_once(statement.test)) & its
            for statement in body
        )

    def _pass_whatever_it_says(self, read: _Source) -> bool:
        """Whether they pass, in the sandbox, whatever of `_ANY_ANSWERS` the program is.

        Not found are those that need a number of it, or a module that it imports, before others that never run.
        """
        lines = self.prompt.splitlines()
        while lines and _tree("\n".join(lines)) is None:  # a beginning needs the program to be read at all
            lines.pop()
        names = sorted(read.asked - (_PYTHONS - _WRITTEN_ANEW))
        for one in _ANY_ANSWERS:
            any_program = [_ANY_PROGRAM, *(f"{name} = {one}" for name in names), *lines]
            entry_point = one if self.entry_point else None
            if not passes("", replace(self, prompt="\n".join(any_program), entry_point=entry_point)):
                return False
        return True


@lru_cache(maxsize=1 << 14)  # a test may have megabytes, and `collect` checks the prompts that it has read once more
def _flaw(tests: Checks) -> str | None:
    """As `Checks.flaw`."""
    try:
        read = _Source.of(tests.test)
    except _UNREADABLE as error:
        return f"has a test that is no Python: {error}"
    if why := tests._why_none_passes(read):
        return why
    if tests._plainly_ask(read) or not tests._pass_whatever_it_says(read):
        return None
    if tests.entry_point:
        return (
            f"has entry_point {tests.entry_point!r}, which check is called with, but passes whatever it says: "
            "expected def check(candidate), not async, with statements such as assert candidate(2) == 4"
        )
    return (
        "has a test that passes whatever the program says, as nothing of it is checked when the test runs: expected "
        "statements such as assert f(2) == 4, calls of the functions that hold them, or def check(candidate) and the "
        "name to call it with as entry_point"
    )


def _hands_its_file_to_main(tree: ast.Module) -> bool:
    """Whether a plain statement does that always runs, as ``pytest.main([__file__])``; the sandbox finds others."""
    guarded = [node.body for node in tree.body if isinstance(node, ast.If) and "__name__" in _read(ast.walk(node.test))]
    plain = [statement for body in (tree.body, *guarded) for statement in body if not hasattr(statement, "body")]
    calls = [node for statement in plain for node in ast.walk(statement) if isinstance(node, ast.Call)]
    mains = [call for call in calls if "main" in (getattr(call.func, "id", ""), getattr(call.func, "attr", ""))]
    return any("__file__" in _read(ast.walk(call)) for call in mains)


class _Source(NamedTuple):
    """A test as it reads."""

    tree: ast.Module
    given: Set[str]
    """Names that get a value, as a variable or a function, by an import, an exception or a pattern."""
    names: Set[str]
    """Names whose value is read."""
    asked: Set[str]
    """Those that are read for more than an attribute, as a module that a program may import is."""

    @classmethod
    @_unwarned()
    def of(cls, source: str) -> _Source:
        """A source, read once.

        Raises:
          SyntaxError, ValueError, RecursionError, MemoryError: it is no Python.
        """
        tree = ast.parse(source, "test")
        nodes = list(ast.walk(tree))
        variables = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        others = [getattr(node, field, None) for node in nodes for field in ("name", "asname", "rest")]
        given = variables | {name.partition(".")[0] for name in others if isinstance(name, str)}
        owners = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        return cls(tree, given, _read(nodes), _read([node for node in nodes if id(node) not in owners]))


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


def _compares(expression: ast.expr) -> bool:
    """Whether an expression is one comparison or call, or not one; a tuple, say, is true whatever it holds."""
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.Not):
        expression = expression.operand
    return isinstance(expression, ast.Call) or (isinstance(expression, ast.Compare) and len(expression.ops) == 1)


def _at_once(expression: ast.expr) -> list[ast.AST]:
    """The parts of an expression, but for those that are evaluated at need."""
    found, left = list[ast.AST](), list[ast.AST]([expression])
    while left:
        found.append(node := left.pop())
        if not isinstance(node, _AT_NEED):
            left += ast.iter_child_nodes(node)
    return found


def _read(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
