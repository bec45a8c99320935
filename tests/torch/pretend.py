"""A server that pretends to be ``vllm serve`` with the tiny reasoner: its text is generated, not by a model.

It answers as `specexit.tiny.traces` would teach the model to, so that what `collect` makes of it is known exactly and
nothing but HTTP takes time.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from specexit import tiny
from specexit.schemas.collect import CollectConfig
from specexit.schemas.target import TrialConfig, load_target_config
from specexit.tiny.traces import render_response, write_trace

TARGET = load_target_config("tiny-reasoner")
TOKENIZER = TARGET.tokenizer()
THINK = TARGET.think_tokens()

SLOW = "SPECEXIT_KILLS" in os.environ
"""20 kills of a run of 300 prompts; without it 3 of 40."""

N = 300 if SLOW else 40
"""Problems that the server of the tests knows."""


class Pretender:
    """What the model would write.

    Args:
      n: it knows the first ``n`` problems of the test split.
    """

    def __init__(self, n: int):
        self.problems = {problem.question: problem for problem in tiny.problems("test", n)}

    def write(self, ids: list[int], seed: int | None) -> list[int]:
        """The continuation of a prompt, or of a prompt whose thinking was ended."""
        text = TOKENIZER.decode(ids)
        problem = self.problems[text.split("user\n")[1].split("<|im_end|>")[0]]
        trace = write_trace(random.Random(f"{problem.question}{seed}"), problem)
        whole = TOKENIZER.encode(render_response(problem, trace))
        if THINK.end not in ids:
            return whole
        thought = text.split("<think>\n")[1].split("</think>")[0]
        known = thought.count("\n\n") > trace.first_pass
        value = trace.final if known else thought.count("\n\n")
        rest = text.split("</think>")[1]
        answer = f"{value}}}" if rest.endswith("{") else f"\n\nSo \\boxed{{{value}}}."
        return TOKENIZER.encode(f"{answer}<|im_end|>")


class Server:
    """The HTTP side.

    Args:
      pretender: what writes.
      model: the name it goes by.
      wrong_tokens: read text as other tokens than the target does.
      fail_first: answer so many completions with 503 before the first good one.
      together: answer the first completion only when so many requests have come in.
    """

    def __init__(
        self, pretender: Pretender, model: str = "tiny-reasoner", *, wrong_tokens=False, fail_first=0, together=1
    ):
        self.pretender, self.model, self.wrong_tokens, self.to_fail = pretender, model, wrong_tokens, fail_first
        self.fails: Callable[[list[int]], bool] = lambda _: False
        """Whether it answers a prompt with 503, however often it is asked."""
        self.completions, self.closed = 0, False
        self.together = threading.Barrier(together)
        self.largest, self._going, self._lock = 0, 0, threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or the body waits for the headers to be acknowledged, which takes 40 ms

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                self.answer({"data": [{"id": owner.model, "root": owner.model}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if isinstance(body["prompt"], str):
                    ids = TOKENIZER.encode(body["prompt"])
                    choice = {"token_ids": [1], "prompt_token_ids": ids[:: -1 if owner.wrong_tokens else 1]}
                    return self.answer({"model": owner.model, "choices": [choice]})
                with owner._lock:
                    owner._going += 1
                    owner.largest = max(owner.largest, owner._going)
                    owner.completions += 1
                    failing = owner.to_fail > 0
                    owner.to_fail -= failing
                    failing |= owner.fails(body["prompt"])
                if owner.completions <= owner.together.parties:
                    owner.together.wait(60)
                found = {"error": "busy"} if failing else owner.complete(body)
                with owner._lock:
                    owner._going -= 1
                self.answer(found, 503 if failing else 200)

            def answer(self, found: dict[str, Any], code: int = 200) -> None:
                if owner.closed:
                    self.close_connection = True
                    return
                data = json.dumps(found).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # of connections not yet accepted; http.server's 5 are fewer than come at once

            def handle_error(self, *_: Any) -> None: ...

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request for a completion."""
        assert body["return_token_ids"]
        ids = self.pretender.write(body["prompt"], body.get("seed"))
        kept, reason = ids[: body["max_tokens"]], "stop" if len(ids) <= body["max_tokens"] else "length"
        for stop in body["stop"]:
            for i in range(len(kept)):
                if stop in TOKENIZER.decode(kept[: i + 1]):
                    kept, reason = kept[: i + 1], "stop"
                    break
        logprobs = {"token_logprobs": [-0.1] * len(kept)}
        return {
            "model": self.model,
            "choices": [{"token_ids": kept, "finish_reason": reason, "logprobs": logprobs}],
        }

    def close(self) -> None:
        """Stop answering, as a server that was killed."""
        self.closed = True
        self.server.shutdown()
        self.server.server_close()


def config(server: Server, out: Path, **changes: Any) -> CollectConfig:
    """Twelve traces of a server, in files of five."""
    fields = {"target": "tiny-reasoner", "split": "test", "n": 12, "chunk": 5, "out": out, "endpoints": (server.url,)}
    return CollectConfig.model_validate(fields | changes)


def forced(tmp_path: Path, *, kind: str = "math", **trial: Any) -> str:
    """A target of one's own: the tiny reasoner with a forced trial."""
    target = TARGET.model_copy(update={"name": "mine", "trial": {kind: TrialConfig.model_validate(trial)}})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(target.model_dump(mode="json")))
    return str(path)
