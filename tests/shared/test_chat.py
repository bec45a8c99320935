"""The terminal client's reading of a stream, without a server."""

import contextlib
import io
import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from specexit import chat as client_side
from specexit.chat import END_KEY, ChatError, Client, Turn, ask, body_of, saved
from specexit.config import ConfigError, load
from specexit.keys import single_keys
from specexit.schemas.chat import ChatConfig
from specexit.schemas.sampling import NEUTRAL

SIGNALS = {"confidence": 0.9, "progress": 0.5, "remaining": 100.0, "validity": 0.4}
COVERED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


def chunk(report=None, tokens=0, **delta):
    body = {"choices": [{"index": 0, "delta": delta}], "usage": {"completion_tokens": tokens}}
    return body | ({"kv_transfer_params": {"specexit": report}} if report else {})


def report(outcome="thinking", tokens=10, signals=SIGNALS):
    return {"outcome": outcome, "thinking_tokens": tokens, "signals": signals}


def test_a_text_with_both_is_parted_at_the_marker_wherever_chunks_end():
    text = "So it is 4.</think>\n\nFour."
    for size in range(1, len(text)):
        turn = Turn()
        pieces = [turn.take(chunk(content=text[i : i + size])) for i in range(0, len(text), size)]
        assert (turn.thinking, turn.answer, turn.over) == ("So it is 4.", "\n\nFour.", True)
        assert "".join(pieces) == turn.answer


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_a_server_with_a_reasoning_parser_parts_it_itself(name):
    turn = Turn()
    assert turn.take(chunk(**{name: "So it is 4."})) == ""
    assert not turn.over
    assert turn.take(chunk(content="Four.")) == "Four."
    assert (turn.thinking, turn.answer, turn.over) == ("So it is 4.", "Four.", True)


@pytest.mark.parametrize("empty", [{}, {"choices": None}, {"choices": [{"index": 0}]}, {"choices": [{"delta": None}]}])
def test_a_chunk_without_text_is_passed_over(empty):
    """As a last one with the usage alone; it was a traceback."""
    turn = Turn()
    assert [turn.take(one) for one in (chunk(content="a</think>b"), empty, chunk(content="c"))] == ["b", "", "c"]


def test_a_usage_that_says_nothing_changes_no_count():
    """It was a traceback, at the next bar."""
    turn = Turn()
    turn.take(chunk(report(tokens=10), tokens=10, content="a"))
    turn.take(chunk(tokens=None, content="b"))
    assert turn.progress() == (0.5, "thinking 50 %, about 100 tokens left")


@pytest.mark.parametrize("timeout", ["inf", ".inf", ".nan", "1e12", "0"])
def test_a_timeout_that_no_socket_takes_is_refused(timeout):
    with pytest.raises(ConfigError, match="config: timeout is "):
        load(ChatConfig, None, [f"timeout={timeout}"])


def test_a_request_without_thinking_is_all_answer():
    turn = Turn()
    assert turn.take(chunk(report("answering", 0, {}), content="Four.")) == "Four."
    assert turn.thinking == ""


def test_the_bar_starts_at_a_verdict_and_moves_with_the_tokens_behind_it():
    turn = Turn()
    turn.take(chunk(report(tokens=5, signals={}), tokens=5, content="a"))
    assert turn.progress() == (0.0, "thinking, 5 tokens so far")
    turn.take(chunk(report(tokens=10), tokens=10, content="b"))
    assert turn.progress() == (0.5, "thinking 50 %, about 100 tokens left")
    turn.take(chunk(tokens=60, content="c"))
    assert turn.progress() == (0.75, "thinking 75 %, about 50 tokens left")
    turn.take(chunk(tokens=500, content="d"))
    assert turn.progress() == (1.0, "thinking 100 %, about 0 tokens left")
    turn.take(chunk(report(tokens=500, signals=SIGNALS | {"progress": 0.8}), tokens=501, content="e"))
    assert turn.progress()[0] == pytest.approx(0.802)


@pytest.mark.parametrize("missing", ["progress", "remaining"])
def test_a_signal_that_is_no_number_is_left_out_of_a_report_and_the_bar_waits_for_it(missing):
    """It was a traceback in the midst of a conversation."""
    turn, signals = Turn(), {name: value for name, value in SIGNALS.items() if name != missing}
    turn.take(chunk(report(tokens=5, signals=signals), tokens=5, content="a"))
    assert turn.progress() == (0.0, "thinking, 5 tokens so far")


def test_what_was_saved_is_only_said_where_it_is_known():
    server = {"shadow": {"exits": 3, "before": 100, "behind": 300}}
    assert "about 30 saved, judging by 3 requests" in saved(report("exit"), server)
    assert "not known here" in saved(report("exit"), {"shadow": {"exits": 0, "before": 0, "behind": 0}})
    assert "nothing saved" in saved(report("natural_end"), server)
    assert "an exit after 4 would have saved 6" in saved(report("natural_end") | {"would_exit": 4}, server)
    assert "off" in saved({}, {})


@pytest.mark.parametrize(
    ("server", "temperature", "sampling"),
    [
        ({"covers": {"sampling": COVERED}}, None, NEUTRAL | COVERED),
        ({"covers": {"sampling": COVERED}}, 0.0, NEUTRAL | {"temperature": 0.0}),
        ({"covers": {"sampling": None}}, None, {}),
        ({}, None, {}),  # one without the plug-in
    ],
)
def test_a_question_is_sampled_as_the_servers_certificates_are_of(server, temperature, sampling):
    """It was greedy, whatever the model card said: no certificate covered it, and some models repeat themselves so.

    Where the model's generation_config.json has a penalty, a server puts it into every question that names none.
    """
    body = body_of(ChatConfig(temperature=temperature), "m", [], server)
    assert {key: body[key] for key in body.keys() & (NEUTRAL | COVERED).keys()} == sampling


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://localhost:80x", "http://local host:8000"])
def test_a_url_that_is_none_of_a_server_is_refused(url):
    with pytest.raises(ChatError, match=f"url is '{url}', expected http"):
        Client(ChatConfig(url=url))


@pytest.mark.parametrize("end", ["\n", "\u20ac"])
def test_an_api_key_that_no_header_can_hold_is_refused_and_not_shown(end):
    with pytest.raises(ChatError, match="api_key has a line end or a character") as error:
        Client(ChatConfig(api_key=f"secret{end}"))
    assert "secret" not in str(error.value)


class Dies(BaseHTTPRequestHandler):
    """A server that is gone in the midst of its answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        data = b"data: " + json.dumps(chunk(content="on ")).encode() + b"\n\n"
        cut = self.path == "/cut"
        self.wfile.write(b"%x\r\n%s" % (len(data) + cut, data if cut else data + b"\r\n"))
        self.close_connection = True

    def log_message(self, format, *arguments): ...


@pytest.mark.parametrize(("path", "told"), [("/cut", "IncompleteRead"), ("/whole", "the server stopped in the midst")])
def test_a_server_that_dies_while_it_answers_is_an_error_of_one_line(path, told):
    """In a piece of its answer, or between two: that one looked like the end of it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Dies) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        chunks = Client(ChatConfig(url=url)).stream(path, {})
        assert next(chunks) == chunk(content="on ")
        with pytest.raises(ChatError, match=f"^{url}{path}: {told}"):
            next(chunks)
        server.shutdown()


@pytest.mark.parametrize("answer", ["{}", "[]", '{"data": []}', '{"data": [7]}'])
def test_a_server_of_no_models_is_an_error_of_one_line(answer, monkeypatch):
    """Another program that speaks JSON at that port."""
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: io.BytesIO(answer.encode()))
    with pytest.raises(
        ChatError, match=r"^http://localhost:8000/v1/models: answers .*, expected a (model in|JSON obj)"
    ):
        client_side.chat(ChatConfig(prompt="hi"))


@pytest.mark.parametrize(("code", "remedy"), [(401, "; expected an api_key that it takes"), (503, "")])
def test_a_server_that_wants_a_key_says_which_setting_has_it(code, remedy, monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, code, "", {}, io.BytesIO(b'{"error": "no"}'))

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ChatError) as error:
        Client(ChatConfig()).get("/v1/models")
    assert str(error.value) == f'http://localhost:8000/v1/models: {code}: {{"error": "no"}}{remedy}'


class Server(Client):
    """What `ask` needs of a client: chunks of one response, and a place to post to."""

    def __init__(self, *refusal, pieces=("So it is ", "4.", "</think>", "Four."), said=None):
        self.refusal, self.posted, self.pieces, self.said = refusal, [], pieces, said

    def stream(self, path, body):
        for piece in self.pieces:
            yield chunk(self.said, content=piece) | {"id": "chatcmpl-1"}

    def post(self, path, body):
        self.posted.append((path, body))
        if self.refusal:
            raise ChatError(*self.refusal)


CLOSED = (
    "http://localhost:8000/v1/chat/completions/control: 404: this route is closed; an operator opens it by "
    "serving.routes: [interrupt]"
)
"""What a server answers as it is by default: longer than a line, and rich takes `[interrupt]` for a style."""


@pytest.mark.parametrize("refusal", [(), (CLOSED,)], ids=["done", "refused"])
def test_a_key_ends_the_thinking_and_a_refusal_is_shown(refusal, monkeypatch):
    pressed = iter([None, END_KEY, None, None])

    @contextlib.contextmanager
    def keys():
        yield lambda: next(pressed)

    monkeypatch.setattr(client_side, "single_keys", keys)
    server, shown = Server(*refusal), io.StringIO()
    turn = ask(server, {}, "</think>", Console(file=shown, width=80 if refusal else 200), show_thinking=False)
    assert server.posted == [("/v1/chat/completions/control", {"id": "chatcmpl-1", "action": "reasoning_end"})]
    assert turn.answer == "Four."
    assert (refusal[0] if refusal else "to answer at the next paragraph end") in shown.getvalue()


SAID = {"none": None, "off": report("off", 0, {}), "cut off": report("length", 9), "off, cut off": report("off", 9, {})}


@pytest.mark.parametrize("said", list(SAID.values()), ids=list(SAID))
def test_where_nobody_thinks_and_no_report_says_so_the_text_is_the_answer(said):
    """As of a server without the plug-in, or in mode `off`: nothing was shown, and the next turn had no answer."""
    server, shown = Server(pieces=("Two and ", "two are four."), said=said), io.StringIO()
    turn = ask(server, {}, "</think>", Console(file=shown, width=80), show_thinking=True)
    thought = bool(said and said["thinking_tokens"])  # and was cut off before an answer came
    assert (turn.thinking, turn.answer) == (("Two and two are four.", "") if thought else ("", "Two and two are four."))
    assert shown.getvalue().count("Two and two are four.") == 1


def test_what_the_model_writes_is_shown_as_it_is():
    """`:b:` and `:o:` are emojis for rich, `[i]` is a style, and a line ended at 80 columns where nobody looks on."""
    line = "a ratio a:b:c, xs[i:o:2], xs[i] and" + 20 * " so on" + "."
    server, shown = Server(pieces=(line, "</think>", line)), io.StringIO()
    turn = ask(server, {}, "</think>", Console(file=shown, width=80), show_thinking=True)
    assert turn.answer == line
    assert shown.getvalue().count(line) == 2


def test_nothing_that_a_model_writes_moves_the_cursor():
    """Its escape sequences reached the terminal, which cleared the screen, or set a title or the clipboard."""
    text = "a\x1b[2Jb\x9bmc\x85d\r\ne \N{ZERO WIDTH JOINER}\N{IDEOGRAPHIC SPACE}\N{NO-BREAK SPACE}f"
    server, shown = Server(pieces=(text, "</think>", text, text)), io.StringIO()
    turn = ask(server, {}, "</think>", Console(file=shown, width=80), show_thinking=True)
    assert turn.answer == 2 * text
    expected = "a\\x1b[2Jb\\x9bmc\\x85d\ne \N{ZERO WIDTH JOINER}\N{IDEOGRAPHIC SPACE}\N{NO-BREAK SPACE}f"
    assert shown.getvalue().count(expected) == 3


def test_keys_are_read_as_they_are_pressed_and_the_terminal_is_left_as_it_was(monkeypatch):
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        with single_keys() as key:
            assert key() is None
            os.write(ours, b"e")
            pressed = None
            while pressed is None:  # the line discipline hands it on in its own time
                pressed = key()
            assert (pressed, key()) == ("e", None)
        assert termios.tcgetattr(theirs) == before
    os.close(ours)


def test_without_a_terminal_no_key_is_ever_pressed(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("e"))
    with single_keys() as key:
        assert key() is None


def test_what_ended_the_thinking_is_said():
    assert saved(report("interrupt", 20), {}) == "ended by you after 20 thinking tokens"
    assert saved(report("cap", 30), {}) == "ended at its maximum after 30 thinking tokens"
    assert saved(report("loop", 90), {}) == "ended after 90 thinking tokens, the last of which repeated themselves"


class Thinks(BaseHTTPRequestHandler):
    """A server whose model thinks until it is hung up on."""

    hung_up = threading.Event()

    def do_GET(self):
        found = self.path == "/v1/models"
        body = json.dumps({"data": [{"id": "tiny"}]} if found else {"error": {"message": "no such route"}}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"data: " + json.dumps(chunk(content="on ") | {"id": "1"}).encode() + b"\n\n")
                time.sleep(0.02)
        except OSError:
            self.hung_up.set()

    def log_message(self, format, *arguments): ...


def typed(terminal: int, shown: bytes, until: bytes, keys: bytes) -> bytes:
    """Wait for what a terminal is to show, then press keys."""
    while until not in shown:
        assert select.select([terminal], [], [], 300)[0], shown
        shown += os.read(terminal, 1000)
    os.write(terminal, keys)
    return shown


@pytest.mark.parametrize("thinking", [False, True])
def test_ctrl_d_leaves_at_the_prompt_and_while_the_model_thinks(thinking):
    import termios

    Thinks.hung_up.clear()
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with ThreadingHTTPServer(("127.0.0.1", 0), Thinks) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-m", "specexit", "chat", f"url=http://127.0.0.1:{server.server_port}"]
        client = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},  # on narrower ones there is no room for the key
        )
        shown = typed(ours, b"", b">", b"How many?\n" if thinking else b"\x04")
        if thinking:
            shown = typed(ours, shown, b"answer now", b"\x04")
        assert client.wait(60) == 0
        os.set_blocking(ours, False)
        with contextlib.suppress(BlockingIOError):
            while more := os.read(ours, 1000):
                shown += more
        assert b"error" not in shown
        assert b"Traceback" not in shown
        assert shown.endswith(b"\r\n")
        assert termios.tcgetattr(theirs) == before
        assert Thinks.hung_up.wait(60 if thinking else 0) == thinking
        server.shutdown()
    os.close(ours)
    os.close(theirs)
