"""A server for twenty minutes under everything that real ones meet: clients of all kinds, some of which hang up, ask
for nonsense or end their thinking, while policies are reloaded, the draft's weights are replaced piece by piece, the
engine sleeps and wakes, and running requests are put back, or preempted for want of KV blocks. ``make soak``, and in
``make test-slow``.

The checking mode is on: the engine would die of a row that is not what its request's tokens say, and all clients fail.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import urllib.error
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from specexit.drafts.policy import OperatingPoint, read_policy, write_policy
from tests.serving.test_load import act, body, memory, settled

SECONDS = float(os.environ.get("SPECEXIT_SOAK", "0"))
A_SECOND = 5000 / 1200
"""Requests that are to be answered in each, at least."""
CLIENTS, SLICES = 32, 20

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not SECONDS, reason="twenty minutes: make soak, make test-slow"),
]


@pytest.fixture(scope="module")
def draft(drafts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft of two operating points."""
    folder = tmp_path_factory.mktemp("soak") / "draft"
    shutil.copytree(drafts / "draft", folder)
    file = read_policy(folder)
    rare = OperatingPoint(name="rare", policy=file.point().policy.model_copy(update={"patience": 3}))
    write_policy(folder, file.model_copy(update={"points": (*file.points, rare)}))
    return folder


@pytest.fixture(scope="module")
def soaked(start_server, draft: Path):
    """Few KV blocks, loops looked for, thinking ended with a text."""
    serving = {"requests": "any", "routes": ["reports", "interrupt"], "transition": "I should answer now."}
    environment = {
        "VLLM_SERVER_DEV_MODE": "1",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "SPECEXIT_SERVING": json.dumps(serving | {"loop_period": 32, "loop_repeats": 3}),
    }
    arguments = ("--worker-extension-cls", "worker_extension.Remembered", "--num-gpu-blocks-override", "48")
    with start_server("soaked", draft, *arguments, environment=environment) as server:
        yield server


def interrupt(server, number: int) -> str:
    """A client that ends its thinking after a few words."""
    request = body(random.Random(number), {"specexit_validity": 1.0})[1] | {"max_tokens": 200}
    request = {key: value for key, value in request.items() if key != "prompt"}
    request["messages"] = [{"role": "user", "content": "How many apples are 3 and 4?"}]
    reports = []
    for i, chunk in enumerate(server.stream("/v1/chat/completions", request)):
        if i == 8:
            control = {"id": chunk["id"], "action": "reasoning_end", "now": number % 2 == 0}
            try:
                server.post("/v1/chat/completions/control", control)
            except urllib.error.HTTPError as error:
                if error.code != 404:  # its thinking was over
                    raise
        reports.append(chunk.get("kv_transfer_params") or {})
    return [report["specexit"]["outcome"] for report in reports if "specexit" in report][-1]


def reload(server, draft: Path, number: int) -> None:
    file = read_policy(draft)
    write_policy(draft, file.model_copy(update={"default": file.points[number % 2].name}))


def replace_weights(server, draft: Path, number: int) -> None:
    """In two parts, between which requests are answered by a draft that is half new."""
    for part in range(2):
        call = {"method": "send_draft_weights", "args": [part]}
        server.post("/collective_rpc", call)
        time.sleep(0.2)


def sleep(server, draft: Path, number: int) -> None:
    server.post("/sleep?level=1&mode=keep", {})
    time.sleep(0.2)
    server.post("/wake_up", {})


def put_back(server, draft: Path, number: int) -> None:
    server.post("/reset_prefix_cache?reset_running_requests=true", {})


DISTURBANCES = (reload, replace_weights, sleep, put_back)


def disturb(server, draft: Path, stop: Event) -> Counter[str]:
    """One thing after the other, every half second, until told to stop."""
    done: Counter[str] = Counter()
    while not stop.wait(0.5):
        disturbance = DISTURBANCES[done.total() % len(DISTURBANCES)]
        disturbance(server, draft, done.total() // len(DISTURBANCES))
        done[disturbance.__name__] += 1
    return done


def test_nothing_fails_and_nothing_stays(soaked, draft):
    came, used, stop, number = Counter[str](), [], Event(), 0
    begun = time.monotonic()

    def client(number: int) -> str:
        return interrupt(soaked, number) if number % 10 == 3 else act(soaked, 0, number)

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        for end in ((i + 1) * SECONDS / SLICES for i in range(SLICES)):
            stop.clear()
            disturber = pool.submit(disturb, soaked, draft, stop)
            while time.monotonic() - begun < end or number < end * A_SECOND:
                came.update(pool.map(client, range(number, number + 2 * CLIENTS)))
                number += 2 * CLIENTS
            stop.set()
            came.update(disturber.result())
            assert settled(soaked) == 0
            used.append(memory(soaked))
    print(number, "requests", [f"{n / 2**20:.1f}" for n in used], dict(came))
    state: dict[str, Any] = json.loads(soaked.get("/v1/specexit"))
    assert (state["active"], state["reason"]) == (True, None)
    assert number >= SECONDS * A_SECOND
    assert min(came[d.__name__] for d in DISTURBANCES) >= SECONDS / 60
    assert min(came[name] for name in ("refused", "aborted", "exit", "interrupt", "natural_end", "length")) > 0
    assert preemptions(soaked) > 0
    # What vLLM itself keeps for each batch shape that it meets has been kept by then; see `test_load`.
    assert used[-1] < 1.02 * used[SLICES // 2]


def preemptions(server) -> float:
    lines = [line for line in server.get("/metrics").splitlines() if line.startswith("vllm:num_preemptions_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
