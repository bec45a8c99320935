"""Real engines for the serving tests. Each runs once, in a process of its own, on a job that serves several tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from specexit.draftdir import plain_copy
from specexit.schemas.target import TargetConfig, load_target_config
from specexit.tiny import problems, prompt_text

HERE = Path(__file__).parent


def run_program(program: str, *arguments: Path, environment: dict[str, str] | None = None) -> None:
    """Run a program beside this file; its output is shown where it fails."""
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{program} failed:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"


def serve(folder: Path, job: dict[str, Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run an engine on a job."""
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(job))
    run_program("serve.py", folder / "job.json", folder / "result.json", environment=environment)
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="session")
def target() -> TargetConfig:
    return load_target_config("tiny-reasoner")


@pytest.fixture(scope="session")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three drafts of the same trunk: ``draft`` and ``fc`` by source of their signals, and ``plain``."""
    folder = tmp_path_factory.mktemp("drafts")
    run_program("make_draft.py", folder)
    plain_copy(folder / "draft", folder / "plain")
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

LIVELY = {"extra_args": {"specexit_validity": 0.5}, "max_tokens": 80, "logprobs": 1}
"""Exits sooner than by the drafts' own policy, for runs that must be short."""

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
        self.plain = cache(self._plain)

    def batch(self, params: dict[str, Any] | None = None, n: int | None = None, **rest: Any) -> dict[str, Any]:
        return {"requests": [{"ids": ids, "params": params or {}} for ids in self.prompts[:n]], **rest}

    def serve(self, name: str, batches: list[dict[str, Any]], **engine: Any) -> list[dict[str, Any]]:
        """Results of batches on an engine."""
        return serve(self.folder / name, {"engine": engine, "batches": batches})["batches"]

    def _one_token(self, source: str) -> list[dict[str, Any]]:
        """With 1 speculative token: exits in a batch."""
        return self.serve(f"{source}-one", [self.batch()], draft=str(self.drafts / source), k=1)

    def _main(self, source: str) -> list[dict[str, Any]]:
        """With 3 speculative tokens: exits, off, alone, special, refused, lively, a last one."""
        special = [{"ids": self.prompts[0], "params": params} for params in SPECIAL.values()]
        refused = [{"ids": self.prompts[0], "params": {"extra_args": arguments}} for arguments in BAD]
        batches = [
            self.batch(),
            self.batch(OFF),
            self.batch(alone=True),
            {"requests": special},
            {"requests": refused, "refused": True},
            self.batch(LIVELY),
            {"requests": [{"ids": self.prompts[0], "params": OFF | {"max_tokens": 1}}]},
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
        """V2 runner, asynchronous scheduling, few KV blocks: a lively batch, and one with exits off."""
        environment = {
            "PYTHONPATH": str(HERE / "interpreter"),
            "TRITON_INTERPRET": "1",
            "VLLM_USE_V2_MODEL_RUNNER": "1",
            "SPECEXIT_TEST_ASYNC": "1",
        }
        extra = {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 18, "max_model_len": 256}
        engine = {"draft": str(self.drafts / draft), "k": 3, "extra": extra}
        batches = [self.batch(LIVELY, n=6), self.batch(OFF | {"max_tokens": 30}, n=4)]
        return serve(self.folder / f"v2-{draft}", {"engine": engine, "batches": batches}, environment)

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
def engines(tmp_path_factory: pytest.TempPathFactory, drafts: Path, prompts: list[list[int]]) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"), drafts, prompts)
