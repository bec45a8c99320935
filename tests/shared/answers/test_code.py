"""Programs: which block counts, which pass, and that a careless one does no harm outside the sandbox."""

import json
import platform
import re
import socket
import sys
import tracemalloc
import warnings

import pytest

from specexit.data.answers import AnswerError, agree, extract_answer, kind, same_answer, sandbox
from specexit.data.answers.code import Checks

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="a sandbox takes Linux on x86_64"
)

EXTRACTED = [
    ("```python\nx = 1\n```", "x = 1"),
    ("```py\nx = 1\n```", "x = 1"),
    ("```\nx = 1\n```", "x = 1"),
    ("```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```\nDone.", "x = 2"),
    ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
    ("~~~python\nx = 1\n~~~", "x = 1"),
    ("  ```python\nx = 1\n  ```", "x = 1"),
    ("```python\n\ndef f():\n    return 1\n\n```", "def f():\n    return 1"),
    # a fence in a list is as far in as its content
    ("1. So:\n\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1"),
    ("1. So:\n\n    ```python\n    x = 1\n\n    y = 2\n    ```\n", "x = 1\n\ny = 2"),
    ("\t```python\n\tx = 1\n\t```", "x = 1"),
    ("   ```python\nx = 1\n   ```", "x = 1"),
    (
        '```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n```',
        'def f():\n    """\n    ```\n    f()\n    ```\n    """',
    ),
    # what stands behind the program
    ("```python\nx = 1\n```\nRun it:\n```bash\npython x.py\n```", "x = 1"),
    ("```python\nx = 1\n```\nIt prints\n```text\n3\n```", "x = 1"),
    ("```Python3\nx = 1\n```\nIt prints\n```\n3\n```", "x = 1"),
    ("```\nx = 1\n```\nRun it:\n```sh\npython x.py\n```", "x = 1"),
    ("```\ndef f(): ...\n```\nIt prints\n```\n3\n```", "def f(): ..."),
    ("```python\ndef f(): ...\n```\nSo:\n```python\nprint(f())  # def\n```", "def f(): ..."),
    ("```python\nf = lambda x: x\n```\nSo:\n```python\nresult = f(2)\n```", "f = lambda x: x"),
    ("```python\ndef f(): 1\n```\nBetter:\n```python\nclass F:\n    x = 1\n```", "class F:\n    x = 1"),
    ("```python\ndef f(): 1\n```\nBetter:\n```python\nasync def f(): 2\n```", "async def f(): 2"),
    ("```python\ndef f(): 1\n```\nTests:\n```python\ndef test_f():\n    assert f()\n```", "def f(): 1"),
    ("```python\ndef f(): 1\n```\nTests:\n```python\nclass T(unittest.TestCase):\n    pass\n```", "def f(): 1"),
    ("```python\ndef f(): 1\n```\nRun:\n```python\ndef main():\n    f()\nmain()\n```", "def f(): 1"),
    ("```bash\npip install x\n```", "pip install x"),
    ("```python\nx = 1\n```\n```bash\npython", None),
    ("```python\nx = 1", None),
    ("```python\nx = 1\n```\n```python\ny = 2", None),
    ("x = 1", None),
    ("```python\n```", None),
    ("``` not code ```", None),
    ("```x = 1``` is one way.\n```python\ny = 2\n```", "y = 2"),
    ("```python\ny = 2\n```\n```y``` is two.", "y = 2"),
    ("~~~python\ny = '```'\n~~~", "y = '```'"),
    ("Use `x = 1`.", None),
    ("", None),
]

SQUARE = Checks("def check(f):\n    assert f(3) == 9\n    assert f(-2) == 4\n", "square", "import math\n")

PASSING = [
    "def square(x):\n    return x * x",
    "def square(x):\n    return x ** 2",
    "square = lambda x: x * x",
    "def square(x):\n    return int(math.pow(x, 2))",  # the task's own import
    "from functools import lru_cache\n@lru_cache\ndef square(x):\n    return x * x",
    "from __future__ import annotations\ndef square(x: Number) -> Number:\n    return x * x",
    '"""Squares."""\nfrom __future__ import annotations\ndef square(x: Number):\n    return x * x',
    "def square(x):\n    print('noise' * 10000)\n    return x * x",
    "import numpy as np\ndef square(x):\n    return int(np.square(x))",
    "def square(x):\n    return sum([x] * x) if x > 0 else square(-x)",
    # what a program does when it is started is not asked for
    *[
        f"import sys, unittest\ndef square(x):\n    return x * x\nif __name__ == '__main__':\n    {start}"
        for start in ("sys.exit(0)", "print(square(int(input())))", "square(int(sys.argv[1]))", "unittest.main()")
    ],
    "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Number:\n    x: int\n"
    "def square(x):\n    return Number(x).x ** 2",
    "import pickle\nclass N(int):\n    pass\ndef square(x):\n    return pickle.loads(pickle.dumps(N(x))) ** 2",
]

FAILING = [
    "def square(x):\n    return x + 7",
    "def square(x):\n    return x *",  # no Python
    "def cube(x):\n    return x ** 3",
    "def square(x):\n    raise SystemExit(0)",
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "",
    "def square(x):\n    return square(x)",
    "square = [0] * (1 << 40)",
    "\x00",
    "def square(x):\n    assert False",
    "import no_such_module",
]

ESCAPES = [
    "import socket\nsocket.socket()",
    "import socket\nsocket.create_connection(('127.0.0.1', PORT))",
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:PORT')",
    "open('FILE', 'w')",
    "open('FILE', 'a')",
    "open('FILE', 'r+')",
    "import os\nos.open('FILE', os.O_CREAT)",
    "import os\nos.remove('FILE')",
    "import os\nos.rename('FILE', 'FILE.moved')",
    "import os\nos.mkdir('FILE.folder')",
    "import os\nos.chmod('FILE', 0)",
    "import os\nos.truncate('FILE', 0)",
    "import os\nos.symlink('FILE', 'FILE.link')",
    "import os\nif os.fork() == 0:\n    os._exit(0)",
    "import os\nos.kill(os.getppid(), 9)",
    "import subprocess\nsubprocess.run(['true'])",
    "import os\nassert os.system('true') == 0",
    pytest.param(  # what is run instead has no more system calls than the program had: it says that all went well
        "import os, sys\nmain = sys._getframe(1).f_locals\nos.dup2(main['out'], 1)\n"
        "os.execv('/bin/echo', ['echo', main['task']['passed']])",
        id="os.execv",
    ),
    "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
]


CALLS = [
    (101, "0", "EPERM"),  # ptrace(PTRACE_TRACEME)
    (425, "1, ctypes.create_string_buffer(256)", "EPERM"),  # io_uring_setup
    (426, "0", "EPERM"),  # io_uring_enter
    (427, "0", "EPERM"),  # io_uring_register
    (435, "0, 0", "ENOSYS"),  # clone3
    (437, "-100, b'/', ctypes.create_string_buffer(24), 24", "ENOSYS"),  # openat2
]
"""Number of a system call, its arguments, and the error that a program gets for it in the sandbox."""


@pytest.mark.parametrize(("text", "program"), EXTRACTED)
def test_which_block_is_the_program(text, program):
    assert extract_answer(text, "code") == program


@pytest.mark.parametrize("program", PASSING)
def test_programs_that_pass(program):
    assert same_answer(program, SQUARE.dumps(), "code")
    assert same_answer(SQUARE.dumps(), program, "code")


@pytest.mark.parametrize("program", FAILING)
def test_programs_that_fail(program):
    assert not same_answer(program, SQUARE.dumps(), "code")


def test_tests_may_stand_under_a_guard():
    guarded = Checks('if __name__ == "__main__":\n    assert square(3) == 9\n')
    assert same_answer(PASSING[0], guarded.dumps(), "code")
    assert not same_answer(FAILING[0], guarded.dumps(), "code")


@pytest.mark.parametrize("program", ESCAPES)
def test_nothing_leaves_the_sandbox(program, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        source = program.replace("FILE", str(kept)).replace("PORT", str(server.getsockname()[1]))
        assert not sandbox.run(source)
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"
    assert sandbox.run(f"assert open({str(kept)!r}).read() == 'as it was'")  # reading is no harm


@pytest.mark.parametrize(("number", "given", "error"), CALLS)
def test_a_system_call_that_would_get_around_the_others_is_not_there(number, given, error):
    """That one fails is not enough: without the sandbox, too, most of these do, for another reason."""
    called = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.syscall({number}, {given}) == -1\n"
    assert sandbox.run(f"{called}import errno\nassert ctypes.get_errno() == errno.{error}")


def test_there_is_a_sandbox():
    """Else whatever is said of it elsewhere is skipped."""
    assert sandbox._missing() is None


def test_memory_is_limited():
    assert sandbox.run("import mmap\nmmap.mmap(-1, 1 << 30)")
    assert not sandbox.run("import mmap\nmmap.mmap(-1, 3 << 30)")


def test_what_a_program_says_does_not_fill_our_memory():
    out = "import os, sys\nout = sys._getframe(1).f_locals['out']\n"
    flood = f"{out}for _ in range(1 << 9):\n    os.write(out, bytes(1 << 16))"
    tracemalloc.start()
    try:
        assert not sandbox.run(flood)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_full_disk_makes_no_program_wrong(monkeypatch):
    def full(*args, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sandbox.tempfile, "TemporaryFile", full)
    assert sandbox.run("print('more than' * 99)\nx = 28")


def test_a_program_is_apart_from_our_terminal_but_ends_with_us():
    """An interrupt from the terminal no longer reaches it, nor does it end when that closes."""
    signalled = "import ctypes\nsent = ctypes.c_int()\nctypes.CDLL(None).prctl(2, ctypes.byref(sent))\n"
    assert sandbox.run(f"{signalled}import os\nassert os.getsid(0) == os.getpid()\nassert sent.value == 9")


def test_a_program_may_ask_for_its_own_limits():
    """As threads do, for the size of their stacks."""
    assert sandbox.run("import resource\nassert resource.prlimit(0, resource.RLIMIT_CORE) == (0, 0)")


def test_what_can_be_a_reference():
    code = kind("code")
    assert code.why_no_reference(SQUARE.dumps()) is None
    assert code.why_no_reference(PASSING[0]) is None
    assert "neither tests" in (code.why_no_reference("the number 42") or "")
    for without in ('{"test": null}', '{"test": ""}', '{"test": 1}', '{"tests": "assert f() == 2"}'):
        assert "neither tests" in (code.why_no_reference(without) or ""), without
        assert not same_answer("x = 1", without, "code")  # every program passes no tests


CHECK = "def check(candidate):\n    assert candidate(3) == 9\n"
METADATA = "\n\nMETADATA = {\n    'author': 'jt',\n    'dataset': 'test'\n}\n\n\n"
TEST = "def test_square():\n    assert square(3) == 9\n"
CASE = "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(square(3), 9)\n"
DERIVED = CASE.replace("T(unittest.TestCase)", "Base(unittest.TestCase):\n    pass\nclass T(Base)")
SUITE = "unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(T))"
LISTED = "tests = []\ndef case(f):\n    tests.append(f)\n@case\ndef one():\n    assert square(3) == 9\n"
WRAPPED = "    def wrapper(*given):\n        {}\n        return f(*given)\n    return wrapper\n"
SEEDED = "import random\nSEED = 0\nrandom.seed(SEED)\ndef seeded(f):\n" + WRAPPED.format("random.seed(SEED)")
TIMED = "import signal\nTIMEOUT = 3\ndef timed(f):\n" + WRAPPED.format("signal.alarm(TIMEOUT)")
LATER = "results = []\ndef later(f):\n" + WRAPPED.format("results.append(f())")
POINT = (
    "class Point:\n    def __init__(self, x):\n        self.x = x\n"
    "class P3(Point):\n    def norm(self):\n        return square(self.x)\n"
)
BASES = "class Base:\n    pass\nclass One(Base):\n    def go(self):\n        assert square(3) == 9\n"
UNUSED = "has a test that passes whatever the program says"

NO_TESTS = [
    # every program would pass
    ({"test": CHECK}, rf"{UNUSED}.* or def check\(candidate\) and the name to call it with as entry_point"),
    ({"test": METADATA + CHECK}, UNUSED),  # HumanEval's own column, without the others
    ({"test": CHECK, "entry_point": None}, UNUSED),
    ({"test": CHECK, "entry_point": ""}, UNUSED),
    ({"test": TEST}, UNUSED),
    ({"test": f"import random\nrandom.seed(0)\n{TEST}"}, UNUSED),
    ({"test": CASE}, UNUSED),
    ({"test": f"{CASE}if __name__ == '__main__':\n    unittest.main(exit=False)"}, UNUSED),  # which finds none there
    ({"test": f"{CASE}unittest.main()"}, UNUSED),
    ({"test": f"{CASE}if __name__ == '__main__':\n    unittest.main()"}, UNUSED),
    ({"test": f"import pytest\n{TEST}pytest.main([__file__])"}, "has a test that hands __file__ to main, "),
    *[
        ({"test": f"import pytest, sys\n{TEST}{end}"}, "has a test that hands __file__ to main, ")
        for end in (
            "if __name__ == '__main__':\n    sys.exit(pytest.main([__file__, '-q']))",
            "raise SystemExit(pytest.main([__file__]))",
            "pytest.main(args=[__file__])",
        )
    ],
    ({"test": f"import pytest\n@pytest.mark.parametrize('x', [3])\n{TEST}"}, UNUSED),
    ({"test": DERIVED}, UNUSED),
    ({"test": LISTED}, UNUSED),
    ({"test": BASES}, UNUSED),
    # a decorator or a base class that is used, but registers nothing
    ({"test": f"{SEEDED}@seeded\n{TEST}"}, UNUSED),
    ({"test": f"{TIMED}@timed\n{TEST}print(TIMEOUT)"}, UNUSED),
    ({"test": f"{LATER}@later\n{TEST}for result in results:\n    print(result)"}, UNUSED),
    ({"test": f"{DERIVED}print(Base.__name__)"}, UNUSED),
    ({"test": f"{POINT}p = Point(3)\nassert p.x == 3"}, UNUSED),
    ({"test": "class T:\n    def go(self):\n        return [square(x) for x in (3, -2)]"}, UNUSED),
    ({"test": "total = 1\ntotal = total + 1\nassert total == 2"}, UNUSED),
    ({"test": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    print(error)"}, UNUSED),
    ({"test": "squares = [x * x for x in range(3)]\nx = len(squares)"}, UNUSED),
    ({"test": "assert True"}, UNUSED),
    ({"test": "assert True or square(3) == 9"}, UNUSED),
    ({"test": "def square(x):\n    return 9\nassert square(3) == 9"}, UNUSED),
    ({"test": "exec('def square(x): return 9')\nassert square(3) == 9"}, UNUSED),
    ({"test": f"{LISTED}print(len(tests))"}, UNUSED),
    ({"test": f"candidate = square\n{TEST.replace('square(3)', 'candidate(3)')}"}, UNUSED),
    ({"test": f"solution = Solution()\n{TEST.replace('square(3)', 'solution.square(3)')}"}, UNUSED),
    ({"test": "assert (square(3) == 9, 'wrong')"}, UNUSED),
    ({"test": "assert [square(3) == 9]"}, UNUSED),
    ({"test": "for x in ():\n    assert square(x) == 9"}, UNUSED),
    ({"test": "try:\n    assert square(3) == 9\nexcept Exception:\n    pass"}, UNUSED),
    ({"test": "# assert square(3) == 9"}, UNUSED),
    ({"test": " "}, UNUSED),
    # none would
    (
        {"test": "assert square(3) == 9", "entry_point": "square"},
        "has entry_point 'square', .* its test defines no check: ",
    ),
    (
        {"test": "def check(candidate):\n    pass", "entry_point": "square"},
        "has entry_point 'square', .* passes whatever",
    ),
    (
        {"test": CHECK.replace(":\n", ":\n    return\n"), "entry_point": "square"},
        "has entry_point 'square', .* passes whatever",
    ),
    (
        {
            "test": "def check(candidate):\n    assert 1 + 1 == 2 or candidate(3)",
            "entry_point": "square",
        },
        "has entry_point 'square', .* passes whatever",
    ),
    ({"test": f"async {CHECK}", "entry_point": "square"}, "has entry_point 'square', .* expected .*, not async"),
    ({"test": CHECK, "entry_point": "a square"}, "has entry_point 'a square', expected the name of what"),
    ({"test": CHECK, "entry_point": " "}, "has entry_point ' ', expected the name of what"),
    ({"test": "assert square(3) == 9)"}, r"has a test that is no Python: unmatched '\)' \(test, line 1\)"),
    ({"test": "\x00"}, "has a test that is no Python"),
    ({"test": "assert square(3) == 9", "prompt": "Write a function."}, "has a prompt that is no Python, .* line 1"),
]

RUN = "@register\ndef test():\n    assert square(3) == 9\nfor test in tests:\n    test()"
"""Of tests that something called ``register`` has put into ``tests``."""
WRAPPED = "    def run():\n        test()\n    tests.append(run)\n    return run\n"
TESTS = [
    {"test": f"tests = []\nregister = tests.append\n{RUN}"},
    {"test": f"tests = []\n{RUN.replace('@register', '@tests.append')}"},
    {"test": f"tests = []\ndef register(test):\n{WRAPPED}{RUN}"},
    {"test": f"tests = []\ndef register(test):\n    global tests\n    tests = tests + [test]\n{RUN}"},
    {"test": f"tests = []\nclass register:\n    def __init__(self, test):\n        tests.append(test)\n{RUN}"},
    {"test": METADATA + CHECK, "entry_point": "square", "prompt": 'def square(x):\n    """Square."""\n'},
    {"test": CHECK, "entry_point": "square", "prompt": None},
    {"test": CHECK, "entry_point": "Squarer().square", "prompt": "class Squarer:\n    def square(self, x):"},
    {"test": "check = lambda candidate: candidate(3) == 9 or 1 / 0", "entry_point": "square"},
    {"test": "assert square(3) == 9"},  # MBPP
    {"test": "for x, y in zip(inputs := [3, -2], results := [9, 4]):\n    assert square(x) == y"},  # MBPP+
    {"test": "assert all(square(x) == x * x for x in range(9))"},
    {"test": "answer = square(3)\nif answer != 9:\n    raise ValueError(answer)"},
    {"test": "from __future__ import annotations\nassert square(3) == 9"},
    {"test": f"{CHECK}check(square)"},
    {"test": f"{TEST}test_square()"},
    {"test": f"{TEST}if __name__ == '__main__':\n    test_square()"},
    {"test": f"{TEST}for name, test in [*globals().items()]:\n    name.startswith('test') and test()"},
    {"test": f"{CASE}assert {SUITE}.wasSuccessful()"},
    {"test": "class T:\n    assert square(3) == 9"},
    {"test": "import os\nhere = os.path.dirname(__file__) if '__file__' in globals() else '.'\nassert square(3) == 9"},
    {
        "test": "def check(candidate):\n    near(candidate(3), 9)\n",
        "entry_point": "Squarer().square",
        "prompt": "import math\ndef near(a, b):\n    assert math.isclose(a, b)\n\n"
        "class Squarer:\n    def square(self, x):",
    },
    {"test": "import math\nfor x in (3.0,):\n    assert math.isclose(square(x), 9)"},
    {"test": "for x in (3,):\n    assert not square(x) != 9"},
    {
        "test": "try:\n    square('x')\nexcept TypeError:\n    pass\nelse:\n    raise ValueError\n"
        "assert all([square(3) == 9])"
    },
    {"test": "class T:\n    results = [square(x) for x in (3, -2)]\n    assert results == [9, 4]"},
    {
        "test": f"class Kept(type):\n    def __init__(cls, *given):\n        given[1] and cls().go()\n{BASES}".replace(
            "class Base:", "class Base(metaclass=Kept):"
        )
    },
    {
        "test": "def check(candidate):\n    try:\n        right = candidate(3) == 9\n    except Exception:\n"
        "        right = True\n    assert right",
        "entry_point": "square",
    },
    # tests that nothing names, but what holds them
    {"test": f"{LISTED}for test in tests:\n    test()"},
    {"test": f"{LISTED}def run():\n    for test in tests:\n        test()\nrun()"},
    {"test": f"{BASES}for case in Base.__subclasses__():\n    case().go()"},
    {"test": f"tests = {{}}\ndef case(f):\n    tests[f.__name__] = f\n@case\n{TEST}for f in tests.values():\n    f()"},
    {"test": f"def now(f):\n    f()\n    return f\n@now\n{TEST}"},
    {"test": BASES.replace("    pass", "    def __init_subclass__(cls):\n        cls().go()")},
    {
        "test": BASES.replace(
            "class Base:\n    pass",
            "cases = []\nclass Base:\n    def __init_subclass__(cls):\n        cases.append(cls)",
        )
        + "for case in cases:\n    case().go()"
    },
    {
        "test": "class Tests(list):\n    def add(self, x):\n        return lambda f: self.append((f, x))\n"
        "tests = Tests()\n@tests.add(3)\ndef one(x):\n    assert square(x) == 9\nfor test, x in tests:\n    test(x)"
    },
    {
        "test": f"T = []\ndef reg(f=None, *, name=None):\n    def d(g):\n        T.append(g)\n        return g\n"
        f"    return d(f) if f else d\n@reg\n{TEST}for f in T:\n    f()"
    },
    {"test": f"import heapq\nT = []\ndef reg(f):\n    heapq.heappush(T, (1, f))\n@reg\n{TEST}for _, f in T:\n    f()"},
    {"test": f"T = {{}}\ndef reg(f):\n    T[f.__name__]: object = f\n@reg\n{TEST}for f in T.values():\n    f()"},
    {"test": f"import sys\n{CASE}if not {SUITE}.wasSuccessful():\n    sys.exit(1)"},
    # an exit that counts what failed
    {"test": "import sys\nfailed = sum(square(x) != x * x for x in range(4))\nif failed:\n    sys.exit(failed)"},
    {"test": "import sys\nwrong = max(square(x) != x * x for x in range(4))\nwrong and sys.exit(wrong)"},
    {
        "test": "import sys\nfailed = 0\nfor x in range(5):\n    if square(x) != x * x:\n        failed += 1\n"
        "if failed:\n    sys.exit(failed)"
    },
    # a file that is handed on only where there is one
    {"test": "import pytest\nassert square(3) == 9\nif '__file__' in globals():\n    pytest.main([__file__])"},
    {
        "test": "# as a file: pytest.main([__file__])\nhere = __file__ if '__file__' in globals() else ''\n"
        "assert square(3) == 9"
    },
    # the program's name with another value
    {"test": "import functools\nsquare = functools.cache(square)\nassert square(3) == 9"},
    {"test": "given = square\ndef square(x):\n    return given(x)\nassert square(3) == 9"},
    {"test": "pass", "entry_point": "square", "prompt": CHECK},
    {"test": "class T:\n    def go(self):\n        y = (lambda: square(3))()\n        assert y == 9\nT().go()"},
]


@pytest.mark.parametrize(("fields", "why"), NO_TESTS)
def test_tests_that_all_programs_pass_or_none_are_no_reference(fields, why):
    """With the former every trial agreed and every trace was right, and an early exit was certified to lose nothing."""
    assert re.match(why, kind("code").why_no_reference(json.dumps(fields)) or "")


@pytest.mark.parametrize("fields", TESTS)
def test_forms_of_tests(fields):
    reference = json.dumps(fields)
    assert kind("code").why_no_reference(reference) is None
    program, wrong = "def square(x):\n    return x * x", "def square(x):\n    return x + 7"
    if "Squarer" in reference:  # whose method is to be filled
        program, wrong = "        return x * x", "        return x + 7"
    assert same_answer(program, reference, "code")
    assert not same_answer(wrong, reference, "code")


@pytest.mark.parametrize(
    "fields",
    [
        {"test": "for x in (1, 2):\n    assert square(x) is not None"},
        {"test": "a = square()\nb = square()\nassert a is b"},
        {"test": "for name in ('push', 'pop'):\n    assert hasattr(square, name)"},
        {"test": "def check(candidate):\n    y = candidate(3)\n    assert y is not None", "entry_point": "square"},
    ],
)
def test_tests_may_ask_whether_there_is_an_answer_or_the_same_one_or_a_name(fields):
    """They failed with programs, and were refused as tests that pass whatever the program says."""
    reference = json.dumps(fields)
    assert kind("code").why_no_reference(reference) is None
    assert not same_answer("x = iter(range(9))\ndef square(n=0):\n    return next(x) or None", reference, "code")


def test_a_program_may_take_a_name_of_pythons():
    """MBPP has a task whose program is called sum, and the whole file was refused."""
    for test in ("sum(10,15) == 6", "max([1, 2]) == 2"):
        assert kind("code").why_no_reference(json.dumps({"test": f"assert {test}"})) is None


def test_tests_may_assert_with_what_the_program_imports():
    test = "np.testing.assert_allclose(square(3), 9)"
    assert kind("code").why_no_reference(json.dumps({"test": test})) is None


@pytest.mark.parametrize("filter_", ["error", "always"])
def test_what_python_warns_of_in_a_program_is_not_told_and_changes_no_verdict(filter_):
    """By thousands of models' programs, as ``<unknown>:1``; and where a warning is an error, they were no programs."""
    one, other = 'x = 1if y else "\\d"', 'x = (1 if y else "\\\\d")'
    future = "from __future__ import annotations"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter(filter_)
        assert kind("code").plainly_same(one, other)
        assert kind("code").why_no_reference(one) is None
        assert Checks(f"{one}\nassert f(x) is 1", prompt=one).flaw() is None
        assert Checks("", prompt=one).around(future).startswith(future)
    assert told == []


@pytest.mark.parametrize("reference", ["42", "1/2", "A", "yes", "(x, y)", "# nothing", '"text"', "{}"])
def test_an_answer_is_no_program(reference):
    assert "neither tests" in (kind("code").why_no_reference(reference) or "")


@pytest.mark.parametrize("reference", ["", " \n"])
def test_nothing_is_no_program(reference):
    assert "is empty, expected an answer, or null" in (kind("code").why_no_reference(reference) or "")


def test_time_is_limited():
    assert not sandbox.run("while True: pass", seconds=1)
    assert not sandbox.run("import time\ntime.sleep(10_000)", seconds=1)


def test_programs_agree_if_both_pass():
    one, other, wrong = PASSING[0], PASSING[1], FAILING[0]
    assert agree(one, other, "code", SQUARE.dumps())
    assert not agree(one, wrong, "code", SQUARE.dumps())
    assert not agree(one, other, "code")  # nothing says so
    assert agree(one, one + "  # a comment\n", "code")
    assert not agree(wrong, "def square(x):\n    return x + 1", "code", SQUARE.dumps())
    assert not agree(None, None, "code", SQUARE.dumps())


def test_a_platform_without_a_sandbox_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "_missing", lambda: "this is darwin on arm64")
    kind.cache_clear()
    with pytest.raises(AnswerError, match=r"answer kind code: programs are run in a sandbox only.*darwin on arm64"):
        kind("code")
    kind.cache_clear()
    assert sys.platform == "linux"  # where these tests run at all
