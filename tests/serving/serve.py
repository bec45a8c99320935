"""Run one vLLM engine on a job and write down what it did: ``serve.py JOB.json RESULT.json``.

A program of its own, because vLLM sets process-wide state that other tests must not see. The job names an engine and
batches of requests, which run one after the other on it.
"""

from __future__ import annotations

import ast
import importlib
import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from specexit.schemas.target import load_target_config
from torch_specexit.engine import EngineConfig, set_environment, start_engine


def metrics(llm: Any) -> dict[str, int]:
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    wanted = {f"vllm:spec_decode_{name}": name for name in names} | {"vllm:num_preemptions": "num_preemptions"}
    return {wanted[metric.name]: metric.value for metric in llm.get_metrics() if metric.name in wanted}


def outcomes(llm: Any) -> Counter[str]:
    wanted = [metric for metric in llm.get_metrics() if metric.name == "vllm:specexit_requests"]
    return Counter({metric.labels["outcome"]: metric.value for metric in wanted})


def slots_in_use(worker: Any) -> int:
    exits = getattr(worker.model_runner, "_specexit", None)
    return -1 if exits is None else len(exits.slots)


def runner_classes(worker: Any) -> list[str]:
    return [f"{ancestor.__module__}.{ancestor.__name__}" for ancestor in type(worker.model_runner).__mro__]


def perturb(worker: Any) -> None:
    """The second rank reads other signals than the first."""
    if worker.rank == 1:
        worker.model_runner.drafter.model.signal_weight.data.add_(0.05)


def fail_on_one_rank(worker: Any) -> None:
    if worker.rank == 1:
        worker.model_runner._specexit.fail("injected")


def fail_in_the_next_step(worker: Any) -> None:
    def failing(*args: Any) -> None:
        raise RuntimeError("injected")

    worker.model_runner._specexit.checker = None  # it would let the engine die of it
    worker.model_runner._specexit.rule.step = failing


def forbid_nothing(worker: Any) -> None:
    """Exits go over what a client has forbidden: with one token that it may draw, a model can only go in circles."""
    worker.model_runner._specexit.requests.closing = ()


def read_prompts_from_vllm(worker: Any) -> None:
    """Whether a prompt opens the thinking is read from vLLM's array of it, though that is short."""
    from torch_specexit.plugin.worker import openings

    openings.TAIL = 1


def status(worker: Any) -> dict[str, Any] | None:
    exits = getattr(worker.model_runner, "_specexit", None)
    return None if exits is None else dict(exits.status())


def checked_steps(worker: Any) -> int:
    exits = getattr(worker.model_runner, "_specexit", None)
    return exits.checker.steps if exits is not None and exits.checker is not None else 0


def step_by_step(llm: Any, prompts: list[Any], params: list[Any], resets: int) -> list[Any]:
    """Generate, and put everything that runs back to where its tokens are after every so many steps. Under asynchronous
    scheduling, what is in flight then is dropped."""
    engine, done = llm.llm_engine, {}
    for i, (prompt, param) in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(f"step-by-step-{i}", prompt, param)
    steps = 0
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step() if output.finished}
        steps += 1
        if steps % resets == 0:
            assert llm.reset_prefix_cache(reset_running_requests=True)
    return [done[f"step-by-step-{i}"] for i in range(len(prompts))]


def refusal(llm: Any, prompt: Any, params: Any) -> str | None:
    try:
        llm.generate([prompt], [params], use_tqdm=False)
    except ValueError as error:
        return str(error)
    return None


def adapter(folder: str) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, folder)


def run_batch(llm: Any, batch: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt

    before, counted = metrics(llm), outcomes(llm)
    prompts = [TokensPrompt(prompt_token_ids=request["ids"]) for request in batch["requests"]]
    params = [
        SamplingParams(**{"temperature": 0.0, "max_tokens": 300} | request.get("params", {}))
        for request in batch["requests"]
    ]
    lora = adapter(batch["lora"]) if "lora" in batch else None
    if batch.get("refused"):
        return {"errors": [refusal(llm, p, q) for p, q in zip(prompts, params, strict=True)]}
    if "before" in batch:
        llm.collective_rpc(globals()[batch["before"]])
    if batch.get("delivers"):  # as with a connector that hands KV on: a preempted request's steps in flight are dropped
        llm.llm_engine.engine_core.engine_core.scheduler.requires_kv_delivery = True
    if "resets" in batch:
        outputs = step_by_step(llm, prompts, params, batch["resets"])
    elif batch.get("alone"):
        outputs = [llm.generate([p], [q], use_tqdm=False)[0] for p, q in zip(prompts, params, strict=True)]
    else:
        outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=lora)
    after = metrics(llm)
    (slots,) = set(llm.collective_rpc(slots_in_use))  # the same on all ranks
    return {
        "requests": [
            {
                "ids": list(output.outputs[0].token_ids),
                "finish": output.outputs[0].finish_reason,
                "outcome": (output.kv_transfer_params or {}).get("specexit"),
                "logprobs": [
                    {str(token): entry.logprob for token, entry in position.items()}
                    for position in output.outputs[0].logprobs or []
                ],
            }
            for output in outputs
        ],
        "metrics": {name: after[name] - before[name] for name in after},
        "counted": outcomes(llm) - counted,
        "slots": slots,
        "inactive": [(output.kv_transfer_params or {}).get("specexit_inactive") for output in outputs],
        "status": llm.collective_rpc(status),
        "checked": llm.collective_rpc(checked_steps),
    }


def change(place: str) -> None:
    """Give a method of vLLM, ``module:Class.method``, other parameters, as another version might."""
    module, _, path = place.partition(":")
    owner, name = path.split(".")
    cls = getattr(importlib.import_module(module), owner)
    original = getattr(cls, name)
    setattr(cls, name, lambda self, *args, **kwargs: original(self, *args, **kwargs))


def refuse_the_rule() -> None:
    """Have the rule fail as it is made ready, where there is no Triton."""
    from torch_specexit.plugin.worker import exits

    def failing(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("injected")

    exits.Twin = failing


def refuse_the_kernel() -> None:
    """Have Triton's compiler refuse the kernel of the rule, as it does where a device cannot run it."""
    from triton.compiler.errors import CompilationError
    from triton.runtime import KernelInterface

    from torch_specexit.plugin.worker import fused

    class Refused(KernelInterface):
        def run(self, *args: Any, **kwargs: Any) -> None:
            raise CompilationError("step", ast.parse(""), "injected")

    fused.step = Refused()


class Lines(logging.Filter):
    """What the plug-in logs. No handler, for vLLM takes these off its children when it configures its logger."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("vllm.specexit").addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines.append(record.getMessage())
        return True


def main(job: dict[str, Any]) -> dict[str, Any]:
    engine = job["engine"]
    # To zero a whole GiB of KV cache takes seconds, and the longest of these jobs needs 1,300 blocks.
    config = EngineConfig(kv_cache_gib=1, extra={"num_gpu_blocks_override": 2048} | engine.get("extra", {}))
    set_environment(config)
    log = Lines()
    for place in job.get("change", ()):
        change(place)
    if "refuse" in job:
        globals()[job["refuse"]]()
    llm = start_engine(
        load_target_config("tiny-reasoner"),
        config,
        draft=Path(engine["draft"]) if engine.get("draft") else None,
        num_speculative_tokens=engine.get("k", 3),
    )
    runner, *_ = llm.collective_rpc(runner_classes)
    scheduler = type(llm.llm_engine.engine_core.engine_core.scheduler).__name__
    batches = [run_batch(llm, batch) for batch in job["batches"]]
    return {"runner": runner, "scheduler": scheduler, "batches": batches, "log": log.lines}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(main(job)))
    if job["engine"].get("extra", {}).get("tensor_parallel_size", 1) == 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # no other process has to be ended, and to unload vLLM takes an interpreter seconds
