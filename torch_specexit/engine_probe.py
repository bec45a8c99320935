"""The vLLM side of ``specexit verify``: what an engine drafts, against the PyTorch reference on the engine's own text.

``python -m torch_specexit.engine_probe``, arguments as in `specexit.drafts.probing`. The engine goes on greedily from
the middle of each trace's thinking, one request at a time, in the target's own dtype; its draft logits and signals are
noted where the model gives them. Then the reference reads prompt and output on the CPU, in the dtype asked for.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from specexit.drafts.acceptance import acceptance, by_steps
from specexit.drafts.agreement import logits_apart, overall, raise_to, signals_apart
from specexit.drafts.directory import check_target, read_config
from specexit.drafts.probing import ENGINE, judged_traces, parse
from specexit.method.signals import NAMES
from specexit.schemas.engine import EngineConfig
from specexit.schemas.target import TargetConfig, load_target_config
from torch_specexit.draft import Draft
from torch_specexit.engine import has_v1_runner, start_engine
from torch_specexit.features import TargetFeatures

NEW_TOKENS = 64
TRACES = 4
"""Tokens that are written for a trace, and of how many traces: an engine on a CPU may be slow."""


class Run(NamedTuple):
    """What an engine did for one prompt."""

    text: list[int]
    prompt: int
    logits: Float[np.ndarray, "passes vocab"]
    """Of every draft pass in order, as many for each engine step as it drafts tokens; over the target's vocabulary."""
    signals: Float[np.ndarray, "_n signals"]
    """Raw, one row for each engine step."""


def watch(worker: Any) -> None:
    """Have the draft of a worker note what it computes. Runs in the worker, with either model runner."""
    runner = worker.model_runner
    model = (runner.drafter if hasattr(runner, "drafter") else runner.speculator).model  # V1's, or V2's
    seen = runner.specexit_seen = {"logits": [], "signals": []}
    source = model.block.source if hasattr(model, "block") else None
    compute = model.compute_logits

    def compute_logits(hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits = compute(hidden_states)
        seen["logits"].append(logits[0].float().cpu().numpy())
        return logits

    model.compute_logits = compute_logits
    if source == "draft":
        leave = model.leave_signals

        def leave_signals(hidden_states: torch.Tensor) -> None:
            leave(hidden_states)
            seen["signals"].append(model.signals[0, 0].float().cpu().numpy().copy())  # a buffer

        model.leave_signals = leave_signals
    if source == "fc":
        read = model.signals_of_target

        def signals_of_target(aux: Sequence[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
            signals = read(aux, rows)
            if len(rows):
                seen["signals"].append(signals[0].float().cpu().numpy())
            return signals

        model.signals_of_target = signals_of_target


def collect(worker: Any) -> dict[str, list[np.ndarray]]:
    """Take what the draft has noted since the last call: ``logits`` and ``signals``. Runs in the worker."""
    seen = worker.model_runner.specexit_seen
    taken = {name: list(values) for name, values in seen.items()}
    for values in seen.values():
        values.clear()
    return taken


def run_engine(arguments: argparse.Namespace, target: TargetConfig, source: str | None) -> tuple[str, str, list[Run]]:
    """Start an engine and have it go on from the traces.

    Args:
      arguments: of the command.
      target: the model.
      source: of the draft's signals; None for a plain draft.

    Returns:
      vLLM's version, its model runner, and a run for each trace.
    """
    runner = "V1" if has_v1_runner() else "V2"
    if runner == "V1":  # which runs everywhere; where it is gone vLLM refuses to be asked for it
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    longest = min(target.max_model_len, read_config(arguments.draft).max_position_embeddings)
    length = min(longest, arguments.tokens + NEW_TOKENS)
    extra = {"max_model_len": length, "max_num_batched_tokens": length, "max_num_seqs": 1, "enforce_eager": True}
    extra |= {"enable_prefix_caching": False}
    llm = start_engine(target, EngineConfig(extra=extra), draft=arguments.draft, num_speculative_tokens=arguments.steps)
    from vllm import SamplingParams, TokensPrompt, __version__

    llm.collective_rpc(watch)
    # With exits, acceptance stops at a drafted split token; without, the signals are read all the same.
    extra_args = None if source is None else {"specexit": False}
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, extra_args=extra_args)
    runs = []
    for trace in islice(judged_traces(arguments), TRACES):
        prompt = [*trace.prompt_ids, *trace.think_ids[: len(trace.think_ids) // 2]][: length - NEW_TOKENS - 1]
        (output,) = llm.generate([TokensPrompt(prompt_token_ids=prompt)], [params], use_tqdm=False)
        (seen,) = llm.collective_rpc(collect)
        text = [*prompt, *output.outputs[0].token_ids]
        signals = np.array(seen["signals"]).reshape(-1, len(NAMES))
        runs.append(Run(text, len(prompt), np.array(seen["logits"]), signals))
    return __version__, runner, runs


class Compared(NamedTuple):
    """An engine and the reference on one text."""

    apart: dict[str, list[np.ndarray]]
    """Differences of logits, as shares of a row's largest, and of signals, at every step."""
    drafts: list[bool]
    """Whether each greedy draft is the same."""
    accepted: dict[str, Bool[np.ndarray, "_steps draft_steps"]]


@torch.inference_mode()
def compare_run(run: Run, features: TargetFeatures, draft: Draft, steps: int) -> Compared:
    """Read an engine's text with the reference; no logits but those of the text's rows exist."""
    tokens, first = torch.tensor([run.text]), run.prompt - 1
    output = draft(tokens, features(tokens), steps=steps, at=torch.arange(first, len(run.text) - 1))
    reference = [logits[0].float().numpy() for logits in output.logits]
    vocabulary = draft.d2t.numpy() + np.arange(draft.config.draft_vocab_size)
    engine = run.logits[: len(run.logits) // steps * steps].reshape(-1, steps, run.logits.shape[-1])
    theirs = engine.argmax(-1)
    ours = np.stack([vocabulary[logits[: len(reference[-1])].argmax(-1)] for logits in reference], axis=1)
    accepted = by_steps(run.text, first, theirs, at_rows=False)
    found = Compared({}, [], {"vllm": accepted, "torch": by_steps(run.text[first:], 0, ours, at_rows=True)})
    row = 0
    for i, step in enumerate(accepted):
        # An engine feeds its own drafts, the reference the text: what comes behind a refused draft is not the same.
        for k in range(1 + min(int(step.sum()), steps - 1)):
            name = "logits" if k == 0 else f"logits, draft step {k}"
            found.apart.setdefault(name, []).append(logits_apart(engine[i, k][vocabulary], reference[k][row]))
            found.drafts.append(bool(theirs[i, k] == ours[row, k]))
        if output.raw_signals is not None:
            # Source fc reads the token in front of the engine's next step, so its rows are one step late.
            raw = run.signals[i + (draft.source == "fc")]
            values = signals_apart(raw, output.raw_signals[0, first + row + 1].float().numpy())
            for signal, value in zip(NAMES, values, strict=True):
                found.apart.setdefault(signal, []).append(value)
        row += 1 + int(step.sum())
    return found


def compare(arguments: argparse.Namespace, target: TargetConfig, runs: Sequence[Run]) -> dict[str, Any]:
    """Compare all runs with the reference.

    Returns:
      ``differences`` of logits and signals, by name: in float32 the largest, else the root mean square of the worst
      text; ``greedy_drafts``, how many were compared and are the same; ``acceptance`` by vLLM and by the reference.
    """
    config = read_config(arguments.draft)
    check_target(config, arguments.draft, target.hf_config(), target.name)
    dtype = getattr(torch, arguments.dtype)
    features = TargetFeatures(target, config.eagle_aux_hidden_state_layer_ids, dtype=dtype)
    draft = Draft.load(arguments.draft, features.embedding)
    found = [compare_run(run, features, draft, arguments.steps) for run in runs]
    rounded = arguments.dtype if target.dtype == "float32" else target.dtype
    worst: dict[str, float] = {}
    for one in found:
        for name, apart in one.apart.items():
            raise_to(worst, name, overall(np.stack(apart), rounded))
    drafts = [same for one in found for same in one.drafts]
    accepted = {side: np.concatenate([one.accepted[side] for one in found]) for side in ("vllm", "torch")}
    return {
        "differences": worst,
        "greedy_drafts": {"compared": len(drafts), "same": sum(drafts)},
        "acceptance": {side: acceptance(steps)._asdict() for side, steps in accepted.items()},
    }


def main() -> None:
    """Write what was found, see `specexit.drafts.verify`."""
    arguments = parse(__doc__)
    target, block = load_target_config(arguments.target), read_config(arguments.draft).specexit
    version, runner, runs = run_engine(arguments, target, block.source if block else None)
    gc.collect()
    found = {"vllm": version, "runner": runner, "dtype": target.dtype, "n": len(runs), "new_tokens": NEW_TOKENS}
    (arguments.out / ENGINE).write_text(json.dumps(found | compare(arguments, target, runs)))


if __name__ == "__main__":
    main()
