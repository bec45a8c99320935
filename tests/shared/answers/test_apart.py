"""The process beside ours that compares: it is ended, asked once, and servers ask it by a command."""

import json
import signal
import subprocess
import sys

import pytest

from specexit.data.answers import apart, same_answer


def test_a_comparison_that_never_ends_is_ended(monkeypatch, caplog):
    monkeypatch.setattr(apart, "TIME_LIMIT", 0.5)
    assert not same_answer("9^{9^{9^{9}}}", "9^{9^{9^{8}}}")
    assert "comparing math answers took too long, so they differ: '9^{9^{9^{8}}}'" in caplog.text
    monkeypatch.undo()
    assert same_answer("(x+2)^2", "x^2+4x+4")  # with a new process


def test_a_comparison_is_made_once(monkeypatch):
    asked = []
    monkeypatch.setattr("specexit.data.answers.base.compare_apart", lambda *pair: asked.append(pair) or True)
    assert same_answer("y+17", "17+y")
    assert same_answer("17+y", "y+17")
    assert asked == [("math", "17+y", "y+17")]


def test_a_comparison_that_was_ended_is_made_again(monkeypatch):
    verdicts = iter([None, True])

    def compare(*asked):
        verdict = next(verdicts)
        if verdict is None:
            raise apart.NoVerdict
        return verdict

    monkeypatch.setattr("specexit.data.answers.base.compare_apart", compare)
    assert not same_answer("y+18", "18+y")
    assert same_answer("y+18", "18+y")


def test_a_comparison_is_limited_by_the_time_of_the_processor():
    """A limit of the clock would make verdicts depend on what else the machine does."""
    limited = "from specexit.data.answers import apart, math; math.MATH.processor_limit = 0.3; apart.main()"
    asked = json.dumps([0, "math", "9^{9^{9^{9}}}", "9^{9^{9^{8}}}"])
    done = subprocess.run([sys.executable, "-c", limited], input=asked, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("ready\n", -signal.SIGPROF)


def test_what_the_processors_limit_has_ended_is_not_made_again(monkeypatch):
    """It would take as long each time, as replays ask for the same pairs again and again."""
    limited = "from specexit.data.answers import apart, math; math.MATH.processor_limit = 0.3; apart.main()"
    started, start = [], subprocess.Popen

    def with_little_time(command, **how):
        started.append(command)
        return start([sys.executable, "-c", limited], **how)

    apart._close()
    monkeypatch.setattr(apart.subprocess, "Popen", with_little_time)
    for _ in range(2):
        assert not same_answer("9^{9^{9^{9}}}", "8^{9^{9^{8}}}")
    assert len(started) == 1


def test_the_command_that_servers_compare_with():
    def ask(pair: str) -> str:
        command = [sys.executable, "-m", "specexit.data.answers"]
        return subprocess.run(command, input=pair, capture_output=True, text=True, check=True).stdout.strip()

    assert ask(r'["0.5", "\\frac{1}{2}"]') == "true"
    assert ask('["B", "(b)", "choice"]') == "true"
    assert ask("[null, null]") == "false"
    assert ask(json.dumps({"text": "It is (B).\n\nAnswer: sun", "kind": "choice", "options": ["ice", "sun"]})) == '"B"'
    assert ask(json.dumps({"text": "No idea.", "kind": "math", "options": None})) == "null"


def test_the_command_of_servers_judges_a_comparison_that_never_ends_as_a_calibration_does():
    """It ran until the server ended it, which then counted nothing."""
    code = "from specexit.data.answers import apart; apart.TIME_LIMIT = 0.5; import runpy; "
    command = [sys.executable, "-c", code + "runpy.run_module('specexit.data.answers', run_name='__main__')"]
    asked = json.dumps(["9^{9^{9^{9}}}", "9^{9^{9^{8}}}"])
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, timeout=300)
    assert (done.stdout, done.stderr) == ("false\n", "")  # nor is a client's answer in the server's log


@pytest.mark.parametrize("stated", ["<answer>", "answer: x"])
def test_a_run_of_spaces_is_passed_over_once(stated):
    """Tens of thousands of them used to take a server's front end minutes, and in front of a tag years.

    Looking at each of them from each of them would take a hundred times the limit.
    """
    text = f"{stated}{' ' * 200_000}y\nThe answer is B."
    code = "import resource, runpy; resource.setrlimit(resource.RLIMIT_CPU, (10, 10)); "
    command = [sys.executable, "-c", code + "runpy.run_module('specexit.data.answers', run_name='__main__')"]
    asked = json.dumps({"text": text, "kind": "choice", "options": None})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == "B"
