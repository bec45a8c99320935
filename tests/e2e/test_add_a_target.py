"""docs/add-a-target.md, followed to the letter on a target that is in no way like the tiny reasoner."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from specexit.bench.requests import read_requests
from specexit.bench.results import read_results
from specexit.data.traces import read_labelled
from specexit.processes import ALLOCATOR
from specexit.schemas.target import load_target_config
from tests.ports import hold_port
from torch_specexit.plugin.worker.checking import SWITCH

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "add-a-target.md").read_text()
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def blocks(language: str) -> list[tuple[str | None, str]]:
    """(title, text) of every block of the page in a language."""
    found = re.findall(rf'^```{language}(?: title="([^"]+)")?\n(.*?)^```$', PAGE, re.M | re.S)
    return [(title or None, text) for title, text in found]


@dataclass(frozen=True)
class World:
    """Where the page was followed, and what its last command said."""

    folder: Path
    said: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1", SWITCH: "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([sys.executable, ROOT / "tests/e2e/second_world.py", folder], env=environment, check=True)
    for title, text in blocks("yaml"):
        assert title is not None
        (folder / title).write_text(text)
    held, port = hold_port()
    with held:
        said = [run(script, folder, environment | {"PORT": str(port)}) for _, script in blocks("bash")]
    return World(folder, said[-1])


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """What a script of the page prints; whatever it leaves running ends with it."""
    log = folder / "log"
    with log.open("w") as out:
        command = ["bash", "-euo", "pipefail", "-c", script]
        settings = {"cwd": folder, "env": environment, "stdout": out, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, start_new_session=True, **settings)
        try:
            code = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    print(log.read_text())
    assert code == 0, script
    return log.read_text()


def test_it_is_another_world(world: World) -> None:
    model, tiny = world.folder / "models/my-target", load_target_config("tiny-reasoner")
    tokenizer = AutoTokenizer.from_pretrained(model)
    ours, theirs = json.loads((model / "config.json").read_text()), tiny.hf_config()
    assert len(tokenizer.encode(".\n\n", add_special_tokens=False)) == 2
    assert len(tiny.tokenizer().encode(".\n\n")) == 1
    marker = tokenizer.encode("[THINK]", add_special_tokens=False)
    assert (len(marker), tokenizer.decode(marker, skip_special_tokens=True)) == (1, "")
    assert (ours["architectures"], ours["tie_word_embeddings"]) == (["LlamaForCausalLM"], False)
    assert (theirs["architectures"], theirs["tie_word_embeddings"]) == (["Qwen3ForCausalLM"], True)
    shown = json.loads(blocks("json")[0][1])
    given = [json.loads(line) for line in (world.folder / "prompts/train.jsonl").read_text().splitlines()]
    assert all(row.keys() == shown.keys() and row["choices"] == shown["choices"] for row in given)


def test_traces_are_what_the_target_writes(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "models/my-target")
    for trace in read_labelled(world.folder / "runs/labelled/test"):
        assert tokenizer.decode(trace.prompt_ids) == f"<s>[INST] {trace.prompt} [/INST][THINK]\n"
        assert tokenizer.decode(trace.think_ids).count("\n\n") == len(trace.boundaries)
        assert 50 <= len(trace.answer_ids) <= 70
        assert trace.choices == json.loads(blocks("json")[0][1])["choices"]


def test_labels_leave_something_to_learn(world: World) -> None:
    for part in ("train", "calibrate", "test"):
        found = json.loads((world.folder / "runs/labelled" / part / "statistics.json").read_text())
        assert found["undecided"] == 0
        # Of a slip the second boundary is wrong, of the others right; behind the first check all are right.
        assert 0.3 < found["valid_boundaries"] < 0.9
        assert 0.2 < found["oracle_stable"]["thinking_cut"] < 0.8
        assert found["full"]["accuracy"] > 0.95


def test_the_draft_was_trained_and_is_the_same_everywhere(world: World) -> None:
    evaluation = json.loads((world.folder / "runs/evaluation.json").read_text())
    assert evaluation["top1"][0] > 0.8
    assert evaluation["all_boundaries"]["auroc"] > 0.9
    assert json.loads((world.folder / "runs/draft/verify.json").read_text())["passed"] is True


def test_exits_save_thinking_within_the_risk(world: World) -> None:
    results = read_results(world.folder / "runs/bench/results.json")
    assert results.lossless["eagle3_vs_none"].mismatches == 0
    assert results.methods["eagle3"].acceptance_length > 2
    assert results.methods["eagle3"].accuracy > 0.95
    assert results.methods["specexit"].exits.exit > results.n / 2
    assert results.against_eagle3["specexit"].thinking_cut[0] > 0.2
    # Certified for 5 % of all prompts: of 40, more than 5 are lost in one sample of 70.
    assert results.against_eagle3["specexit"].accuracy_delta[0] >= -5 / 40


def test_what_follows_an_exit_is_the_target_s_own_text(world: World) -> None:
    """Up to the exit the text is stock vLLM's; behind it, what transformers writes after the same tokens."""
    folder = world.folder / "models/my-target"
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    end = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("[/THINK]")
    prompts = {trace.id: trace.prompt_ids for trace in read_labelled(world.folder / "runs/labelled/test")}
    file = world.folder / "runs/bench/requests.jsonl"
    stock = read_requests(file, "none")
    exits = [request for request in read_requests(file, "specexit").values() if request.reason == "exit"]
    assert exits
    for request in exits:
        kept = request.thinking_tokens
        assert request.token_ids[:kept] == stock[request.id].token_ids[:kept]
        assert request.token_ids[kept] == end
        before = torch.tensor([[*prompts[request.id], *request.token_ids[: kept + 1]]])
        mask = torch.ones_like(before)
        whole = model.generate(before, attention_mask=mask, max_new_tokens=100, do_sample=False)[0].tolist()
        assert whole[before.shape[1] :] == request.token_ids[kept + 1 :]


def test_the_server_exits_too(world: World) -> None:
    assert re.search(r"The answer is \(D\)\.", world.said)
    assert re.search(r"ended after \d+ thinking tokens at validity [01]\.\d\d", world.said)
