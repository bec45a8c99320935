"""``specexit chat``: ask a server with the plug-in, and watch it think. HTTP is all that it needs of the server.

The bar is drawn from the progress and remaining signals, which arrive with the chunks behind a verdict; between two
verdicts it moves with the tokens that have come in.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from specexit.errors import InputError, printable, shown
from specexit.keys import single_keys
from specexit.schemas.chat import ChatConfig
from specexit.schemas.sampling import NEUTRAL
from specexit.schemas.url import why_no_url


class ChatError(InputError):
    """The server cannot be reached, or refuses; the message says what it answered."""


END_KEY = "e"
"""Pressed while the model thinks: answer now."""

LEAVE_KEY = "\x04"
"""Ctrl-D while the model thinks: as at the prompt, the conversation is over."""


_CONTROLS = {code: printable(chr(code)) for code in (*range(0x20), *range(0x7F, 0xA0))} | {9: "\t", 10: "\n", 13: ""}
"""What is shown of a control character, by its code. A terminal would do as it says: clear the screen, set a title or
the clipboard. Joiners and wide spaces, which some scripts need, are none."""


def _show(console: Console, text: str, *, end: str = "\n", style: str | None = None) -> None:
    """Show a text that a server has sent."""
    console.out(text.translate(_CONTROLS), end=end, style=style, highlight=False)


class Client:
    """One server.

    Args:
      config: where it is.
    """

    def __init__(self, config: ChatConfig):
        if (why := why_no_url(config.url)) is not None:
            raise ChatError(f"url is {config.url!r}, expected http://... or https://...: it {why}")
        if any(char in "\r\n" or ord(char) > 255 for char in config.api_key or ""):
            raise ChatError(
                "api_key has a line end or a character beyond Latin-1, expected what an HTTP header can hold"
            )
        self.url, self.timeout = config.url.rstrip("/"), config.timeout
        self.headers = {"Content-Type": "application/json"}
        if config.api_key:
            self.headers["Authorization"] = f"Bearer {config.api_key}"

    @contextlib.contextmanager
    def _open(self, path: str, body: dict[str, Any] | None) -> Iterator[Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                yield response
        except urllib.error.HTTPError as error:
            remedy = "; expected an api_key that it takes" if error.code == 401 else ""
            raise ChatError(f"{self.url}{path}: {error.code}: {_message(error.read())}{remedy}") from error
        except (OSError, http.client.HTTPException) as error:
            raise ChatError(f"{self.url}{path}: {getattr(error, 'reason', error)}") from error

    def get(self, path: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
          ChatError: the server cannot be reached, refuses, or is another kind of server.
        """
        with self._open(path, None) as response:
            return self._read(path, response.read().decode(errors="replace"))

    def _read(self, path: str, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ChatError(f"{self.url}{path}: answers {text[:40]!r}..., expected JSON") from error
        if not isinstance(found, dict):
            raise ChatError(f"{self.url}{path}: answers {text[:40]!r}, expected a JSON object")
        return found

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Send a JSON document.

        Raises:
          ChatError: the server cannot be reached, or refuses.
        """
        with self._open(path, body) as response:
            response.read()

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The chunks of a streamed response.

        Raises:
          ChatError: the server cannot be reached, refuses, or fails while it answers.
        """
        with self._open(path, body) as response:
            for line in response:
                data = line.decode(errors="replace").removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if line.startswith(b"data:"):
                    chunk = self._read(path, data)
                    if "error" in chunk:
                        raise ChatError(f"{self.url}{path}: {_message(data.encode())}")
                    yield chunk
        raise ChatError(f"{self.url}{path}: the server stopped in the midst of its answer, expected [DONE] at the end")


def _message(body: bytes) -> str:
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip() or "no message"


@dataclass
class Turn:
    """One response, as far as it has come in."""

    think_end: str = "</think>"
    thinking: str = ""
    answer: str = ""
    over: bool = False
    """Whether the thinking is over."""
    tokens: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    """What the plug-in said last."""
    judged_at: int = 0
    """Thinking tokens at the last verdict."""
    _parsed: bool = False

    def take(self, chunk: dict[str, Any]) -> str:
        """Take in one chunk; returns the part of the answer that it has brought.

        A server with a reasoning parser tells thinking and answer apart by itself; from others the text comes whole.
        """
        before = len(self.answer)
        self.tokens = (chunk.get("usage") or {}).get("completion_tokens") or self.tokens
        self._listen((chunk.get("kv_transfer_params") or {}).get("specexit"))
        for choice in chunk.get("choices") or ():  # not every chunk brings text
            delta = choice.get("delta") or {}
            reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
            content = delta.get("content") or ""
            self.thinking += reasoning
            self._parsed = self._parsed or bool(reasoning)
            self.over = self.over or (self._parsed and bool(content))
            if self.over:
                self.answer += content
            else:
                self.thinking, marker, answer = (self.thinking + content).partition(self.think_end)
                self.over, self.answer = bool(marker), answer
        return self.answer[before:]

    def end(self) -> str:
        """Take in the end of the response; returns the part of the answer that is known to be one only now.

        That is all of the text where neither a marker nor a report told of any thinking: the model does not think.
        """
        silent = self.report.get("outcome", "off") == "off" and not self.report.get("thinking_tokens")
        if self.over or self._parsed or not silent:
            return ""
        self.thinking, self.answer, self.over = "", self.thinking, True
        return self.answer

    def _listen(self, report: dict[str, Any] | None) -> None:
        if report is None:
            return
        if report["signals"] != self.report.get("signals"):
            self.judged_at = report["thinking_tokens"]
        self.over = self.over or (report["outcome"] == "answering" and not report["thinking_tokens"])
        self.report = report

    def progress(self) -> tuple[float, str]:
        """Share of the needed thinking that is done, and a line about it.

        Example:
          >>> turn = Turn(tokens=130, judged_at=100)
          >>> turn.report = {"signals": {"progress": 0.5, "remaining": 120.0}}
          >>> turn.progress()
          (0.625, 'thinking 62 %, about 90 tokens left')
        """
        signals = self.report.get("signals", {})
        if not {"remaining", "progress"}.issubset(signals):  # none yet, or one is no number and left out
            return 0.0, f"thinking, {self.tokens} tokens so far"
        remaining = signals["remaining"]
        left = max(remaining - max(self.tokens - self.judged_at, 0), 0.0)
        done = 1 - (1 - signals["progress"]) * (left / remaining if remaining else 0.0)
        return done, f"thinking {done:.0%}".replace("%", " %") + f", about {left:.0f} tokens left"


def saved(report: dict[str, Any], server: dict[str, Any]) -> str:
    """What an outcome means for the reader, in one line.

    Args:
      report: of the finished request.
      server: what ``GET /v1/specexit`` says.

    Example:
      >>> report = {"outcome": "exit", "thinking_tokens": 60, "signals": {"validity": 0.97}}
      >>> saved(report, {"shadow": {"exits": 8, "before": 400, "behind": 600}})
      'ended after 60 thinking tokens at validity 0.97; about 90 saved, judging by 8 requests that thought on here'
    """
    tokens, shadow = report.get("thinking_tokens", 0), server.get("shadow", {})
    if "would_exit" in report:
        kept = report["would_exit"]
        return f"{tokens} thinking tokens; an exit after {kept} would have saved {tokens - kept} (shadow mode or audit)"
    if report.get("outcome") == "exit":
        validity = report["signals"].get("validity", math.nan)  # an exit at a maximum may come before any verdict
        text = f"ended after {tokens} thinking tokens at validity {validity:.2f}; "
        if not shadow.get("exits"):
            return text + "how many were saved is not known here, where no request has thought on"
        about = tokens * shadow["behind"] / shadow["before"]
        return text + f"about {about:.0f} saved, judging by {shadow['exits']} requests that thought on here"
    if report.get("outcome") == "interrupt":
        return f"ended by you after {tokens} thinking tokens"
    if report.get("outcome") == "cap":
        return f"ended at its maximum after {tokens} thinking tokens"
    if report.get("outcome") == "loop":
        return f"ended after {tokens} thinking tokens, the last of which repeated themselves"
    if report.get("outcome") == "natural_end":
        return f"{tokens} thinking tokens to the natural end; nothing saved"
    if report.get("outcome") == "length":
        return f"cut off by max_tokens after {tokens} thinking tokens"
    return "no exits: they are off for this request, or the server has no SpecExit draft"


def body_of(config: ChatConfig, model: str, messages: list[dict[str, str]], server: dict[str, Any]) -> dict[str, Any]:
    """The request for the next turn of a conversation; ``server`` as in `saved`.

    Where the config names no temperature, the sampling is the one that the server's certificates cover, or else the
    server's own. Certificates cover none with a penalty, which a server may have as its default.
    """
    covers = (server.get("covers") or {}).get("sampling") or {}
    sampling = covers if config.temperature is None else {"temperature": config.temperature}
    neutral = NEUTRAL if covers else {}
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "skip_special_tokens": False,  # in some tokenizers the think markers are special, and would be lost
        "vllm_xargs": config.arguments,
    }
    return body | neutral | sampling | ({"max_tokens": config.max_tokens} if config.max_tokens else {})


def end_thinking(client: Client, request: str, console: Console) -> str:
    """Have the server end a request's thinking at its next boundary; returns what the bar then says about that.

    A refusal is printed above the bar, where there is room for all of it.
    """
    try:
        client.post("/v1/chat/completions/control", {"id": request, "action": "reasoning_end"})
    except ChatError as error:
        _show(console, str(error))
        return ""
    return " (to answer at the next paragraph end)"


def ask(client: Client, body: dict[str, Any], think_end: str, console: Console, *, show_thinking: bool) -> Turn:
    """One turn: a live bar while the model thinks, then the answer as it comes.

    Raises:
      ChatError: see `Client.stream`.
      EOFError: `LEAVE_KEY` was pressed; the server has been hung up on.
    """
    turn = Turn(think_end)
    with contextlib.closing(client.stream("/v1/chat/completions", body)) as chunks:
        answer = _watch(client, turn, chunks, console) or turn.end()
        if show_thinking:
            _show(console, turn.thinking.strip(), style="dim")
        _show(console, answer.lstrip(), end="")
        for chunk in chunks:
            _show(console, turn.take(chunk), end="")
    console.print()
    return turn


def _watch(client: Client, turn: Turn, chunks: Iterator[dict[str, Any]], console: Console) -> str:
    """Follow the thinking to its end; returns what there is of the answer by then."""
    answer = ""
    columns = (TextColumn("{task.description}", markup=False), BarColumn())
    with single_keys() as key, Progress(*columns, console=console, transient=console.is_terminal) as bar:
        task, note = bar.add_task("thinking", total=1.0), f" ({END_KEY}: answer now)" if sys.stdin.isatty() else ""
        for chunk in chunks:
            answer = turn.take(chunk)
            pressed = key()
            if pressed == LEAVE_KEY:
                raise EOFError
            if pressed == END_KEY:
                note = end_thinking(client, chunk["id"], bar.console)
            done, text = turn.progress()
            bar.update(task, completed=done, description=text + note)
            if turn.over:
                break
    return answer


def chat(config: ChatConfig) -> None:
    """One question, or a conversation until the end of the input, which Ctrl-D is on a terminal.

    Raises:
      ChatError: the server cannot be reached, or refuses.
    """
    console, client = Console(), Client(config)
    model = config.model or _first_model(client)
    try:
        _converse(config, client, model, console)
    except EOFError:
        console.print()  # what comes behind, a shell's prompt, begins on a line of its own


def _first_model(client: Client) -> str:
    found = client.get("/v1/models")
    try:
        return found["data"][0]["id"]
    except (KeyError, IndexError, TypeError) as error:
        said = f"{client.url}/v1/models: answers {shown(found, 40)}, expected a model in its data"
        raise ChatError(f"{said}: is it a server of models?") from error


def _converse(config: ChatConfig, client: Client, model: str, console: Console) -> None:
    """Turn by turn.

    Raises:
      EOFError: the input is at its end.
    """
    server = _server(client)
    messages: list[dict[str, str]] = []
    while True:
        messages.append({"role": "user", "content": config.prompt or _next_prompt(console)})
        body = body_of(config, model, messages, server)
        turn = ask(client, body, server.get("think_end", "</think>"), console, show_thinking=config.show_thinking)
        console.print(saved(turn.report, _server(client)), style="dim", highlight=False)
        messages.append({"role": "assistant", "content": turn.answer.strip()})
        if config.prompt:
            return


def _server(client: Client) -> dict[str, Any]:
    try:
        return client.get("/v1/specexit")
    except ChatError:
        return {}  # a server without the plug-in answers questions, too


def _next_prompt(console: Console) -> str:
    while not (prompt := console.input("[bold]>[/bold] ").strip()):
        continue
    return prompt
