"""tiny-mixed is what the docs say it is: right, and as hard to end early as each family's name says."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest

from specexit import tiny
from specexit.data.traces import Trace, read_traces
from specexit.method.labels import exit_point
from specexit.schemas.target import load_target_config
from specexit.tiny.tasks import FAMILIES as OLD
from tests.marks import SLOW

N = 240
BIGGEST = 4_000_000


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Trace]]:
    """Greedy traces of held-out problems with all trial answers, by family, from a real engine."""
    folder = tmp_path_factory.mktemp("mixed")
    for arguments in (
        [
            "collect",
            "target=tiny-mixed",
            "split=test",
            f"n={N}",
            "boundaries=all",
            "workers=1",
            f"out={folder / 'traces'}",
        ],
        ["annotate", f"traces={folder / 'traces'}", f"out={folder / 'labelled'}"],
    ):
        subprocess.run([sys.executable, "-m", "specexit", *arguments], check=True)
    found = defaultdict(list)
    for trace in read_traces(folder / "labelled"):
        assert trace.task is not None
        found[trace.task].append(trace)
    return found


def cut(traces: list[Trace]) -> float:
    """What hindsight could cut."""
    needed = sum(exit_point(trace.boundaries, trace.boundary_agrees, len(trace.think_ids)) for trace in traces)
    return 1 - needed / sum(len(trace.think_ids) for trace in traces)


@pytest.mark.vllm
@SLOW
def test_it_solves_the_problems_that_the_docs_say_it_solves(families: dict[str, list[Trace]]) -> None:
    right = {name: np.mean([trace.correct for trace in traces]) for name, traces in families.items()}
    old = [trace.correct for name in OLD for trace in families[name]]
    assert np.mean(old) >= 0.95, right
    assert min(right.values()) >= 0.85, right
    assert min(right["lookup"], right["choice"]) >= 0.95, right


@pytest.mark.vllm
@SLOW
def test_each_family_is_as_hard_to_end_early_as_it_says(families: dict[str, list[Trace]]) -> None:
    cuts = {name: cut(traces) for name, traces in families.items()}
    assert cuts["sums"] < 0.05, cuts
    assert cuts["lookup"] > 0.5, cuts
    assert np.mean([trace.boundary_agrees[0] for trace in families["lookup"]]) >= 0.95
    # Behind its last step the first answer stands; most of the time it is not the final one.
    late = families["late"]
    corrected = [trace for trace in late if "I made a mistake" in _text(trace)]
    assert len(corrected) / len(late) > 0.5
    assert cut(corrected) < cut(families["steps"]), cuts
    assert all(trace.answer_kind == {"choice": "choice", "program": "text"}.get(name, "math")
               for name, traces in families.items() for trace in traces)  # fmt: skip


def _text(trace: Trace) -> str:
    return load_target_config("tiny-mixed").tokenizer().decode(trace.think_ids)


def test_it_is_small_and_has_the_tiny_reasoners_tokenizer() -> None:
    assert (tiny.MIXED_DIR / "model.safetensors").stat().st_size <= 2 * BIGGEST  # two bytes a parameter
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tiny.MIXED_DIR / name).read_text() == (tiny.MODEL_DIR / name).read_text()
