"""``configs/jobs/serving.yaml``, as far as it runs without a cluster: its server, on a CPU. About half a minute."""

from __future__ import annotations

import json
import signal
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import yaml

from specexit.config import REPOSITORY
from tests.marks import SLOW
from tests.serving.conftest import ServerStarter
from tests.serving.ends import status
from tests.serving.points import operation
from torch_specexit.plugin.frontend.activity import Activity
from torch_specexit.plugin.frontend.server import FrontEnd

pytestmark = pytest.mark.vllm

KEY = "secret"
ELSEWHERE = ("--port", "--max-model-len", "--speculative-config")
"""Arguments that cannot be the manifest's here; `specexit serve` gives the last one."""


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    deployment, service = yaml.safe_load_all((REPOSITORY / "configs" / "jobs" / "serving.yaml").read_text())
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    return deployment["spec"]["template"]["spec"]


def test_ports_and_gpus_agree(pod):
    (server,) = pod["containers"]
    given = dict(argument.split("=", 1) for argument in server["args"][1:])
    assert given["--port"] == str(server["ports"][0]["containerPort"])
    assert given["--tensor-parallel-size"] == str(server["resources"]["limits"]["nvidia.com/gpu"])
    assert int(given["--shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]
    assert json.loads(given["--speculative-config"])["method"] == "eagle3"
    mounts = {mount["name"] for mount in server["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_a_doubt_that_can_be_taken_back_takes_a_pod_out_of_service_and_does_not_restart_it(pod):
    """All three probes asked /health, so that with `required` a doubt cut off all requests, and the next pod too."""
    front, (server,) = FrontEnd(operation(required=True), Activity()), pod["containers"]
    paths = {name: server[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}

    def answers():
        return {name: status(front, path) for name, path in paths.items()}

    healthy = dict.fromkeys(paths, 200)
    assert answers() == healthy
    front.switch(point="untested")
    assert answers() == healthy | {"readiness": 503}
    front.switch(point="usual")
    front.activity.awaits("an update has not been finished")
    assert answers() == healthy | {"readiness": 503}
    front.activity.awaits(None)
    assert answers() == healthy


@SLOW
def test_the_server_is_ready_guarded_and_lets_running_requests_end(pod, start_server: ServerStarter, drafts: Path):
    (container,) = pod["containers"]
    arguments = [argument for argument in container["args"][1:] if not argument.startswith(ELSEWHERE)]
    body = {"model": "TARGET", "prompt": "Zoe has 4 shells.\n\n<think>", "max_tokens": 400, "ignore_eos": True}
    with start_server("pod", drafts / "draft", *arguments, environment={"VLLM_API_KEY": KEY}) as server:
        server.get(container["readinessProbe"]["httpGet"]["path"])
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.get("/v1/specexit")
        stream = server.stream("/v1/completions", body, Authorization=f"Bearer {KEY}")
        first = next(stream)
        server.process.send_signal(signal.SIGTERM)
        chunks = [first, *stream]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert chunks[-1]["kv_transfer_params"]["specexit"]["outcome"] in ("exit", "natural_end", "length")
        assert server.process.wait(timeout=120) == 0
