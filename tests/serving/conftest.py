"""Real engines for the serving tests. Each runs once, in a process of its own, on a job that serves several tests."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from prometheus_client.parser import text_string_to_metric_families

from specexit.drafts.export import export
from specexit.schemas.export import ExportConfig
from specexit.schemas.target import TargetConfig, load_target_config
from specexit.tiny import problems, prompt_text
from tests.marks import SLOW
from tests.ports import hold_port
from torch_specexit.engine import has_v1_runner
from torch_specexit.plugin.worker.checking import SWITCH
from torch_specexit.serve import KV_CACHE_SPACE

HERE = Path(__file__).parent


def run_program(program: str, *arguments: Path, environment: dict[str, str] | None = None) -> None:
    """Run a program beside this file, engines in checking mode; its output is shown where it fails."""
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    # However eager an engine is, vLLM has torch compile what ranks its logprobs, which takes seconds in each.
    settings = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", SWITCH: "1"}
    done = subprocess.run(command, env=os.environ | settings | (environment or {}), capture_output=True, text=True)
    assert done.returncode == 0, f"{program} failed:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"


def serve(folder: Path, job: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run an engine on a job; once for all test processes, which share the folder."""
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "result.json").exists():
            (folder / "job.json").write_text(json.dumps(job))
            run_program("serve.py", folder / "job.json", folder / "result.json", environment=environment)
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    """What the plug-in logs reaches `caplog`, whatever a test before has had vLLM log."""
    caplog.set_level(logging.INFO, "vllm.specexit")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is the same for all test processes of a run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def target() -> TargetConfig:
    return load_target_config("tiny-reasoner")


@pytest.fixture(scope="session")
def drafts(shared: Path) -> Path:
    """A folder with three drafts of the same trunk: ``draft`` and ``fc`` by source of their signals, and ``plain``,
    exported for stock vLLM."""
    folder = shared / "drafts"
    with FileLock(shared / "drafts.lock"):
        if not (folder / "plain").exists():
            run_program("make_draft.py", folder)
            export(ExportConfig(draft=folder / "draft", out=folder / "plain", format="eagle3", target="tiny-reasoner"))
    return folder


@pytest.fixture(scope="session")
def prompts(target: TargetConfig) -> list[list[int]]:
    tokenizer = target.tokenizer()
    return [tokenizer.encode(prompt_text(problem.question)) for problem in problems("test", 16)]


OFF = {"extra_args": {"specexit": False}}
SPECIAL = {
    "off": OFF,
    "never": {"extra_args": {"specexit_validity": 1.0}},
    "always": {"extra_args": {"specexit_validity": 0.0}},
    "minimum": {"extra_args": {"specexit_validity": 0.0, "specexit_min_thinking_tokens": 60}},
    "maximum": {"extra_args": {"specexit_validity": 1.0, "specexit_max_thinking_tokens": 50}},
    "splits": {"extra_args": {"specexit_validity": 0.0, "specexit_splits": ["\n\n"]}},
    "shadow": {"extra_args": {"specexit_validity": 0.0, "specexit_mode": "shadow"}},
    "patience": {"extra_args": {"specexit_validity": 0.0, "specexit_patience": 3}},
    "remaining": {"extra_args": {"specexit_remaining": 0.0}},
    "short": {"extra_args": {"specexit": True, "specexit_validity": 1.0}, "max_tokens": 12},
    "stop string": {"extra_args": {"specexit_validity": 0.0}, "stop": ["</think>"], "include_stop_str_in_output": True},
}
"""Requests with arguments of their own, all on the first prompt."""

LIVELY = {"extra_args": {"specexit_validity": 0.0, "specexit_patience": 2}, "max_tokens": 80, "logprobs": 1}
"""Exits at the second boundary, whatever the drafts' random heads say, for runs that must be short."""

WARM, CUT = {"temperature": 0.6}, {"temperature": 1.2, "top_p": 0.8, "top_k": 8}
SAMPLED = (WARM, WARM, CUT)
"""How each prompt is sampled: twice at the target's temperature, once with everything cut."""

ON_A_CPU = {"PYTHONPATH": os.pathsep.join([str(HERE / "interpreter"), *filter(None, [os.environ.get("PYTHONPATH")])])}
V2 = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
V1 = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
ANY_RUNNER: dict[str, str] = {} if has_v1_runner() else ON_A_CPU | V2
"""What an engine needs that is to run with whatever runner there is."""
ASYNC = {"SPECEXIT_TEST_ASYNC": "1"}
"""Environments for what vLLM does not do on a CPU by itself; see ``interpreter/sitecustomize.py``."""

EVERY_STEP = ON_A_CPU | {"SPECEXIT_TEST_EVERY_STEP": "1"}
"""Environment of a server whose streams have a chunk for each step, however busy the machine is."""

BAD = [
    {"specexit_validity": 1.5},
    {"specexit_patience": "often"},
    {"specexit_certainty": 0.5},
    {"specexit_splits": ["Wait"]},
]


class Engines:
    """Results by engine, computed when first asked for."""

    def __init__(self, folder: Path, drafts: Path, prompts: list[list[int]]):
        self.folder, self.drafts, self.prompts = folder, drafts, prompts
        self.special, self.bad = SPECIAL, BAD
        self.one_token = cache(self._one_token)
        self.pressed = cache(self._pressed)
        self.main = cache(self._main)
        self.none = cache(self._none)
        self.v2 = cache(self._v2)
        self.v2_sync = cache(self._v2_sync)
        self.v1_async = cache(self._v1_async)
        self.two_ranks = cache(self._two_ranks)
        self.plain = cache(self._plain)
        self.changed = cache(self._changed)

    def batch(self, params: dict[str, Any] | None = None, n: int | None = None, **rest: Any) -> dict[str, Any]:
        return {"requests": [{"ids": ids, "params": params or {}} for ids in self.prompts[:n]], **rest}

    def serve(self, name: str, batches: list[dict[str, Any]], **engine: Any) -> list[dict[str, Any]]:
        """Results of batches on an engine."""
        return serve(self.folder / name, {"engine": engine, "batches": batches})["batches"]

    def _one_token(self, source: str) -> list[dict[str, Any]]:
        """With 1 speculative token: exits in a batch."""
        return self.serve(f"{source}-one", [self.batch()], draft=str(self.drafts / source), k=1)

    def _main(self, source: str) -> list[dict[str, Any]]:
        """With 3 speculative tokens: exits, off, alone, special, refused, lively, a last one; with source ``draft`` a
        sampled batch, too; and a lively one in whose first step exits fail."""
        special = [{"ids": self.prompts[0], "params": params} for params in SPECIAL.values()]
        refused = [{"ids": self.prompts[0], "params": {"extra_args": arguments}} for arguments in BAD]
        sampled = [
            {"ids": ids, "params": OFF | kind | {"seed": i}} for i, kind in enumerate(SAMPLED) for ids in self.prompts
        ]
        batches = [
            self.batch(),
            self.batch(OFF),
            self.batch(alone=True),
            {"requests": special},
            {"requests": refused, "refused": True},
            self.batch(LIVELY),
            {"requests": [{"ids": self.prompts[0], "params": OFF | {"max_tokens": 1}}]},
            *([{"requests": sampled}] if source == "draft" else []),
            self.batch(LIVELY, n=4, before="fail_in_the_next_step"),
        ]
        return self.serve(f"{source}-main", batches, draft=str(self.drafts / source), k=3)

    def _pressed(self, source: str) -> list[dict[str, Any]]:
        """Prompts in chunks, too few KV blocks for the batch, and a context so short that requests reach its end."""
        extra = {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 20, "max_model_len": 288}
        batches = [self.batch({"max_tokens": 280})]
        return self.serve(f"{source}-pressed", batches, draft=str(self.drafts / source), k=5, extra=extra)

    def _plain(self) -> dict[str, Any]:
        """Plain EAGLE-3 of the same trunk."""
        return self.serve("plain", [self.batch()], draft=str(self.drafts / "plain"), k=3)[0]

    def _v2(self, draft: str) -> dict[str, Any]:
        """V2 runner, asynchronous scheduling, few KV blocks: a batch with exits off, all that the plain draft is asked;
        a lively one, and a lively one whose prompts are looked through where vLLM keeps them."""
        extra = {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 18, "max_model_len": 256}
        engine = {"draft": str(self.drafts / draft), "k": 3, "extra": extra}
        batches = [self.batch(OFF | {"max_tokens": 30}, n=4)]
        if draft != "plain":
            batches.append(self.batch(LIVELY, n=6))
            batches.append(self.batch(LIVELY | {"max_tokens": 24}, n=2, before="read_prompts_from_vllm"))
        return serve(self.folder / f"v2-{draft}", {"engine": engine, "batches": batches}, ON_A_CPU | V2 | ASYNC)

    def _v2_sync(self, draft: str) -> dict[str, Any]:
        """V2 runner, synchronous scheduling: a small lively batch."""
        job = {"engine": {"draft": str(self.drafts / draft)}, "batches": [self.batch(LIVELY, n=3)]}
        return serve(self.folder / f"v2-sync-{draft}", job, ON_A_CPU | V2)

    def _v1_async(self, draft: str) -> dict[str, Any]:
        """V1 runner, asynchronous scheduling: a lively batch, one with exits off, and one that is reset."""
        reset = self.batch(LIVELY, n=8, resets=7, before="read_prompts_from_vllm")
        batches = [self.batch(LIVELY), self.batch(OFF | {"max_tokens": 30}), reset]
        job = {"engine": {"draft": str(self.drafts / draft)}, "batches": batches}
        return serve(self.folder / f"v1-async-{draft}", job, ON_A_CPU | V1 | ASYNC)

    def _two_ranks(self, draft: str) -> dict[str, Any]:
        """V1 runner, tensor-parallel on two processes: a lively batch, one with exits off, one whose signals differ, a
        last request, and one where exits have failed on one rank."""
        extra = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
        last = {"requests": [{"ids": self.prompts[0], "params": OFF | {"max_tokens": 1}}]}
        perturbed = self.batch(LIVELY, before="perturb")
        failed = self.batch(LIVELY, n=4, before="fail_on_one_rank")
        batches = [self.batch(LIVELY), self.batch(OFF | {"max_tokens": 30}), perturbed, last, failed]
        job = {"engine": {"draft": str(self.drafts / draft), "extra": extra}, "batches": batches}
        # By itself vLLM gives every rank a NUMA node of its own, and refuses to start where there is one.
        return serve(self.folder / f"two-ranks-{draft}", job, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"})

    def _changed(self, place: str) -> dict[str, Any]:
        """V1 runner, a method of vLLM having other parameters than the plug-in knows: a lively batch."""
        job = {"engine": {"draft": str(self.drafts / "draft")}, "batches": [self.batch(LIVELY)], "change": [place]}
        return serve(self.folder / place.rpartition(".")[2], job)

    def _none(self) -> list[dict[str, Any]]:
        """No speculation: the prompts, then what follows behind each exit of either source."""
        behind = [
            {"requests": [{"ids": ids, "params": {"max_tokens": n}} for ids, n in self.continuations(source)]}
            for source in ("draft", "fc")
        ]
        return self.serve("none", [self.batch(), *behind])

    def exited(self, source: str) -> list[tuple[list[int], dict[str, Any]]]:
        """Prompts and results of the requests that have exited."""
        results = self.main(source)[0]["requests"]
        return [(p, r) for p, r in zip(self.prompts, results, strict=True) if r["outcome"]["outcome"] == "exit"]

    def continuations(self, source: str) -> list[tuple[list[int], int]]:
        """Prompt, kept reasoning and ``</think>`` of each exit, and how many tokens came behind."""
        found = []
        for prompt, result in self.exited(source):
            kept = result["outcome"]["thinking_tokens"] + 1
            found.append((prompt + result["ids"][:kept], len(result["ids"]) - kept))
        return found


@pytest.fixture(scope="session")
def engines(shared: Path, drafts: Path, prompts: list[list[int]]) -> Engines:
    (shared / "engines").mkdir(exist_ok=True)
    return Engines(shared / "engines", drafts, prompts)


@pytest.fixture(scope="session", params=["draft", pytest.param("fc", marks=SLOW)])
def corner(request: pytest.FixtureRequest, drafts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an engine did in its corners, by scenario; see ``corners.py``."""
    result = tmp_path_factory.mktemp("corners") / "result.json"
    run_program("corners.py", drafts / request.param, result)
    return json.loads(result.read_text())


FREE = {"requests": "any", "routes": ["reports", "interrupt"]}
"""What servers of these tests let requests do, unless a test says otherwise."""


class Server:
    """A real OpenAI server on loopback, started as a user starts it, in checking mode; its engine runs in processes of
    its own.

    Args:
      log: file that receives what it prints.
      draft: draft directory.
      arguments: further arguments of ``vllm serve``.
      environment: on top of this process's own.
    """

    START_SECONDS = 900

    def __init__(self, log: Path, draft: Path, *arguments: str, environment: dict[str, str] | None = None):
        self.held, self.port = hold_port()
        self.log, self.url = log, f"http://127.0.0.1:{self.port}"
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "tiny", "--dtype", "float32"]
        words += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "16", "--block-size", "32"]
        words += ["--max-num-batched-tokens", "512", "--disable-uvicorn-access-log", *arguments]
        command = [sys.executable, "-m", "specexit", "serve", "target=tiny-reasoner", f"draft={draft}"]
        settings = {
            "SPECEXIT_SERVING": json.dumps(FREE),
            SWITCH: "1",
            "OMP_NUM_THREADS": "1",
            KV_CACHE_SPACE: "1",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, f"arguments={json.dumps(words)}"],
                env=os.environ | settings | {"VLLM_NO_USAGE_STATS": "1"} | (environment or {}),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(self.START_SECONDS * 2):
            assert self.process.poll() is None, f"the server has ended:\n{self.log.read_text()[-8000:]}"
            try:
                self.get("/health")
                return
            except urllib.error.URLError:
                time.sleep(0.5)
        raise AssertionError(f"the server does not answer:\n{self.log.read_text()[-8000:]}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
        self.held.close()

    def kill(self) -> None:
        """At once, engine and all."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a group of our own: all of its processes
        self.process.wait()
        self.held.close()

    def _open(self, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=120)

    def get(self, path: str) -> str:
        with self._open(path, None, {}) as response:
            return response.read().decode()

    def post(self, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        with self._open(path, body, headers) as response:
            return json.load(response)

    def refusal(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and error of a request that must not be answered."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self._open(path, body, {})
        with error.value as response:
            return response.code, json.load(response)["error"]

    def stream(self, path: str, body: dict[str, Any], **headers: str) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed response."""
        with self._open(path, body | {"stream": True}, headers) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))

    def metrics(self) -> dict[str, float]:
        """SpecExit's samples, by name without prefix and the values of labels that are not the same for all."""
        samples = {}
        for family in text_string_to_metric_families(self.get("/metrics")):
            for sample in family.samples:
                if sample.name.startswith("vllm:specexit_"):
                    own = (value for label, value in sample.labels.items() if label not in ("engine", "model_name"))
                    samples[" ".join((sample.name.removeprefix("vllm:specexit_"), *own))] = sample.value
        return samples


ServerStarter = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> ServerStarter:
    """``with start_server(name, draft, *arguments, environment={...}) as server``: answers, gone behind it."""

    @contextmanager
    def start(name: str, draft: Path, *arguments: str, **settings: Any) -> Iterator[Server]:
        running = Server(tmp_path_factory.mktemp(name) / "log", draft, *arguments, **settings)
        try:
            running.wait()
            yield running
        finally:
            running.stop()

    return start


@pytest.fixture(scope="session")
def server(start_server: ServerStarter, drafts: Path) -> Iterator[Server]:
    """A server with the draft of source ``draft``, started once; nobody has said how large its KV cache is to be."""
    environment = EVERY_STEP | {KV_CACHE_SPACE: ""}
    with start_server("server", drafts / "draft", "--enable-scale-out", environment=environment) as running:
        yield running
