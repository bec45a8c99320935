"""Drive one vLLM engine into its corners and write down what it did: ``corners.py DRAFT RESULT.json``.

A program of its own, like `serve.py`. Every scenario leaves an entry in the result, under its own name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from serve import slots_in_use

from specexit.schemas.target import load_target_config
from specexit.tiny import problems, prompt_text
from torch_specexit.engine import EngineConfig, start_engine

PATTERN = r"The result is [0-9]{1,3}"
NOW = {"specexit_validity": 0.0}
"""Arguments of a request that exits at its first boundary."""
OFF = {"specexit": False}


def describe(output: Any) -> dict[str, Any]:
    """What a client sees of a request."""
    return {
        "ids": [list(o.token_ids) for o in output.outputs],
        "texts": [o.text for o in output.outputs],
        "finish": [o.finish_reason for o in output.outputs],
        "outcome": (output.kv_transfer_params or {}).get("specexit"),
        "cached": output.num_cached_tokens,
        "prompt_logprobs": [
            None if entry is None else max(x.logprob for x in entry.values()) for entry in output.prompt_logprobs or []
        ],
    }


class Corners:
    """The scenarios."""

    def __init__(self, llm: Any):
        self.llm = llm
        self.tokenizer = llm.get_tokenizer()
        questions = [problem.question for problem in problems("test", 8)]
        self.prompts = [self.tokenizer.encode(prompt_text(q), add_special_tokens=False) for q in questions]
        self.split = load_target_config("tiny-reasoner").think_tokens().split

    def run(self, prompts: list[list[int]], **params: Any) -> list[dict[str, Any]]:
        """Greedy unless told otherwise."""
        from vllm import SamplingParams, TokensPrompt

        sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 300} | params)
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], sampling, use_tqdm=False)
        return [describe(output) for output in outputs]

    def first_boundary(self) -> int:
        """Tokens of the first prompt's text up to and with its first split token."""
        ids = self.run(self.prompts[:1], extra_args=OFF)[0]["ids"][0]
        return next(i for i, token in enumerate(ids) if token in self.split) + 1

    def conversation(self) -> list[int]:
        """Two turns, the second of them still to be thought about."""
        first = self.run(self.prompts[:1], extra_args=OFF)[0]["ids"][0]
        return self.prompts[0] + first + self.prompts[1]

    def plain(self) -> Any:
        return self.run(self.prompts, extra_args=OFF)

    def exit_now(self) -> Any:
        return self.run(self.prompts, extra_args=NOW)

    def prompt_logprobs(self) -> Any:
        return [self.run(self.prompts[:2], extra_args=a, prompt_logprobs=0, logprobs=0) for a in (NOW, OFF)]

    def several_samples(self) -> Any:
        return self.run(self.prompts[:4], extra_args=NOW, n=3, temperature=0.5, seed=1)

    def token_limits(self) -> Any:
        """Limits just before the first boundary, at it, at the marker, and one behind that."""
        at = self.first_boundary()
        limits = {n: self.run(self.prompts[:1], extra_args=NOW, max_tokens=at + n)[0] for n in (-1, 0, 1, 2)}
        return {"boundary": at, "limits": limits}

    def stop_token(self) -> Any:
        """A stop token that only comes behind the exit."""
        return self.run(self.prompts[:2], extra_args=NOW, stop_token_ids=[self.tokenizer.encode("}.")[0]])

    def stop_string(self) -> Any:
        return self.run(self.prompts[:2], extra_args=NOW, stop=["boxed"])

    def ignore_eos(self) -> Any:
        """On beyond the end of the answer, and whatever thinking the model may open there."""
        return self.run(self.prompts[:2], extra_args=NOW, ignore_eos=True, max_tokens=120)

    def thinking_closed(self) -> Any:
        """A prompt whose thinking is over already."""
        closed = [p + self.tokenizer.encode("</think>", add_special_tokens=False) for p in self.prompts[:2]]
        return self.run(closed, extra_args=NOW, max_tokens=60)

    def thinking_never_opened(self) -> Any:
        bare = [self.tokenizer.encode("Zoe has 4 shells.\n\nMax has 5.\n\n", add_special_tokens=False)]
        return self.run(bare, extra_args=NOW, max_tokens=40)

    def second_turn(self) -> Any:
        """A conversation whose first turn has thought and answered; the second opens the thinking again."""
        return [self.run([self.conversation()], extra_args=a)[0] for a in (NOW, OFF)]

    def structured_answer(self) -> Any:
        """A grammar that binds the answer, behind the thinking."""
        from vllm.sampling_params import StructuredOutputsParams

        grammar = StructuredOutputsParams(regex=PATTERN)
        return [
            PATTERN,
            *(self.run(self.prompts[:4], extra_args=a, structured_outputs=grammar, max_tokens=600) for a in (NOW, OFF)),
        ]

    def thinking_budget(self) -> Any:
        """vLLM's own budget: beyond the exit, and before it."""
        at = self.first_boundary()
        budgets = {"later": at + 30, "sooner": at - 4}
        return {
            name: self.run(self.prompts[:1], extra_args=NOW, thinking_token_budget=n)[0] for name, n in budgets.items()
        }

    def prefix_cached(self) -> Any:
        """A prompt of several blocks, twice in a batch, twice in a row."""
        return [self.run([self.conversation()] * 2, extra_args=NOW) for _ in range(2)]

    def aborted(self) -> Any:
        """Half of a batch is aborted in the middle; its ids come back at once, with other prompts."""
        from vllm import SamplingParams, TokensPrompt

        engine = self.llm.llm_engine
        params = SamplingParams(temperature=0.0, max_tokens=300, extra_args={"specexit_validity": 0.5})
        done: dict[str, Any] = {}

        def add(name: str, prompt: list[int]) -> None:
            engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params)

        def step() -> None:
            for output in engine.step():
                if output.finished:
                    done[output.request_id] = describe(output)

        for i, prompt in enumerate(self.prompts):
            add(f"r{i}", prompt)
        for _ in range(12):
            step()
        gone = [f"r{i}" for i in range(0, len(self.prompts), 2) if f"r{i}" not in done]
        engine.abort_request(gone)
        step()
        for name in gone:
            add(name, self.prompts[(int(name[1:]) + 1) % len(self.prompts)])
        while engine.has_unfinished_requests():
            step()
        whole = self.run(self.prompts, extra_args={"specexit_validity": 0.5})
        return {"aborted": gone, "done": done, "whole": whole}

    def slots(self) -> Any:
        """Rows held when all is over; the last finished requests are reported with the next step."""
        self.run(self.prompts[:1], extra_args=OFF, max_tokens=1)
        return self.llm.collective_rpc(slots_in_use)[0]


SCENARIOS = [
    name for name in vars(Corners) if name[0] != "_" and name not in ("run", "first_boundary", "conversation", "slots")
]


def main(draft: Path) -> dict[str, Any]:
    """Run all scenarios."""
    from vllm.config import ReasoningConfig

    markers = ReasoningConfig(reasoning_start_str="<think>", reasoning_end_str="</think>")
    extra = {"reasoning_parser": "deepseek_r1", "reasoning_config": markers, "num_gpu_blocks_override": 2048}
    llm = start_engine(load_target_config("tiny-reasoner"), EngineConfig(kv_cache_gib=1, extra=extra), draft=draft)
    corners = Corners(llm)
    return {name: getattr(corners, name)() for name in [*SCENARIOS, "slots"]}


if __name__ == "__main__":
    result = main(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(result))
