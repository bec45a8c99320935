"""One vLLM engine in a process of its own, for `bench`; see `specexit.bench.process`.

The first line is the set-up, answered by ``{"accelerator": name or null}`` once the engine stands; then, per job,

``{"prompts": [[ids]], "batch": b, "max_new_tokens": n, "extra_args": {...}}`` ->
``{"seconds": [...], "requests": [{"token_ids", "finish_reason", "outcome", "inactive"}], "n_drafts": int,
"n_accepted": int, "n_preempted": int}``,

``{"method": name, "parameters": {...}, "problems": [{...}], "marks": {...}, "batch": b, "sampling": {...},
"arrivals": [seconds] or null, "seed": n}`` -> the same, its requests as `specexit.bench.methods.running` measures them.

The reply to a job also has ``joules``, null where the machine does not tell, and the ``accelerator``.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specexit.bench.energy import Counter, Counters, EnergyMeter
from specexit.bench.methods import Marks, MethodError, Problem, Trial, from_job
from specexit.bench.process import claim_stdout, jobs, reply
from specexit.errors import InputError
from specexit.method.splits import FastTokenizer, load_tokenizer
from specexit.processes import look_in_working_folder
from specexit.schemas.bench import BenchConfig
from specexit.schemas.bench_serving import BenchServingConfig
from specexit.schemas.engine import EngineConfig
from specexit.schemas.target import TargetConfig
from torch_specexit.bench.driver import drive
from torch_specexit.engine import accelerator_name, one_of_several, seed_everything, set_environment, start_engine
from torch_specexit.plugin.outcome import INACTIVE_KEY, KEY

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

COUNTERS = {
    "n_drafts": "vllm:spec_decode_num_drafts",
    "n_accepted": "vllm:spec_decode_num_accepted_tokens",
    "n_preempted": "vllm:num_preemptions",
}


def setup_of(
    config: BenchConfig | BenchServingConfig, target: TargetConfig, draft: Path | None, *, prefixes: bool
) -> dict[str, Any]:
    """The set-up of one of several engines that take turns.

    Args:
      config: of the benchmark.
      target: the model.
      draft: draft directory, or None.
      prefixes: whether the engine keeps the keys and values of prefixes.
    """
    extra = config.engine.extra | {"enable_prefix_caching": prefixes}
    engine = one_of_several(config.engine, target, max_num_seqs=max(config.batches), extra=extra)
    return {
        "target": target.model_dump(mode="json"),
        "engine": engine.model_dump(mode="json"),
        "draft": None if draft is None else str(draft),
        "num_speculative_tokens": config.num_speculative_tokens,
        "seed": config.seed,
    }


def main() -> None:
    """Serve jobs until stdin ends."""
    look_in_working_folder()
    replies, asked = claim_stdout(), jobs()
    setup = next(asked)
    target = TargetConfig.model_validate(setup["target"])
    engine = EngineConfig.model_validate(setup["engine"])
    if setup.get("budgets"):
        engine = _with_markers(engine, target)
    draft = Path(setup["draft"]) if setup["draft"] else None
    steps, seed = setup["num_speculative_tokens"], setup["seed"]
    try:
        llm = start_engine(target, engine, draft=draft, num_speculative_tokens=steps, seed=seed)
    except InputError as error:  # whose message says all that there is
        sys.exit(str(error))
    meter = EnergyMeter(_cards)
    accelerator = accelerator_name()
    reply(replies, {"accelerator": accelerator})
    for job in asked:
        before = meter.read()
        try:
            found = run_method(llm, target, job) if "method" in job else run_job(llm, job)
        except MethodError as error:  # in a method of the user's, who has to see where
            if error.__cause__ is not None:
                traceback.print_exception(error.__cause__)
            sys.exit(str(error))
        reply(replies, found | {"joules": meter.since(before), "accelerator": accelerator})


def _with_markers(engine: EngineConfig, target: TargetConfig) -> EngineConfig:
    """The settings with the think markers, which vLLM's own thinking budget needs."""
    set_environment(engine)
    from vllm.config import ReasoningConfig

    markers = ReasoningConfig(reasoning_start_str=target.think_start, reasoning_end_str=target.think_end)
    return engine.model_copy(update={"extra": engine.extra | {"reasoning_config": markers}})


def run_job(llm: LLM, job: dict[str, Any]) -> dict[str, Any]:
    """Generate greedily and take the time: at batch 1 of each prompt alone, above of all prompts together."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    params = SamplingParams(temperature=0, max_tokens=job["max_new_tokens"], extra_args=job["extra_args"] or None)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in job["prompts"]]
    groups = [[prompt] for prompt in prompts] if job["batch"] == 1 else [prompts]
    before = _counters(llm)
    seconds: list[float] = []
    outputs: list[RequestOutput] = []
    for group in groups:
        start = time.perf_counter()
        outputs += llm.generate(group, params, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    after = _counters(llm)
    return {
        "seconds": seconds,
        "requests": [_request(output) for output in outputs],
        **{name: after[name] - before[name] for name in COUNTERS},
    }


def run_method(llm: LLM, target: TargetConfig, job: dict[str, Any]) -> dict[str, Any]:
    """Let a method answer problems, from an empty prefix cache and a seed of the job's own."""
    think = target.think_tokens()
    marks = Marks(
        start=think.start,
        end=think.end,
        split=think.split,
        max_model_len=llm.llm_engine.model_config.max_model_len,
        decode=_decoder(target),
        **job["marks"],
    )
    llm.reset_prefix_cache()
    seed_everything(job["seed"])
    before = _counters(llm)
    reply = drive(
        llm,
        from_job(job),
        [Problem(**problem | {"trial": Trial(**problem["trial"])}) for problem in job["problems"]],
        marks,
        batch=job["batch"],
        sampling=job["sampling"],
        arrivals=job["arrivals"],
    )
    after = _counters(llm)
    return reply | {name: after[name] - before[name] for name in COUNTERS}


@cache
def _tokenizer(folder: Path) -> FastTokenizer:
    return load_tokenizer(folder)


def _decoder(target: TargetConfig) -> Callable[[list[int]], str]:
    return _tokenizer(target.folder).text


def _request(output: RequestOutput) -> dict[str, Any]:
    transfer = output.kv_transfer_params or {}
    completion = output.outputs[0]
    return {
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "outcome": transfer.get(KEY),
        "inactive": transfer.get(INACTIVE_KEY),
    }


def _counters(llm: LLM) -> dict[str, int]:
    values = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return {name: int(values.get(counter, 0)) for name, counter in COUNTERS.items()}


def _cards() -> Counters | None:
    """Energy counters of the GPUs in use; None where one does not tell."""
    import torch

    if not torch.cuda.is_available():
        return {}
    from vllm.third_party import pynvml

    found = {}
    try:
        pynvml.nvmlInit()
        for i in range(torch.cuda.device_count()):
            name = f"GPU-{torch.cuda.get_device_properties(i).uuid}"
            millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(name.encode()))
            found[name] = Counter(millijoules / 1e3, None)
    except pynvml.NVMLError:
        return None
    return found


if __name__ == "__main__":
    main()
