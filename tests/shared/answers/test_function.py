"""Answers that a function of the user's judges."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from specexit.data.answers import AnswerError, extract_answer, kind, same_answer
from specexit.data.answers.function import FUNCTIONS
from specexit.data.prompts import PromptError, read_prompts

SOURCE = '''
import os
import subprocess
import sys
import time

def anagram(a, b):
    """Asymmetric in its types on purpose: 1 means the same."""
    return int(sorted(a.replace(" ", "").lower()) == sorted(b.replace(" ", "").lower()))

def contained(answer, reference):
    return answer in reference.split("|")

def picky(a, b):
    raise ValueError(f"no idea about {a}")

def nearly(a, b):
    return 0.5

def endless(a, b):
    time.sleep(1000)

def runs_a_command(a, b):
    subprocess.run(["echo", "[0, true]"])
    return a.lower() == b.lower()

def runs_a_reader(a, b):
    return subprocess.run(["cat"], capture_output=True).stdout == b"" and a.lower() == b.lower()

def writes(a, b):
    print("checked")
    print("true", file=sys.__stdout__, flush=True)
    os.write(1, b"true\\n")
    return a.lower() == b.lower()

def forks(a, b):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return a.lower() == b.lower()

def exits(a, b):
    sys.exit(3)

def crashes(a, b):
    os.abort()

def needs_much(a, b):
    return bool(bytearray(5 << 30)) if "much" in a else a.lower() == b.lower()

class Last:
    @staticmethod
    def extract(text):
        return text.split()[-1] if text.split() else None

    @staticmethod
    def same(a, b):
        return a[-1] == b[-1]

class Odd:
    @staticmethod
    def extract(text):
        return 3

    same = staticmethod(anagram)

number = 5
'''

NAMED = [
    *[
        f"function:judged_by_me:{name}"
        for name in [*re.findall(r"^(?:def|class) (\w+)", SOURCE, re.M), "number", "absent"]
    ],
    *["function:no_such_module:f", "function:judged_badly:f", "function:judged_here:anagram"],
]


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    """The user's module, importable here and in the process that compares."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "judged_by_me.py").write_text(SOURCE)
    from specexit.data.answers import apart

    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(folder))
    patch.setenv(FUNCTIONS, " ".join(["function:", *NAMED]))
    apart._close()  # the next one gets this path
    yield folder
    apart._close()
    patch.undo()


ANAGRAM, CONTAINED = "function:judged_by_me:anagram", "function:judged_by_me:contained"
LAST = "function:judged_by_me:Last"
STRANGER = "function:stranger:f"

CASES = [
    *[(ANAGRAM, a, b, True) for a, b in [("silent", "listen"), ("Dormitory", "dirty room"), ("", " "), ("ab", "BA")]],
    *[(ANAGRAM, a, b, False) for a, b in [("a", "b"), ("aab", "ab"), ("", "a"), ("ä", "a"), ("é", "e\u0301")]],
    *[(CONTAINED, a, "x|y|z", True) for a in "xyz"],
    *[(CONTAINED, a, "x|y|z", False) for a in ("w", "x|y", " x", "X")],
    *[(LAST, a, b, True) for a, b in [("ab", "cb"), ("1.", "2."), ("\n ", "x "), ("日本", "本")]],
    *[(LAST, a, b, False) for a, b in [("ab", "ba"), ("1", "2"), ("日", "本")]],
    *[(name, "same text", "same text", True) for name in (ANAGRAM, CONTAINED, LAST, "function:judged_by_me:picky")],
    *[("function:judged_by_me:nearly", a, b, False) for a, b in [("a", "b"), ("1", "1.0")]],
    ("function:judged_by_me:nearly", "a", "a", True),
]

EXTRACTED = [
    (ANAGRAM, r"So \boxed{listen}", "listen"),
    (ANAGRAM, "  the whole response\n", "the whole response"),
    (ANAGRAM, r"\boxed{cut off", None),
    (ANAGRAM, "  ", None),
    (LAST, "one two", "two"),
    (LAST, "", None),
    (LAST, r"\boxed{3}", r"\boxed{3}"),
]


@pytest.mark.parametrize(("name", "a", "b", "same"), CASES)
def test_the_function_decides_in_either_order(name, a, b, same):
    assert same_answer(a, b, name) == same
    assert same_answer(b, a, name) == same
    assert not same_answer(a, None, name)


@pytest.mark.parametrize(("name", "text", "answer"), EXTRACTED)
def test_what_is_extracted(name, text, answer):
    assert extract_answer(text, name) == answer


@pytest.mark.parametrize("name", ["runs_a_command", "runs_a_reader", "writes", "forks"])
def test_each_verdict_is_its_own_questions(name):
    """What a function does to standard input and output reaches no other verdict, nor any other kind's."""
    for a, b, same in [("x", "y", False), ("A", "a", True), ("p", "q", False), ("C", "c", True)]:
        assert same_answer(a, b, f"function:judged_by_me:{name}") == same
    for n in range(3):
        assert not same_answer(f"{name}+{n}", f"{name}+{n + 1}")
        assert same_answer(f"(x+{n})*2", f"2x+{2 * n}+0*{len(name)}")


@pytest.mark.parametrize("name", ["runs_a_command", "runs_a_reader", "writes"])
def test_a_server_reads_the_verdict_alone(module, name):
    """Servers compare with a command, see `specexit.data.answers.__main__`."""
    command = [sys.executable, "-m", "specexit.data.answers"]
    paths = os.pathsep.join([str(module), os.environ.get("PYTHONPATH", "")])
    asked = json.dumps(["A", "a", f"function:judged_by_me:{name}"])
    done = subprocess.run(
        command, input=asked, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert json.loads(done.stdout) is True


def test_a_function_that_fails_is_named():
    with pytest.raises(AnswerError, match="judged_by_me:picky: comparing 'a' and 'b': ValueError: no idea about a"):
        same_answer("a", "b", "function:judged_by_me:picky")
    with pytest.raises(AnswerError, match="judged_by_me:Odd: extract gives 3, expected a string or None"):
        extract_answer("x", "function:judged_by_me:Odd")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such limit")
def test_answers_whose_comparison_takes_too_much_memory_differ():
    name = "function:judged_by_me:needs_much"
    assert not same_answer("much", "MUCH", name)
    assert same_answer("little", "LITTLE", name)  # by the same process, which has given the memory back


def test_a_function_that_never_returns_is_ended(monkeypatch, caplog):
    from specexit.data.answers import apart

    monkeypatch.setattr(apart, "TIME_LIMIT", 0.5)
    assert not same_answer("a", "b", "function:judged_by_me:endless")
    assert "endless answers took too long, so they differ: 'a' and 'b'" in caplog.text


@pytest.mark.parametrize(("name", "code"), [("exits", 3), ("crashes", -signal.SIGABRT)])
def test_a_function_that_ends_its_process_is_told_so(name, code, caplog):
    assert not same_answer("a", "b", f"function:judged_by_me:{name}")
    assert f"{name} answers ended their process with code {code}, so they differ: 'a' and 'b'" in caplog.text
    assert same_answer("silent", "listen", ANAGRAM)  # with a new process


def test_the_installed_command_finds_a_module_where_it_is_run(module, tmp_path):
    """As ``python -m specexit`` does; ``-P`` leaves the working folder out of the path, as a script does."""
    (tmp_path / "json.py").write_text("raise SystemExit('json of the working folder')")
    (tmp_path / "judged_here.py").write_text((module / "judged_by_me.py").read_text())
    program = """
import sys
from specexit.cli import main
try:
    main()
except SystemExit:
    from specexit.data.answers import kind, same_answer
    print(kind("function:judged_here:anagram").name, same_answer("silent", "listen", "function:judged_here:anagram"))
"""
    done = subprocess.run([sys.executable, "-P", "-c", program, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["function:judged_here:anagram True"], done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("function:no_such_module:f", "No module named 'no_such_module'"),
        ("function:judged_by_me:absent", "no attribute 'absent'"),
        ("function:judged_by_me:number", "is a int, expected a function"),
        ("function:", "expected function:package.module:name"),
        ("poetry", "answer kind 'poetry' does not exist, expected math, choice, text, code or function:module:name"),
    ],
)
def test_kinds_that_do_not_exist(name, message):
    with pytest.raises(AnswerError, match=message):
        kind(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:", r"SyntaxError: .*\(judged_badly.py, line 1\); expected function:package"),
        ("{}['a']", "KeyError: 'a'; expected function:package"),
        ("raise SystemExit(0)", "SystemExit: 0; expected function:package"),  # a script, which would end ours
    ],
)
def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch, source, message):
    (tmp_path / "judged_badly.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AnswerError, match=f"answer kind 'function:judged_badly:f': {message}"):
        kind("function:judged_badly:f")


def test_a_file_alone_makes_no_command_import_a_function(tmp_path, monkeypatch):
    """Whoever wrote the file would choose what is called, with texts of theirs: ``os.system``, or ``timeit.timeit``."""
    (tmp_path / "stranger.py").write_text("def f(a, b): return True\n")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "q", "reference": "1", "answer_kind": STRANGER}))
    monkeypatch.syspath_prepend(tmp_path)
    said = f"answer kind '{STRANGER}': the environment variable {FUNCTIONS} does not name it, .*; if you trust"
    for named in ("", "math stranger:f", f"function:stranger {STRANGER}.g"):
        monkeypatch.setenv(FUNCTIONS, named)
        with pytest.raises(PromptError, match=rf"prompts\.jsonl, line 1: {said}"):
            read_prompts(tmp_path / "prompts.jsonl")
        with pytest.raises(AnswerError, match=said):  # as of a trace
            same_answer("1", "2", STRANGER)
    assert "stranger" not in sys.modules
    monkeypatch.setenv(FUNCTIONS, f"{ANAGRAM} {STRANGER}")
    assert [prompt.answer_kind for prompt in read_prompts(tmp_path / "prompts.jsonl")] == [STRANGER]
    assert "stranger" in sys.modules
