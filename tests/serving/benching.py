"""What the tests of `specexit bench` share: problems of the tiny reasoner, a random draft, and a small benchmark."""

import random
from pathlib import Path
from typing import Literal

import numpy as np

from specexit.data.scores import Scores, key_of, write_scores
from specexit.data.traces import Trace, write_traces
from specexit.drafts.directory import DraftConfig, SpecExitBlock, write_draft
from specexit.drafts.tensors import weights_hash
from specexit.schemas.bench import BenchConfig
from specexit.schemas.target import load_target_config
from specexit.tiny import problems, prompt_text, render_response, write_trace

TARGET = load_target_config("tiny-reasoner")
OWN = str(Path(__file__).with_name("own_method.py"))
METHODS = ("none", "eagle3", "specexit", "budget", "budget-hard", "deer", "oracle", OWN)
N, N_LATENCY, BUDGET, MAX_NEW_TOKENS = 4, 2, 30, 96


def generated_traces(n: int, split: str = "test") -> list[Trace]:
    """Traces as the generator of the training data writes them: prompts and references are what matters here."""
    tokenizer, ids, rng = TARGET.tokenizer(), TARGET.think_tokens(), random.Random(0)
    traces = []
    for i, problem in enumerate(problems(split, n)):
        written = write_trace(rng, problem)
        thinking, answer = render_response(problem, written).split("</think>")
        think_ids = tokenizer.encode(thinking)
        boundaries = [at + 1 for at, token in enumerate(think_ids) if token in ids.split]
        final = str(written.final)
        traces.append(
            Trace(
                id=f"{split}-{i}",
                prompt=problem.question,
                prompt_ids=tokenizer.encode(prompt_text(problem.question)),
                think_ids=think_ids,
                answer_ids=tokenizer.encode(answer),
                answer=final,
                reference=str(problem.answer),
                correct=written.final == problem.answer,
                finish_reason="stop",
                boundaries=boundaries,
                boundary_answers=[None, *[final] * (len(boundaries) - 1)],
                boundary_agrees=[False, *[True] * (len(boundaries) - 1)],
                boundary_confidence=[0.5] * len(boundaries),
                target=TARGET.name,
                sampling="{}",
                seed=0,
            )
        )
    return traces


def write_random_draft(
    folder: Path, *, hidden: int = 192, source: Literal["draft", "fc"] = "draft", seed: int = 0
) -> None:
    """A draft of the right shape with random weights: it guesses badly and its signals mean nothing."""
    config = DraftConfig(
        hidden_size=hidden,
        target_hidden_size=hidden,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=TARGET.hf_config()["vocab_size"],
        draft_vocab_size=512,
        eagle_aux_hidden_state_layer_ids=TARGET.aux_layers,
        num_aux_hidden_states=len(TARGET.aux_layers),
        target_num_hidden_layers=TARGET.hf_config()["num_hidden_layers"],
        specexit=SpecExitBlock(target=TARGET.name, source=source),
    )
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray]
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in config.tensor_shapes().items()}
    tensors |= {name: np.ones(tensors[name].shape, np.float32) for name in tensors if "norm" in name}
    tensors["d2t"] = np.zeros(512, np.int64)
    tensors["t2d"] = np.arange(config.vocab_size) < 512
    write_draft(folder, config, tensors)


def write_inputs(folder: Path) -> Path:
    """Problems, those that methods are tuned on, a draft and its scores, as `config` names them."""
    traces, rng = generated_traces(N), np.random.default_rng(0)
    write_traces(folder / "traces.parquet", traces)
    write_traces(folder / "calibration.parquet", generated_traces(N, "calibration"))
    write_random_draft(folder / "draft")
    signals = {key_of(trace): rng.random((trace.n_think, 4), np.float32) for trace in traces}
    write_scores(folder / "scores.parquet", Scores("draft", weights_hash(folder / "draft"), signals))
    return folder


def config(inputs: Path, **changes: object) -> BenchConfig:
    return BenchConfig.model_validate(
        {
            "target": TARGET.name,
            "draft": inputs / "draft",
            "traces": inputs / "traces.parquet",
            "scores": inputs / "scores.parquet",
            "out": inputs / "out",
            "n": N,
            "n_latency": N_LATENCY,
            "batches": (3, 4),
            "methods": METHODS,
            # Those few tokens are not enough for most responses.
            "max_unfinished": 1.0,
            "budget": BUDGET,
            "calibration_traces": inputs / "calibration.parquet",
            "rounds": 2,
            "max_new_tokens": MAX_NEW_TOKENS,
            # These traces say none.
            "sampling": {"temperature": 0.0},
        }
        | changes
    )


def small(inputs: Path, tmp_path: Path, **changes: object) -> BenchConfig:
    """A benchmark that needs no plug-in, on a draft that may be changed."""
    draft = tmp_path / "draft"
    if not draft.exists():
        write_random_draft(draft)
    return config(inputs, draft=draft, methods=("none", "eagle3"), out=tmp_path / "out", **changes)
